"""Filters: what may be recommended to whom."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import PolicyError


def allowed_items(items: int, seen: Tensor, ineligible: Tensor | None = None) -> Tensor:
    """Candidates that are left, bool ``[users, items]``.

    Args:
        items: catalogue size.
        seen: catalogue rows that each user has met, -1 pads, int64 ``[users, n]``.
        ineligible: out of stock, blocked, too old for the user: bool ``[items]`` or ``[users, items]``.

    Raises:
        PolicyError: a row outside the catalogue, or a filter of another shape.
    """
    outside = seen[(seen < -1) | (seen >= items)]
    if len(outside):
        raise PolicyError(f"expected seen rows in [-1, {items}), got {int(outside[0])}; pad with -1")
    met = torch.zeros(len(seen), items + 1, dtype=torch.bool)
    met = met.scatter(1, torch.where(seen >= 0, seen, items), torch.ones_like(seen, dtype=torch.bool))
    if ineligible is None:
        return ~met[:, :items]
    if ineligible.shape not in ((items,), (len(seen), items)):
        raise PolicyError(
            f"expected ineligible items of shape ({items},) or ({len(seen)}, {items}), got {tuple(ineligible.shape)}"
        )
    return ~(met[:, :items] | ineligible.to(torch.bool))
