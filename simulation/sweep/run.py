"""A sweep from end to end: what is not finished runs in worker processes, then tables and a report are written."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..._durable import replace_file, storage_errors
from ...config import Config
from ...errors import ConfigError
from ...server.lock import RunLock
from ..data.registry import SYNTHETIC
from ..world import load_dataset
from .groups import Group, build_groups, summary_rows
from .judge import Record, read_record
from .pool import Event, run_tasks
from .report import write_report
from .spec import Cell, SweepSpec, load_spec, plan_cells
from .tables import Finished, tidy, write_table

CELLS, TABLE, SUMMARY, STATE, REPORT, LOG = (
    "cells",
    "cells.csv",
    "summary.csv",
    "sweep.json",
    "report.html",
    "workers.log",
)


class SweepListener(Protocol):
    """Follows a sweep."""

    def stage(self, text: str) -> None:
        """Something begins that is no cell."""

    def planned(self, cells: Sequence[Cell], finished: Sequence[int], workers: int) -> None:
        """What there is to do; ``finished`` are the numbers of the cells that are there already."""

    def event(self, number: int, event: Event) -> None:
        """Something happened to a cell: taken, stage, started, round, lost, done or failed."""

    def wait(self) -> None:
        """A moment passed."""


class Silent:
    """Says nothing."""

    def stage(self, text: str) -> None:
        """Something begins."""

    def planned(self, cells: Sequence[Cell], finished: Sequence[int], workers: int) -> None:
        """What there is to do."""

    def event(self, number: int, event: Event) -> None:
        """Something happened to a cell."""

    def wait(self) -> None:
        """A moment passed."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sweep:
    """What a sweep gave.

    Attributes:
        directory: holds ``cells.csv``, ``summary.csv`` (and parquet), ``report.html`` and the runs below ``cells/``.
        spec: what was asked.
        groups: the finished cells, pooled over seeds.
        finished: cells that are there.
        failed: cell -> the sentence of its error.
        ran: cells that this call ran; all others were there already.
        seconds: that this call took.
    """

    directory: Path
    spec: SweepSpec
    groups: tuple[Group, ...]
    finished: tuple[Finished, ...]
    failed: Mapping[str, str]
    ran: int
    seconds: float

    @property
    def report(self) -> Path:
        """The report."""
        return self.directory / REPORT


def run_sweep(
    spec: SweepSpec | str | Path | None = None,
    out: str | Path | None = None,
    *,
    workers: int | None = None,
    listener: SweepListener | None = None,
) -> Sweep:
    """Run the cells of a sweep that are not finished yet, and write its tables and its report.

    A cell is known by its configuration and its data; it is never run twice in one directory. Called again after an
    interruption or a crash, or with more values on an axis, a sweep goes on where it stands, each run from its last
    checkpoint.

    Args:
        spec: a sweep, the path of its TOML file, or nothing for the default sweep.
        out: directory; without one, ``runs/sweep-NAME``, the same at every call.
        workers: processes at once; none takes the number of cores.
        listener: follows the sweep.

    Raises:
        ConfigError: the sweep or one of its cells is wrong, or ``out`` holds another sweep; nothing has run.
        RunError: another process is at work in ``out``.
        KeyboardInterrupt: Ctrl-C; call it again to go on.
    """
    began, listener = time.perf_counter(), listener or Silent()
    spec = spec if isinstance(spec, SweepSpec) else load_spec(spec)
    cells = plan_cells(spec)
    crew = _workers(workers)
    directory = Path(out) if out is not None else default_directory(spec)
    with RunLock(directory):
        _check_name(directory, spec)
        with storage_errors(directory / CELLS, "nothing has run yet"):
            (directory / CELLS).mkdir(exist_ok=True)
        data = _fingerprints(cells, listener)
        places = [_place(directory, cell, found) for cell, found in zip(cells, data, strict=True)]
        records = [read_record(*known) for known in zip(places, (cell.config for cell in cells), data, strict=True)]
        there = [number for number, record in enumerate(records) if record is not None]
        todo = sorted(set(range(len(cells))) - set(there), key=lambda number: -weight(cells[number].config))
        listener.planned(cells, there, min(crew, max(1, len(todo))))
        failed = _run(cells, places, data, todo, crew, directory / LOG, listener)
        listener.stage("pooling and drawing")
        for number in todo:
            records[number] = read_record(places[number], cells[number].config, data[number])
        sweep = _sweep(directory, spec, cells, records, failed, len(todo) - len(failed), began)
        _write(sweep, cells)
    return sweep


def default_directory(spec: SweepSpec) -> Path:
    """``runs/sweep-<name>``."""
    return Path("runs") / ("sweep-" + "".join(one if one.isalnum() else "-" for one in spec.name.lower()))


def _check_name(directory: Path, spec: SweepSpec) -> None:
    """Refuse to write the tables of one sweep over those of another.

    Raises:
        ConfigError: the directory holds a sweep of another name.
    """
    try:
        name = json.loads((directory / STATE).read_text(encoding="utf-8"))["name"]
    except (OSError, ValueError, TypeError, KeyError):
        return
    if name != spec.name:
        raise ConfigError(
            f"expected a new directory or that of the sweep {spec.name!r}, got {directory} with tables of {name!r}; "
            "choose another with --out"
        )


def weight(config: Config) -> float:
    """About how long a cell takes, in no unit: long ones go first, and the time left is told by it."""
    devices = config.data.devices if config.data.name == SYNTHETIC else 1000
    judging = 5.0 + 0.2 * config.evaluation.serve_steps + 60.0 * config.evaluation.baselines
    twins = 2 if config.evaluation.baselines and config.local.steps > 1 else 1
    return devices * (twins * config.server.rounds * (1 + 0.2 * config.local.windows) * config.local.steps + judging)


def _workers(wanted: int | None) -> int:
    if wanted is not None and wanted < 1:
        raise ConfigError(f"expected one worker or more, got {wanted}; leave --workers out for one a core")
    if wanted is not None:
        return wanted
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _fingerprints(cells: Sequence[Cell], listener: SweepListener) -> list[str]:
    """The fingerprint of each cell's data, each data set read once."""
    known: dict[tuple[Any, ...], str] = {}
    found = []
    for cell in cells:
        data = cell.config.data
        key: tuple[Any, ...] = (data.name, data.text_buckets)
        if data.name == SYNTHETIC:
            key += (data.devices, data.items, data.interactions, cell.config.seed)
        if key not in known:
            listener.stage(f"reading data: {data.name}")
            known[key] = load_dataset(cell.config).fingerprint()
        found.append(known[key])
    return found


def _place(directory: Path, cell: Cell, data: str) -> Path:
    """Where a cell lies: known by configuration and data alone, so that sweeps may change and keep what they have."""
    return directory / CELLS / f"{cell.config.fingerprint()[:16]}-{data[:8]}"


def _run(
    cells: Sequence[Cell],
    places: Sequence[Path],
    data: Sequence[str],
    todo: Sequence[int],
    workers: int,
    log: Path,
    listener: SweepListener,
) -> dict[str, str]:
    """Run what is to do; returns the sentences of what failed."""
    failed: dict[str, str] = {}

    def on_event(task: int, event: Event) -> None:
        if event["kind"] == "failed":
            failed[cells[todo[task]].label] = str(event["error"])
        listener.event(todo[task], event)

    tasks = [
        {"directory": str(places[one]), "config": cells[one].config.model_dump(mode="json"), "data": data[one]}
        for one in todo
    ]
    run_tasks(tasks, workers=workers, log=log, on_event=on_event, on_wait=listener.wait)
    return failed


def _sweep(
    directory: Path,
    spec: SweepSpec,
    cells: Sequence[Cell],
    records: Sequence[Record | None],
    failed: Mapping[str, str],
    ran: int,
    began: float,
) -> Sweep:
    finished = tuple(
        Finished(cell=cell, record=record) for cell, record in zip(cells, records, strict=True) if record is not None
    )
    return Sweep(
        directory=directory,
        spec=spec,
        groups=tuple(build_groups(finished)),
        finished=finished,
        failed=failed,
        ran=ran,
        seconds=time.perf_counter() - began,
    )


def _write(sweep: Sweep, cells: Sequence[Cell]) -> None:
    with storage_errors(sweep.directory, "the cells are safe: sweep again"):
        if sweep.finished:
            write_table(sweep.directory / TABLE, tidy(sweep.finished))
            write_table(sweep.directory / SUMMARY, summary_rows(sweep.groups))
        write_report(sweep.directory / REPORT, sweep.spec, sweep.groups, sweep.finished, sweep.failed)
        replace_file(sweep.directory / STATE, (json.dumps(_state(sweep, cells), indent=1) + "\n").encode())


def _state(sweep: Sweep, cells: Sequence[Cell]) -> dict[str, Any]:
    """What ``sweep.json`` holds: every cell with its place, and how this call went."""
    there = {one.cell.label: one.record for one in sweep.finished}
    return {
        "name": sweep.spec.name,
        "seconds": round(sweep.seconds, 1),
        "ran": sweep.ran,
        "cells": [
            {
                "kind": cell.kind,
                "axes": dict(cell.axes),
                "directory": f"{CELLS}/{there[cell.label].directory.name}" if cell.label in there else None,
                "seconds": round(there[cell.label].summary["seconds"], 2) if cell.label in there else None,
                "error": sweep.failed.get(cell.label),
            }
            for cell in cells
        ],
        "summary": [_json_row(row) for row in summary_rows(sweep.groups)],
    }


def _json_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows no infinity and no NaN."""
    return {
        key: (None if isinstance(value, float) and math.isnan(value) else "infinite" if value == math.inf else value)
        for key, value in row.items()
    }
