"""Off-policy estimators for single items: pure functions of weights, rewards and, where they take one, a reward model.

A log holds, for every row i, a context x_i, the item a_i that the logging policy ``b`` showed with the known
probability b(a_i | x_i), and the reward r_i. With ``e`` the policy that is to be judged,

    w_i = e(a_i | x_i) / b(a_i | x_i)

is its importance weight. An estimate is a ratio of two means over the rows; both come back row by row (``Terms``), so
that one bootstrap serves every estimator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError

Floats = NDArray[np.float64]

_TAILS = np.linspace(0.9, 0.99, 10)
"""Shares of all weight below the thresholds at which Switch-DR may switch."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Terms:
    """An estimate, row by row: ``sum(numerators) / sum(denominators)``.

    Attributes:
        numerators: float64 ``[rows]``.
        denominators: float64 ``[rows]``; ones where the estimate is a plain mean.
    """

    numerators: Floats
    denominators: Floats

    @property
    def value(self) -> float:
        """The estimate; NaN where the denominators are all zero."""
        total = float(self.denominators.sum())
        return float(self.numerators.sum()) / total if total else float("nan")


def mean_of(values: NDArray[Any]) -> Terms:
    """The plain mean of ``values [rows]`` as terms."""
    numerators = np.asarray(values, dtype=np.float64)
    return Terms(numerators=numerators, denominators=np.ones_like(numerators))


def importance_weights(target: NDArray[Any], propensities: NDArray[Any]) -> Floats:
    """``w = e(a | x) / b(a | x)``, float64 ``[rows]``.

    Args:
        target: probability with which the judged policy shows each logged item, in [0, 1].
        propensities: the logging policy's, in (0, 1].

    Raises:
        DataError: shapes differ, or a number is no probability.
    """
    target, propensities = np.asarray(target, np.float64), np.asarray(propensities, np.float64)
    if target.shape != propensities.shape:
        raise DataError(
            f"expected a probability and a propensity for each row, got shapes {target.shape} and {propensities.shape}"
        )
    if not bool(((propensities > 0) & (propensities <= 1)).all()):
        raise DataError("expected propensities in (0, 1], got others; drop or repair those rows")
    if not bool(((target >= 0) & (target <= 1 + 1e-9)).all()):
        raise DataError("expected probabilities of the judged policy in [0, 1], got others; check the policy")
    return np.asarray(target / propensities)


def ips(weights: Floats, rewards: Floats) -> Terms:
    """Inverse propensity scoring: ``mean(w r)`` (Horvitz and Thompson 1952; Strehl et al. 2010).

    Unbiased where ``b`` supports ``e``; the variance grows with the square of the weights.
    """
    return mean_of(weights * rewards)


def snips(weights: Floats, rewards: Floats) -> Terms:
    """Self-normalised IPS: ``sum(w r) / sum(w)`` (Swaminathan and Joachims 2015, eq. 10).

    Consistent, not unbiased; stays within the range of the rewards, and adding a constant to them adds it to the value.
    """
    return Terms(numerators=weights * rewards, denominators=weights)


def dm(expected: Floats) -> Terms:
    """Direct method: ``mean(q(x, e))`` (Beygelzimer and Langford 2009).

    Args:
        expected: ``q(x, e) = sum_a e(a | x) q(x, a)``, what a reward model predicts for the judged policy, ``[rows]``.

    As wrong as its model, whatever the number of rows.
    """
    return mean_of(expected)


def dr(weights: Floats, rewards: Floats, predicted: Floats, expected: Floats) -> Terms:
    """Doubly robust: ``mean(q(x, e) + w (r - q(x, a)))`` (Dudik, Langford and Li 2011, eq. 4).

    Args:
        weights: importance weights, ``[rows]``.
        rewards: rewards, ``[rows]``.
        predicted: ``q(x_i, a_i)`` of the logged item, ``[rows]``, by a model that was fitted without row i.
        expected: ``q(x_i, e)``, ``[rows]``, by the same model.

    Unbiased where the propensities are right, whatever the model; and where the model is right, whatever they are.
    """
    return mean_of(expected + weights * (rewards - predicted))


def switch_dr(weights: Floats, rewards: Floats, predicted: Floats, expected: Floats, threshold: float) -> Terms:
    """Switch-DR: ``mean(q(x, e) + w 1[w <= threshold] (r - q(x, a)))`` (Wang, Agarwal and Dudik 2017, section 4).

    Rows with a larger weight are left to the model: threshold 0 is DM, infinity is DR.

    Raises:
        ValueError: threshold < 0 or NaN.
    """
    if not threshold >= 0:
        raise ValueError(f"expected a switch threshold >= 0, got {threshold!r}")
    return dr(np.where(weights <= threshold, weights, 0.0), rewards, predicted, expected)


def switch_threshold(weights: Floats, rewards: Floats, predicted: Floats, expected: Floats) -> float:
    """The threshold by SLOPE (Su, Srinath and Krishnamurthy 2020, section 4): the smallest that agrees with all above.

    Candidates are infinity, which is DR, and ten that leave 1 % to 10 % of what the policy shows (of all weight) to the
    model: more than that is never left to it.
    Going down, each has the interval ``value +- 2 x 1.96 standard errors``; the last threshold before the intervals so
    far have no point in common is taken. Nothing has to be known of the bias but that it grows on the way.
    """
    total = float(weights.sum())
    if total == 0:
        return float("inf")
    ordered = np.sort(weights)
    places = np.searchsorted(np.cumsum(ordered), _TAILS * total).clip(max=len(ordered) - 1)
    low, high, chosen = -np.inf, np.inf, float("inf")
    for threshold in (float("inf"), *np.unique(ordered[places])[::-1].tolist()):
        terms = switch_dr(weights, rewards, predicted, expected, threshold)
        width = 2 * 1.96 * float(terms.numerators.std()) / np.sqrt(len(weights))
        low, high = max(low, terms.value - width), min(high, terms.value + width)
        if low > high:
            break
        chosen = threshold
    return chosen
