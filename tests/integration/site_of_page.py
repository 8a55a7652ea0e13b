"""A federation as docs/deploy.md sets it up: its commands in a directory of their own, its services as processes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from deploy_page import Command, File, sections
from flower_processes import SUPERLINK, Deployment, Ended, free_ports

PORTS = ("8443", "9094", "9095", "9096")
"""Those of the page; each is replaced by a free one."""
PATIENCE = 540.0
"""Seconds after which anything counts as hanging: machines that run tests are busy."""
QUICKER = {"fedrec simulate": " --quiet --set evaluation.baselines=false --set evaluation.resamples=100"}
"""What is added to a command so that it takes less time."""


class Site(Deployment):
    """Where the page is followed; ``directory`` is where its reader works."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.directory = home / "site"
        self.directory.mkdir()
        self._ports = dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True))
        self._lines: dict[str, str] = {}
        self.in_memory = False
        """Whether the SuperLink goes without its database, which many nodes on a slow disk lock for too long."""

    def follow(self, heading: str) -> str:
        """Do what a section says; returns what its commands printed."""
        printed = ""
        for step in sections()[heading]:
            if isinstance(step, File):
                self._save(step)
            elif step.stays:
                self.serve(_name(step), step.line)
            else:
                printed += self.do(step)
        return printed

    def do(self, step: Command | str) -> str:
        """Run a command to its end; returns what it printed on either stream.

        Raises:
            RuntimeError: it failed.
        """
        line = self._here(step.line if isinstance(step, Command) else step)
        line += "".join(more for start, more in QUICKER.items() if line.startswith(start))
        done = subprocess.run(
            ["bash", "-c", line],
            env=self._environment,
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"expected {line!r} to succeed, got {done.returncode}: {done.stdout}")
        return done.stdout

    def serve(self, name: str, line: str | None = None, *, awaited: bool = True) -> None:
        """Start a service, again with the command it had before unless there is one, and wait for it."""
        self._lines[name] = line or self._lines[name]
        home = self._home / name
        home.mkdir(exist_ok=True)
        with (self._home / f"{name}.log").open("ab") as log:
            start = log.tell()
            self._started[name] = subprocess.Popen(
                ["bash", "-c", f"exec {self._here(self._lines[name])}"],
                env=self._environment | {"FLWR_HOME": str(home)},
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        if awaited:
            sign = "Uvicorn running" if name == "superlink" else "SuperNode ID: "
            self.until(lambda: sign in self.log(name)[start:], f"{name} to be there")

    def bring_back(self, name: str) -> None:
        """Start a SuperNode until it stays: the SuperLink refuses it until the heartbeat of the dead one has lapsed."""
        start = len(self.log(name))
        end = time.monotonic() + PATIENCE
        while "SuperNode ID: " not in self.log(name)[start:]:
            if self._started[name].poll() is not None:
                if time.monotonic() > end:
                    raise RuntimeError(f"expected {name} to come back, got: {self.log(name)[start:]}")
                time.sleep(2.0)
                self.serve(name, awaited=False)
            time.sleep(0.2)

    def supernode(self, number: int, port: int, *, key: int | None = None, ca: str = "ca.crt", **config: str) -> None:
        """Start a SuperNode that the page does not have; it is not waited for."""
        told = {"device": str(self.directory / f"device-{number}.sqlite"), **config}
        node_config = " ".join(f"{name}={json.dumps(value)}" for name, value in told.items())
        self.serve(
            f"supernode-{number}",
            f"flower-supernode --superlink 127.0.0.1:8443 --root-certificates {ca} --auth-supernode-private-key "
            f"device-{key or number}.key --host 127.0.0.1 --port {port} --node-config '{node_config}'",
            awaited=False,
        )

    def ended(self, name: str) -> int:
        """Exit code of a service that ends by itself."""
        return self._started[name].wait(timeout=PATIENCE)

    def crash(self, name: str) -> None:
        """SIGKILL: of the SuperLink the process alone, of a SuperNode all that runs on its machine."""
        victims = [self._started[name].pid] if name == "superlink" else self._on(name)
        for process in victims:
            os.kill(process, signal.SIGKILL)
        self._started[name].wait(timeout=60)

    def run(self, folder: str, run_config: str = "", *, patience: float = PATIENCE) -> Ended:
        """``flwr run`` to its end."""
        more = ["--run-config", run_config] if run_config else []
        return self._followed(["run", str(self.directory / folder), "mine", "--stream", *more], patience)

    def begin(self, folder: str, run_config: str = "") -> str:
        """``flwr run`` and leave it; returns Flower's id of the run."""
        more = ["--run-config", run_config] if run_config else []
        done = self._flwr("run", str(self.directory / folder), "mine", *more, timeout=PATIENCE)
        return (done.stdout + done.stderr).split("Successfully started run ")[1].split()[0]

    def status(self, number: str) -> str:
        """What Flower says of a run now."""
        listed = json.loads(self._flwr("list", "--run-id", number, "--format", "json", timeout=PATIENCE).stdout)
        return str(listed["runs"][0]["status"])

    def node_ids(self, name: str) -> set[str]:
        """The ids that the SuperLink gave a SuperNode."""
        return set(re.findall(r"SuperNode ID: (\d+)", self.log(name)))

    def until(self, there: Callable[[], bool], wanted: str) -> None:
        """Wait for something.

        Raises:
            RuntimeError: it did not happen in time.
        """
        end = time.monotonic() + PATIENCE
        while not there():
            if time.monotonic() > end:
                logs = "\n".join(f"{name}:\n{self.log(name)[-3000:]}" for name in self._started)
                raise RuntimeError(f"expected {wanted} in time; {logs}")
            time.sleep(0.2)

    def online(self) -> int:
        """How many SuperNodes the SuperLink can reach."""
        return self._online()

    def rows(self, run: str = "run") -> list[dict[str, Any]]:
        """The rows of a run's metrics."""
        path = self.directory / run / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def take_over(self, names: Iterable[str], source: Path) -> None:
        """Copy files of another site."""
        for name in names:
            shutil.copy(source / name, self.directory / name)

    def _save(self, file: File) -> None:
        at_home = file.name.startswith("$FLWR_HOME/")
        path = self._home / file.name.removeprefix("$FLWR_HOME/") if at_home else self.directory / file.name
        path.write_text(self._here(file.text).replace("$PWD", str(self.directory)))

    def _here(self, text: str) -> str:
        for port, free in self._ports.items():
            text = re.sub(rf"\b{port}\b", free, text)
        return text.replace("--database superlink.db", "") if self.in_memory else text

    def _on(self, name: str) -> list[int]:
        """Processes with the home of a service."""
        marker = f"FLWR_HOME={self._home / name}\0".encode()
        found = []
        for process in self.processes():
            try:
                if marker in Path(f"/proc/{process}/environ").read_bytes():
                    found.append(process)
            except OSError:
                continue
        return found


def _name(step: Command) -> str:
    """``superlink`` or ``supernode-N``, by the device's key."""
    if step.line.startswith(SUPERLINK):
        return "superlink"
    return "supernode-" + step.line.split("device-")[1].split(".")[0]
