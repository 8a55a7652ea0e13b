"""A ridge logistic regression for reward models, solved to the end by Newton's method with conjugate gradients.

    minimise  sum_i [log(1 + exp(eta_i)) - y_i eta_i] + ridge / 2 |coefficients|^2,   eta = intercept + X coefficients

with the intercept left free: the objective of scikit-learn's ``LogisticRegression(C=1/ridge)``. Targets between 0 and
1 are welcome (fractional logit, Papke and Wooldridge 1996), so any bounded reward can be modelled. The design is a
dense block beside one-hot blocks that are never written out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..._validate import positive
from ...errors import DataError
from .items import Floats

_NEWTON_STEPS, _HALVINGS = 100, 40
_TOLERANCE = 1e-8


@dataclass(frozen=True, kw_only=True, eq=False)
class Design:
    """Rows of a regression: an intercept, dense columns, and one column for each level of each code.

    Attributes:
        dense: float64 ``[rows, columns]``.
        codes: for every one-hot block the level of each row, int64 ``[rows]``; -1 for none of them.
        levels: number of levels of every block.
    """

    dense: Floats
    codes: tuple[NDArray[np.int64], ...] = ()
    levels: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.dense)

    @property
    def columns(self) -> int:
        """Number of coefficients, the intercept (the first) included."""
        return 1 + int(self.dense.shape[1]) + sum(self.levels)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Design:
        """Some of the rows."""
        return Design(dense=self.dense[rows], codes=tuple(code[rows] for code in self.codes), levels=self.levels)

    def times(self, coefficients: Floats) -> Floats:
        """``X w``, ``[rows]``."""
        place = 1 + self.dense.shape[1]
        total: Floats = coefficients[0] + self.dense @ coefficients[1:place]
        for code, size in zip(self.codes, self.levels, strict=True):
            total = total + np.where(code >= 0, coefficients[place : place + size][np.maximum(code, 0)], 0.0)
            place += size
        return total

    def transposed(self, values: Floats) -> Floats:
        """``X^T v``, ``[columns]``."""
        parts = [np.array([values.sum()]), self.dense.T @ values]
        for code, size in zip(self.codes, self.levels, strict=True):
            known = code >= 0
            parts.append(np.bincount(code[known], weights=values[known], minlength=size))
        return np.concatenate(parts)

    def squares(self, weights: Floats) -> Floats:
        """The diagonal of ``X^T diag(weights) X``, ``[columns]``."""
        squared = Design(dense=self.dense**2, codes=self.codes, levels=self.levels)
        return squared.transposed(weights)


def fit_logistic(design: Design, targets: Floats, ridge: float = 1.0) -> Floats:
    """Coefficients ``[columns]``, the intercept first.

    Args:
        design: the rows.
        targets: values in [0, 1], not all of them 0 and not all of them 1, ``[rows]``.
        ridge: penalty on every coefficient but the intercept, > 0.

    Raises:
        DataError: targets outside [0, 1], or with all of them at one end, where no intercept is best.
    """
    positive("ridge", ridge)
    if not len(targets) or not bool(((targets >= 0) & (targets <= 1)).all()):
        raise DataError("expected targets of a logistic regression in [0, 1], got others or none; scale the rewards")
    mean = float(targets.mean())
    if not 0 < mean < 1:
        raise DataError(f"expected targets between the ends of [0, 1], got {mean:g} in every row; use the mean instead")
    penalty = np.full(design.columns, ridge)
    penalty[0] = 0.0
    coefficients = np.zeros(design.columns)
    coefficients[0] = np.log(mean / (1 - mean))
    for _ in range(_NEWTON_STEPS):
        step, decrement = _newton_step(design, targets, penalty, coefficients)
        coefficients = _line_search(design, targets, penalty, coefficients, step)
        if decrement < _TOLERANCE**2:
            break
    return coefficients


def predict_logistic(design: Design, coefficients: Floats) -> Floats:
    """Modelled means in (0, 1), ``[rows]``."""
    return sigmoid(design.times(coefficients))


def sigmoid(values: Floats) -> Floats:
    """``1 / (1 + exp(-values))`` without overflow."""
    return np.exp(-np.logaddexp(0.0, -values))


def _newton_step(design: Design, targets: Floats, penalty: Floats, coefficients: Floats) -> tuple[Floats, float]:
    """Newton's direction and its decrement ``g^T H^-1 g``, which bounds how far the objective is from its least."""
    means = predict_logistic(design, coefficients)
    gradient = design.transposed(means - targets) + penalty * coefficients
    curvature = means * (1 - means)

    def hessian(direction: Floats) -> Floats:
        return design.transposed(curvature * design.times(direction)) + penalty * direction

    diagonal = np.maximum(design.squares(curvature) + penalty, 1e-12)
    step = _conjugate_gradients(hessian, gradient, diagonal)
    return step, float(gradient @ step)


def _line_search(design: Design, targets: Floats, penalty: Floats, start: Floats, step: Floats) -> Floats:
    """Halve the step until the objective is no larger than before."""

    def objective(at: Floats) -> float:
        eta = design.times(at)
        return float((np.logaddexp(0.0, eta) - targets * eta).sum() + 0.5 * (penalty * at * at).sum())

    before = objective(start)
    for halving in range(_HALVINGS):
        reached = start - step * 0.5**halving
        if objective(reached) <= before + 1e-12 * abs(before):
            return reached
    return start


def _conjugate_gradients(times: Callable[[Floats], Floats], right: Floats, diagonal: Floats) -> Floats:
    """Solve ``H x = right`` with the diagonal as preconditioner (Shewchuk 1994, B3)."""
    solution = np.zeros_like(right)
    residual = right.copy()
    scaled = residual / diagonal
    direction, size = scaled, float(residual @ scaled)
    goal = size * 1e-16
    for _ in range(4 * len(right) + 50):
        if size <= goal or size == 0.0:
            break
        image = times(direction)
        length = size / float(direction @ image)
        solution = solution + length * direction
        residual = residual - length * image
        scaled = residual / diagonal
        previous, size = size, float(residual @ scaled)
        direction = scaled + size / previous * direction
    return solution
