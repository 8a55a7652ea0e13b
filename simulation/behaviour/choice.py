"""Choice models in closed form: which of the items shown are clicked, and what a click is worth.

``u`` is the utility of an item; ``attraction = sigmoid(u)`` is the probability that it is clicked when it is all there
is and is looked at. An empty slot has utility ``-inf``. With one slot, all three models click with that probability
(position and cascade look at slot 1 surely).

========  ======================================================================  =================================
model     probability of a click on slot k                                        source
========  ======================================================================  =================================
logit     ``exp(u_k) / (1 + sum_j exp(u_j))``; no click has utility 0             McFadden 1974
position  ``k ** -examination * attraction_k``, every slot for itself             Richardson et al. 2007
cascade   ``attraction_k * prod_{j<k} patience (1 - attraction_j)``; one at most  Craswell et al. 2008
========  ======================================================================  =================================
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .options import Stage, UserOptions

Floats = NDArray[np.float64]


def sigmoid(values: Floats) -> Floats:
    """``1 / (1 + exp(-values))`` without overflow."""
    small = np.exp(-np.abs(values))
    return np.asarray(np.where(values >= 0, 1.0, small) / (1.0 + small))


def click_probabilities(options: UserOptions, utilities: Floats) -> Floats:
    """Probability of a click on each slot, ``[users, slots]``, by the model that ``options.choice`` names."""
    if options.choice == "logit":
        return _logit(utilities)
    attraction = sigmoid(utilities)
    if options.choice == "position":
        return attraction * examination(options, utilities.shape[1])
    return attraction * _reached(attraction, options.patience)


def examination(options: UserOptions, slots: int) -> Floats:
    """Probability that each slot is looked at under the position-based model, ``[slots]``."""
    return np.exp(-options.examination * np.log(np.arange(1, slots + 1)))


def _logit(utilities: Floats) -> Floats:
    highest = np.maximum(utilities.max(axis=1, keepdims=True), 0.0)
    weights = np.exp(utilities - highest)
    return np.asarray(weights / (np.exp(-highest) + weights.sum(axis=1, keepdims=True)))


def _reached(attraction: Floats, patience: float) -> Floats:
    """Probability that a cascading user comes to each slot."""
    going_on = np.cumprod(patience * (1.0 - attraction[:, :-1]), axis=1)
    return np.concatenate([np.ones((len(attraction), 1)), going_on], axis=1)


def stage_probabilities(stages: tuple[Stage, ...], utilities: Floats) -> Floats:
    """Probability that a click gets to each stage after the first or beyond, ``[stages - 1, *utilities.shape]``."""
    if len(stages) == 1:
        return np.empty((0, *utilities.shape))
    going_on = np.stack([sigmoid(utilities + stage.offset) for stage in stages[1:]])
    return np.asarray(np.cumprod(going_on, axis=0), dtype=np.float64)


def click_value(stages: tuple[Stage, ...], utilities: Floats) -> Floats:
    """Mean reward of a click on an item of each utility; it never falls with utility."""
    value = np.full(utilities.shape, stages[0].reward)
    for number, reached in enumerate(stage_probabilities(stages, utilities), start=1):
        value = value + (stages[number].reward - stages[number - 1].reward) * reached
    return value


def expected_reward(options: UserOptions, utilities: Floats, noise: Floats) -> Floats:
    """Mean reward of a slate, ``[users]``.

    Args:
        options: how users behave.
        utilities: of the slots, ``-inf`` where empty, ``[users, slots]``.
        noise: probability of an accident, ``[users]``.
    """
    chosen = click_probabilities(options, utilities) * click_value(options.stages, utilities)
    anything = (utilities > -np.inf).any(axis=1)
    return np.asarray((1.0 - noise) * chosen.sum(axis=1) + noise * anything * options.stages[0].reward)


def sample_clicks(options: UserOptions, utilities: Floats, noise: Floats, uniforms: Floats) -> NDArray[np.bool_]:
    """Which slots are clicked, bool ``[users, slots]``.

    Args:
        options: how users behave.
        utilities: of the slots, ``[users, slots]``.
        noise: probability of an accident, ``[users]``.
        uniforms: on [0, 1), ``[users, slots + 2]``: whether it is an accident, which one slot, and each slot by itself.
    """
    probabilities = click_probabilities(options, utilities)
    if options.choice == "position":
        clicks = uniforms[:, 2:] < probabilities
    else:
        clicks = _one_of(probabilities, uniforms[:, 1])
    shown = utilities > -np.inf
    by_accident = _one_of(shown / np.maximum(shown.sum(axis=1, keepdims=True), 1), uniforms[:, 1])
    return np.where((uniforms[:, 0] < noise)[:, None], by_accident, clicks)


def _one_of(probabilities: Floats, uniform: Floats) -> NDArray[np.bool_]:
    """The first slot up to which probabilities add up to more than ``uniform``, or none."""
    chosen = (uniform[:, None] >= np.cumsum(probabilities, axis=1)).sum(axis=1)
    return np.asarray(chosen[:, None] == np.arange(probabilities.shape[1]))


def sample_stages(
    options: UserOptions, utilities: Floats, clicks: NDArray[np.bool_], uniforms: Floats
) -> NDArray[np.int64]:
    """The stage that each slot gets to, -1 where it is not clicked, int64 ``[users, slots]``."""
    reached = (uniforms < stage_probabilities(options.stages, utilities)).sum(axis=0)
    return np.where(clicks, reached, -1)


def best_order(options: UserOptions, utilities: Floats, noise: Floats, slots: int) -> tuple[Floats, NDArray[np.int64]]:
    """The best slate from candidates sorted by falling utility.

    A click's value never falls with utility, so the best slate is a head of the sorted list in its order. *Position*:
    both factors of ``attraction * value`` rise, and examination falls (rearrangement). *Cascade*: exchanging neighbours
    shows that falling ``attraction * value / (1 - patience + patience * attraction)`` is best, which utility orders;
    whatever follows an item is worth at most its value, so the more attractive item wins its slot. *Logit*: with best
    mean reward R, an item belongs in the slate if its value is above R, and there ``exp(u) (value - R)`` rises with u;
    so fewer than all slots may be best, and each length is tried.

    Args:
        options: how users behave.
        utilities: ``[users, candidates]``, falling along rows.
        noise: probability of an accident, ``[users]``.
        slots: most items to show.

    Returns:
        Mean reward of the best slate ``[users]`` and its length, int64 ``[users]``.
    """
    head = utilities[:, :slots]
    lengths = range(1, head.shape[1] + 1) if options.choice == "logit" and len(options.stages) > 1 else [head.shape[1]]
    values = np.stack([expected_reward(options, head[:, :length], noise) for length in lengths])
    best = values.argmax(axis=0)
    return values.max(axis=0), np.array(lengths, dtype=np.int64)[best]
