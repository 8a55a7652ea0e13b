"""What do the ledgers of a million devices take, in a simulation?

    python benchmarks/ledger.py

One ledger file with an account for each device, as a cohort node keeps it. Every round draws devices by Poisson
sampling, debits them durably, settles, and is told who could pay; then the file is closed, opened and verified anew,
and every device's remaining budget is asked for. Each case is a process of its own; "memory" is the peak of the process
less what it had before the ledger was made, "file" is the database with its log and its witness.

Results go to benchmarks/results/ledger.md, with the machine they were measured on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from fedrec.privacy.accounting import Charge
from fedrec.privacy.ledger import Ledger

RESULTS = Path(__file__).parent / "results" / "ledger.md"
CASES = ((1.0, 10), (0.5, 20), (0.1, 100), (0.01, 1000))
"""(participation, rounds): ten participations a device and life in each."""
CHARGE = Charge(5.0, 0.25, 8)
LIMIT_MB = 100.0


def measure(devices: int, participation: float, rounds: int) -> dict[str, Any]:
    """One case in this process."""
    random = np.random.default_rng(0)
    drawn = np.flatnonzero(random.random(devices) < participation)
    before = _peak()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "devices.sqlite"
        seconds = []
        with Ledger.create(path, unit="interaction", delta=1e-6, budget_epsilon=8.0) as ledger:
            for number in range(rounds):
                started = time.perf_counter()
                outcome = ledger.reserve_numbered("device", drawn, CHARGE, key=f"round:{number}", replay=True)
                ledger.settle(f"round:{number}")
                seconds.append(time.perf_counter() - started)
                if len(outcome.accepted) + len(outcome.refused) != len(drawn):
                    raise RuntimeError("a device got no answer")
                drawn = np.flatnonzero(random.random(devices) < participation)
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
        started = time.perf_counter()
        with Ledger.open(path) as ledger:
            opened = time.perf_counter()
            standings = ledger.standings()
            told = time.perf_counter()
    return {
        "participation": participation,
        "rounds": rounds,
        "histories": len(standings),
        "file_mb": size / 1e6,
        "memory_mb": (_peak() - before) / 1e6,
        "round_ms": 1000 * float(np.median(seconds)),
        "slowest_ms": 1000 * max(seconds),
        "open_s": opened - started,
        "remaining_ms": 1000 * (told - opened),
    }


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def table(rows: list[dict[str, Any]], devices: int) -> str:
    """The results as a document."""
    head = (
        "participation", "rounds", "file, MB", "memory, MB", "a round, ms (median)", "slowest round, ms",
        "open and verify, s", "remaining budgets of all, ms", "distinct histories",
    )  # fmt: skip
    keys = ("file_mb", "memory_mb", "round_ms", "slowest_ms", "open_s", "remaining_ms")
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for row in rows:
        cells = [f"{row['participation']:g}", f"{row['rounds']:,}", *(f"{row[key]:.2f}" for key in keys)]
        lines.append(f"| {' | '.join([*cells, str(row['histories'])])} |")
    machine = f"cores {os.cpu_count()}, {platform.system()} {platform.machine()}, python {platform.python_version()}"
    worst = max(max(row["file_mb"], row["memory_mb"]) for row in rows)
    return (
        f"# The ledgers of {devices:,} devices\n\n`python benchmarks/ledger.py`; {machine}, SQLite "
        f"{sqlite3.sqlite_version}, write-ahead journal, synchronous = FULL.\n\n" + "\n".join(lines) + "\n\n"
        f"Largest of all files and memories: {worst:.1f} MB (to reach: under {LIMIT_MB:.0f} MB). Every device takes "
        "part ten times in the mean. In the slowest round new histories appear and their epsilons are worked out.\n"
    )


def main() -> None:
    """Measure every case in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.case:
        print(json.dumps(measure(asked.devices, *asked.case)))
        return
    rows = []
    for case in CASES:
        command = [sys.executable, __file__, "--devices", str(asked.devices), "--case", json.dumps(case)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1])
    asked.out.write_text(table(rows, asked.devices), encoding="utf-8")


if __name__ == "__main__":
    main()
