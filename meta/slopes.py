"""Slopes of examples' losses by the scores of the catalogue, for many devices, and the products that gradients need.

For one example with targets t of weight w_t, ``slope = (sum of w_t) * pi(. | s) - sum of w_t e_t``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor


def product(rows: Tensor, matrix: Tensor) -> Tensor:
    """``rows [devices, n, k] @ matrix``, which is shared, ``[k, m]``, or each device's own, ``[devices, k, m]``."""
    if matrix.dim() == 3:
        return rows @ matrix
    flat = rows.reshape(-1, rows.shape[-1])
    return narrow(flat, matrix).reshape(*rows.shape[:2], matrix.shape[-1])


def narrow(rows: Tensor, matrix: Tensor) -> Tensor:
    """``rows @ matrix``, ``[n, k] [k, m]``; few columns of long sums are computed faster as their transpose."""
    if matrix.shape[1] < 64 <= matrix.shape[0]:
        return (matrix.T @ rows.T).T
    return rows @ matrix


def own_rows(rows: Tensor, width: int) -> Tensor:
    """Rows of each device's own table of ``width`` rows as rows of all tables one below the other."""
    first = torch.arange(len(rows)) * width
    return rows + first.reshape(-1, *[1] * (rows.dim() - 1))


class Slopes(Protocol):
    """What both forms can do; shapes as in :class:`DenseSlopes`."""

    def weighted(self, weights: Tensor) -> Slopes:
        """The slopes, each example's times its weight."""
        ...

    def times(self, matrix: Tensor) -> Tensor:
        """Slopes times a matrix."""
        ...

    def summed(self) -> Tensor:
        """Sum over examples."""
        ...

    def combined(self, factors: Tensor) -> Tensor:
        """Weighted sum over examples."""
        ...

    def squares(self) -> Tensor:
        """Squared norms."""
        ...

    def dot(self, scores: Tensor) -> Tensor:
        """Inner products with scores."""
        ...

    def at(self, items: Tensor) -> Tensor:
        """Slopes at some items."""
        ...

    def tables(self, states: Tensor) -> Tensor:
        """Sum over examples of slope (x) state."""
        ...


@dataclass(frozen=True, eq=False)
class DenseSlopes:
    """One row for every example, times a weight that is applied to products and never to the rows."""

    values: Tensor
    """``[devices, examples, items]``."""
    weights: Tensor
    """``[devices, examples]``."""

    def weighted(self, weights: Tensor) -> DenseSlopes:
        """The slopes times ``weights [devices, examples]``."""
        return DenseSlopes(self.values, self.weights * weights)

    def times(self, matrix: Tensor) -> Tensor:
        """``slopes @ matrix``, ``[devices, examples, k]``, with a shared or an own ``[items, k]``."""
        return product(self.values, matrix).mul_(self.weights[..., None])

    def summed(self) -> Tensor:
        """Sum over examples, ``[devices, items]``."""
        return (self.weights[:, None] @ self.values)[:, 0]

    def combined(self, factors: Tensor) -> Tensor:
        """Sum over examples of ``factors [devices, examples]`` times the slopes, ``[devices, items]``."""
        return ((factors * self.weights)[:, None] @ self.values)[:, 0]

    def squares(self) -> Tensor:
        """Squared norms, ``[devices, examples]``."""
        return self.values.square().sum(-1) * self.weights.square()

    def dot(self, scores: Tensor) -> Tensor:
        """Inner products with ``scores [devices, examples, items]``, ``[devices, examples]``."""
        return (self.values * scores).sum(-1) * self.weights

    def at(self, items: Tensor) -> Tensor:
        """The slopes at ``items [devices, examples, n]``, same shape."""
        return self.values.gather(-1, items) * self.weights[..., None]

    def tables(self, states: Tensor) -> Tensor:
        """Sum over examples of ``slope (x) state``, ``[devices, items, dim]``."""
        return self.values.mT @ (states * self.weights[..., None])

    @cached_property
    def gram(self) -> Tensor:
        """Inner products of a device's slopes with each other, ``[devices, examples, examples]``."""
        return (self.values @ self.values.mT) * self.weights[..., None] * self.weights[:, None]

    def table_sum(self, states: Tensor) -> Tensor:
        """Sum over devices and examples of ``slope (x) state``, ``[items, dim]``."""
        return self.values.flatten(0, 1).T @ (states * self.weights[..., None]).flatten(0, 1)


@dataclass(frozen=True, eq=False)
class SharedSlopes:
    """Examples of one target whose state is the same: ``slope_j = w_j (pi - e_j)`` with one ``pi`` for each device."""

    chosen: Tensor
    """``pi(. | s)``, ``[devices, 1, items]``."""
    weights: Tensor
    """``w``, ``[devices, examples]``."""
    targets: Tensor
    """int64 ``[devices, examples]``; any item where the weight is zero."""

    def weighted(self, weights: Tensor) -> SharedSlopes:
        """As :meth:`DenseSlopes.weighted`."""
        return SharedSlopes(self.chosen, self.weights * weights, self.targets)

    def times(self, matrix: Tensor) -> Tensor:
        """As :meth:`DenseSlopes.times`."""
        if matrix.dim() == 2:
            rows = matrix[self.targets]
        else:
            rows = matrix.gather(1, self.targets[..., None].expand(-1, -1, matrix.shape[-1]))
        return self.weights[..., None] * (product(self.chosen, matrix) - rows)

    def summed(self) -> Tensor:
        """As :meth:`DenseSlopes.summed`; in float64, because thousands of examples nearly cancel out."""
        weights = self.weights.double()
        total = weights.sum(1, keepdim=True) * self.chosen[:, 0]
        return total.scatter_add_(1, self.targets, -weights).to(self.chosen.dtype)

    def combined(self, factors: Tensor) -> Tensor:
        """As :meth:`DenseSlopes.combined`, with one factor for all examples of a device."""
        return factors[:, :1] * self.summed()

    def squares(self) -> Tensor:
        """As :meth:`DenseSlopes.squares`."""
        met = self.chosen[:, 0].gather(1, self.targets)
        return self.weights.square() * (self.chosen.square().sum(-1) - 2 * met + 1)

    def dot(self, scores: Tensor) -> Tensor:
        """As :meth:`DenseSlopes.dot`, with ``scores [devices, 1, items]``."""
        met = scores[:, 0].gather(1, self.targets)
        return self.weights * ((self.chosen * scores).sum(-1) - met)

    def at(self, items: Tensor) -> Tensor:
        """As :meth:`DenseSlopes.at`."""
        met = self.chosen.expand(-1, items.shape[1], -1).gather(-1, items)
        return self.weights[..., None] * (met - (items == self.targets[..., None]).to(met.dtype))

    def tables(self, states: Tensor) -> Tensor:
        """As :meth:`DenseSlopes.tables`, with ``states [devices, 1, dim]``."""
        return self.summed()[..., None] * states
