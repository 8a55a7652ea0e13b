"""Flower's own engines, started as a reader of the documents would start them, and stopped again."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[2] / "simulation" / "flower"
PATIENCE = 240.0
"""Seconds after which a run counts as hanging; a run takes about 30 s of two idle cores."""
SUPERLINK = "flower-superlink"
SUPERNODE = "flower-supernode"
LASTING = (SUPERLINK, SUPERNODE, "flower-superexec")
"""What goes on between runs."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How ``flwr run`` ended."""

    code: int
    """Exit code of the command line: 0 even if the app failed."""
    status: str
    """What ``flwr list`` says of the run; empty if there is none."""
    details: str
    log: str


class Flower:
    """``flwr`` with a home, ports and processes of its own, on the loopback device only."""

    def __init__(self, home: Path) -> None:
        """Keep everything below ``home``, by which its processes are told from others."""
        self._home = home
        scripts = os.pathsep.join([str(Path(sys.executable).parent), sysconfig.get_path("scripts")])
        self._environment = os.environ | {
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "UV_OFFLINE": "1",  # nothing is to be installed for a run
            "OMP_NUM_THREADS": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "PATH": os.pathsep.join([scripts, os.environ.get("PATH", "")]),
        }

    def _run(self, run_config: Mapping[str, Any], *arguments: str, patience: float) -> Ended:
        """``flwr run`` of the app folder, to its end.

        Raises:
            subprocess.TimeoutExpired: it hangs.
        """
        file = self._home / "run-config.toml"
        file.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in run_config.items()))
        return self._followed(["run", str(FOLDER), *arguments, "--stream", "--run-config", str(file)], patience)

    def _followed(self, command: Sequence[str], patience: float) -> Ended:
        """A command that starts a run and streams its log, and how the run ended."""
        done = self._flwr(*command, timeout=patience)
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
            runs = json.loads(listed.stdout).get("runs")
            if runs and (runs[0]["status"].startswith("finished") or time.monotonic() > end):
                return runs[0]["status"], runs[0]["status-details"]
            if time.monotonic() > end:
                return "", listed.stdout
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
        marker, below = f"FLWR_HOME={self._home}\0".encode(), f"FLWR_HOME={self._home}/".encode()
        for process in Path("/proc").glob("[0-9]*"):
            number = int(process.name)
            try:
                state, parent = (process / "stat").read_text().rpartition(")")[2].split()[:2]
                environment = (process / "environ").read_bytes()
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            except OSError:
                continue
            if state == "Z" or number == os.getpid():
                continue
            parents[number], commands[number] = int(parent), command
            if marker in environment or below in environment:
                found[number] = command
        while new := {one for one, parent in parents.items() if parent in found and one not in found}:
            found |= {one: commands[one] for one in new}
        return found

    def settle(self, seconds: float = 20.0) -> list[str]:
        """Commands that still run when a run is over, those aside that wait for the next."""
        end = time.monotonic() + seconds
        while True:
            left = [command for command in self.processes().values() if not any(name in command for name in LASTING)]
            if not left or time.monotonic() > end:
                return left
            time.sleep(0.5)

    def stop(self) -> list[str]:
        """End everything; returns the commands that had to be killed."""
        left = self._end("")
        while rest := self.processes():
            _signal(rest, signal.SIGKILL)
            time.sleep(0.2)
        return left

    def _end(self, name: str, seconds: float = 20.0) -> list[str]:
        """Ask the processes to end whose commands hold ``name``; returns the commands of those that did not."""

        def those() -> dict[int, str]:
            return {number: command for number, command in self.processes().items() if name in command}

        _signal(those(), signal.SIGTERM)
        end = time.monotonic() + seconds
        while (left := those()) and time.monotonic() < end:
            time.sleep(0.2)
        return list(left.values())


class Simulation(Flower):
    """Flower's simulation engine: ``flwr run`` starts it."""

    def __init__(self, home: Path, ray: Path) -> None:
        super().__init__(home)
        http, control = free_ports(2)
        self._environment |= {
            "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(http),
            "FLWR_LOCAL_CONTROL_API_PORT": str(control),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # the loopback device, on every system
            "RAY_TMPDIR": str(ray),
        }

    def run(
        self, run_config: Mapping[str, Any], *, nodes: int, processes: int = 1, patience: float = PATIENCE
    ) -> Ended:
        """``flwr run`` with ``nodes`` nodes in ``processes`` processes.

        Raises:
            subprocess.TimeoutExpired: it hangs.
        """
        federation = (
            f"num-supernodes={nodes} init-args-num-cpus={processes} client-resources-num-cpus=1 "
            "client-resources-num-gpus=0"
        )
        return self._run(run_config, "--federation-config", federation, patience=patience)


class Deployment(Flower):
    """A SuperLink and its SuperNodes, each a process with a home of its own, as if on machines of their own."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        (self._port,) = free_ports(1)
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "mine"\n\n[superlink.mine]\naddress = "127.0.0.1:{self._port}"\ninsecure = true\n'
        )

    def start(self, *node_configs: str, patience: float = 90.0) -> None:
        """The SuperLink, and a SuperNode for each ``--node-config``; returns when it knows them all.

        Raises:
            RuntimeError: one of them ended, or they are not there in time.
        """
        link = f"127.0.0.1:{self._port}"
        end = time.monotonic() + patience
        own = ["--disable-runtime-dependency-installation", "--host", "127.0.0.1", "--port", str(self._port)]
        self._begin("superlink", SUPERLINK, *own)
        self._until(self._listens, end, "a SuperLink")
        for place, (port, config) in enumerate(zip(free_ports(len(node_configs)), node_configs, strict=True)):
            own = ["--superlink", link, "--port", str(port), "--node-config", config]
            self._begin(f"supernode-{place}", SUPERNODE, *own)
        self._until(lambda: self._online() == len(node_configs), end, f"{len(node_configs)} SuperNodes")

    def run(self, run_config: Mapping[str, Any], *, patience: float = PATIENCE) -> Ended:
        """``flwr run`` on the SuperNodes.

        Raises:
            subprocess.TimeoutExpired: it hangs.
        """
        return self._run(run_config, "mine", patience=patience)

    def log(self, name: str) -> str:
        """What ``superlink`` or ``supernode-N`` and the apps under it wrote to their terminal."""
        return (self._home / f"{name}.log").read_text()

    def node_id(self, name: str) -> int:
        """The id that the SuperLink gave ``supernode-N``, as its log has it."""
        return int(self.log(name).split("SuperNode ID: ")[1].split()[0])

    def stop(self) -> list[str]:
        """First the SuperNodes, which take their leave of the SuperLink, then what is left."""
        stubborn = self._end(SUPERNODE)
        stubborn += [command for command in super().stop() if command not in stubborn]
        for process in self._started.values():
            process.wait(timeout=10)
        return stubborn

    def _begin(self, name: str, command: str, *arguments: str) -> None:
        home = self._home / name
        home.mkdir()
        with (self._home / f"{name}.log").open("wb") as log:
            self._started[name] = subprocess.Popen(
                [command, "--insecure", *arguments],
                env=self._environment | {"FLWR_HOME": str(home)},
                cwd=home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _until(self, there: Callable[[], bool], end: float, wanted: str) -> None:
        while not there():
            ended = [name for name, process in self._started.items() if process.poll() is not None]
            if ended or time.monotonic() > end:
                logs = "\n".join(f"{name}:\n{self.log(name)}" for name in self._started)
                raise RuntimeError(f"expected {wanted} in time, got {ended or 'none'} ended; {logs}")
            time.sleep(0.1)

    def _listens(self) -> bool:
        with socket.socket() as one:
            return one.connect_ex(("127.0.0.1", self._port)) == 0

    def _online(self) -> int:
        """How many SuperNodes the SuperLink can reach."""
        listed = json.loads(self._flwr("supernode", "list", "--format", "json", timeout=60).stdout)
        return sum(node["status"] == "online" for node in listed.get("nodes", []))


def _signal(processes: Mapping[int, str], number: signal.Signals) -> None:
    for process in processes:
        try:
            os.kill(process, number)
        except ProcessLookupError:
            continue


def free_ports(count: int) -> list[int]:
    """Ports that are free now, all different."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
