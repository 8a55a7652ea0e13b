"""Public content kernels: how alike two items are by what anybody knows of them.

Every feature group of the catalogue gives one kernel, the inner product of its row-normalised columns; two groups that
are no texts give one more, the product of theirs (alike in both). All of it is public, so a kernel costs no privacy:
only its weight is learned.

Two more kernels need what the federation has released: how alike two items are in popularity, and whether they go
together (``meta.pairs``). They are made of parameters, so a policy puts the columns of all of them into one table.
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional

from ..config import PolicyConfig
from .interactions import Catalogue
from .pairs import NAME as PAIRS

PLACE = "place"
"""The kernel of the catalogue's order."""
LEVEL = "level"
"""The kernel of popularity."""
_LEVELS = torch.arange(0, 10.5, 0.5)  # of the bias, where log-popularity has its bumps
_LEVEL_WIDTH = 0.35
_WIDEST = 4096  # columns of a product kernel; wider ones are left out


def kernel_features(catalogue: Catalogue, place: int = 0) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Explicit features of every public kernel.

    Args:
        catalogue: the items.
        place: width in rows of a kernel of the catalogue's order, 0 for none.

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
    if place:
        blocks[PLACE] = bumps(torch.arange(len(catalogue)), torch.arange(0, len(catalogue) + place, place), place)
    names = tuple(blocks)
    kernel_of = [torch.full((block.shape[1],), number) for number, block in enumerate(blocks.values())]
    if not names:
        return torch.zeros(len(catalogue), 0), torch.zeros(0, dtype=torch.int64), ()
    return torch.cat(list(blocks.values()), dim=1), torch.cat(kernel_of), names


def released_kernels(settings: PolicyConfig) -> dict[str, int]:
    """Names and columns of the kernels that are made of released parameters."""
    wanted = {LEVEL: len(_LEVELS) * settings.affinity_level, PAIRS: settings.pairs}
    return {name: width for name, width in wanted.items() if width and settings.affinity}


def level_features(bias: Tensor) -> Tensor:
    """Features of the kernel of popularity, ``[items, columns]``: items of about the same bias are alike."""
    return bumps(bias.detach(), _LEVELS, _LEVEL_WIDTH)


def bumps(values: Tensor, centres: Tensor, width: float) -> Tensor:
    """Row-normalised ``exp(-((value - centre) / width)^2 / 2)``, ``[values, centres]``.

    The inner product of two rows is about ``exp(-((a - b) / width)^2 / 4)``.
    """
    distance = (values.to(torch.float32)[:, None] - centres.to(values.device, torch.float32)) / width
    return functional.normalize(torch.exp(-0.5 * distance.square()), dim=1)


def _products(first: Tensor, second: Tensor) -> Tensor:
    """Row-wise Kronecker product: its inner product is the product of the two; columns nobody uses are dropped."""
    product = torch.einsum("if,ig->ifg", first, second).flatten(1)
    return product[:, product.abs().amax(dim=0) > 0]
