"""Who learns from what and what is asked: chronological splits, held-out devices and sampled negatives."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..._streams import numpy_stream
from ..._validate import at_least
from .dataset import Dataset

_log = logging.getLogger(__name__)
_BLOCK = 1024
"""Devices that share one random stream; a constant, because the drawn negatives depend on it."""


def filter_positive(dataset: Dataset, threshold: float) -> Dataset:
    """Keep the interactions whose reward is at least ``threshold``; devices may be left without any."""
    keep = dataset.rewards >= threshold
    kept_before = np.concatenate([[0], np.cumsum(keep)]).astype(np.int64)
    return dataset.replace(
        items=np.ascontiguousarray(dataset.items[keep]),
        rewards=np.ascontiguousarray(dataset.rewards[keep]),
        timestamps=None if dataset.timestamps is None else np.ascontiguousarray(dataset.timestamps[keep]),
        propensities=None if dataset.propensities is None else np.ascontiguousarray(dataset.propensities[keep]),
        offsets=kept_before[dataset.offsets],
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Leave-two-out: of every device, the last interaction is for test, the one before it for validation.

    All positions are absolute rows of the data set's columns.

    Attributes:
        start: first row of every device, int64 ``[devices]``.
        train_end: one past the last training row of every device, int64 ``[devices]``.
        valid: row of the validation target, int64 ``[devices]``, -1 where the device has none.
        test: row of the test target, int64 ``[devices]``, -1 where the device has none.
        end: one past the last row of every device, int64 ``[devices]``.
    """

    start: NDArray[np.int64]
    train_end: NDArray[np.int64]
    valid: NDArray[np.int64]
    test: NDArray[np.int64]
    end: NDArray[np.int64]

    def train(self, device: int) -> slice:
        """The rows ``device`` may learn from."""
        return slice(int(self.start[device]), int(self.train_end[device]))

    def seen_before_test(self, device: int) -> slice:
        """The rows that are known when the test target is asked for: training and validation."""
        asked = bool(self.end[device] > self.train_end[device])
        return slice(int(self.start[device]), int(self.end[device]) - int(asked))


def leave_two_out(dataset: Dataset, min_interactions: int = 3) -> Split:
    """Split every device by time into training, one validation and one test interaction.

    A device with fewer than ``min_interactions`` (at least 3) interactions has no targets: all it has is training
    data. A target whose item the device has met before is not asked for either (-1): every ranking leaves out what
    was met, so it could never be found. Such rows are nobody's training data.
    """
    at_least("min_interactions", min_interactions, 3)
    start, end = dataset.offsets[:-1], dataset.offsets[1:]
    enough = (end - start) >= min_interactions
    train_end = np.where(enough, end - 2, end)
    repeated = met_before(dataset)

    def targets(rows: NDArray[np.int64]) -> NDArray[np.int64]:
        found = np.full(len(rows), -1, dtype=np.int64)
        asked = np.flatnonzero(enough)
        asked = asked[~repeated[rows[asked]]]
        found[asked] = rows[asked]
        return found

    return Split(start=start.copy(), train_end=train_end, valid=targets(end - 2), test=targets(end - 1), end=end.copy())


def met_before(dataset: Dataset) -> NDArray[np.bool_]:
    """Which rows repeat an item that the same device has met in an earlier row, bool ``[interactions]``."""
    repeated = np.zeros(dataset.interactions, dtype=bool)
    for first, last in device_blocks(dataset):
        rows = slice(int(dataset.offsets[first]), int(dataset.offsets[last]))
        owner = np.repeat(np.arange(last - first, dtype=np.int32), np.diff(dataset.offsets[first : last + 1]))
        keys = _keys(owner, dataset.items[rows], dataset.items_count)
        order = np.argsort(keys, kind="stable")
        repeated[rows.start + order[1:]] = keys[order[1:]] == keys[order[:-1]]
    return repeated


def device_blocks(dataset: Dataset, rows: int = 2**22) -> Iterator[tuple[int, int]]:
    """Split the devices into runs ``[first, last)`` of about ``rows`` interactions, so that memory stays small."""
    first = 0
    while first < dataset.devices:
        end = np.searchsorted(dataset.offsets, dataset.offsets[first] + rows, side="right") - 1
        last = min(max(int(end), first + 1), dataset.devices)
        yield first, last
        first = last


def _keys(devices: NDArray[np.int32], items: NDArray[np.integer[Any]], count: int) -> NDArray[np.int64]:
    return devices.astype(np.int64) * max(count, 1) + items


def held_out_devices(dataset: Dataset, fraction: float, seed: int) -> NDArray[np.bool_]:
    """Draw ``round(fraction * devices)`` devices that never train, bool ``[devices]``; at least one device trains."""
    if not 0 <= fraction < 1:
        raise ValueError(f"expected 0 <= fraction < 1, got {fraction!r}")
    count = min(round(fraction * dataset.devices), max(dataset.devices - 1, 0))
    mask = np.zeros(dataset.devices, dtype=bool)
    mask[numpy_stream(seed, "held-out-devices").permutation(dataset.devices)[:count]] = True
    return mask


class Negatives(NamedTuple):
    """Sampled negatives, int64 ``[devices, count]`` each, padded with -1."""

    valid: NDArray[np.int64]
    test: NDArray[np.int64]


def sample_negatives(dataset: Dataset, split: Split, count: int = 99, *, seed: int) -> Negatives:
    """Draw the items that each target is ranked against, uniformly and without replacement.

    Validation negatives come from all items but the training items and the validation target, so the test target may
    be among them; test negatives come from all items but training, validation and test items. The two lists of a
    device share no item. A device without a target has a row of -1. Where the catalogue is too small the rest of a
    row is -1, and a warning is logged with the number of such devices.
    """
    at_least("count", count, 1)
    valid = np.full((dataset.devices, count), -1, dtype=np.int64)
    test = np.full((dataset.devices, count), -1, dtype=np.int64)
    for block, first in enumerate(range(0, dataset.devices, _BLOCK)):
        rows = slice(first, min(first + _BLOCK, dataset.devices))
        random = numpy_stream(seed, "negatives", block)
        drawn = _draw_unseen(dataset, split, rows, 2 * count + 1, random)
        valid[rows], test[rows] = _deal(dataset, split, rows, drawn, count)
    _report_short(split, valid, test, count)
    return Negatives(valid, test)


def _draw_unseen(
    dataset: Dataset, split: Split, rows: slice, need: int, random: np.random.Generator
) -> NDArray[np.int64]:
    """Per device, the head of a random permutation of the items it may be asked about, -1 when there are no more.

    Left out are the training items and the validation target. Candidates are drawn with replacement and repeated or
    seen ones are dropped; the few devices that come out short (or all, in a small catalogue) are permuted exactly.
    """
    devices, items = rows.stop - rows.start, dataset.items_count
    seen_devices, seen_items = _excluded(dataset, split, rows)
    seen = np.unique(_keys(seen_devices, seen_items, items))
    drawn = np.full((devices, need), -1, dtype=np.int64)
    short = np.arange(devices)
    if items > 4 * need:
        candidates = random.integers(0, items, size=(devices, need + need // 4 + 16))
        fresh = ~_contains(seen, _keys(np.arange(devices, dtype=np.int32)[:, None], candidates, items))
        fresh &= _first_in_row(candidates)
        rank = np.cumsum(fresh, axis=1) - 1
        taken = fresh & (rank < need)
        device, column = np.nonzero(taken)
        drawn[device, rank[device, column]] = candidates[device, column]
        short = np.flatnonzero(drawn[:, -1] < 0)
    bounds = np.searchsorted(seen, np.arange(devices + 1, dtype=np.int64) * max(items, 1))
    for device in short:
        mine = seen[bounds[device] : bounds[device + 1]] - device * items
        pool = random.permutation(np.setdiff1d(np.arange(items), mine, assume_unique=True))[:need]
        drawn[device] = -1
        drawn[device, : len(pool)] = pool
    return drawn


def _excluded(dataset: Dataset, split: Split, rows: slice) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Device (counted from the block's first) and item of everything known up to the validation target."""
    ends = np.where(split.valid >= 0, split.valid + 1, split.train_end)[rows]
    starts = split.start[rows]
    span = slice(int(starts[0]), int(dataset.offsets[rows.stop]))
    lengths = dataset.offsets[rows.start + 1 : rows.stop + 1] - starts
    device = np.repeat(np.arange(len(starts), dtype=np.int32), lengths)
    known = np.arange(span.start, span.stop) < ends[device]
    return device[known], np.asarray(dataset.items[span])[known]


def _contains(sorted_keys: NDArray[np.int64], keys: NDArray[np.int64]) -> NDArray[np.bool_]:
    if not len(sorted_keys):
        return np.zeros(keys.shape, dtype=bool)
    position = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return np.asarray(sorted_keys[position] == keys)


def _first_in_row(values: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which entries are the first of their value in their row."""
    order = np.argsort(values, axis=1, kind="stable")
    ordered = np.take_along_axis(values, order, axis=1)
    first = np.ones_like(ordered, dtype=bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    result = np.empty_like(first)
    np.put_along_axis(result, order, first, axis=1)
    return result


def _deal(
    dataset: Dataset, split: Split, rows: slice, drawn: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Deal each device's permutation out: first validation, then test, which skips the test target.

    The validation list takes the head (half of it, when there are not enough for both), so that both are uniform.
    """
    has_valid, has_test = split.valid[rows] >= 0, split.test[rows] >= 0
    available = (drawn >= 0).sum(axis=1)
    for_valid = np.where(has_test, np.minimum(count, available // 2), np.minimum(count, available))
    for_valid = np.where(has_valid, for_valid, 0)
    position = np.arange(drawn.shape[1])
    valid = np.where(position < for_valid[:, None], drawn, -1)[:, :count]
    target = np.where(has_test, dataset.items[split.test[rows]] if dataset.interactions else -1, -1)
    usable = (position >= for_valid[:, None]) & (drawn >= 0) & (drawn != target[:, None]) & has_test[:, None]
    rank = np.cumsum(usable, axis=1) - 1
    device, column = np.nonzero(usable & (rank < count))
    test = np.full((len(drawn), count), -1, dtype=np.int64)
    test[device, rank[device, column]] = drawn[device, column]
    return valid, test


def _report_short(split: Split, valid: NDArray[np.int64], test: NDArray[np.int64], count: int) -> None:
    short = ((split.valid >= 0) & (valid[:, -1] < 0)) | ((split.test >= 0) & (test[:, -1] < 0))
    if short.any():
        _log.warning(
            "%d of %d devices have met so many items that fewer than %d negatives are left; their sampled ranking has "
            "fewer rivals",
            int(short.sum()),
            len(short),
            count,
        )
