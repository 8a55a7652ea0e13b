"""Training examples of many devices at once, straight from a data set's columns.

The vectorised twin of ``meta.examples``: it builds what ``build_examples`` and ``stack_examples`` build, padded alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config import LocalConfig, Unit
from ..meta.examples import Examples, block_numbers, episode_cuts, position_keys, reward_levels
from ..meta.policy import Policy
from .data.dataset import Dataset

Ints = NDArray[np.int64]


def batch_examples(
    policy: Policy,
    dataset: Dataset,
    devices: Ints,
    stops: Ints,
    *,
    settings: LocalConfig,
    unit: Unit,
    stream: Sequence[int | str],
) -> Examples:
    """Examples of ``devices`` from their rows before ``stops``, every field with a leading axis ``[devices, ...]``.

    Histories are as wide as the longest of these devices': encoders count from the most recent entry.

    Args:
        policy: its state decides the rule (``meta.examples``).
        dataset: the columns.
        devices: their indices, int64 ``[devices]``.
        stops: absolute row at which each device's part of the log ends.
        settings: windows, horizon, positions.
        unit: privacy unit.
        stream: (seed, round) or (seed, purpose) of the draw of positions; the device is added to it.
    """
    starts = dataset.offsets[devices]
    counts = np.maximum(stops - starts, 0)
    per_entry = unit in ("interaction", "both")
    if per_entry and policy.sees_history:
        history, targets = _blocks(dataset, starts, counts, settings, policy.settings.history_length)
    elif per_entry:
        history, targets = _each_alone(counts)
    elif not settings.episodes:
        history, targets = _whole(policy, devices, counts, settings, stream)
    else:
        cuts = episode_cuts(stream, devices, counts)
        return _with_query(
            _gathered(policy, dataset, devices, starts, *_episodes(policy, devices, counts, cuts, settings, stream))
        )
    return _gathered(policy, dataset, devices, starts, history, targets, per_entry=per_entry)


def _whole(
    policy: Policy, devices: Ints, counts: Ints, settings: LocalConfig, stream: Sequence[int | str]
) -> tuple[Ints, Ints]:
    """Examples from the first ``counts`` entries under units that protect a device as a whole."""
    if not policy.sees_history:
        return _all_in_one(counts)
    chosen = _positions(devices, counts, settings, stream)
    return _around(chosen, counts, settings.horizon, policy.settings.history_length)


def _episodes(
    policy: Policy, devices: Ints, counts: Ints, cuts: Ints, settings: LocalConfig, stream: Sequence[int | str]
) -> tuple[Ints, Ints]:
    """The support before each cut, and as the last example of every device the query from there on."""
    support = _whole(policy, devices, cuts, settings, stream)
    query = _around(
        cuts[:, None],
        counts,
        settings.horizon if policy.sees_history else int(max(1, counts.max(initial=1))),
        policy.settings.history_length if policy.sees_history else 0,
    )
    longest = max(support[0].shape[-1], query[0].shape[-1])
    width = max(support[1].shape[-1], query[1].shape[-1])
    return (
        np.concatenate([_padded(rows, longest - rows.shape[-1], 0) for rows in (support[0], query[0])], axis=1),
        np.concatenate([_padded(rows, 0, width - rows.shape[-1]) for rows in (support[1], query[1])], axis=1),
    )


def _padded(rows: Ints, before: int, behind: int) -> Ints:
    return np.pad(rows, ((0, 0), (0, 0), (before, behind)), constant_values=-1)


def _with_query(examples: Examples) -> Examples:
    """The last example of each device moved up behind its support, and marked: as ``build_examples`` has it."""
    order = torch.argsort(1 - examples.present, dim=1, stable=True)
    query = torch.zeros_like(examples.present)
    query[:, -1] = examples.present[:, -1]
    fields = (
        value.gather(1, order.reshape(*order.shape, *[1] * (value.dim() - 2)).expand_as(value))
        for value in examples._replace(query=query)[:-1]
    )
    return Examples._make((*fields, examples.user))


def _entries(counts: Ints) -> Ints:
    """Rows of each log, relative to its start, -1 pads, ``[devices, longest]``."""
    rows = np.arange(max(1, int(counts.max(initial=0))))
    return np.where(rows < counts[:, None], rows, -1)


def _all_in_one(counts: Ints) -> tuple[Ints, Ints]:
    targets = _entries(counts)[:, None, :]
    return np.empty((len(counts), 1, 0), dtype=np.int64), targets


def _each_alone(counts: Ints) -> tuple[Ints, Ints]:
    targets = _entries(counts)[:, :, None]
    return np.empty((*targets.shape[:2], 0), dtype=np.int64), targets


def _positions(devices: Ints, counts: Ints, settings: LocalConfig, stream: Sequence[int | str]) -> Ints:
    """Positions drawn from each log, ascending, -1 pads, ``[devices, windows]``: as ``build_examples`` draws them."""
    longest, windows = max(1, int(counts.max(initial=0))), settings.windows
    rows = np.arange(longest)
    there = rows < counts[:, None]
    if longest <= windows:
        return np.where(there, rows, -1)
    keys = np.where(there, position_keys(stream, devices[:, None], rows, settings), np.inf)
    chosen = np.argpartition(keys, windows - 1, axis=1)[:, :windows]
    chosen = np.where(np.take_along_axis(there, chosen, 1), chosen, longest)
    chosen.sort(axis=1)
    few = counts <= windows
    chosen[few] = np.where(np.arange(windows) < counts[few, None], np.arange(windows), longest)
    return np.where(chosen < longest, chosen, -1)


def _around(chosen: Ints, counts: Ints, horizon: int, length: int) -> tuple[Ints, Ints]:
    """What precedes each position, as wide as the longest of it, and the entries from there on."""
    history = chosen[..., None] + np.arange(-min(length, max(1, int(chosen.max(initial=0)))), 0)
    longest = int(np.where(chosen >= 0, counts[:, None] - chosen, 0).max(initial=1))
    targets = chosen[..., None] + np.arange(min(horizon, max(longest, 1)))
    return (
        np.maximum(history, -1),  # of what is not there, -1, too
        np.where((chosen >= 0)[..., None] & (targets < counts[:, None, None]), targets, -1),
    )


def _blocks(dataset: Dataset, starts: Ints, counts: Ints, settings: LocalConfig, length: int) -> tuple[Ints, Ints]:
    """Blocks by the hash of each entry's item, those without an entry left out."""
    longest, blocks, horizon = max(1, int(counts.max(initial=0))), settings.windows, settings.horizon
    rows = np.arange(longest)
    there = rows < counts[:, None]
    items = dataset.items[np.where(there, starts[:, None] + rows, 0)] if dataset.interactions else np.zeros(there.shape)
    block = np.where(there, block_numbers(items.astype(np.int64), blocks), blocks)
    order = np.argsort(block, axis=1, kind="stable")
    sizes = (block[:, :, None] == np.arange(blocks)).sum(1)
    firsts = np.cumsum(sizes, axis=1) - sizes
    used = np.argsort(sizes == 0, axis=1, kind="stable")
    sizes, firsts = np.take_along_axis(sizes, used, 1), np.take_along_axis(firsts, used, 1)
    keep = max(1, int((sizes > 0).sum(1).max(initial=0)))
    sizes, firsts = sizes[:, :keep], firsts[:, :keep]
    seen = np.maximum(0, sizes - horizon)
    length = min(length, max(1, int(seen.max(initial=0))))

    def taken(first: Ints, until: Ints, width: int, right: bool) -> Ints:
        offset = np.arange(width) + (until - width if right else first)[..., None]
        inside = (offset >= first[..., None]) & (offset < until[..., None])
        flat = np.where(inside, offset, 0).reshape(len(order), -1)
        return np.where(inside, np.take_along_axis(order, flat, 1).reshape(inside.shape), -1)

    width = max(1, int((sizes - seen).max(initial=0)))
    history = taken(firsts, firsts + seen, length, True)
    return history, taken(firsts + seen, firsts + sizes, width, False)


def _gathered(
    policy: Policy,
    dataset: Dataset,
    devices: Ints,
    starts: Ints,
    history: Ints,
    targets: Ints,
    *,
    per_entry: bool = False,
) -> Examples:
    before, after = _Rows(starts, history), _Rows(starts, targets)
    present = ~after.missing.all(-1)
    last = history[..., -1] if history.shape[-1] else np.full(present.shape, -1)
    levels = reward_levels(torch.from_numpy(before.of(dataset.rewards, 0.0)), dataset.reward_range)
    return Examples(
        history=torch.from_numpy(before.of(dataset.items, -1).astype(np.int64)),
        levels=levels.masked_fill_(torch.from_numpy(before.missing), 0),
        targets=torch.from_numpy(after.of(dataset.items, -1).astype(np.int64)),
        rewards=torch.from_numpy(after.of(dataset.rewards, 0.0)),
        propensities=torch.zeros(targets.shape)
        if dataset.propensities is None
        else torch.from_numpy(after.of(dataset.propensities, 0.0)),
        present=torch.from_numpy(present.astype(np.float32)),
        query=torch.zeros(targets.shape[:2]),
        position=torch.from_numpy(np.where(present, -1 if per_entry else last + 1, 0)),
        user=_users(dataset, devices),
    )


class _Rows:
    """Rows of each log, relative to its start, -1 pads, ``[devices, examples, n]``; and what columns hold there."""

    def __init__(self, starts: Ints, rows: Ints) -> None:
        self.missing = rows < 0
        self._absolute = rows + starts[:, None, None]  # at least -1, which is a row of every column that has any

    def of(self, column: NDArray[np.generic], padding: float) -> NDArray[np.generic]:
        """The column at the rows, ``padding`` where there is none, same shape."""
        if not len(column):
            return np.full(self.missing.shape, padding, dtype=column.dtype)
        taken = np.take(np.asarray(column), self._absolute)
        np.putmask(taken, self.missing, padding)
        return taken


def _users(dataset: Dataset, devices: Ints) -> Tensor:
    return torch.from_numpy(np.array(dataset.device_features[devices], dtype=np.float32))
