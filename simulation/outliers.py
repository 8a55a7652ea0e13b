"""Outliers among a simulation's devices: logs at random, or logs that promote one item, and updates blown up.

Which devices they are derives from (seed, "outliers"), so equal shares of one seed are equal devices whatever defends.
They train like everybody else and are never judged: the damage is what honest devices are served.

The promoting log is the random attack of Lam and Riedl 2004 (random filler, the target between) for a policy that reads
sequences: every other entry is the promoted item, the last one included.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._streams import numpy_stream
from ..config import Config
from ..errors import DataError
from .data.dataset import Dataset
from .data.split import Split

Ints = NDArray[np.int64]


def outliers_of(config: Config, roster: Ints) -> Ints:
    """The devices that are outliers, increasing: ``data.outliers`` of the roster, rounded; none is held out."""
    count = round(config.data.outliers * len(roster))
    drawn = numpy_stream(config.seed, "outliers").choice(roster, size=count, replace=False)
    return np.sort(drawn).astype(np.int64)


def promoted_item(config: Config, dataset: Dataset) -> int:
    """Catalogue row of the promoted item: ``data.promoted``, or one that the fewest have met, the first of these.

    Raises:
        DataError: there is no such row.
    """
    if config.data.promoted is None:
        return int(np.bincount(dataset.items, minlength=dataset.items_count).argmin())
    if config.data.promoted >= dataset.items_count:
        raise DataError(
            f"expected data.promoted to be one of the {dataset.items_count} items of {dataset.name} (from 0), got "
            f"{config.data.promoted}; lower it"
        )
    return config.data.promoted


def spoiled(dataset: Dataset, outliers: Ints, promoted: int | None, seed: int) -> Dataset:
    """The data set with the outliers' logs replaced by logs of the same length; all others are untouched."""
    items, rewards = np.array(dataset.items), np.array(dataset.rewards)
    for device in outliers.tolist():
        rows = dataset.rows(device)
        stream = numpy_stream(seed, device, "outlier-log")
        items[rows] = _drawn(stream, dataset.items_count, len(items[rows]))
        rewards[rows] = stream.permutation(rewards[rows])
        if promoted is not None:
            items[rows][::-2] = promoted
            rewards[rows][::-2] = dataset.reward_range[1]
    return replace(dataset, items=items, rewards=rewards)


def unjudged(split: Split, outliers: Ints) -> Split:
    """The split without held-out items of outliers: nobody asks what they are served."""
    valid, test = split.valid.copy(), split.test.copy()
    valid[outliers] = -1
    test[outliers] = -1
    return replace(split, valid=valid, test=test)


def _drawn(stream: np.random.Generator, items: int, count: int) -> NDArray[Any]:
    """Items at random, each once as long as there are enough."""
    return stream.choice(items, size=count, replace=count > items)
