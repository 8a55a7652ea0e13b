"""Auditing with one run: many canaries, each in or out by a coin, and how many of the coins an observer can call.

Steinke, Nasr and Jagielski 2023, *Privacy auditing with one (1) training run* (arXiv:2305.08846): if the mechanism is
(epsilon, delta)-private in every coin, correct guesses are dominated by a binomial with the accuracy of randomized
response, up to a term in delta (theorem 5.2, corollary 5.4). Too many of them refute the epsilon.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from .._validate import at_least, non_negative, probability
from .audit import Scores, upper_tails

Coins = npt.NDArray[np.bool_]

_FRACTIONS = (1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.12, 0.08, 0.05, 0.03, 0.02)


def one_run_p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """The most likely that ``correct`` or more guesses are right by chance under (epsilon, delta)-privacy.

    With f(v) = P[Binomial(guesses, e^epsilon / (1 + e^epsilon)) >= v] this is
    ``f(v) + 2 * canaries * delta * max over i of (f(v - i) - f(v)) / i`` (corollary 5.4).

    Args:
        canaries: m, each included independently with probability 1/2.
        guesses: r, those that the observer does not abstain on; their number must not depend on the outcome.
        correct: v, guesses that are right.
        epsilon: of the claim, >= 0.
        delta: of the claim, in [0, 1).

    Raises:
        ValueError: not 0 <= correct <= guesses <= canaries, or numbers out of range.
    """
    at_least("canaries", canaries, 1)
    if not 0 <= correct <= guesses <= canaries:
        raise ValueError(
            f"expected 0 <= correct <= guesses <= canaries, got {correct}, {guesses} and {canaries}; count them again"
        )
    non_negative("delta", delta)
    tails = upper_tails(guesses, 1 / (1 + math.exp(-non_negative("epsilon", epsilon))))
    chance = float(tails[correct])
    if correct and delta:
        steps = np.arange(1, correct + 1)
        chance += 2 * canaries * delta * float(((tails[correct - steps] - chance) / steps).max())
    return min(1.0, chance)


def one_run_epsilon(canaries: int, guesses: int, correct: int, delta: float, confidence: float = 0.95) -> float:
    """A lower confidence bound on epsilon: the largest whose p-value is below ``1 - confidence`` (section 4.3).

    Args:
        canaries: see :func:`one_run_p_value`.
        guesses: as there.
        correct: as there.
        delta: as there.
        confidence: that the bound holds, in (0, 1).
    """
    error = 1 - probability("confidence", confidence, open_right=True)
    low, high = 0.0, 1.0
    if one_run_p_value(canaries, guesses, correct, 0.0, delta) >= error:
        return 0.0
    while high < 64 and one_run_p_value(canaries, guesses, correct, high, delta) < error:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        inside = one_run_p_value(canaries, guesses, correct, middle, delta) < error
        low, high = (middle, high) if inside else (low, middle)
    return low


def called(scores: Scores, included: Coins, guesses: int) -> int:
    """Correct guesses of an observer who says "in" of the highest scores and "out" of the lowest, half each.

    Args:
        scores: one of each canary, ``[canaries]``; higher speaks for "in".
        included: the coins ``[canaries]``.
        guesses: r, fixed before the scores are known; an odd one is rounded down.
    """
    order = np.argsort(scores, kind="stable")
    half = guesses // 2
    return int(included[order[len(order) - half :]].sum()) + int((~included[order[:half]]).sum())


def planned_guesses(canaries: int, separation: float, delta: float, confidence: float) -> int:
    """How many guesses promise the largest bound, before anything is seen; a quarter where none promises any.

    Args:
        canaries: m.
        separation: distance of the two means of an ideal Gaussian score, in standard deviations.
        delta: of the claim.
        confidence: of the bound.
    """
    best = (0.0, max(2, 2 * (canaries // 8)))
    for fraction in _FRACTIONS:
        guesses = max(2, 2 * round(fraction * canaries / 2))
        accuracy = _tail_accuracy(min(fraction, 1.0), separation)
        guesses = min(guesses, canaries // 2 * 2)
        bound = one_run_epsilon(canaries, guesses, int(guesses * accuracy), delta, confidence)
        best = (bound, guesses) if bound > best[0] else best
    return best[1]


def _tail_accuracy(fraction: float, separation: float) -> float:
    """Share of correct guesses among the outer ``fraction`` of scores N(0, 1) and N(separation, 1), half each."""
    low, high = separation / 2, separation / 2 + 40.0
    for _ in range(60):
        middle = (low + high) / 2
        inside, outside = _beyond(middle - separation), _beyond(middle)
        low, high = (middle, high) if inside + outside > fraction else (low, middle)
    inside, outside = _beyond(low - separation), _beyond(low)
    return inside / max(inside + outside, 1e-300)


def _beyond(value: float) -> float:
    return 0.5 * math.erfc(value / math.sqrt(2))
