"""Ratings from a ranking policy: each device calibrates its own scores on its own log; nothing leaves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .seen import seen_range
from .serving import Served

SHRINKAGE = 5.0
"""Pseudo-interactions that pull a device's level to the middle of the scale and its slope to zero."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Line:
    level: float
    slope: float


class ServedRatings:
    """Predicts ``level + slope * standardised score``, both fitted by ridge regression on the device's own ratings."""

    def __init__(self, scorer: Served) -> None:
        """Use the scores of ``scorer``."""
        self._scorer = scorer

    def rate(self, devices: NDArray[np.int64], items: NDArray[np.int64]) -> NDArray[np.float64]:
        """Predicted rating of each (device, item) pair, float64 ``[pairs]``, within the scale's range."""
        world = self._scorer.world
        low, high = world.dataset.reward_range
        predicted = np.empty(len(devices), dtype=np.float64)
        for first in range(0, len(devices), 512):
            block = devices[first : first + 512]
            scores = self._scorer.score(block).double().numpy()
            scores = (scores - scores.mean(1, keepdims=True)) / np.maximum(scores.std(1, keepdims=True), 1e-12)
            starts, stops = seen_range(world.dataset, world.split, self._scorer.which, block)
            for row, (start, stop) in enumerate(zip(starts, stops, strict=True)):
                known = world.dataset.items[start:stop]
                line = _fit(scores[row, known], world.dataset.rewards[start:stop].astype(np.float64), (low + high) / 2)
                predicted[first + row] = line.level + line.slope * scores[row, items[first + row]]
        return np.clip(predicted, low, high)


def _fit(scores: NDArray[np.float64], ratings: NDArray[np.float64], middle: float) -> _Line:
    count = len(ratings)
    mean = (ratings.sum() + SHRINKAGE * middle) / (count + SHRINKAGE)
    if count == 0:
        return _Line(level=middle, slope=0.0)
    centre = scores.mean()
    slope = float(((scores - centre) * (ratings - mean)).sum() / (((scores - centre) ** 2).sum() + SHRINKAGE))
    return _Line(level=float(mean - slope * centre), slope=slope)
