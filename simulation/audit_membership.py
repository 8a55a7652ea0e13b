"""Membership inference against what is served: does a recommendation tell which items a device has met?

No epsilon covers this. What is served was adapted without noise to the device's own log, on purpose, and stays there;
whoever looks at its screen, or at an app that sends away what it shows, learns from it. This measures how much.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .._streams import numpy_stream
from .baselines import popularity
from .serving import Served

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

RATES = (0.001, 0.01)
"""False-positive rates at which the true-positive rate is told."""
_BLOCK = 256
_RESAMPLES = 400


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with a 95 % bootstrap interval over devices."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, kw_only=True)
class Membership:
    """How well an item's rank tells interactions that a policy has seen from those that it has not.

    Attributes:
        seen_by: whose scores rank the items.
        auc: probability that a held-in interaction ranks above a held-out one of any device.
        tpr: true-positive rate by false-positive rate.
        held_in: interactions that were learned from.
        held_out: interactions that were not.
    """

    seen_by: str
    auc: Estimate
    tpr: dict[float, Estimate]
    held_in: int
    held_out: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        rates = {f"{rate:g}": asdict(value) for rate, value in self.tpr.items()}
        return {**asdict(self), "tpr": rates}


def membership(served: Served, seed: int) -> list[Membership]:
    """Attack what devices serve, the released initialization, and popularity, for comparison.

    Held in are each training device's last two training interactions, held out its validation and test interactions:
    as close in time as can be. The policies know the training rows only. The score is the item's rank in the whole
    catalogue (what was met is not left out: an app that leaves it out tells by that alone).
    """
    served = replace(served, which="valid")
    world = served.world
    split = world.split
    asked = (split.valid >= 0) & (split.test >= 0) & (split.train_end - split.start >= 2)
    devices = world.roster[asked[world.roster]]
    starts = world.dataset.offsets[:-1]
    initial = replace(served, steps=0, personal=None)
    counts = popularity(world.dataset, split, world.roster)
    sources: list[tuple[str, Callable[[Ints], Tensor]]] = [
        ("served policy", served.score),
        ("initialization", lambda some: initial.score_until(some, starts[some])),
        ("popularity", counts.score),
    ]
    return [_attacked(name, score, served, devices, seed) for name, score in sources]


def _attacked(name: str, score: Callable[[Ints], Tensor], served: Served, devices: Ints, seed: int) -> Membership:
    split, items = served.world.split, served.world.dataset.items
    held_in = items[np.stack([split.train_end[devices] - 2, split.train_end[devices] - 1], axis=1)].astype(np.int64)
    held_out = items[np.stack([split.valid[devices], split.test[devices]], axis=1)].astype(np.int64)
    parts = [
        _ranks(score(devices[part]), np.concatenate([held_in[part], held_out[part]], axis=1))
        for part in (slice(first, first + _BLOCK) for first in range(0, len(devices), _BLOCK))
    ]
    ranks = np.concatenate(parts) if parts else np.zeros((0, 4))
    return _judged(name, ranks[:, :2], ranks[:, 2:], seed)


def _ranks(scores: Tensor, items: Ints) -> Floats:
    """Share of the catalogue below each item, ties counted half, float64 ``[devices, items]``."""
    values = scores.double().numpy()
    own = np.take_along_axis(values, items, axis=1)
    below = np.stack([(values < own[:, [k]]).mean(1) for k in range(items.shape[1])], axis=1)
    level = np.stack([(values == own[:, [k]]).mean(1) for k in range(items.shape[1])], axis=1)
    return np.asarray(below + level / 2)


def _judged(name: str, held_in: Floats, held_out: Floats, seed: int) -> Membership:
    generator, count = numpy_stream(seed, "membership"), len(held_in)
    draws = [generator.integers(0, max(count, 1), count) for _ in range(_RESAMPLES)]
    samples = [(held_in[rows].ravel(), held_out[rows].ravel()) for rows in draws]
    whole = held_in.ravel(), held_out.ravel()
    return Membership(
        seen_by=name,
        auc=_estimate(auc(*whole), [auc(*sample) for sample in samples]),
        tpr={
            rate: _estimate(true_positives(*whole, rate), [true_positives(*sample, rate) for sample in samples])
            for rate in RATES
        },
        held_in=held_in.size,
        held_out=held_out.size,
    )


def _estimate(value: float, resampled: list[float]) -> Estimate:
    low, high = np.nanquantile(resampled, [0.025, 0.975]) if np.isfinite(value) else (np.nan, np.nan)
    return Estimate(value=value, low=float(low), high=float(high))


def auc(positive: Floats, negative: Floats) -> float:
    """Probability that a positive's score is the higher one, ties counted half (Mann and Whitney 1947)."""
    if not len(positive) or not len(negative):
        return float("nan")
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, side="left")
    not_above = np.searchsorted(ordered, positive, side="right")
    return float((below + not_above).mean() / (2 * len(negative)))


def true_positives(positive: Floats, negative: Floats, rate: float) -> float:
    """True-positive rate of the lowest threshold whose false-positive rate is at most ``rate``."""
    if not len(positive) or not len(negative):
        return float("nan")
    allowed = int(rate * len(negative))
    threshold = np.sort(negative)[len(negative) - allowed - 1]  # scores above it: `allowed` negatives at most
    return float((positive > threshold).mean())
