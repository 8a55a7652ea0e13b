"""The audit of a whole privacy profile: one pair of samples against the epsilon that is claimed at each of many deltas.

An accountant does not claim one (epsilon, delta) but an epsilon for every delta. A few thousand runs can't show an
epsilon of 8 at delta 1e-5 even where nothing is protected; at delta 0.1 they show a mechanism with a third too little
noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .._validate import probability
from .accounting import Charge
from .audit import Scores, binomial_lower, binomial_upper

_POINTS = 200
"""Thresholds that are tried between the extremes, and from each end inwards."""


@dataclass(frozen=True, kw_only=True)
class Bound:
    """A lower confidence bound on epsilon at one delta, beside what is claimed there."""

    delta: float
    claimed: float
    measured: float
    """Lower confidence bound."""
    ceiling: float
    """The bound that these runs would give if the two data sets could be told apart without error."""

    @property
    def refuted(self) -> bool:
        """Whether more is spent than claimed."""
        return self.measured > self.claimed


@dataclass(frozen=True)
class _Event:
    """A one-sided threshold on one statistic, and under which of the two data sets it is the likelier."""

    swapped: bool
    column: int
    sign: int
    threshold: float

    def hits(self, scores: Scores) -> int:
        return int((self.sign * scores[:, self.column] >= self.threshold).sum())


def distinguish(
    one: Scores, other: Scores, profile: Mapping[float, float], confidence: float = 0.99
) -> tuple[Bound, ...]:
    """Lower bounds on epsilon at every delta of ``profile``, all of which hold together with ``confidence``.

    Half of the runs choose an event for each delta, the other half bound its two probabilities (Clopper and Pearson
    1934): ``epsilon >= ln((P[event | one] - delta) / P[event | other])``, whatever the mechanism.

    Args:
        one: statistics of independent runs on one data set, float64 ``[runs, statistics]``.
        other: of runs on its neighbour.
        profile: claimed epsilon by delta.
        confidence: in (0, 1).

    Guarantee:
        If the mechanism is (epsilon, delta)-private for every pair in ``profile``, any bound exceeds its claim with
        probability ``1 - confidence`` at most.

    Raises:
        ValueError: fewer than 20 runs, or statistics that are not finite.
    """
    probability("confidence", confidence, open_right=True)
    if min(len(one), len(other)) < 20 or not (np.isfinite(one).all() and np.isfinite(other).all()):
        raise ValueError(f"expected at least 20 runs of finite statistics each, got {len(one)} and {len(other)}")
    error = (1 - confidence) / (2 * len(profile))
    found = []
    for delta, claimed in sorted(profile.items()):
        event = _best_event(one[::2], other[::2], delta, error)
        first, second = (other[1::2], one[1::2]) if event.swapped else (one[1::2], other[1::2])
        low = binomial_lower(event.hits(first), len(first), error)
        high = binomial_upper(event.hits(second), len(second), error)
        found.append(
            Bound(
                delta=delta,
                claimed=claimed,
                measured=_ratio(low, high, delta),
                ceiling=_ratio(error ** (1 / len(first)), 1 - error ** (1 / len(second)), delta),
            )
        )
    return tuple(found)


def _ratio(low: float, high: float, delta: float) -> float:
    return max(0.0, math.log((low - delta) / high)) if low > delta else 0.0


def _best_event(one: Scores, other: Scores, delta: float, error: float) -> _Event:
    """The event whose bound promises to be largest, by Bernstein's inequality on this half of the runs."""
    best = (-math.inf, _Event(False, 0, 1, 0.0))
    for column in range(one.shape[1]):
        for sign in (1, -1):
            sides = np.sort(sign * one[:, column]), np.sort(sign * other[:, column])
            thresholds = _thresholds(np.sort(np.concatenate(sides)))
            rates = [1 - np.searchsorted(side, thresholds, side="left") / len(side) for side in sides]
            for swapped in (False, True):
                first, second = rates[::-1] if swapped else rates
                promise = _promise(first, second, len(one), len(other), delta, error)
                place = int(promise.argmax())
                if promise[place] > best[0]:
                    best = (float(promise[place]), _Event(swapped, column, sign, float(thresholds[place])))
    return best[1]


def _thresholds(pooled: Scores) -> Scores:
    """Some of the sorted values, dense at both ends."""
    ends = np.geomspace(1, len(pooled), _POINTS)
    places = np.concatenate([np.linspace(0, len(pooled) - 1, _POINTS), ends - 1, len(pooled) - ends])
    return np.unique(pooled[np.unique(places.astype(int))])


def _promise(first: Scores, second: Scores, runs: int, others: int, delta: float, error: float) -> Scores:
    strict = math.log(1 / error)
    low = first - np.sqrt(2 * strict * first * (1 - first) / runs) - strict / runs - delta
    high = second + np.sqrt(2 * strict * second * (1 - second) / others) + strict / others
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(low > 0, np.log(low / high), -np.inf))


def release_epsilon(charge: Charge, delta: float) -> float:
    """The exact epsilon at ``delta`` of one Poisson-subsampled Gaussian release, whatever ``charge.steps``.

    The dominating pairs are N(0, z^2) and its mixture (1 - q) N(0, z^2) + q N(1, z^2), in both orders (Zhu, Dong and
    Wang 2022, theorem 11); the worst events are half-lines, so delta at an epsilon has a closed form.
    """
    low, high = 0.0, 1.0
    if _release_delta(charge, 0.0) <= delta:
        return 0.0
    while _release_delta(charge, high) > delta:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _release_delta(charge, middle) > delta else (low, middle)
    return high


def _release_delta(charge: Charge, cost: float) -> float:
    """The larger hockey-stick divergence of the two orders."""
    noise, rate, factor = charge.noise_multiplier, charge.sample_rate, math.exp(cost)

    def edge(ratio: float) -> float:
        """Where the mixture is ``ratio`` times as likely."""
        return noise**2 * math.log((ratio - 1 + rate) / rate) + 0.5

    def above(value: float) -> float:
        return 0.5 * math.erfc(value / (noise * math.sqrt(2)))

    there = edge(factor)
    removed = (1 - rate - factor) * above(there) + rate * above(there - 1)
    if 1 / factor <= 1 - rate:
        return removed
    back = edge(1 / factor)
    return max(removed, above(-back) - factor * ((1 - rate) * above(-back) + rate * above(1 - back)))
