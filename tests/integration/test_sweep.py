"""A small sweep for real: killed, interrupted, resumed, failing; its tables are those of its runs."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from fedrec.cli import invoke
from fedrec.errors import RunError
from fedrec.server.lock import RunLock
from fedrec.simulation.run import Run, simulate
from fedrec.simulation.summary import DP_POPULARITY, POPULARITY, SERVED
from fedrec.simulation.sweep import load_spec, run_sweep
from fedrec.simulation.sweep.pool import ATTEMPTS, run_tasks

pytestmark = [pytest.mark.slow, pytest.mark.integration]

ROUNDS = 60
SPEC = f"""
name = "small"
[axes]
privacy.epsilon = [8.0, 2.0]
seed = [0, 1]
[base]
data = {{ name = "synthetic", devices = 60, items = 80, interactions = 12, holdout = 0.3 }}
policy.dim = 4
local = {{ steps = 1, windows = 3 }}
server.rounds = {ROUNDS}
evaluation = {{ every = 10, resamples = 100, cold_start = [0, 2], serve_steps = 2, baselines = false, negatives = 10 }}
[ceiling]
server.rounds = 10
"""
PARENT = "import sys; sys.path[:] = sys.argv[1].split(':'); from fedrec.cli import main; sys.argv[1:2] = []; main()"
ROUND = re.compile(r"round-0*(\d+)$")


def started(spec: Path, out: Path) -> subprocess.Popen[str]:
    """The command line in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-c", PARENT, ":".join(filter(None, sys.path)), "sweep", str(spec)]
    return subprocess.Popen([*command, "--out", str(out), "--workers", "2"], stderr=subprocess.PIPE, text=True)


def children(pid: int) -> list[int]:
    """Processes whose parent is ``pid``."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(entry.parent.name))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(true, what, seconds=60.0):
    """Wait until ``true()``."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.01)


def halfway(out: Path) -> list[Path]:
    """Cells with a checkpoint in the middle."""
    rounds = {}
    for path in out.glob("cells/*/checkpoints/round-*"):
        cell = path.parents[1]
        rounds[cell] = max(rounds.get(cell, 0), int(ROUND.search(path.name)[1]))
    return [cell for cell, last in rounds.items() if 10 <= last < ROUNDS and not (cell / "summary.json").exists()]


def marks(out: Path) -> dict[str, tuple[int, int, bytes]]:
    """What every finished cell wrote last: inode, time and content of its files."""
    names = ("cell.json", "summary.json", "values.npz", "metrics.jsonl")
    files = [done.parent / name for done in out.glob("cells/*/cell.json") for name in names]
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) for path in files}


class Follower:
    """Keeps the events, and may kill a worker at one of them."""

    def __init__(self, kill_at: int | None = None) -> None:
        self.events, self.before, self.cells = [], [], ()
        self._kill_at, self._pids = kill_at, {}

    def stage(self, text):
        """Not kept."""

    def wait(self):
        """Not kept."""

    def planned(self, cells, finished, workers):
        self.cells, self.before, self.workers = cells, list(finished), workers

    def event(self, number, event):
        self.events.append((number, dict(event)))
        if event["kind"] == "taken":
            self._pids[number] = event["pid"]
        if event["kind"] == "round" and self._kill_at is not None and event["round"] >= self._kill_at:
            self._kill_at = None
            os.kill(self._pids[number], signal.SIGKILL)

    def numbers(self, kind):
        return [number for number, event in self.events if event["kind"] == kind]


@pytest.fixture(scope="module")
def lives(tmp_path_factory):
    """One sweep with three ends before its own: kill -9, Ctrl-C, and kill -9 of one of its workers."""
    root = tmp_path_factory.mktemp("sweep")
    spec, out, found = root / "small.toml", root / "out", {}
    spec.write_text(SPEC)
    parent = started(spec, out)
    until(lambda: halfway(out), "a cell in the middle")
    workers = children(parent.pid)
    parent.kill()
    parent.communicate()
    until(lambda: not any(alive(pid) for pid in workers), "the workers' end", 15)
    found["workers"], found["cut"] = workers, halfway(out)
    parent = started(spec, out)
    until(lambda: marks(out) and halfway(out), "a finished cell and one in the middle")
    workers = children(parent.pid)
    parent.send_signal(signal.SIGINT)
    found["interrupted"] = (
        parent.communicate(timeout=30)[1],
        parent.returncode,
        [pid for pid in workers if alive(pid)],
    )
    found["marks"], found["halfway"] = marks(out), {cell.name for cell in halfway(out)}
    found["follower"] = Follower(kill_at=ROUNDS // 2)
    found["sweep"] = run_sweep(load_spec(spec), out, workers=2, listener=found["follower"])
    return {**found, "spec": spec, "out": out, "root": root}


def test_workers_end_with_the_sweep_whatever_ends_it(lives):
    assert len(lives["workers"]) == 2
    assert lives["cut"]  # at once, and not after their cells
    said, code, left = lives["interrupted"]
    assert (code, left) == (130, [])
    assert "every finished cell and round is safe; go on with the same command" in said


def test_finished_cells_are_never_run_again(lives):
    assert lives["marks"]
    now = marks(lives["out"])
    assert {path: now[path] for path in lives["marks"]} == lives["marks"]
    follower = lives["follower"]
    assert len(follower.before) == len(lives["marks"]) // 4
    assert not set(follower.before) & set(follower.numbers("taken"))
    assert lives["sweep"].ran == len(follower.cells) - len(follower.before)


def test_a_cell_in_the_middle_goes_on_where_it_stood(lives):
    follower = lives["follower"]
    first = {}
    for number, event in follower.events:
        if event["kind"] == "round":
            first.setdefault(number, event["round"])
    names = {one.cell.label: one.record.directory.name for one in lives["sweep"].finished}
    resumed = [number for number in first if names[follower.cells[number].label] in lives["halfway"]]
    assert resumed
    assert all(first[number] > 10 for number in resumed)


def test_a_killed_worker_costs_its_cell_nothing_but_time(lives):
    follower = lives["follower"]
    (lost,) = follower.numbers("lost")
    assert follower.numbers("done").count(lost) == 1
    rounds = [event["round"] for number, event in follower.events if number == lost and event["kind"] == "round"]
    assert rounds[-1] == ROUNDS
    killed = next(place for place, number in enumerate(rounds) if number >= ROUNDS // 2)
    # From the last checkpoint, not from round 1; a worker that had written its last one before it died has none left.
    assert all(number > rounds[killed] - 10 for number in rounds[killed + 1 :])
    (there,) = [one for one in lives["sweep"].finished if one.cell == follower.cells[lost]]
    plain = simulate(there.cell.config, out=lives["root"] / "plain").summary
    for section in ("results", "chosen_round", "privacy", "cold_start"):
        assert there.record.summary[section] == plain[section]


def test_called_again_it_does_nothing_and_says_the_same(lives):
    before, follower = marks(lives["out"]), Follower()
    again = run_sweep(load_spec(lives["spec"]), lives["out"], listener=follower)
    assert (again.ran, follower.events, marks(lives["out"])) == (0, [], before)
    assert [group.levels for group in again.groups] == [group.levels for group in lives["sweep"].groups]


def test_the_command_line_prints_json_or_the_path_of_the_report(lives, command_line, capsys):
    arguments = ["sweep", str(lives["spec"]), "--out", str(lives["out"])]
    assert invoke([*arguments, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown.pop("directory") == str(lives["out"])
    assert shown == json.loads((lives["out"] / "sweep.json").read_text())
    assert (shown["ran"], len(shown["cells"]), {cell["error"] for cell in shown["cells"]}) == (0, 6, {None})
    assert {row["label"] for row in shown["summary"]} == {SERVED, DP_POPULARITY, POPULARITY, "no privacy"}
    assert invoke([*arguments, "--quiet"]) == 0
    assert capsys.readouterr().out == f"{lives['out'] / 'report.html'}\n"


def test_a_cell_of_other_data_or_damaged_is_not_taken_for_finished(lives):
    from fedrec.simulation.sweep.judge import read_record

    one = lives["sweep"].finished[0]
    there = one.record.directory
    assert read_record(there, one.cell.config, one.record.data) is not None
    assert read_record(there, one.cell.config, "0" * 64) is None
    assert read_record(there, one.cell.config.updated(seed=7), one.record.data) is None
    assert read_record(there.parent / "nothing", one.cell.config, one.record.data) is None


def test_the_tidy_table_is_what_the_runs_say(lives):
    with (lives["out"] / "cells.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(pl.read_parquet(lives["out"] / "cells.parquet"))
    keys = [(row["directory"], row["label"], row["protocol"], row["metric"]) for row in rows]
    assert len(set(keys)) == len(keys)
    table = dict(zip(keys, rows, strict=True))
    for one in lives["sweep"].finished:
        run = Run.open(one.record.directory)
        for label, result in run.summary["results"].items():
            for protocol in ("full", "sampled"):
                for metric, value in result[protocol]["metrics"].items():
                    row = table[run.directory.name, label, result[protocol]["protocol"], metric]
                    assert {end: float(row[end]) for end in value} == value
        row = table[run.directory.name, SERVED, run.summary["results"][SERVED]["full"]["protocol"], "ndcg@10"]
        if one.cell.kind == "ceiling":
            assert (row["unit"], row["epsilon"], row["delta"]) == ("none", "inf", "")
            continue
        (statement,) = run.summary["privacy"]
        asked = float(row["privacy.epsilon"])
        spent = json.loads((run.directory / "metrics.jsonl").read_text().splitlines()[-1])["epsilon"]["user"]
        assert asked * 0.99 < float(row["epsilon"]) == spent <= asked
        told = [row[key] for key in ("unit", "neighbours", "accountant", "sampler")]
        assert told == [statement[key] for key in ("unit", "neighbours", "accountant", "sampler")]
        assert float(row["noise_multiplier"]) == statement["noise_multiplier"]
        assert float(row["delta"]) == statement["delta"]


def test_device_values_and_floors_are_those_of_the_run(lives):
    """The floors that a sweep judges by itself are those that a run with baselines has."""
    one = lives["sweep"].finished[0]
    run = one.record.summary["results"][SERVED]["full"]["metrics"]["ndcg@10"]["mean"]
    values = one.record.values[SERVED]
    assert np.nanmean(values) == pytest.approx(run, abs=1e-6)
    config = one.cell.config.updated(evaluation__baselines=True, server__rounds=2)
    with_baselines = simulate(config, out=lives["root"] / "baselines").summary
    assert one.record.floors[POPULARITY]["full"] == with_baselines["results"][POPULARITY]["full"]
    assert one.record.floors[POPULARITY]["sampled"] == with_baselines["results"][POPULARITY]["sampled"]
    mine, asked = one.record.floors[DP_POPULARITY], one.cell.config.privacy.epsilon
    assert mine["statement"]["epsilon"] == pytest.approx(asked, rel=1e-2)
    assert mine["full"]["devices"] == with_baselines["results"][DP_POPULARITY]["full"]["devices"]


def test_pooled_levels_are_means_over_all_devices_and_seeds(lives):
    for group in lives["sweep"].groups:
        each = np.concatenate([one.record.values[SERVED] for one in group.cells])
        assert group.levels[SERVED]["mean"] == pytest.approx(np.nanmean(each))
        assert group.levels[SERVED]["low"] < group.levels[SERVED]["mean"] < group.levels[SERVED]["high"]
        assert group.gaps[POPULARITY]["mean"] == pytest.approx(
            group.levels[SERVED]["mean"] - group.levels[POPULARITY]["mean"]
        )


def test_the_report_says_every_epsilon_with_unit_and_delta_and_needs_nothing_else(lives):
    text = (lives["out"] / "report.html").read_text()
    for group in lives["sweep"].groups:
        assert f"epsilon {group.epsilon:.3g}, unit user, delta 1e-05" in text
    assert len(lives["sweep"].groups) == 2
    for name in ("Utility against epsilon", "Cold start by epsilon", "Accountants compared"):
        body = text.split(f"<h2>{name}")[1].split("</section>")[0]
        assert "delta = 1e-05" in body
        assert "unit user" in body
        assert "<svg" in body
    for accountant in ("RDP, upper bound", "PRV, exact without sampling", "PLD, upper bound", "GDP"):
        assert accountant in text
    assert re.findall(r"(?:href|src)=\"(?!#)[^\"]*\"|url\((?!#)[^)]*\)|<script", text) == []
    assert len(text) < 200_000


def test_two_sweeps_do_not_write_one_directory(lives):
    with RunLock(lives["out"]), pytest.raises(RunError, match=r"another process \(pid \d+\) is at work"):
        run_sweep(load_spec(lives["spec"]), lives["out"])


def test_a_failing_cell_is_told_and_the_others_go_on(command_line, tmp_path, capsys):
    failing = tmp_path / "failing.toml"
    failing.write_text(SPEC.replace("privacy.epsilon = [8.0, 2.0]\nseed = [0, 1]", 'evaluation.metric = ["mrr", "mr"]'))
    small = ["--set", "server.rounds=3", "--workers", "1", "--out", str(tmp_path / "out")]
    assert invoke(["sweep", str(failing), *small]) == 2
    said = capsys.readouterr().err
    assert "2 of 4 cells failed, the others are finished; the same command tries them again" in said
    assert "evaluation.metric=mr: expected evaluation.metric to be one of" in said
    state = json.loads((tmp_path / "out" / "sweep.json").read_text())
    told = {(cell["kind"], cell["axes"]["evaluation.metric"]): bool(cell["error"]) for cell in state["cells"]}
    assert told == {(kind, name): name == "mr" for kind in ("cell", "ceiling") for name in ("mrr", "mr")}
    assert "Cells that failed" in (tmp_path / "out" / "report.html").read_text()


def test_a_cell_whose_workers_always_die_fails(tmp_path):
    seen = []

    def on_event(number, event):
        seen.append((number, event["kind"], event.get("error", "")))
        if event["kind"] == "taken":
            os.kill(event["pid"], signal.SIGKILL)

    run_tasks([{"directory": str(tmp_path)}], workers=1, log=tmp_path / "log", on_event=on_event)
    assert [kind for _, kind, _ in seen] == ["taken", "lost"] * (ATTEMPTS - 1) + ["taken", "failed"]
    assert "got 3 that died (the last by signal SIGKILL)" in seen[-1][2]
