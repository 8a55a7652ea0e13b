"""Ranking and rating metrics: pure functions over blocks of scores ``[devices, items]``.

Ties are never broken by luck or by catalogue order. Every metric of a held-out item is its *expectation over a
uniformly random order of the items that tie with it*, in closed form: a policy that scores everything the same gets
what chance gets (HR@10 = 0.10 among 100 candidates), neither 0 nor 1. A NaN raises, because every comparison with NaN
is false and would put the held-out item first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import PolicyError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

DEFAULT_KS = (5, 10, 20)


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Where each device's held-out item stands among its candidates.

    Attributes:
        above: candidates that score strictly higher, int64 ``[devices]``; -1 for a device without a held-out item.
        ties: other candidates that score exactly the same, int64 ``[devices]``.
    """

    above: Ints
    ties: Ints

    @property
    def expected(self) -> Floats:
        """0-based rank averaged over random orders of the ties, float64 ``[devices]``; NaN without a held-out item."""
        return np.where(self.above < 0, np.nan, self.above + self.ties / 2.0)

    @classmethod
    def join(cls, parts: Sequence[Ranks]) -> Ranks:
        """The ranks of several blocks of devices, one after the other."""
        none = np.zeros(0, dtype=np.int64)
        return cls(
            above=np.concatenate([none, *(part.above for part in parts)]),
            ties=np.concatenate([none, *(part.ties for part in parts)]),
        )


def target_ranks(
    scores: Tensor, targets: Tensor, excluded: Tensor | None = None, candidates: Tensor | None = None
) -> Ranks:
    """Rank one held-out item a device against the whole catalogue or against given candidates.

    Args:
        scores: float ``[devices, items]``; infinities are ordinary values, NaN is refused.
        targets: the held-out item of each device, int64 ``[devices]``; -1 where there is none.
        excluded: items that are not candidates (seen before), bool ``[devices, items]``. A device whose held-out item
            is itself excluded (a repeated interaction) gets no rank: having seen it, the answer is known.
        candidates: rival items, int64 ``[devices, candidates]``, padded with -1; without it, every item is one.

    Raises:
        PolicyError: a candidate's score is NaN, or the shapes do not fit.
    """
    _check_shapes(scores, targets, excluded, candidates)
    known, rows = targets >= 0, torch.arange(len(targets))
    safe = targets.clamp(min=0)
    if excluded is not None:
        known = known & ~excluded[rows, safe]
    own = scores[rows, safe].unsqueeze(1)
    if candidates is None:
        rivals, allowed = scores, None if excluded is None else ~excluded
    else:
        allowed = (candidates >= 0) & (candidates != targets.unsqueeze(1))
        gathered = candidates.clamp(min=0)
        rivals = scores.gather(1, gathered)
        if excluded is not None:
            allowed = allowed & ~excluded.gather(1, gathered)
        rivals = rivals.masked_fill(~allowed, -torch.inf)
    refuse_nan(own)
    refuse_nan(rivals)
    higher, equal = rivals > own, rivals == own
    if allowed is not None:
        higher, equal = higher & allowed, equal & allowed
    ties = equal.sum(dim=1) - (1 if candidates is None else 0)
    missing = torch.full_like(targets, -1)
    above = torch.where(known, higher.sum(dim=1), missing)
    return Ranks(above=above.numpy(), ties=torch.where(known, ties, torch.zeros_like(ties)).numpy())


def refuse_nan(scores: Tensor) -> None:
    """Raise ``PolicyError`` if any score is NaN; NaN would otherwise lose every comparison and hide a broken policy."""
    if bool(torch.isnan(scores).any()):
        count = int(torch.isnan(scores).sum())
        raise PolicyError(f"expected finite scores, got NaN for {count} of {scores.numel()}; the policy has diverged")


def ranking_metrics(ranks: Ranks, ks: Sequence[int] = DEFAULT_KS) -> dict[str, Floats]:
    """HR, NDCG and recall at every ``k`` and MRR of one held-out item a device, in expectation over ties.

    With ``a`` items above and ``t`` ties the rank is uniform on ``a .. a + t``, so every metric is the mean of its
    value over that range: a difference of two prefix sums.

    Returns:
        ``hr@k``, ``ndcg@k``, ``recall@k`` (with one relevant item the same as ``hr@k``) and ``mrr``, each float64
        ``[devices]``; NaN for a device without a held-out item.
    """
    known = ranks.above >= 0
    first, size = np.where(known, ranks.above, 0), ranks.ties + 1
    longest = max(int((first + size).max(initial=0)), *ks) + 1
    positions = np.arange(longest)
    tables = {"ndcg": _prefix_sums(1.0 / np.log2(positions + 2.0)), "mrr": _prefix_sums(1.0 / (positions + 1.0))}
    out: dict[str, Floats] = {}
    for k in ks:
        low, high = np.minimum(first, k), np.minimum(first + size, k)
        hits = np.where(known, (high - low) / size, np.nan)
        out[f"hr@{k}"] = hits
        out[f"ndcg@{k}"] = np.where(known, (tables["ndcg"][high] - tables["ndcg"][low]) / size, np.nan)
        out[f"recall@{k}"] = hits.copy()
    out["mrr"] = np.where(known, (tables["mrr"][first + size] - tables["mrr"][first]) / size, np.nan)
    return out


def multi_relevant_metrics(
    scores: Tensor, relevant: Tensor, excluded: Tensor | None = None, ks: Sequence[int] = DEFAULT_KS
) -> dict[str, Floats]:
    """NDCG, recall and precision at every ``k`` where a device has several relevant items.

    All three are sums over the relevant items, so their expectation over random orders of ties is the sum of the
    items' expectations and stays exact. ``recall@k`` divides by the number of relevant items, NDCG by the best DCG
    that ``k`` places allow (Järvelin & Kekäläinen 2002).

    Args:
        scores: float ``[devices, items]``.
        relevant: bool ``[devices, items]``; a relevant item that is also excluded does not count.
        excluded: bool ``[devices, items]``.
        ks: list lengths.

    Returns:
        ``ndcg@k``, ``recall@k``, ``precision@k``, float64 ``[devices]``; NaN for a device without a relevant item.
    """
    refuse_nan(scores)
    if excluded is not None:
        relevant = relevant & ~excluded
    device, item = relevant.nonzero(as_tuple=True)
    above, ties = _ranks_of_pairs(scores, device, item, excluded)
    each = ranking_metrics(Ranks(above=above, ties=ties), ks)
    count = relevant.sum(dim=1).numpy()
    ideal = _prefix_sums(1.0 / np.log2(np.arange(max(ks)) + 2.0))
    totals = {name: np.bincount(device.numpy(), weights=value, minlength=len(count)) for name, value in each.items()}
    out: dict[str, Floats] = {}
    with np.errstate(invalid="ignore", divide="ignore"):
        for k in ks:
            out[f"ndcg@{k}"] = totals[f"ndcg@{k}"] / ideal[np.minimum(count, k)]
            out[f"recall@{k}"] = totals[f"hr@{k}"] / count
            out[f"precision@{k}"] = np.where(count > 0, totals[f"hr@{k}"] / k, np.nan)
    return out


def top_k(scores: Tensor, k: int, excluded: Tensor | None = None) -> Tensor:
    """The ``k`` highest items of each device, best first, int64 ``[devices, k]``; -1 where fewer are allowed.

    Equal scores come in catalogue order, so that a list is the same on every machine.

    Raises:
        PolicyError: a score is NaN.
    """
    refuse_nan(scores)
    allowed = scores if excluded is None else scores.masked_fill(excluded, -torch.inf)
    width = min(k, scores.shape[1])
    values, items = torch.topk(allowed, width, dim=1)
    items, by_row = items.sort(dim=1)
    values, by_score = values.gather(1, by_row).sort(dim=1, descending=True, stable=True)
    items = items.gather(1, by_score)
    crowded = (allowed >= values[:, -1:]).sum(dim=1) > width
    if bool(crowded.any()):
        items[crowded] = torch.sort(allowed[crowded], dim=1, descending=True, stable=True).indices[:, :width]
    out = torch.full((len(scores), k), -1, dtype=torch.int64)
    out[:, :width] = items
    if excluded is not None:
        out[:, :width][excluded.gather(1, items)] = -1
    return out


def exposure(recommended: Tensor, items: int) -> Ints:
    """How often each item was recommended, int64 ``[items]``, from lists padded with -1."""
    shown = recommended[recommended >= 0]
    return torch.bincount(shown, minlength=items).numpy()


def list_metrics(shown: NDArray[Any], popularity: NDArray[Any], k: int) -> dict[str, float]:
    """What the lists of all devices look like together.

    Args:
        shown: how often each item stands in somebody's top ``k``, ``[items]``.
        popularity: interactions of each item in the training part, ``[items]``.
        k: list length, for the names only.

    Returns:
        ``coverage@k``: share of the catalogue that anybody is shown. ``mean_popularity@k``: mean popularity percentile
        of a recommended item (0 = least, 1 = most popular; equal counts share their mean percentile).
        ``gini@k``: Gini index of exposure, 0 = every item equally often, towards 1 = all lists are the same few items.
    """
    total = float(shown.sum())
    percentile = popularity_percentile(popularity)
    mean = float((shown * percentile).sum() / total) if total else float("nan")
    return {f"coverage@{k}": float((shown > 0).mean()), f"mean_popularity@{k}": mean, f"gini@{k}": gini(shown)}


def popularity_percentile(popularity: NDArray[Any]) -> Floats:
    """Rank of each item by popularity, scaled to [0, 1]; items of equal popularity share their mean rank."""
    _, group, sizes = np.unique(popularity, return_inverse=True, return_counts=True)
    last = np.cumsum(sizes)
    middle = (last - sizes + last - 1) / 2.0
    return np.asarray(middle[group] / max(len(popularity) - 1, 1), dtype=np.float64)


def gini(shown: NDArray[Any]) -> float:
    """Gini index of non-negative counts ``[items]``: 0 when all are equal, ``1 - 1/items`` when one has everything."""
    total, count = float(shown.sum()), len(shown)
    if not total:
        return float("nan")
    weights = 2.0 * np.arange(1, count + 1) - count - 1.0
    return float((weights * np.sort(shown)).sum() / (count * total))


def rating_errors(
    predictions: NDArray[Any], truth: NDArray[Any], device: NDArray[Any], devices: int
) -> dict[str, Floats]:
    """Mean squared and mean absolute error of each device's ratings.

    Args:
        predictions: predicted ratings ``[ratings]``.
        truth: observed ratings ``[ratings]``.
        device: the device of each rating, int ``[ratings]``.
        devices: number of devices.

    Returns:
        ``squared_error`` and ``absolute_error``, float64 ``[devices]``, NaN without ratings. Every device counts the
        same; the RMSE over devices is the root of the *mean* squared error (``intervals.rating_intervals``).

    Raises:
        PolicyError: a prediction is not finite.
    """
    if not np.isfinite(predictions).all():
        raise PolicyError("expected finite rating predictions, got NaN or infinity; the policy has diverged")
    error = np.asarray(predictions, dtype=np.float64) - truth
    count = np.bincount(device, minlength=devices)
    with np.errstate(invalid="ignore"):
        squared = np.bincount(device, weights=error**2, minlength=devices) / count
        absolute = np.bincount(device, weights=np.abs(error), minlength=devices) / count
    return {"squared_error": squared, "absolute_error": absolute}


def _ranks_of_pairs(scores: Tensor, device: Tensor, item: Tensor, excluded: Tensor | None) -> tuple[Ints, Ints]:
    """Items above and ties of every (device, relevant item) pair, a bounded number of pairs at a time."""
    allowed = scores if excluded is None else scores.masked_fill(excluded, -torch.inf)
    above, ties = np.zeros(len(device), dtype=np.int64), np.zeros(len(device), dtype=np.int64)
    step = max(1, 4_000_000 // max(scores.shape[1], 1))
    for start in range(0, len(device), step):
        part = slice(start, start + step)
        rivals, own = allowed[device[part]], scores[device[part], item[part]].unsqueeze(1)
        equal = rivals == own
        if excluded is not None:
            equal &= ~excluded[device[part]]
        above[part] = (rivals > own).sum(dim=1).numpy()
        ties[part] = equal.sum(dim=1).numpy() - 1
    return above, ties


def _prefix_sums(values: NDArray[Any]) -> Floats:
    """``out[n]`` = sum of the first ``n`` values."""
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])


def _check_shapes(scores: Tensor, targets: Tensor, excluded: Tensor | None, candidates: Tensor | None) -> None:
    """Refuse blocks that do not belong together."""
    if scores.ndim != 2 or targets.shape != (scores.shape[0],):
        raise PolicyError(
            f"expected scores [devices, items] and one target a device, got {tuple(scores.shape)} "
            f"and {tuple(targets.shape)}"
        )
    if excluded is not None and excluded.shape != scores.shape:
        raise PolicyError(f"expected an exclusion mask of shape {tuple(scores.shape)}, got {tuple(excluded.shape)}")
    if candidates is not None and (candidates.ndim != 2 or len(candidates) != len(scores)):
        raise PolicyError(f"expected candidates [{len(scores)}, candidates], got {tuple(candidates.shape)}")
    for name, rows in (("target", targets), ("candidate", candidates)):
        if rows is not None and rows.numel() and int(rows.max()) >= scores.shape[1]:
            raise PolicyError(f"expected {name} rows below {scores.shape[1]} items, got {int(rows.max())}")
