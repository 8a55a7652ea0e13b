"""Leave-two-out evaluation of anything that scores items, block by block.

The default ranks each device's held-out item against the whole catalogue minus what the device has seen. Ranking
against sampled negatives is offered because the literature reports it; it is always labelled and never comparable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import PolicyError
from .data.dataset import Dataset
from .data.split import Split
from .intervals import RESAMPLES, Interval, bootstrap_intervals, rating_intervals
from .metrics import (
    DEFAULT_KS,
    Floats,
    Ints,
    Ranks,
    exposure,
    list_metrics,
    ranking_metrics,
    rating_errors,
    target_ranks,
    top_k,
)
from .seen import Which, chosen_devices, seen_mask, seen_range, training_counts
from .summary import ProtocolResult


class Scorer(Protocol):
    """Anything that can be evaluated."""

    def score(self, devices: NDArray[np.int64]) -> Tensor:
        """Scores of every catalogue item for each device, float ``[devices, items]``; higher is better."""
        ...


class RatingPredictor(Protocol):
    """Anything that predicts ratings."""

    def rate(self, devices: NDArray[np.int64], items: NDArray[np.int64]) -> Floats:
        """Predicted rating of each (device, item) pair, float64 ``[pairs]``."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """What one policy scored on one protocol. Per-device values are diagnostics of a simulation and are not private.

    Attributes:
        protocol: what each held-out item was ranked against, in words.
        which: ``valid`` or ``test``.
        devices: the devices asked, int64 ``[devices]``.
        items: size of the catalogue.
        ranks: expected 0-based rank of the held-out item, float64 ``[devices]``, NaN where a device has none.
        per_device: metric -> float64 ``[devices]``, NaN where a device has no held-out item.
        aggregate: metric -> mean over devices with its bootstrap interval.
        lists: coverage, mean popularity and Gini index at every k; empty with sampled negatives.
        exposures: k -> how often each item stands in a device's top k, int64 ``[items]``; empty with sampled negatives.
    """

    protocol: str
    which: Which
    devices: Ints
    items: int
    ranks: Floats
    per_device: Mapping[str, Floats]
    aggregate: Mapping[str, Interval]
    lists: Mapping[str, float]
    exposures: Mapping[int, Ints]

    @property
    def counted(self) -> int:
        """Devices that have a held-out item."""
        return max((interval.devices for interval in self.aggregate.values()), default=0)

    @property
    def left_out(self) -> int:
        """Devices asked that have none."""
        return len(self.devices) - self.counted

    def row(self, metrics: Sequence[str] = ("hr@10", "ndcg@10", "mrr")) -> list[str]:
        """The intervals of ``metrics`` as text."""
        return [str(self.aggregate[name]) for name in metrics]

    def to_dict(self) -> ProtocolResult:
        """Everything but the per-device values, JSON-able."""
        return {
            "protocol": self.protocol,
            "which": self.which,
            "devices": self.counted,
            "left_out": self.left_out,
            "metrics": {name: interval.to_dict() for name, interval in self.aggregate.items()},
            "lists": dict(self.lists),
        }


def evaluate_scores(
    scorer: Scorer,
    dataset: Dataset,
    split: Split,
    which: Which = "test",
    *,
    negatives: NDArray[np.int64] | None = None,
    devices: NDArray[Any] | None = None,
    ks: Sequence[int] = DEFAULT_KS,
    seed: int = 0,
    resamples: int = RESAMPLES,
    block: int = 512,
    popularity: NDArray[Any] | None = None,
) -> Evaluation:
    """Rank the held-out item of each device and average over devices.

    Seen items are no candidates: the training items for ``valid``, training and validation items for ``test``.

    Args:
        scorer: scores a block of devices at a time.
        dataset: the data.
        split: which rows are held out.
        which: ``valid`` (choose on it) or ``test`` (report it).
        negatives: rivals of each device of the whole data set, ``[dataset.devices, n]`` padded with -1, drawn from
            items the device has not seen (``data.split.sample_negatives``); without it, the whole catalogue.
        devices: mask or list of the devices to ask; without it, all.
        ks: list lengths.
        seed: stream of the bootstrap.
        resamples: of the bootstrap.
        block: devices scored at a time; bounds memory, changes no number.
        popularity: training counts ``[items]`` for the popularity of lists; counted from all devices when not given.

    Raises:
        PolicyError: a score is NaN or a block has the wrong shape.
    """
    chosen = chosen_devices(dataset, devices)
    targets = _targets(dataset, split, which, chosen)
    parts: list[Ranks] = []
    exposures = {k: np.zeros(dataset.items_count, dtype=np.int64) for k in ks}
    for first in range(0, len(chosen), block):
        part = slice(first, first + block)
        scores = _scores(scorer, chosen[part], dataset.items_count)
        seen = seen_mask(dataset, *seen_range(dataset, split, which, chosen[part]))
        rivals = None if negatives is None else torch.from_numpy(negatives[chosen[part]])
        parts.append(target_ranks(scores, targets[part], seen, rivals))
        if negatives is None:
            _count_lists(scores, seen, targets[part] >= 0, exposures)
    ranks = Ranks.join(parts)
    per_device = ranking_metrics(ranks, ks)
    if negatives is None and popularity is None:
        popularity = training_counts(dataset, split)
    lists = {} if popularity is None or negatives is not None else _lists(exposures, popularity)
    return Evaluation(
        protocol=_protocol(dataset, which, None if negatives is None else negatives[chosen[targets.numpy() >= 0]]),
        which=which,
        devices=chosen,
        items=dataset.items_count,
        ranks=ranks.expected,
        per_device=per_device,
        aggregate=bootstrap_intervals(per_device, seed, resamples),
        lists=lists,
        exposures=exposures if negatives is None else {},
    )


def evaluate_ratings(
    predictor: RatingPredictor,
    dataset: Dataset,
    split: Split,
    which: Which = "test",
    *,
    devices: NDArray[Any] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Interval]:
    """``rmse`` and ``mae`` of the held-out rating of each device, with intervals over devices."""
    chosen = chosen_devices(dataset, devices)
    rows = (split.valid if which == "valid" else split.test)[chosen]
    asked = np.flatnonzero(rows >= 0)
    predictions = predictor.rate(chosen[asked], dataset.items[rows[asked]].astype(np.int64))
    errors = rating_errors(predictions, dataset.rewards[rows[asked]], asked, len(chosen))
    return rating_intervals(errors, seed, resamples)


def _scores(scorer: Scorer, devices: Ints, items: int) -> Tensor:
    scores = scorer.score(devices).detach()
    if scores.shape != (len(devices), items):
        raise PolicyError(f"expected scores of shape {(len(devices), items)}, got {tuple(scores.shape)}")
    return scores


def _targets(dataset: Dataset, split: Split, which: Which, devices: Ints) -> Tensor:
    """Held-out item of each device, int64 ``[devices]``, -1 where there is none."""
    if which not in ("valid", "test"):
        raise ValueError(f"expected which to be 'valid' or 'test', got {which!r}")
    rows = (split.valid if which == "valid" else split.test)[devices]
    targets = np.full(len(devices), -1, dtype=np.int64)
    targets[rows >= 0] = dataset.items[rows[rows >= 0]]
    return torch.from_numpy(targets)


def _count_lists(scores: Tensor, seen: Tensor, asked: Tensor, exposures: dict[int, Ints]) -> None:
    """Add the lists of the devices that are asked to ``exposures``."""
    best = top_k(scores[asked], max(exposures), seen[asked])
    for k in exposures:
        exposures[k] += exposure(best[:, :k], scores.shape[1])


def _lists(exposures: Mapping[int, Ints], popularity: NDArray[Any]) -> dict[str, float]:
    out: dict[str, float] = {}
    for k, shown in exposures.items():
        out |= list_metrics(shown, popularity, k)
    return out


def _protocol(dataset: Dataset, which: Which, negatives: NDArray[np.int64] | None) -> str:
    seen = "training items" if which == "valid" else "training and validation items"
    if negatives is None:
        return f"full ranking over {dataset.items_count:,} items minus the device's {seen}"
    found = (negatives >= 0).sum(axis=1)
    fewer = len(found) > 0 and found.min() < negatives.shape[1]
    note = f", on average {found.mean():.0f} for want of more" if fewer else ""
    return f"{negatives.shape[1]} sampled negatives (not comparable with full ranking){note}"
