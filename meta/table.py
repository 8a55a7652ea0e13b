"""The gradient of a table as factors: no device's table is written down unless somebody asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .policy import Named
from .slopes import DenseSlopes, SharedSlopes, Slopes, own_rows


@dataclass(frozen=True, kw_only=True, eq=False)
class TableGradient:
    """Every device's gradient by ``ids``: ``sum over examples of slope (x) state``, plus rows of its histories' items.

    The bias is a table of one column, with its gain as the state; other products of two things of every example, too.

    Attributes:
        slopes: weighted by example.
        states: ``[devices, examples, dim]``.
        items: distinct items of the device's histories, int64 ``[devices, distinct]``; any where its row is zero.
        rows: what those items get, ``[devices, distinct, dim]``; none without histories.
    """

    slopes: Slopes
    states: Tensor
    items: Tensor | None = None
    rows: Tensor | None = None

    def squares(self) -> tuple[Tensor, Tensor]:
        """Squared norm of every device's gradient ``[devices]``, and the size of what it is a difference of.

        ``|A + B|^2 = |A|^2 + 2 <A, B> + |B|^2`` with ``|A|^2`` from two Gram matrices. Rounding can hide a small
        multiple of the second number: add it where the norm must be a bound.
        """
        dense = _dense(self.slopes)
        products = dense.gram * (self.states @ self.states.mT)
        outer = products.sum((-1, -2)).clamp(min=0)
        size = products.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt().sum(-1).square()
        if self.rows is None or self.items is None:
            return outer, size
        inner = self.rows.square().sum((-1, -2))
        met = dense.at(self.items[:, None].expand(-1, self.states.shape[1], -1))
        cross = 2 * (met * (self.states @ self.rows.mT)).sum((-1, -2))
        return (outer + cross + inner).clamp(min=0), (size.sqrt() + inner.sqrt()).square()

    def subtract(self, tables: Tensor, rate: float) -> None:
        """Take ``rate`` times every device's gradient off its own ``tables [devices, items, dim]``, in place."""
        if isinstance(self.slopes, SharedSlopes):
            tables.addcmul_(self.slopes.summed()[..., None], self.states, value=-rate)
        else:
            tables.sub_(self.each(tables.shape[1]), alpha=rate)

    def each(self, items: int) -> Tensor:
        """The gradients written down, ``[devices, items, dim]``."""
        tables = self.slopes.tables(self.states).contiguous()
        if self.rows is not None and self.items is not None:
            flat = tables.view(-1, tables.shape[-1])
            flat.index_add_(0, own_rows(self.items, items).flatten(), self.rows.flatten(0, 1))
        return tables


def summed(tables: Mapping[str, TableGradient], factors: Mapping[str, Tensor]) -> Named:
    """Sum over devices of ``factors [devices]`` times the gradient by name, float32 ``[rows, columns]``.

    Tables of the same slopes meet them in one product.
    """
    found: Named = {}
    along = {name: factors[name].float()[:, None, None] for name in tables}
    for slopes in {id(table.slopes): table.slopes for table in tables.values()}.values():
        states = {name: table.states * along[name] for name, table in tables.items() if table.slopes is slopes}
        widths = [state.shape[-1] for state in states.values()]
        joint = _dense(slopes).table_sum(torch.cat(list(states.values()), dim=-1))
        found |= dict(zip(states, torch.split(joint, widths, dim=1), strict=True))
    for name, table in tables.items():
        if table.rows is not None and table.items is not None:
            rows = (table.rows * along[name]).flatten(0, 1)
            found[name] = found[name].contiguous().index_add_(0, table.items.flatten(), rows)
    return found


def _dense(slopes: Slopes) -> DenseSlopes:
    if not isinstance(slopes, DenseSlopes):
        raise TypeError(f"expected slopes of each example, got {type(slopes).__name__}; build the stack without alike")
    return slopes
