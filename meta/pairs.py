"""What goes together: one (noised) count of pairs among popular items, released once, as a table of item factors.

Gradients of an item table spread a device's bounded update over every item it holds and many rounds. A sufficient
statistic needs one release: after the warm start every device says once which popular items stood near each other in
its log, the server factorises the noised sum, and likeness by the factors joins the content kernels. Sufficient
statistics in place of gradients is the way of Chien et al. 2021 ("Private alternating least squares"), eigenvectors of
a noised symmetric matrix that of Dwork et al. 2014 ("Analyze Gauss", algorithm 1). Expected pairs are taken away on the
device, where the noised popularity that was released before is known: else most of the bound would say again what is
popular.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NAME = "pairs"
"""The parameter that is set, and the kernel made of it."""
VOTE_NORM = 1.0
"""L2 norm of a device's vote."""


def popular(bias: Tensor, count: int) -> Tensor:
    """Rows of the ``count`` items with the largest bias (the first of equal ones), ascending, int64 ``[count]``."""
    return bias.sort(descending=True, stable=True).indices[:count].sort().values


def cells(count: int) -> int:
    """Pairs among ``count`` items: the length of a vote."""
    return count * (count - 1) // 2


@dataclass(frozen=True, eq=False)
class Popular:
    """What the warm start says of the popular items: the same for every device of a round.

    Attributes:
        rows: their catalogue rows, ascending, int64 ``[count]``.
        places: place of every item among them, -1 for the others, int64 ``[items]``.
        shares: of the popularity among them, float64 ``[count]``.
    """

    rows: Tensor
    places: Tensor
    shares: Tensor

    @classmethod
    def of(cls, bias: Tensor, count: int) -> Popular:
        """The ``count`` most popular items under what the warm start released, ``log(1 + count / floor) [items]``."""
        rows = popular(bias, count)
        places = torch.full((len(bias),), -1)
        places[rows] = torch.arange(len(rows))
        return cls(rows, places, _shares(bias[rows]))

    def vote(self, items: Tensor, window: int) -> Tensor:
        """See :func:`vote`."""
        count = len(self.rows)
        near = _near(self.places[items], count, window)
        surplus = near - near.sum() * torch.outer(self.shares, self.shares)
        flat = surplus[_upper(count)]
        norm: Tensor = torch.linalg.vector_norm(flat)
        if not bool(norm > 0):
            return torch.zeros(len(flat))
        return (flat * (_INSIDE * VOTE_NORM / norm)).to(torch.float32)


def vote(items: Tensor, bias: Tensor, count: int, window: int) -> Tensor:
    """Which popular items of one log go together more often than popularity says, float32 ``[cells(count)]``.

    Two entries ``d <= window`` places apart count 1 / d for their pair; the device's total is taken away in proportion
    to the product of both items' shares of the popularity, and the rest is scaled to norm 1.

    Args:
        items: catalogue rows of the log, oldest first, int64 ``[n]``.
        bias: what the warm start released, ``log(1 + count / floor)``, ``[items]``.
        count: number of popular items.
        window: largest distance of a pair.

    Guarantee:
        The l2 norm is at most ``VOTE_NORM``, whatever the log: removing a device moves the sum of votes by no more.
    """
    return Popular.of(bias, count).vote(items, window)


def factorise(total: Tensor, bias: Tensor, count: int, rank: int) -> Tensor:
    """Item factors from a (noised) sum of votes, float32 ``[items, rank]``: zero for items that are not popular.

    The leading positive eigenvectors of the sum, each cell over the root of what popularity expects of its items (one
    share is added, or noise would speak loudest of the least popular), times the roots of their eigenvalues. Rows have
    the mean norm 1. Post-processing: nothing but what was released is read.

    Args:
        total: sum of votes, ``[cells(count)]``.
        bias: as in :func:`vote`.
        count: number of popular items.
        rank: columns; those without a positive eigenvalue are zero.
    """
    likely = popular(bias, count)
    count = len(likely)
    square = torch.zeros(count, count, dtype=torch.float64)
    square[_upper(count)] = total.double()
    weight = torch.rsqrt(1 + count * _shares(bias[likely]))
    values, vectors = torch.linalg.eigh((square + square.T) * torch.outer(weight, weight))
    found = min(rank, count)
    lead, sizes = vectors[:, -found:].flip(1), values[-found:].flip(0).clamp(min=0)
    rows = _upright(lead) * sizes.sqrt() * weight[:, None]
    table = torch.zeros(len(bias), rank)
    table[likely, :found] = (rows / rows.norm(dim=1).mean().clamp(min=1e-12)).to(torch.float32)
    return table


_INSIDE = 1.0 - 2.0**-20  # rounding to float32 must not lift the norm above its bound


def _shares(bias: Tensor) -> Tensor:
    """Shares of the popularity among items with this bias, float64; equal ones where nothing is known."""
    counts = torch.expm1(bias.double()).clamp(min=0)
    return counts / counts.sum() if bool(counts.sum() > 0) else torch.full_like(counts, 1 / len(counts))


def _near(places: Tensor, count: int, window: int) -> Tensor:
    """Symmetric counts of what stands near each other, float64 ``[count, count]``, the diagonal zero."""
    near = torch.zeros(count * count, dtype=torch.float64)
    for distance in range(1, min(window, len(places) - 1) + 1):
        first, second = places[:-distance], places[distance:]
        both = (first >= 0) & (second >= 0) & (first != second)
        key = first[both] * count + second[both]
        near.index_add_(0, key, torch.full((len(key),), 1 / distance, dtype=torch.float64))
    square = near.view(count, count)
    return square + square.T


def _upper(count: int) -> tuple[Tensor, Tensor]:
    rows, columns = torch.triu_indices(count, count, 1)
    return rows, columns


def _upright(vectors: Tensor) -> Tensor:
    """Columns with the sign that makes their largest entry positive: eigenvectors have none of their own."""
    largest = vectors.abs().argmax(dim=0)
    return vectors * vectors.gather(0, largest[None]).sign()
