"""Curves over interactions: what an arm earns and loses in a device's first interactions, the next, and so on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from ...config import Config
from ..intervals import bootstrap_interval, paired_interval
from ..summary import IntervalDict
from .session import TRACES, Trace

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
WIDTH = 5
"""Interactions of a point of a curve."""
WINDOW = 10
"""Interactions of the headline: the last ones of a device of average diligence."""
_NAMES = {"clicked": "ctr", "reward": "reward", "regret": "regret"}


class Point(TypedDict):
    """A point of a curve: interactions ``first`` to ``last`` (from 1), devices that got so far, what they brought."""

    first: int
    last: int
    devices: int
    ctr: IntervalDict
    reward: IntervalDict
    regret: IntervalDict


def expected_interactions(config: Config) -> int:
    """Interactions of a training device to expect: rounds * participation * interactions a round."""
    server = config.server
    rate = server.participation / server.min_separation
    return max(1, round(server.rounds * rate * config.online.interactions))


def curve(trace: Trace, devices: Ints, upto: int, *, seed: int, resamples: int) -> list[Point]:
    """The curve of some devices up to interaction ``upto``; points that no device reached are left out."""
    bounds = range(0, upto, WIDTH)
    points = [_point(trace, devices, first, min(first + WIDTH, upto), seed, resamples) for first in bounds]
    return [point for point in points if point["devices"]]


def _point(trace: Trace, devices: Ints, first: int, last: int, seed: int, resamples: int) -> Point:
    means = {name: device_means(trace, name, devices, first, last) for name in TRACES}
    found: dict[str, Any] = {
        _NAMES[name]: bootstrap_interval(values, seed, resamples).to_dict() for name, values in means.items()
    }
    return Point(first=first + 1, last=last, devices=int((~np.isnan(means["clicked"])).sum()), **found)


def device_means(trace: Trace, name: str, devices: Ints, first: int, last: int) -> Floats:
    """Mean of every device over its interactions ``first .. last - 1`` (from 0), NaN where it had none."""
    values = trace.values[name][devices, first:last]
    there = ~np.isnan(values)
    total, count = np.where(there, values, 0.0).sum(axis=1), there.sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def headline(trace: Trace, devices: Ints, upto: int, *, seed: int, resamples: int) -> Point:
    """The last ``WINDOW`` interactions up to ``upto``, as one point."""
    return _point(trace, devices, max(0, upto - WINDOW), upto, seed, resamples)


def differences(
    traces: Mapping[str, Trace], devices: Ints, upto: int, *, seed: int, resamples: int
) -> dict[str, dict[str, IntervalDict]]:
    """Arm -> other arm -> what it earns more, the mean reward of the headline, paired device by device."""
    means = {
        name: device_means(trace, "reward", devices, max(0, upto - WINDOW), upto) for name, trace in traces.items()
    }
    return {
        mine: {
            other: paired_interval(means[mine], means[other], seed, resamples).to_dict()
            for other in means
            if other != mine
        }
        for mine in means
    }


def reached(points: list[Point], share: float = 0.8) -> int | None:
    """Interactions after which a curve's mean reward stays at ``share`` of its last point's or above; none: never."""
    if not points:
        return None
    goal, found = share * points[-1]["reward"]["mean"], None
    for point in reversed(points):
        if point["reward"]["mean"] < goal:
            break
        found = point["last"]
    return found
