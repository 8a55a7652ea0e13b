"""What the estimators need of a judged policy, row by row of a log; gathered state by state, so memory is bounded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .items import Floats
from .plackett_luce import conditional_probabilities, place_probabilities
from .reward_model import RewardModel

Ints = NDArray[np.int64]
States = Iterable[tuple[Ints, Floats]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Impressions:
    """The judged policy on single impressions; all ``[rows]``.

    Attributes:
        target: ``e(a at its place | x)``.
        predicted: ``q(a, place)``.
        expected: ``sum_a e(a at that place | x) q(a, place)``.
        missing: ``e`` of the items that the log never shows at that place.
    """

    target: Floats
    predicted: Floats
    expected: Floats
    missing: Floats


@dataclass(frozen=True, kw_only=True, eq=False)
class SlateRows:
    """The judged policy on slates; all ``[slates, slots]``, empty slots with probability 1 and prediction 0.

    Attributes:
        target: ``e(a_l | x, items above)``.
        marginal: ``e(a_l at slot l | x)``; None where nobody asked.
        predicted: ``Q_l``: what slot l and those below it earn, by the reward model.
        expected: the mean of ``Q_l`` over what the policy would show at slot l, given the items above.
        missing: ``e`` at the first slot of the items that the log never shows there, ``[slates]``.
    """

    target: Floats
    marginal: Floats | None
    predicted: Floats
    expected: Floats
    missing: Floats


def shown_somewhere(items: Ints, places: Ints, count: int) -> NDArray[np.bool_]:
    """Which items the log shows at which place, ``[places, items]``."""
    shown = np.zeros((int(places.max()) + 1, count), dtype=bool)
    known = items >= 0
    shown[places[known], items[known]] = True
    return shown


def measure_impressions(states: States, of_row: Ints, items: Ints, places: Ints, model: RewardModel) -> Impressions:
    """Single impressions: an item at place l > 1 has the Plackett-Luce probability of that place.

    Args:
        states: softmax of the contexts, some at a time.
        of_row: context of every row.
        items: catalogue rows, -1 for items outside.
        places: slots from 0.
        model: predictions.
    """
    target, expected, missing = (np.zeros(len(items)) for _ in range(3))
    shown = shown_somewhere(items, places, model.table.shape[2])
    for numbers, chances in states:
        rows = np.flatnonzero((of_row >= numbers[0]) & (of_row <= numbers[-1]))
        context, place, item = of_row[rows] - numbers[0], places[rows], items[rows]
        at = place_probabilities(chances, model.table.shape[1])
        target[rows] = np.where(item >= 0, at[context, place, np.maximum(item, 0)], 0.0)
        missing[rows] = (at * ~shown).sum(axis=2)[context, place]
        expected[rows] = np.einsum("cpi,fpi->cfp", at, model.table, optimize=True)[context, model.folds[rows], place]
    return Impressions(target=target, predicted=model.of(items, places), expected=expected, missing=missing)


def measure_slates(
    states: States, of_row: Ints, items: Ints, grid: Ints, model: RewardModel, *, marginals: bool
) -> SlateRows:
    """Slates.

    Args:
        states: softmax of the contexts, some at a time.
        of_row: context of every row.
        items: catalogue rows, -1 for items outside.
        grid: row of the log at every slot of every slate, -1 where there is none, ``[slates, slots]``.
        model: predictions.
        marginals: whether the probabilities of places are wanted, too.
    """
    empty = grid < 0
    shape, tops = grid.shape, grid[:, 0]
    found = {name: np.zeros(shape) for name in ("target", "marginal", "predicted", "expected")}
    missing = np.zeros(len(grid))
    shown = shown_somewhere(items[tops], np.zeros(len(tops), dtype=np.int64), model.table.shape[2])[0]
    listed = np.where(empty, -1, items[np.maximum(grid, 0)])
    for numbers, chances in states:
        part = np.flatnonzero((of_row[tops] >= numbers[0]) & (of_row[tops] <= numbers[-1]))
        context, slates, fold = of_row[tops[part]] - numbers[0], listed[part], model.folds[tops[part]]
        own = chances[context]
        found["target"][part] = conditional_probabilities(own, slates)
        missing[part] = (chances @ ~shown)[context]
        predicted, expected = _futures(own, slates, empty[part], model, fold)
        found["predicted"][part], found["expected"][part] = predicted, expected
        if marginals:
            at = place_probabilities(chances, shape[1])[context[:, None], np.arange(shape[1]), np.maximum(slates, 0)]
            found["marginal"][part] = np.where(slates >= 0, at, 0.0)
    return SlateRows(
        target=np.where(empty, 1.0, found["target"]),
        marginal=np.where(empty, 1.0, found["marginal"]) if marginals else None,
        predicted=np.where(empty, 0.0, found["predicted"]),
        expected=np.where(empty, 0.0, found["expected"]),
        missing=missing,
    )


def _futures(
    chances: Floats, slates: Ints, empty: NDArray[np.bool_], model: RewardModel, folds: Ints
) -> tuple[Floats, Floats]:
    """``Q_l`` of the logged slates and its mean under the policy, ``[slates, slots]``.

    Slot l earns ``q(a_l, l)``; each slot below is taken to earn what it would, were it drawn in the place of slot l.
    """
    slots = slates.shape[1]
    chosen = np.where(slates >= 0, np.take_along_axis(chances, np.maximum(slates, 0), axis=1), 0.0)
    left = np.maximum(1.0 - (np.cumsum(chosen, axis=1) - chosen), 1e-12)
    places = np.arange(slots)
    all_items = np.einsum("si,fpi->sfp", chances, model.table, optimize=True)[np.arange(len(slates)), folds]
    earned = model.table[folds[:, None, None], places[:, None], np.maximum(slates, 0)[:, None, :]]
    spent = np.cumsum(chosen[:, None, :] * earned, axis=2) - chosen[:, None, :] * earned
    means = (all_items[:, :, None] - spent) / left[:, None, :]  # [slates, place whose reward, slot drawn at]
    own = np.where(slates >= 0, earned[:, places, places], model.outside[folds[:, None], places])
    below = (places[:, None] > places[None, :]) & ~empty[:, :, None]
    tails = (means * below).sum(axis=1)
    return own + tails, means[:, places, places] + tails
