"""Bootstrap intervals over devices: how far a mean could move had other devices of the same kind been drawn.

The device is the unit that is resampled, because interactions of one device are not independent. The interval covers
the draw of devices, not the training seed: spread over seeds is a different thing and is reported by the benchmarks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._streams import numpy_stream
from .summary import IntervalDict

Floats = NDArray[np.float64]

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over devices with a percentile bootstrap interval.

    Attributes:
        mean: mean over the devices that have a value.
        low: lower end.
        high: upper end.
        devices: devices that count.
        left_out: devices without a value (no held-out item).
    """

    mean: float
    low: float
    high: float
    devices: int
    left_out: int

    def to_dict(self) -> IntervalDict:
        """``mean``, ``low`` and ``high`` as plain numbers."""
        return {"mean": self.mean, "low": self.low, "high": self.high}

    def __str__(self) -> str:
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"


def bootstrap_interval(values: NDArray[Any], seed: int, resamples: int = RESAMPLES, level: float = LEVEL) -> Interval:
    """Percentile bootstrap (Efron 1979) of the mean of ``values [devices]``; NaN devices are left out and counted."""
    return bootstrap_intervals({"value": values}, seed, resamples, level)["value"]


def bootstrap_intervals(
    values: Mapping[str, NDArray[Any]], seed: int, resamples: int = RESAMPLES, level: float = LEVEL
) -> dict[str, Interval]:
    """Intervals of several per-device metrics from one set of resampled devices.

    Args:
        values: name -> values ``[devices]``, all of the same length; NaN marks a device without a value.
        seed: names the stream of resamples; the same seed gives the same bits.
        resamples: number of resampled sets of devices.
        level: coverage of the interval, in (0, 1).

    Returns:
        name -> interval; all NaN where no device has a value.
    """
    names = list(values)
    if not names:
        return {}
    matrix = np.stack([np.asarray(values[name], dtype=np.float64) for name in names], axis=1)
    means = bootstrap_means(matrix, seed, resamples)
    tail = (1.0 - level) / 2.0
    out = {}
    for column, name in enumerate(names):
        seen = matrix[:, column][~np.isnan(matrix[:, column])]
        drawn = means[:, column][~np.isnan(means[:, column])]
        if len(seen) == 0:
            mean = low = high = float("nan")
        else:
            mean = float(seen.mean())
            low, high = (float(end) for end in np.quantile(drawn, [tail, 1.0 - tail]))
        out[name] = Interval(mean=mean, low=low, high=high, devices=len(seen), left_out=len(matrix) - len(seen))
    return out


def bootstrap_means(matrix: Floats, seed: int, resamples: int = RESAMPLES) -> Floats:
    """Means over resampled devices, ``[resamples, metrics]``, from ``matrix [devices, metrics]`` (NaN = no value).

    Draws ``devices`` devices with replacement a resample and averages with the counts as weights; a bounded number of
    resamples at a time, so memory stays near 32 MB for any number of devices.
    """
    devices = len(matrix)
    if devices == 0:
        return np.full((resamples, matrix.shape[1]), np.nan)
    present = ~np.isnan(matrix)
    filled = np.where(present, matrix, 0.0)
    generator = numpy_stream(seed, "bootstrap", devices)
    step = max(1, 2_000_000 // devices)
    out = np.empty((resamples, matrix.shape[1]))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = generator.integers(devices, size=(rows, devices)) + devices * np.arange(rows)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=rows * devices).reshape(rows, devices).astype(np.float64)
        with np.errstate(invalid="ignore"):
            out[start : start + rows] = (weights @ filled) / (weights @ present)
    return out


def paired_interval(
    first: NDArray[Any], second: NDArray[Any], seed: int, resamples: int = RESAMPLES, level: float = LEVEL
) -> Interval:
    """Interval of the mean of ``first - second`` device by device; devices that lack either value are left out.

    Two policies are compared on the same devices, so the difference is far less noisy than two overlapping intervals
    suggest: an interval that excludes 0 is a difference that other devices would show too.
    """
    if np.shape(first) != np.shape(second):
        raise ValueError(f"expected values of the same devices, got shapes {np.shape(first)} and {np.shape(second)}")
    return bootstrap_interval(np.asarray(first, np.float64) - np.asarray(second, np.float64), seed, resamples, level)


def rating_intervals(errors: Mapping[str, NDArray[Any]], seed: int, resamples: int = RESAMPLES) -> dict[str, Interval]:
    """``rmse`` and ``mae`` with intervals, from the per-device errors of ``metrics.rating_errors``.

    The root is monotone, so the root of the mean squared error's interval is the interval of the RMSE.
    """
    both = bootstrap_intervals(errors, seed, resamples)
    mse = both["squared_error"]
    rmse = Interval(
        mean=sqrt(mse.mean), low=sqrt(mse.low), high=sqrt(mse.high), devices=mse.devices, left_out=mse.left_out
    )
    return {"rmse": rmse, "mae": both["absolute_error"]}
