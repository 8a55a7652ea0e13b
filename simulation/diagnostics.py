"""Sections of a summary that describe a run from the outside: spread over devices and popularity bias. Not private."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .evaluation import Evaluation
from .intervals import RESAMPLES, bootstrap_interval, bootstrap_intervals
from .metrics import Floats, Ints
from .summary import DeviceDistribution, IntervalDict, PopularityBias

DECILES = 10


def device_distribution(
    evaluations: Mapping[str, Evaluation],
    activity: NDArray[Any],
    *,
    metric: str = "ndcg@10",
    groups: int = 5,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> DeviceDistribution:
    """How a metric spreads over devices, as aggregates: no device's own value is kept.

    Args:
        evaluations: label -> full-ranking evaluation, all of the same devices; those without a held-out item are
            left out.
        activity: training interactions of every device of the data set, ``[devices]``.
        metric: what is averaged in each activity group.
        groups: number of groups of nearly equal size, from least to most active.
        seed: stream of the bootstrap.
        resamples: of the bootstrap.
    """
    first = next(iter(evaluations.values()))
    asked = ~np.isnan(first.ranks)
    mine = np.asarray(activity)[first.devices[asked]]
    edges = np.unique(np.quantile(mine, np.linspace(0, 1, groups + 1), method="nearest")) if len(mine) else np.zeros(1)
    member = np.clip(np.searchsorted(edges[1:-1], mine, side="right"), 0, max(len(edges) - 2, 0))
    order = range(max(len(edges) - 1, 1))
    lengths = _lengths(first.items)
    return {
        "metric": metric,
        "found_within": {
            "k": [int(k) for k in lengths],
            "curves": {label: _found_within(found.ranks, lengths) for label, found in evaluations.items()},
        },
        "activity": {
            "groups": [_group_name(mine[member == group]) for group in order],
            "devices": [int((member == group).sum()) for group in order],
            "curves": {
                label: [_mean_of(found.per_device[metric][asked][member == group], seed, resamples) for group in order]
                for label, found in evaluations.items()
            },
        },
    }


def popularity_bias(exposures: Mapping[str, NDArray[Any]], popularity: NDArray[Any], k: int = 10) -> PopularityBias:
    """Share of recommendations and of training interactions by popularity decile of the catalogue.

    Args:
        exposures: label -> how often each item was recommended, ``[items]`` (``Evaluation.exposures[k]``).
        popularity: training interactions of each item, ``[items]``.
        k: list length of the exposures.
    """
    decile = np.empty(len(popularity), dtype=np.int64)
    decile[np.argsort(popularity, kind="stable")] = np.arange(len(popularity)) * DECILES // max(len(popularity), 1)
    return {
        "k": k,
        "train": _shares(popularity, decile),
        "recommended": {label: _shares(shown, decile) for label, shown in exposures.items()},
    }


def paired_differences(
    evaluations: Mapping[str, Evaluation], reference: str, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, dict[str, IntervalDict]]:
    """Label -> metric -> interval of ``reference`` minus label on the same devices."""
    base = evaluations[reference]
    out: dict[str, dict[str, IntervalDict]] = {}
    for label, other in evaluations.items():
        if label != reference:
            gaps = {name: base.per_device[name] - other.per_device[name] for name in base.per_device}
            out[label] = {name: gap.to_dict() for name, gap in bootstrap_intervals(gaps, seed, resamples).items()}
    return out


def _mean_of(values: Floats, seed: int, resamples: int) -> IntervalDict:
    return bootstrap_interval(values, seed, resamples).to_dict()


def _lengths(items: int) -> Ints:
    """List lengths 1 .. items, about evenly spaced on a logarithmic axis."""
    return np.unique(np.rint(np.geomspace(1, max(items, 1), 40)).astype(np.int64))


def _found_within(ranks: Floats, lengths: Ints) -> list[float]:
    known = np.sort(ranks[~np.isnan(ranks)])
    found = np.searchsorted(known, lengths, side="left") / max(len(known), 1)
    return [round(float(share), 6) for share in found]


def _group_name(activity: NDArray[Any]) -> str:
    if len(activity) == 0:
        return "none"
    least, most = int(activity.min()), int(activity.max())
    return str(least) if least == most else f"{least}-{most}"


def _shares(counts: NDArray[Any], decile: Ints) -> list[float]:
    total = np.bincount(decile, weights=counts, minlength=DECILES)
    return [float(share) for share in total / max(float(total.sum()), 1.0)]
