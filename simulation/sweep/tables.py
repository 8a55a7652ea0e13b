"""The tables of a sweep: one tidy row for each number, and one summary row for each place on the axes."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from ..._durable import replace_file
from ...privacy.statement import NEIGHBOURS
from ...server.budget import plan_budget
from ..summary import DP_POPULARITY, JOINT, LOCAL_ONLY, POPULARITY, RANDOM
from .judge import Record
from .spec import Cell

CEILING = "no privacy"
"""Label of the runs of unit none in summaries and figures."""
Row = dict[str, Any]
_NOTHING = dict.fromkeys(("delta", "neighbours", "accountant", "sampler", "noise_multiplier", "clip", "releases"))


@dataclass(frozen=True, kw_only=True, eq=False)
class Finished:
    """A cell with what it gave."""

    cell: Cell
    record: Record


def tidy(finished: Iterable[Finished]) -> list[Row]:
    """One row for each (cell, label, protocol, metric); under unit ``both`` one for each of the two statements."""
    return [row for one in finished for row in _cell_rows(one)]


def _cell_rows(one: Finished) -> list[Row]:
    record = one.record
    place: Row = {"kind": one.cell.kind, **_places(one.cell)}
    facts: Row = {
        "population": record.population,
        "chosen_round": record.summary["chosen_round"],
        "seconds": record.summary["seconds"],
        "data": record.data,
        "fingerprint": record.config.fingerprint(),
        "directory": record.directory.name,
    }
    rows = []
    for label, protocol, metric, value in _numbers(record):
        number = {"label": label, "protocol": protocol, "metric": metric, **value}
        rows += [{**place, **number, **cost, **facts} for cost in costs_of(record, label)]
    return rows


def _places(cell: Cell) -> Row:
    return {
        key: value if isinstance(value, (int, float, str, bool)) else str(value) for key, value in cell.axes.items()
    }


def _numbers(record: Record) -> Iterable[tuple[str, str, str, Row]]:
    """Every number of a run: (label, protocol, metric, mean and interval)."""
    results: dict[str, Any] = {**record.floors, **record.summary["results"]}
    for label, result in results.items():
        for protocol in ("full", "sampled"):
            judged = result.get(protocol, {"metrics": {}, "lists": {}})
            for metric, value in judged["metrics"].items():
                yield label, judged["protocol"], metric, dict(value)
            for metric, number in judged["lists"].items():
                yield label, judged["protocol"], metric, {"mean": number, "low": None, "high": None}
        for metric, value in result.get("ratings", {}).items():
            yield label, "rating prediction", metric, dict(value)
    cold = record.summary.get("cold_start")
    for label, points in (cold["curves"] if cold else {}).items():
        for seen, value in zip(cold["points"] if cold else (), points, strict=True):
            yield label, f"cold start, {seen} seen", cold["metric"] if cold else "", dict(value)


def costs_of(record: Record, label: str) -> list[Row]:
    """What a label's numbers cost: epsilon that was spent, with everything that gives it meaning, one for each unit."""
    if label in (LOCAL_ONLY, RANDOM):
        return [{"unit": "none", "epsilon": 0.0, **_NOTHING}]
    if label == DP_POPULARITY:
        floor = record.floors[DP_POPULARITY]
        return [_cost(floor["statement"], floor["statement"]["epsilon"])]
    statements = record.summary["privacy"]
    if label == POPULARITY or not statements:
        return [{"unit": "none", "epsilon": math.inf, **_NOTHING}]
    if label == JOINT:  # the same budget, spent in other steps
        twin = plan_budget(record.config.updated(local__steps=1)).statements
        noise = {one.unit: {"noise_multiplier": one.noise_multiplier, "rounds": one.rounds} for one in twin}
        return [_cost({**one, **noise[one["unit"]]}, one["epsilon"]) for one in statements]
    return [_cost(one, record.spent.get(one["unit"], one["epsilon"])) for one in statements]


def _cost(statement: Mapping[str, Any], spent: float) -> Row:
    return {
        "unit": statement["unit"],
        "epsilon": spent,
        "delta": statement["delta"],
        "neighbours": NEIGHBOURS[statement["unit"]],
        "accountant": statement["accountant"],
        "sampler": statement["sampler"],
        "noise_multiplier": statement["noise_multiplier"],
        "clip": statement["clip"],
        "releases": statement["rounds"],
    }


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write ``rows`` as CSV, and as parquet beside it; each is replaced at once."""
    columns = {
        key: _column([row.get(key) for row in rows]) for key in dict.fromkeys(key for row in rows for key in row)
    }
    frame = pl.DataFrame(columns, strict=False)
    replace_file(path, frame.write_csv().encode())
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    replace_file(path.with_suffix(".parquet"), buffer.getvalue())


def _column(values: list[Any]) -> list[Any]:
    """One type a column: an axis with a value "none" among numbers is a column of texts."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float}:
        return [value if value is None or kinds == {int} else float(value) for value in values]
    return [None if value is None else str(value) for value in values] if len(kinds) > 1 else values
