"""The cold-start curve: how good is a device's ranking after it has seen 0, 1, 2, 5, ... interactions?

Only devices that never trained are asked. Every point of the curve ranks the *same* query items against the *same*
candidates, so that a point differs from the next by what was learned and by nothing else: the query is everything
after the first ``max(points)`` interactions, and those first interactions are no candidates, at point 0 too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError, PolicyError
from .data.dataset import Dataset
from .intervals import RESAMPLES, bootstrap_interval, paired_interval
from .metrics import Floats, Ints, multi_relevant_metrics
from .seen import chosen_devices, seen_mask
from .summary import ColdStartCurves

POINTS = (0, 1, 2, 5, 10, 20)


class ColdScorer(Protocol):
    """A policy that can be asked after it has adapted to the first interactions of a device."""

    def score_after(self, devices: NDArray[np.int64], seen: int) -> Tensor:
        """Scores ``[devices, items]`` after adapting on the first ``seen`` rows of each device's log, no others."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class ColdStart:
    """The devices of a cold-start curve.

    Attributes:
        devices: held-out devices with enough interactions, int64 ``[devices]``.
        left_out: held-out devices with too few.
        points: numbers of interactions seen, ascending.
        query_start: first query row of each device, int64 ``[devices]``; the log up to it is never a candidate.
        query_stop: one past the last query row.
    """

    devices: Ints
    left_out: int
    points: tuple[int, ...]
    query_start: Ints
    query_stop: Ints


def cold_start(
    dataset: Dataset, devices: NDArray[Any], points: Sequence[int] = POINTS, min_query: int = 1
) -> ColdStart:
    """Choose from held-out ``devices`` (mask or list) those with ``max(points) + min_query`` interactions or more.

    Raises:
        DataError: no device has so many.
    """
    asked = chosen_devices(dataset, devices)
    ordered = tuple(sorted(set(points)))
    enough = asked[dataset.lengths[asked] >= ordered[-1] + min_query]
    if len(enough) == 0:
        raise DataError(
            f"expected held-out devices with at least {ordered[-1] + min_query} interactions for the cold-start curve, "
            f"got none of {len(asked)}; ask for fewer points or hold out more devices"
        )
    start, stop = dataset.offsets[:-1][enough], dataset.offsets[1:][enough]
    return ColdStart(
        devices=enough,
        left_out=len(asked) - len(enough),
        points=ordered,
        query_start=start + ordered[-1],
        query_stop=stop,
    )


def evaluate_cold_start(
    scorers: Mapping[str, ColdScorer],
    tasks: ColdStart,
    dataset: Dataset,
    *,
    k: int = 10,
    reference: str | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    block: int = 512,
) -> ColdStartCurves:
    """NDCG@k of every scorer at every point, as the ``cold_start`` section of a summary.

    Args:
        scorers: label -> policy.
        tasks: from ``cold_start``.
        dataset: the data.
        k: list length.
        reference: the label whose paired difference to every other label is reported, device by device.
        seed: stream of the bootstrap.
        resamples: of the bootstrap.
        block: devices scored at a time.
    """
    values = {
        label: [cold_values(scorer, tasks, dataset, seen, k=k, block=block) for seen in tasks.points]
        for label, scorer in scorers.items()
    }
    curves = {
        label: [bootstrap_interval(point, seed, resamples).to_dict() for point in points]
        for label, points in values.items()
    }
    differences = {}
    if reference is not None:
        for label in values.keys() - {reference}:
            paired = zip(values[reference], values[label], strict=True)
            differences[label] = [paired_interval(mine, other, seed, resamples).to_dict() for mine, other in paired]
    return {
        "points": list(tasks.points),
        "metric": f"ndcg@{k}",
        "devices": len(tasks.devices),
        "left_out": tasks.left_out,
        "reference": reference,
        "curves": curves,
        "differences": dict(sorted(differences.items())),
    }


def cold_values(
    scorer: ColdScorer, tasks: ColdStart, dataset: Dataset, seen: int, *, k: int = 10, block: int = 512
) -> Floats:
    """NDCG@k of each device after ``seen`` interactions, float64 ``[devices]``; NaN without a query item."""
    parts = []
    for first in range(0, len(tasks.devices), block):
        part = slice(first, first + block)
        devices = tasks.devices[part]
        scores = scorer.score_after(devices, seen).detach()
        if scores.shape != (len(devices), dataset.items_count):
            expected = (len(devices), dataset.items_count)
            raise PolicyError(f"expected scores of shape {expected}, got {tuple(scores.shape)}")
        known = seen_mask(dataset, dataset.offsets[:-1][devices], tasks.query_start[part])
        query = seen_mask(dataset, tasks.query_start[part], tasks.query_stop[part])
        parts.append(multi_relevant_metrics(scores, query, known, (k,))[f"ndcg@{k}"])
    return np.concatenate(parts)
