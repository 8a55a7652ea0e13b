"""A matrix product that stays one large product under ``torch.func.vmap``.

Where only the left factor is batched, vmap turns ``x @ m`` into many small products that each read ``m`` anew. Folding
the batch into the rows does the same work about ten times faster.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _RowsTimes(torch.autograd.Function):
    @staticmethod
    def forward(rows: Tensor, matrix: Tensor) -> Tensor:
        return rows @ matrix

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        rows, matrix = ctx.saved_tensors
        left = rows_times(gradient, matrix.mT) if ctx.needs_input_grad[0] else None
        right = rows.mT @ gradient if ctx.needs_input_grad[1] else None
        return left, right

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, int | None], rows: Tensor, matrix: Tensor) -> tuple[Tensor, int]:
        if in_dims[0] is not None:
            rows = rows.movedim(in_dims[0], 0)
        if in_dims[1] is not None:
            return rows @ matrix.movedim(in_dims[1], 0), 0
        folded = rows.reshape(-1, rows.shape[-1])
        return rows_times(folded, matrix).reshape(*rows.shape[:-1], matrix.shape[-1]), 0


def rows_times(rows: Tensor, matrix: Tensor) -> Tensor:
    """``rows @ matrix`` for ``[n, k]`` and ``[k, m]``, differentiable in both."""
    product: Tensor = _RowsTimes.apply(rows, matrix)  # type: ignore[no-untyped-call]
    return product
