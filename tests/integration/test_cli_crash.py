"""A run of the command line that is killed or interrupted, and resumed, ends with the bits of one that never was.

Compared are all parameters (those of devices included), the content of every ledger, the rows of ``metrics.jsonl`` and
the summary (seconds aside), and that nothing is left lying about.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import killed_commands
import pytest
from fedrec.privacy.ledger import Ledger

pytestmark = pytest.mark.integration

WORKER = Path(__file__).with_name("killed_commands.py")
PATIENCE = 120.0  # seconds until a process that is waited for counts as hanging


def without_seconds(text: str) -> dict[str, Any]:
    return {key: value for key, value in json.loads(text).items() if key != "seconds"}


def outcome(run: Path) -> dict[str, Any]:
    """All that two equal runs share, by file."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in run.rglob("*") if path.is_file()):
        name = str(path.relative_to(run))
        if path.suffix == ".sqlite":
            with Ledger.open(path) as ledger:
                found[name] = ledger.export()
        elif path.name == "metrics.jsonl":
            found[name] = [without_seconds(line) for line in path.read_text().splitlines()]
        elif path.name == "summary.json":
            found[name] = without_seconds(path.read_text())
        elif path.suffix not in (".sqlite-wal", ".sqlite-shm"):  # where SQLite keeps what is not in its file yet
            is_told_when = path.name in ("run.lock", "report.html")
            found[name] = None if is_told_when else sha256(path.read_bytes()).hexdigest()
    return found


@pytest.fixture(scope="module")
def lives(tmp_path_factory) -> tuple[Path, dict[str, list[int]]]:
    """Directory and exit codes of the worker's runs: ``plain``, and one for each chain."""
    root = tmp_path_factory.mktemp("lives")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(WORKER), str(root)],
        capture_output=True,
        text=True,
        env=os.environ | {"FEDREC_CACHE": str(root / "cache")},
        check=False,
        timeout=5 * PATIENCE,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return root, json.loads(done.stdout.splitlines()[-1])


def test_the_run_that_never_stopped_is_whole(lives):
    root, codes = lives
    assert codes["plain"] == [0]
    found = outcome(root / "plain")
    assert [row["round"] for row in found["metrics.jsonl"]] == [1, 2, 3, 4]
    assert {"report.html", "summary.json", "joint/metrics.jsonl", "ledger.sqlite"} <= found.keys()
    assert found["nodes/node-0-of-1/devices.sqlite"]["accounts"]
    assert "cold_start" in found["summary.json"]


@pytest.mark.parametrize("chain", killed_commands.CHAINS)
def test_killed_at_every_moment_of_a_chain_and_resumed_it_ends_with_the_same_bits(lives, chain):
    root, codes = lives
    log = (root / chain).with_suffix(".log").read_text()
    assert codes[chain] == [-signal.SIGKILL] * len(killed_commands.CHAINS[chain]) + [0], log
    assert outcome(root / chain) == outcome(root / "plain")


class Life:
    """The real command in a process of its own."""

    def __init__(self, arguments: list[str], cache: Path) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "fedrec.cli", *arguments]
        environment = os.environ | {"FEDREC_CACHE": str(cache)}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)

    def end_when(self, is_time: Callable[[], bool], number: int) -> tuple[int, str]:
        """Send a signal as soon as ``is_time``; exit code and error stream."""
        end = time.monotonic() + PATIENCE
        while not is_time() and self.process.poll() is None and time.monotonic() < end:
            time.sleep(0.001)
        self.process.send_signal(number)
        return self.end()

    def end(self) -> tuple[int, str]:
        _, errors = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, errors.decode()


def rows_in(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_a_real_process_that_is_interrupted_then_killed_goes_on_and_ends_with_the_same_bits(lives, tmp_path):
    root, _ = lives
    run = tmp_path / "run"
    first = Life(killed_commands.arguments(run), tmp_path)
    code, said = first.end_when(lambda: rows_in(run / "metrics.jsonl") >= 1, signal.SIGINT)
    assert code == 130
    assert f"resume with: fedrec simulate --resume {run}" in said
    assert "Traceback" not in said
    second = Life(killed_commands.going_on(run), tmp_path)
    code, _ = second.end_when(lambda: rows_in(run / "joint" / "metrics.jsonl") >= 2, signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert not (run / "summary.json").exists()
    code, said = Life(killed_commands.going_on(run), tmp_path).end()
    assert code == 0, said
    assert outcome(run) == outcome(root / "plain")
