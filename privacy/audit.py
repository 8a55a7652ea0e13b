"""An audit: how much epsilon does a mechanism *at least* spend, judged by its outputs on neighbouring data.

A lower bound above the claimed epsilon convicts the implementation; one below it proves nothing.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

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
        low, high = (middle, high) if upper_tails(trials, middle)[hits] < error else (low, middle)
    return low


def binomial_upper(hits: int, trials: int, error: float) -> float:
    """Clopper and Pearson's upper bound: the p at which ``hits`` or fewer have probability ``error``."""
    return 1 - binomial_lower(trials - hits, trials, error)


def upper_tails(trials: int, chance: float) -> Scores:
    """P[Binomial(trials, chance) >= v] for v = 0 .. trials, float64 ``[trials + 1]``."""
    counts, logs = _log_binomials(trials)
    logs = logs + torch.xlogy(counts, torch.tensor(chance, dtype=torch.float64))
    logs = logs + torch.xlogy(trials - counts, torch.tensor(1 - chance, dtype=torch.float64))
    tails: Scores = torch.exp(logs).flip(0).cumsum(0).flip(0).clamp(max=1.0).numpy()
    return tails


@lru_cache(maxsize=16)
def _log_binomials(trials: int) -> tuple[torch.Tensor, torch.Tensor]:
    """0 .. trials, and the logarithms of the binomial coefficients; bounds are searched at one number of trials."""
    counts = torch.arange(trials + 1, dtype=torch.float64)
    return counts, math.lgamma(trials + 1) - torch.lgamma(counts + 1) - torch.lgamma(trials - counts + 1)
