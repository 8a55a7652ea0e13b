"""The policy that is judged, met in the states of the log: what the run would have served there, as probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..._validate import positive
from ...errors import DataError, PolicyError
from ...meta.policy import State
from ..data.bandit_log import BanditLog
from ..data.dataset import Dataset
from ..seen import seen_mask
from ..serving import Served
from .items import Floats

Ints = NDArray[np.int64]
_CELLS = 4_000_000
"""Probabilities that are held at a time."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Contexts:
    """The distinct states of a log.

    Attributes:
        devices: device of each context, -1 where the run does not know the user, int64 ``[contexts]``.
        stops: absolute row of the data before which the device's interactions are known, int64 ``[contexts]``.
        of_row: context of every row of the log, int64 ``[rows]``.
        timed: whether states are those at the time of the row, or everything the device's log holds.
    """

    devices: Ints
    stops: Ints
    of_row: Ints
    timed: bool

    def __len__(self) -> int:
        return len(self.devices)


def catalogue_rows(log: BanditLog, dataset: Dataset) -> Ints:
    """Catalogue row of every logged item, -1 where the catalogue lacks it.

    Raises:
        DataError: it lacks them all.
    """
    known = {str(identifier): row for row, identifier in enumerate(dataset.catalogue.item_ids)}
    rows = np.array([known.get(identifier, -1) for identifier in log.item_ids], dtype=np.int64)
    if not (rows >= 0).any():
        raise DataError(
            f"expected items of {dataset.name} in {log.name}, got {log.item_ids[0]!r} and others that it lacks; "
            "evaluate a run over the same catalogue"
        )
    return rows[log.items]


def contexts_of(log: BanditLog, dataset: Dataset) -> Contexts:
    """Whose state each row was shown in: a known user's before the time of the row, else the empty one.

    Without times in both the log and the data, a user's state is everything that the data holds.
    """
    known = {str(identifier): device for device, identifier in enumerate(dataset.device_ids)}
    users = np.array([known.get(identifier, -1) for identifier in log.user_ids], dtype=np.int64)
    devices = np.full(len(log), -1, dtype=np.int64) if log.users is None else users[log.users]
    timed = log.timestamps is not None and dataset.timestamps is not None
    stops = np.where(devices >= 0, dataset.offsets[devices + 1], 0)
    if log.timestamps is not None and dataset.timestamps is not None:
        order = np.argsort(devices, kind="stable")
        for rows in np.split(order, np.flatnonzero(np.diff(devices[order])) + 1):
            device = int(devices[rows[0]])
            if device >= 0:
                start, stop = dataset.offsets[device], dataset.offsets[device + 1]
                times = dataset.timestamps[start:stop]
                stops[rows] = start + np.searchsorted(times, log.timestamps[rows], side="left")
    if log.slates is not None:
        first = np.full(int(log.slates.max()) + 1, -1, dtype=np.int64)
        tops = np.flatnonzero(log.positions == 0)
        first[log.slates[tops]] = tops
        devices, stops = devices[first[log.slates]], stops[first[log.slates]]
    pairs, of_row = np.unique(np.stack([devices, stops]), axis=1, return_inverse=True)
    return Contexts(devices=pairs[0], stops=pairs[1], of_row=of_row.reshape(-1).astype(np.int64), timed=timed)


def probabilities(
    served: Served, contexts: Contexts, *, temperature: float = 1.0, keep_seen: bool = False, places: int = 1
) -> Iterator[tuple[Ints, Floats]]:
    """``e(a | x)`` of some contexts at a time: their numbers, and float64 ``[contexts, items]``.

    Args:
        served: the run's policy; known devices adapt to what is known of them, all others get the initialization.
        contexts: states.
        temperature: of the softmax; below 1 it is closer to the ranking that the run serves.
        keep_seen: let what the user has met be shown again.
        places: how many arrays of this size the caller makes of one, which bounds the number of contexts at a time.

    Raises:
        ValueError: temperature <= 0.
        PolicyError: a score is NaN or infinite.
        DataError: a user has met the whole catalogue.
    """
    positive("temperature", temperature)
    chunk = max(1, _CELLS // (served.world.policy.items * places))
    for first in range(0, len(contexts), chunk):
        numbers = np.arange(first, min(first + chunk, len(contexts)))
        yield numbers, _softmax(_scores(served, contexts, numbers, keep_seen) / temperature)


def _scores(served: Served, contexts: Contexts, numbers: Ints, keep_seen: bool) -> Floats:
    """Scores with -inf for what the user has met, float64 ``[contexts, items]``."""
    dataset = served.world.dataset
    devices, stops = contexts.devices[numbers], contexts.stops[numbers]
    known = devices >= 0
    scores = np.empty((len(numbers), dataset.items_count))
    if known.any():
        found = served.score_until(devices[known], stops[known])
        if not keep_seen:
            seen = seen_mask(dataset, dataset.offsets[devices[known]], stops[known])
            found = found.masked_fill(seen, -torch.inf)
        scores[known] = found.numpy().astype(np.float64)
    if not known.all():
        scores[~known] = initial_scores(served)
    empty = np.isneginf(scores).all(axis=1)
    if empty.any():
        user = dataset.device_ids[int(devices[np.flatnonzero(empty)[0]])]
        raise DataError(f"expected something left to show to user {user}, got none; let seen items be shown again")
    return scores


def initial_scores(served: Served) -> Floats:
    """Scores of the initialization for somebody nothing is known of, float64 ``[items]``."""
    world = served.world
    length = world.states(np.zeros(1, dtype=np.int64), world.dataset.offsets[:1]).history.shape[-1]
    nobody = State(
        torch.full((1, length), -1), torch.zeros(1, length, dtype=torch.int64), torch.zeros(world.policy.user_width)
    )
    personal = {name: value[0] for name, value in world.personal_start(1).items()}
    with torch.no_grad():
        scores: torch.Tensor = world.policy.scores({**served.phi, **personal}, nobody)[0]
    if not bool(torch.isfinite(scores).all()):
        raise PolicyError("expected finite scores of the initialization, got NaN or infinity; run it again")
    return scores.numpy().astype(np.float64)


def _softmax(scores: Floats) -> Floats:
    raised = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))
