"""Public content kernels: how alike two items are by what anybody knows of them.

Every feature group of the catalogue gives one kernel, the inner product of its row-normalised columns; two groups that
are no texts give one more, the product of theirs (alike in both). All of it is public, so a kernel costs no privacy:
only its weight is learned.
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional

from .interactions import Catalogue

_WIDEST = 4096  # columns of a product kernel; wider ones are left out


def kernel_features(catalogue: Catalogue) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Explicit features of every kernel.

    Returns:
        Features float32 ``[items, columns]``, the kernel of every column int64 ``[columns]``, the kernels' names. The
        inner product of two rows over one kernel's columns lies in [-1, 1].
    """
    features = torch.tensor(catalogue.features, dtype=torch.float32)
    blocks: dict[str, Tensor] = {}
    for group in catalogue.groups:
        blocks[group.name] = functional.normalize(features[:, group.start : group.stop], dim=1)
    plain = [group.name for group in catalogue.groups if group.kind != "text"]
    for first, second in combinations(plain, 2):
        if blocks[first].shape[1] * blocks[second].shape[1] <= _WIDEST:
            blocks[f"{first} x {second}"] = _products(blocks[first], blocks[second])
    names = tuple(blocks)
    kernel_of = [torch.full((block.shape[1],), number) for number, block in enumerate(blocks.values())]
    if not names:
        return torch.zeros(len(catalogue), 0), torch.zeros(0, dtype=torch.int64), ()
    return torch.cat(list(blocks.values()), dim=1), torch.cat(kernel_of), names


def _products(first: Tensor, second: Tensor) -> Tensor:
    """Row-wise Kronecker product: its inner product is the product of the two; columns nobody uses are dropped."""
    product = torch.einsum("if,ig->ifg", first, second).flatten(1)
    return product[:, product.abs().amax(dim=0) > 0]
