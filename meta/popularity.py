"""A warm start for the bias: one (noised) histogram of what devices hold, released before the first round.

At a policy that is uniform the gradient of the bias is the device's histogram, so this is a first Reptile step on the
bias alone; the server then maps counts to log-odds, which is post-processing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

NAME = "bias"
"""The parameter that is warm-started."""
VOTE_NORM = 1.0
"""L2 norm of a device's vote under unit ``user``, and of one interaction's part of it under unit ``interaction``."""


def vote(items: Tensor, catalogue: int, *, unit_norm: bool, full: int = 1) -> Tensor:
    """One device's histogram, float32 ``[catalogue]``.

    Args:
        items: catalogue rows of its interactions, int64 ``[n]``.
        catalogue: number of items.
        unit_norm: bound its L2 norm by 1 (unit ``user``); else every interaction counts 1 (unit ``interaction``:
            removing one moves the histogram by 1).
        full: under ``unit_norm``, up to so many distinct items count ``1 / sqrt(full)`` each, more share the norm 1.
            With 1 every device speaks as loudly; a large one lets those speak louder that have seen more.
    """
    counts = torch.zeros(catalogue)
    if unit_norm:
        counts[items] = 1.0
        norm: Tensor = torch.linalg.vector_norm(counts)
        return counts * (VOTE_NORM / norm.clamp(min=math.sqrt(full)))
    return counts.index_add(0, items, torch.ones(len(items)))


def log_popularity(total: Tensor, floor: float) -> Tensor:
    """Map a (noised) sum of votes to a bias: ``log(1 + max(total, 0) / floor)``.

    Args:
        total: sum of votes, ``[catalogue]``.
        floor: counts well below it are alike; take about the noise's standard deviation, a public constant.
    """
    return torch.log1p(total.clamp(min=0).to(torch.float32) / floor)
