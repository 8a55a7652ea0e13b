"""Flower's own engine, started by ``flwr run`` as a reader of the documents would start it, and stopped again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # crash_worker

FOLDER = Path(__file__).resolve().parents[2] / "simulation" / "flower"
PATIENCE = 240.0
"""Seconds after which a run counts as hanging; a run takes about 30 s of two idle cores."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How ``flwr run`` ended."""

    code: int
    """Exit code of the command line: 0 even if the app failed."""
    status: str
    """What ``flwr list`` says of the run; empty if there is none."""
    details: str
    log: str


class FlowerEngine:
    """``flwr`` with a home, ports and processes of its own, on the loopback device only."""

    def __init__(self, home: Path, ray: Path) -> None:
        self._home = home
        scripts = os.pathsep.join([str(Path(sys.executable).parent), sysconfig.get_path("scripts")])
        http, control = _free_ports(2)
        self._environment = os.environ | {
            "FLWR_HOME": str(home),
            "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(http),
            "FLWR_LOCAL_CONTROL_API_PORT": str(control),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # the loopback device, on every system
            "RAY_TMPDIR": str(ray),
            "UV_OFFLINE": "1",  # nothing is to be installed for a run
            "OMP_NUM_THREADS": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "PATH": os.pathsep.join([scripts, os.environ.get("PATH", "")]),
        }

    def run(
        self, run_config: Mapping[str, Any], *, nodes: int, processes: int = 1, patience: float = PATIENCE
    ) -> Ended:
        """``flwr run`` of the app folder, to its end, with ``nodes`` nodes in ``processes`` processes.

        Raises:
            subprocess.TimeoutExpired: it hangs.
        """
        file = self._home / "run-config.toml"
        file.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in run_config.items()))
        federation = f"num-supernodes={nodes} init-args-num-cpus={processes} client-resources-num-cpus=1"
        done = self._flwr(
            "run",
            str(FOLDER),
            "--stream",
            "--run-config",
            str(file),
            "--federation-config",
            f"{federation} client-resources-num-gpus=0",
            timeout=patience,
        )
        log = done.stdout + done.stderr
        if "Successfully started run " not in log:
            return Ended(code=done.returncode, status="", details="", log=log)
        number = log.split("Successfully started run ")[1].split()[0]
        status, details = self._status(number)
        return Ended(code=done.returncode, status=status, details=details, log=log)

    def _status(self, number: str) -> tuple[str, str]:
        """The log ends a moment before the run does."""
        end = time.monotonic() + 30
        while True:
            listed = self._flwr("list", "--run-id", number, "--format", "json", timeout=60)
            run = json.loads(listed.stdout)["runs"][0]
            if run["status"].startswith("finished") or time.monotonic() > end:
                return run["status"], run["status-details"]
            time.sleep(0.5)

    def _flwr(self, *arguments: str, timeout: float) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["flwr", *arguments],
            env=self._environment,
            cwd=self._home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def processes(self) -> dict[int, str]:
        """Id -> command of every process that was started for this engine, told by its home and by descent."""
        found: dict[int, str] = {}
        parents: dict[int, int] = {}
        commands: dict[int, str] = {}
        marker = f"FLWR_HOME={self._home}".encode()
        for process in Path("/proc").glob("[0-9]*"):
            number = int(process.name)
            try:
                state, parent = (process / "stat").read_text().rpartition(")")[2].split()[:2]
                environment = (process / "environ").read_bytes().split(b"\0")
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            except OSError:
                continue
            if state == "Z" or number == os.getpid():
                continue
            parents[number], commands[number] = int(parent), command
            if marker in environment:
                found[number] = command
        while new := {one for one, parent in parents.items() if parent in found and one not in found}:
            found |= {one: commands[one] for one in new}
        return found

    def settle(self, seconds: float = 20.0) -> list[str]:
        """Commands that still run when a run is over, SuperLink and SuperExec aside."""
        end = time.monotonic() + seconds
        while True:
            own = ("flower-superlink", "flower-superexec")
            left = [command for command in self.processes().values() if not any(name in command for name in own)]
            if not left or time.monotonic() > end:
                return left
            time.sleep(0.5)

    def stop(self) -> list[str]:
        """End everything; returns the commands that had to be killed."""
        _signal(self.processes(), signal.SIGTERM)
        end = time.monotonic() + 20
        while (left := self.processes()) and time.monotonic() < end:
            time.sleep(0.2)
        while rest := self.processes():
            _signal(rest, signal.SIGKILL)
            time.sleep(0.2)
        return list(left.values())


def _signal(processes: Mapping[int, str], number: signal.Signals) -> None:
    for process in processes:
        try:
            os.kill(process, number)
        except ProcessLookupError:
            continue


def _free_ports(count: int) -> list[int]:
    """Ports that are free now, all different."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def flower(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlowerEngine]:
    """Flower's simulation engine; whatever happens, nothing of it outlives the tests."""
    if not Path("/proc/self/environ").exists():
        pytest.skip("needs /proc to find what Flower starts in the background")
    ray = tempfile.mkdtemp(prefix="ray-")  # short: Ray puts sockets there, whose paths are limited
    engine = FlowerEngine(tmp_path_factory.mktemp("flower"), Path(ray))
    try:
        yield engine
    finally:
        killed = engine.stop()
        shutil.rmtree(ray, ignore_errors=True)
    assert killed == []
