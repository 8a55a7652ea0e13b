"""Robust aggregation: pure functions from stacked updates, ``[devices, *shape]`` by name, to an estimate of their mean.

A sum follows whoever shouts loudest. These estimators do not, up to a share of bad rows, their breakdown point:

==============  =======================================================  ==================  =====================
aggregator      estimate                                                 breakdown point     source
==============  =======================================================  ==================  =====================
``sum``         mean                                                     0                   McMahan et al. 2017
``trimmed``     per coordinate, the mean without the share at each end   ``byzantine``       Yin et al. 2018, def. 2
``median``      per coordinate, the median                               1/2                 Yin et al. 2018, def. 1
``krum``        the row closest to its n - f - 2 nearest                 ``(n - 3) / 2n``    Blanchard et al. 2017
``multi_krum``  the mean of the n - f best rows by the same score        ``(n - 3) / 2n``    the same
==============  =======================================================  ==================  =====================

All take ``share``, the share of bad rows to withstand, return float64 tensors ``[*shape]``, do not depend on the order
of the rows (but for rounding, and for ties of ``krum``) and refuse what is not finite. Noise for a clipped sum covers
none but the first: a device can move a trimmed mean, or a choice of Krum's, further (docs/robustness.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor

from ..meta.policy import Named
from ..privacy.mechanisms import Sensitivity, clip_factors

Aggregator = Callable[[Mapping[str, Tensor], float], Named]
_ROOM = 16_000_000
"""Numbers that are sorted or multiplied at once."""


def mean(rows: Mapping[str, Tensor], share: float) -> Named:
    """The mean; ``share`` is not used: one row moves it as far as it likes."""
    _check(rows)
    return {name: rows[name].mean(0, dtype=torch.float64) for name in sorted(rows)}


def trimmed_mean(rows: Mapping[str, Tensor], share: float) -> Named:
    """Coordinate by coordinate, the mean of what is left when ``share`` of the rows is cut off at each end.

    With ``share = 0`` the mean to the bit.
    """
    count = _check(rows)
    cut = min(bad_rows(count, share), (count - 1) // 2)
    if cut == 0:
        return mean(rows, share)
    return _by_coordinate(rows, lambda values: values[:, cut : count - cut].mean(1, dtype=torch.float64))


def median(rows: Mapping[str, Tensor], share: float) -> Named:
    """Coordinate by coordinate, the median (the mean of the middle two); ``share`` is not used."""
    count = _check(rows)
    low, high = (count - 1) // 2, count // 2
    return _by_coordinate(rows, lambda values: values[:, low : high + 1].mean(1, dtype=torch.float64))


def krum(rows: Mapping[str, Tensor], share: float) -> Named:
    """The one row whose nearest neighbours are nearest (see :func:`krum_scores`)."""
    best = int(krum_scores(rows, share).argmin())
    return {name: rows[name][best].double() for name in sorted(rows)}


def multi_krum(rows: Mapping[str, Tensor], share: float) -> Named:
    """The mean of all rows but the f with the largest scores of Krum."""
    scores = krum_scores(rows, share)
    kept = scores.argsort(stable=True)[: max(1, len(scores) - bad_rows(len(scores), share))]
    return mean({name: value[kept.sort().values] for name, value in rows.items()}, share)


def krum_scores(rows: Mapping[str, Tensor], share: float) -> Tensor:
    """Sum of the squared distances of each row to its n - f - 2 nearest others, float64 ``[devices]``.

    Krum asks for n >= 2 f + 3; with fewer rows f is as many as they allow, and at least one neighbour counts.
    """
    count = _check(rows)
    bad = min(bad_rows(count, share), max(0, (count - 3) // 2))
    distances = squared_distances(rows)
    distances.fill_diagonal_(math.inf)
    nearest = distances.sort(dim=1).values[:, : max(1, count - bad - 2)]
    return nearest.sum(1) if count > 1 else torch.zeros(1, dtype=torch.float64)


AGGREGATORS: Mapping[Literal["sum", "trimmed", "median", "krum", "multi_krum"], Aggregator] = {
    "sum": mean,
    "trimmed": trimmed_mean,
    "median": median,
    "krum": krum,
    "multi_krum": multi_krum,
}
"""By the names of ``server.aggregator``."""


def bad_rows(count: int, share: float) -> int:
    """f: how many of ``count`` rows are a share, rounded up (a product such as 0.1 * 30 by its intent)."""
    return math.ceil(share * count - 1e-9)


def clipped_rows(rows: Mapping[str, Tensor], bound: Sensitivity) -> Named:
    """Every row shortened to the bound, jointly over its tensors, in the space of the bound's scales.

    No mechanism: nothing is noised, and nothing is promised but that a row moves a mean over n by ``bound.value / n``.
    """
    _check(rows)
    factors = clip_factors(row_norms(rows, bound), bound).to(torch.float32)
    return {name: value * factors.reshape(-1, *[1] * (value.dim() - 1)) for name, value in rows.items()}


def row_norms(rows: Mapping[str, Tensor], bound: Sensitivity | None = None) -> Tensor:
    """L2 norm of every row over its scales, float64 ``[devices]``; not finite where a number of the row is not."""
    scales = bound or Sensitivity(1.0)
    norms = [
        torch.linalg.vector_norm(flat(rows[name]), dim=1, dtype=torch.float64) / scales.scale(name)
        for name in sorted(rows)
    ]
    whole: Tensor = torch.linalg.vector_norm(torch.stack(norms), dim=0)
    return whole


def squared_distances(rows: Mapping[str, Tensor]) -> Tensor:
    """Squared distance of every two rows, float64 ``[devices, devices]``, by Gram matrices."""
    count = len(next(iter(rows.values())))
    gram = torch.zeros(count, count, dtype=torch.float64)
    for name in sorted(rows):
        for part in _parts(rows[name]):
            values = part.double()
            gram.addmm_(values, values.T)
    squares = gram.diagonal()
    return (squares[:, None] + squares[None] - 2 * gram).clamp(min=0)


def flat(rows: Tensor) -> Tensor:
    """``[devices, *shape]`` as ``[devices, numbers]``."""
    return rows.reshape(len(rows), math.prod(rows.shape[1:]))


def _by_coordinate(rows: Mapping[str, Tensor], estimate: Callable[[Tensor], Tensor]) -> Named:
    """``estimate`` of every coordinate's sorted values ``[coordinates, devices]``, some coordinates at a time."""
    found = {}
    for name in sorted(rows):
        parts = [estimate(part.T.contiguous().sort(dim=1).values) for part in _parts(rows[name])]
        joined = torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)
        found[name] = joined.reshape(rows[name].shape[1:])
    return found


def _parts(rows: Tensor) -> Iterator[Tensor]:
    """Columns of a stack, so many at a time that memory stays small."""
    values = flat(rows)
    width = max(1, _ROOM // len(values))
    for first in range(0, values.shape[1], width):
        yield values[:, first : first + width]


def _check(rows: Mapping[str, Tensor]) -> int:
    """The number of rows.

    Raises:
        ValueError: there is none, tensors differ in it, or a number is not finite.
    """
    counts = {len(value) for value in rows.values()}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(f"expected tensors of equally many rows, at least one, got {sorted(counts)}")
    broken = [name for name, value in rows.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise ValueError(f"expected finite rows, got NaN or inf in {sorted(broken)}; pass them through the reply gate")
    return counts.pop()
