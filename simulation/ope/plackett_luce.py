"""Slates by sampling without replacement (Plackett-Luce): probabilities of items given those above, and of places.

Items are drawn one after the other, each with its probability among those that are left. The same law is that of a
race: item a arrives after an exponential time with rate p_a, and the slate lists who came first (Luce 1959; the Gumbel
top-k trick is its logarithm).
"""

from __future__ import annotations

import numpy as np

from .items import Floats

_STEP = 0.2
"""Step of the trapezoid rule in the logarithm of time: errors below 1e-12 for products of exponentials."""
_EARLY, _LATE = 1e-9, 45.0


def conditional_probabilities(probabilities: Floats, slates: np.ndarray) -> Floats:
    """``e(a_l | x, a_1 .. a_{l-1}) = p_a / (1 - sum of p above)``, float64 ``[slates, slots]``.

    Args:
        probabilities: softmax of each slate's context over the catalogue, ``[slates, items]``.
        slates: items shown, int64 ``[slates, slots]``; -1 for an item outside the catalogue (probability 0).
    """
    rest = np.array(probabilities, dtype=np.float64)  # summed anew for each slot: 1 - sum would cancel
    rows = np.arange(len(rest))
    found = np.zeros(slates.shape)
    for slot, item in enumerate(slates.T):
        left = rest.sum(axis=1)
        chosen = np.where(item >= 0, rest[rows, np.maximum(item, 0)], 0.0)
        found[:, slot] = np.divide(chosen, left, out=np.zeros_like(chosen), where=left > 0)
        rest[rows[item >= 0], item[item >= 0]] = 0.0
    return found


def place_probabilities(probabilities: Floats, slots: int) -> Floats:
    """``P(item a stands at slot l)`` whatever stands elsewhere, float64 ``[contexts, slots, items]``.

    The item's arrival time t is integrated over, by the trapezoid rule in log t, with the probability that exactly
    l - 1 others came before it. That is a Poisson-binomial count, built up from the left and from the right so that
    each item can be left out without a subtraction.

    Args:
        probabilities: ``[contexts, items]``, rows that sum to 1.
        slots: length of the slate.
    """
    places = np.zeros((len(probabilities), slots, probabilities.shape[1]))
    places[:, 0] = probabilities
    if slots > 1:
        for row, one in enumerate(probabilities):
            shown = np.flatnonzero(one > 0)
            places[row, 1:, shown] = _later_places(one[shown], slots)
    return places


def _later_places(probabilities: Floats, slots: int) -> Floats:
    """Slots 2, 3, ... of one context with positive probabilities, ``[items, slots - 1]``."""
    times = _times(probabilities, slots)
    waiting = np.exp(-probabilities[:, None] * times)
    arrived = -np.expm1(-probabilities[:, None] * times)
    before = _counts_before(arrived, waiting, slots)
    after = _counts_before(arrived[::-1], waiting[::-1], slots)[::-1]
    density = probabilities[:, None] * times * waiting * _STEP
    found = [
        sum((density * before[:, low] * after[:, count - low]).sum(axis=1) for low in range(count + 1))
        for count in range(1, slots)
    ]
    return np.stack(found, axis=1)


def _times(probabilities: Floats, slots: int) -> Floats:
    """Nodes from long before the first arrival to long after the one that fills the last slot."""
    left = float(np.sort(probabilities)[: max(len(probabilities) - slots + 1, 1)].sum())
    return np.asarray(np.exp(np.arange(np.log(_EARLY), np.log(_LATE / max(left, 1e-12)), _STEP)))


def _counts_before(arrived: Floats, waiting: Floats, slots: int) -> Floats:
    """How many of the items ahead in the list have arrived by each time, ``[items, slots, times]``: 0 .. slots - 1."""
    counts = np.zeros((len(arrived), slots, arrived.shape[1]))
    counts[0, 0] = 1.0
    for item in range(1, len(arrived)):
        counts[item] = counts[item - 1] * waiting[item - 1]
        counts[item, 1:] += counts[item - 1, :-1] * arrived[item - 1]
    return counts
