"""An audit: how much epsilon does a mechanism *at least* spend, judged by its outputs on neighbouring data.

A lower bound above the claimed epsilon convicts the implementation; one below it proves nothing.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from .._validate import probability

Scores = npt.NDArray[np.float64]


def empirical_epsilon(present: Scores, absent: Scores, delta: float, confidence: float = 0.999) -> float:
    """A lower confidence bound on epsilon from scores of independent runs on two neighbouring data sets.

    Half of the runs pick an event (a one-sided threshold, either side), the other half estimate how likely it is under
    each data set (Clopper and Pearson 1934); then ``epsilon >= ln((P[event | one] - delta) / P[event | other])``.

    Args:
        present: scores of runs on one data set ``[runs]``, float.
        absent: scores of runs on the other ``[runs]``.
        delta: the delta of the claim.
        confidence: that the bound holds, in (0, 1).

    Raises:
        ValueError: fewer than 20 runs, or scores that are not finite.
    """
    probability("confidence", confidence, open_right=True)
    if min(len(present), len(absent)) < 20 or not (np.isfinite(present).all() and np.isfinite(absent).all()):
        raise ValueError(f"expected at least 20 finite scores each, got {len(present)} and {len(absent)}")
    error = (1 - confidence) / 4  # two directions, two proportions each
    bounds = [0.0]
    for one, other in ((present, absent), (absent, present)):
        sign, threshold = _best_event(one[::2], other[::2], delta)
        hits = int((sign * one[1::2] >= threshold).sum())
        false_hits = int((sign * other[1::2] >= threshold).sum())
        low = binomial_lower(hits, len(one[1::2]), error)
        high = 1 - binomial_lower(len(other[1::2]) - false_hits, len(other[1::2]), error)
        if low > delta:
            bounds.append(math.log((low - delta) / high))
    return max(bounds)


def _best_event(one: Scores, other: Scores, delta: float) -> tuple[int, float]:
    """The side and threshold with the largest (smoothed) log ratio."""
    best = (-math.inf, 1, 0.0)
    for sign in (1, -1):
        for threshold in np.unique(np.quantile(sign * np.concatenate([one, other]), np.linspace(0.01, 0.99, 99))):
            hits = float((sign * one >= threshold).mean()) - delta - 1 / math.sqrt(len(one))
            false_hits = float((sign * other >= threshold).mean()) + 4 / len(other)
            if hits > 0:
                best = max(best, (math.log(hits / false_hits), sign, float(threshold)))
    return best[1], best[2]


def binomial_lower(hits: int, trials: int, error: float) -> float:
    """Clopper and Pearson's lower bound: the p at which ``hits`` or more have probability ``error``."""
    if hits == 0:
        return 0.0
    low, high = 0.0, hits / trials
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _upper_tail(hits, trials, middle) < error else (low, middle)
    return low


def _upper_tail(hits: int, trials: int, chance: float) -> float:
    counts = np.arange(hits, trials + 1)
    logs = np.array([math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1) for k in counts])
    with np.errstate(divide="ignore"):
        logs = logs + counts * np.log(chance) + (trials - counts) * np.log1p(-chance)
    return float(np.exp(logs).sum())
