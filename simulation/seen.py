"""What devices have seen: rows of many devices at once as (position, item) pairs, masks and counts."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .data.dataset import Dataset
from .data.split import Split

Ints = NDArray[np.int64]
Which = Literal["valid", "test"]


def seen_range(dataset: Dataset, split: Split, which: Which, devices: Ints) -> tuple[Ints, Ints]:
    """First row and one past the last row that is known when the ``which`` target is asked for.

    Training rows for ``valid``; training rows and the validation row for ``test``.
    """
    start, train_end = split.start[devices], split.train_end[devices]
    if which == "valid":
        return start, train_end
    end = dataset.offsets[1:][devices]
    return start, np.where(end > train_end, end - 1, train_end)


def pairs(dataset: Dataset, start: Ints, stop: Ints) -> tuple[Ints, Ints]:
    """Position in ``start`` and catalogue row of every interaction in the ranges ``start .. stop``."""
    lengths = stop - start
    position = np.repeat(np.arange(len(start)), lengths)
    before = np.concatenate([[0], np.cumsum(lengths)])[:-1]
    rows = np.arange(len(position)) - np.repeat(before, lengths) + np.repeat(start, lengths)
    return position, dataset.items[rows].astype(np.int64)


def seen_mask(dataset: Dataset, start: Ints, stop: Ints) -> Tensor:
    """Which items occur in each range, bool ``[ranges, items]``."""
    mask = np.zeros((len(start), dataset.items_count), dtype=bool)
    mask[pairs(dataset, start, stop)] = True
    return torch.from_numpy(mask)


def training_counts(dataset: Dataset, split: Split, devices: NDArray[Any] | None = None) -> Ints:
    """How many of ``devices`` (all, unless given) have each item in their training part, int64 ``[items]``.

    A device counts once an item, however often it met it. ``devices`` is a mask or a list of devices.
    """
    chosen = chosen_devices(dataset, devices)
    counts = np.zeros(dataset.items_count, dtype=np.int64)
    for part in np.array_split(chosen, max(1, len(chosen) // 65_536)):
        device, item = pairs(dataset, split.start[part], split.train_end[part])
        counts += np.bincount(
            np.unique(device * dataset.items_count + item) % dataset.items_count, minlength=len(counts)
        )
    return counts


def chosen_devices(dataset: Dataset, devices: NDArray[Any] | None) -> Ints:
    """``devices`` as indices: all of them for None, the true ones of a mask."""
    if devices is None:
        return np.arange(dataset.devices)
    return np.flatnonzero(devices) if devices.dtype == bool else devices.astype(np.int64)
