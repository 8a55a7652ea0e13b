"""Means over seeds and devices, with intervals that cover the draw of both.

Runs of several seeds share devices and are no independent samples of them, so neither are pooled as if they were:
devices and seeds are resampled independently of each other and a value counts as often as its device was drawn times as
often as its seed was: the pigeonhole bootstrap (Owen 2007, "The pigeonhole bootstrap", section 4), which is slightly
conservative. With one seed only devices are resampled. The same draws serve all policies, so differences are paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..._streams import numpy_stream
from ..summary import IntervalDict

Floats = NDArray[np.float64]


def columns_of(blocks: Sequence[str], devices: Sequence[NDArray[np.int64]]) -> tuple[list[NDArray[np.int64]], int]:
    """Where each seed's devices stand in a matrix of all: the same column for the same device of the same data.

    Args:
        blocks: what names each seed's data: devices of different data are different devices.
        devices: of each seed, int64.

    Returns:
        The columns of each seed's devices, and the number of columns.
    """
    place: dict[tuple[str, int], int] = {}
    found = [
        np.array([place.setdefault((block, device), len(place)) for device in own.tolist()], dtype=np.int64)
        for block, own in zip(blocks, devices, strict=True)
    ]
    return found, len(place)


def spread(columns: Sequence[NDArray[np.int64]], width: int, values: Sequence[Floats | None]) -> Floats:
    """Values of each seed as rows ``[seeds, width]``, NaN where a device, or a whole seed, has none."""
    matrix = np.full((len(columns), width), np.nan)
    for row, (own, value) in enumerate(zip(columns, values, strict=True)):
        if value is not None:
            matrix[row, own] = value
    return matrix


def pooled(
    tables: Mapping[str, Floats], resamples: int, ratios: Mapping[str, tuple[str, str]]
) -> dict[str, IntervalDict]:
    """Pooled means with 95 % intervals.

    Args:
        tables: name -> ``[seeds, devices]``, all of one shape; NaN where there is no value.
        resamples: of the bootstrap.
        ratios: name -> two names of ``tables`` whose means are divided.

    Returns:
        name -> mean and ends, of the tables and of the ratios; NaN where nothing is known.
    """
    names = list(tables)
    cube = np.stack([tables[name] for name in names], axis=2)
    present = (~np.isnan(cube)).astype(np.float64)
    drawn = _resampled(np.nan_to_num(cube), present, resamples)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.nansum(cube, axis=(0, 1)) / present.sum(axis=(0, 1))
        place = {name: index for index, name in enumerate(names)}
        out = {name: _interval(float(means[i]), drawn[:, i]) for name, i in place.items()}
        for name, (above, below) in ratios.items():
            i, j = place[above], place[below]
            out[name] = _interval(float(means[i] / means[j]), drawn[:, i] / drawn[:, j])
    return out


def _resampled(values: Floats, present: Floats, resamples: int) -> Floats:
    """Means of ``values [seeds, devices, names]`` in every resample, ``[resamples, names]``, in bounded memory."""
    seeds, devices, names = values.shape
    generator = numpy_stream(0, "sweep-bootstrap", seeds, devices)
    step = max(1, 2_000_000 // max(devices, 1))
    flat = [part.transpose(1, 0, 2).reshape(devices, seeds * names) for part in (values, present)]
    out = np.empty((resamples, names))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        by_device, by_seed = _counts(generator, rows, devices), _counts(generator, rows, seeds)
        above, below = (
            np.einsum("rs,rsn->rn", by_seed, (by_device @ part).reshape(rows, seeds, names)) for part in flat
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            out[start : start + rows] = above / below
    return out


def _counts(generator: np.random.Generator, rows: int, size: int) -> Floats:
    """How often each of ``size`` things was drawn, ``size`` draws with replacement, in each of ``rows`` resamples."""
    drawn = generator.integers(size, size=(rows, size)) + size * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size).astype(np.float64)


def _interval(mean: float, drawn: Floats) -> IntervalDict:
    known = drawn[np.isfinite(drawn)]
    if not len(known) or not np.isfinite(mean):
        return {"mean": float("nan"), "low": float("nan"), "high": float("nan")}
    low, high = np.quantile(known, [0.025, 0.975])
    return {"mean": mean, "low": float(low), "high": float(high)}
