"""Repetitions of a sweep pooled: one group for each place on the axes, beside its floors and its ceiling."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..summary import DP_POPULARITY, POPULARITY, SERVED, IntervalDict
from .judge import Record
from .pooling import columns_of, pooled, spread
from .tables import CEILING, Finished, Row, costs_of

LABELS = (SERVED, DP_POPULARITY, POPULARITY, CEILING)
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Cells that differ in nothing but the seed.

    Attributes:
        axes: axis -> value, the seed left out.
        cells: one a seed.
        metric: the headline, full ranking on the test split.
        devices: different devices that were judged, over all seeds.
        population: devices that trained, in the first cell.
        costs: what the served policy cost, one row a unit: see ``tables.costs_of``.
        levels: label -> pooled mean.
        gaps: label -> served minus label, paired by device and seed.
        shares: label -> served over label, paired.
        cold_points: interactions seen.
        cold: label -> pooled mean on held-out devices at each of them.
        cold_devices: different held-out devices, over all seeds.
    """

    axes: Mapping[str, Any]
    cells: tuple[Finished, ...]
    metric: str
    devices: int
    population: int
    costs: Sequence[Row]
    levels: Mapping[str, IntervalDict]
    gaps: Mapping[str, IntervalDict]
    shares: Mapping[str, IntervalDict]
    cold_points: tuple[int, ...]
    cold: Mapping[str, Sequence[IntervalDict]]
    cold_devices: int

    @property
    def seeds(self) -> int:
        """Repetitions."""
        return len(self.cells)

    @property
    def unit(self) -> str:
        """The privacy unit of the runs."""
        return str(self.cells[0].record.config.privacy.unit)

    @property
    def epsilon(self) -> float:
        """Epsilon that was spent, the greatest of the units and seeds; infinite without privacy."""
        return max(float(row["epsilon"]) for cell in self.cells for row in costs_of(cell.record, SERVED))

    @property
    def target(self) -> float | None:
        """The epsilon that was asked for; none where the noise was given."""
        return self.cells[0].record.config.privacy.epsilon

    @property
    def delta(self) -> float:
        """Of every epsilon of the group."""
        return float(self.cells[0].record.config.privacy.delta)


def build_groups(finished: Iterable[Finished]) -> list[Group]:
    """Pool the finished cells, in the order of the sweep."""
    everything = list(finished)
    ceilings = [one for one in everything if one.cell.kind == "ceiling"]
    places: dict[tuple[tuple[str, Any], ...], list[Finished]] = {}
    for one in everything:
        if one.cell.kind == "cell":
            places.setdefault(one.cell.group, []).append(one)
    return [_group(dict(place), cells, ceilings) for place, cells in places.items()]


def _group(axes: Row, cells: list[Finished], ceilings: Sequence[Finished]) -> Group:
    first, above = cells[0].record, [_ceiling_of(one, ceilings) for one in cells]
    resamples = first.config.evaluation.resamples
    columns, width = columns_of([one.record.data for one in cells], [one.record.devices for one in cells])
    tables = {label: spread(columns, width, _values(cells, above, label)) for label in LABELS}
    tables = {label: table for label, table in tables.items() if not np.isnan(table).all()}
    others = [label for label in tables if label != SERVED]
    gaps = {f"-{label}": tables[SERVED] - tables[label] for label in others}
    both = {f"/{label}": np.where(np.isnan(tables[label]), np.nan, tables[SERVED]) for label in others}
    found = pooled({**tables, **gaps, **both}, resamples, {f"%{one}": (f"/{one}", one) for one in others})
    points, cold, asked = _cold(cells, above, resamples)
    return Group(
        axes=axes,
        cells=tuple(cells),
        metric=first.summary.get("metric", "ndcg@10"),
        devices=int((~np.isnan(tables[SERVED])).any(axis=0).sum()),
        population=first.population,
        costs=costs_of(first, SERVED),
        levels={label: found[label] for label in tables},
        gaps={label: found[f"-{label}"] for label in others},
        shares={label: found[f"%{label}"] for label in others},
        cold_points=points,
        cold=cold,
        cold_devices=asked,
    )


def _ceiling_of(cell: Finished, ceilings: Sequence[Finished]) -> Finished | None:
    """The run without privacy at the same place and seed."""
    axes = cell.cell.axes
    fitting = (one for one in ceilings if all(axes.get(key) == value for key, value in one.cell.axes.items()))
    return next((one for one in fitting if one.record.data == cell.record.data), None)


def _values(cells: Sequence[Finished], above: Sequence[Finished | None], label: str) -> list[Floats | None]:
    """Each seed's values of a label; those of the ceiling only where it judged the same devices."""
    if label != CEILING:
        return [one.record.values.get(label) for one in cells]
    return [_above(one.record, top) for one, top in zip(cells, above, strict=True)]


def _above(record: Record, ceiling: Finished | None) -> Floats | None:
    """The ceiling's values, where it judged the same devices."""
    if ceiling is None:
        return None
    return _aligned(ceiling.record.devices, ceiling.record.values[SERVED], record.devices)


def _aligned(own: NDArray[np.int64], values: Floats, wanted: NDArray[np.int64]) -> Floats | None:
    return values if np.array_equal(own, wanted) else None


def _cold(
    cells: Sequence[Finished], above: Sequence[Finished | None], resamples: int
) -> tuple[tuple[int, ...], dict[str, list[IntervalDict]], int]:
    """The pooled cold-start curves; empty where a seed has none."""
    records = [one.record for one in cells]
    points = records[0].cold_points
    if not points or any(record.cold_points != points for record in records):
        return (), {}, 0
    columns, width = columns_of([one.data for one in records], [one.cold_devices for one in records])
    curves: dict[str, list[IntervalDict]] = {}
    for label in LABELS:
        rows = [_cold_values(one, top, label) for one, top in zip(records, above, strict=True)]
        tables = {
            str(index): spread(columns, width, [None if row is None else row[index] for row in rows])
            for index in range(len(points))
        }
        if not all(row is None for row in rows):
            curves[label] = list(pooled(tables, resamples, {}).values())
    return points, curves, width


def _cold_values(record: Record, above: Finished | None, label: str) -> Floats | None:
    if label != CEILING:
        return record.cold.get(label)
    if above is None or above.record.cold_points != record.cold_points:
        return None
    return _aligned(above.record.cold_devices, above.record.cold.get(SERVED, np.empty(0)), record.cold_devices)


def summary_rows(groups: Iterable[Group]) -> list[Row]:
    """One row for each group and label: pooled mean, difference and share, what it cost, over how much."""
    return [_summary_row(group, label) for group in groups for label in group.levels]


def _summary_row(group: Group, label: str) -> Row:
    row: Row = {**group.axes, "label": label, "metric": group.metric, **group.levels[label]}
    nothing: Mapping[str, Any] = dict.fromkeys(("mean", "low", "high"))
    for name, found in (("served_minus_this", group.gaps), ("served_over_this", group.shares)):
        row |= {f"{name}_{end}": value for end, value in (found.get(label) or nothing).items()}
    free: Row = {"unit": "none", "epsilon": math.inf}
    row |= free if label == CEILING else costs_of(group.cells[0].record, label)[0]
    return row | {"seeds": group.seeds, "devices": group.devices, "population": group.population}
