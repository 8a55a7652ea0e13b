"""From a device's log to training examples, one rule for each privacy unit.

=====================  =================================  ============================================================
policy's state         unit none or user                  unit interaction or both
=====================  =================================  ============================================================
no other interactions  one example, every log entry a     one example a log entry
                       target of it
the history            sampled positions: what precedes   disjoint blocks of the log: the last entries of a block
                       one is the state, the entries      (``horizon``) are the targets, the others the history; an
                       from there on are the targets      entry's block is a hash of its item, so that no entry moves
                                                          another one's block
=====================  =================================  ============================================================

With ``local.episodes`` (units none and user) a log is cut at random, log-uniformly: what precedes the cut is the
support, examples as above; one query example has it as its history and aims at what follows.

Under unit ``interaction`` one log entry thus influences exactly one example. Where blocks are used, an entry *changes*
an example instead of adding one: :func:`changes_per_entry` says so, and the sensitivity doubles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._streams import cell_uniforms
from ..config import LocalConfig, PolicyConfig, Unit
from .interactions import Interactions
from .policy import LEVELS, Policy

_HASH = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: Fibonacci hashing (Knuth, TAOCP 6.4)


class Examples(NamedTuple):
    """Training examples of one device (or, with a leading axis, of many).

    Attributes:
        history: the state's catalogue rows, right-aligned, -1 pads, int64 ``[examples, length]``.
        levels: reward levels of the history, int64 ``[examples, length]``.
        targets: actions taken, -1 pads, int64 ``[examples, targets]``.
        rewards: their rewards, float32 ``[examples, targets]``.
        propensities: their logging propensities, 0 where unknown, float32 ``[examples, targets]``.
        present: 1 for an example, 0 for padding, float32 ``[examples]``.
        query: 1 for the query of an episode, else 0, float32 ``[examples]``.
        position: entries of the log before the example, ascending, of which the history holds the last, int64
            ``[examples]``; 0 where nobody sees a history, -1 under rules that keep an entry to its own example.
        user: the device's features, float32 ``[user_features]``.
    """

    history: Tensor
    levels: Tensor
    targets: Tensor
    rewards: Tensor
    propensities: Tensor
    present: Tensor
    query: Tensor
    position: Tensor
    user: Tensor


def changes_per_entry(policy: Policy | PolicyConfig, unit: Unit) -> int:
    """Examples' worth of gradient that adding or removing one log entry can move: 1, or 2 where it changes a block."""
    return 2 if policy.sees_history and unit in ("interaction", "both") else 1


def reward_levels(rewards: Tensor, reward_range: tuple[float, float]) -> Tensor:
    """Bin rewards into ``LEVELS`` equal parts of the public reward range, int64, same shape."""
    low, high = reward_range
    share = (rewards - low).mul_(LEVELS / max(high - low, 1e-12))
    return share.clamp_(0, LEVELS - 1).to(torch.int64)


def build_examples(
    policy: Policy,
    log: Interactions,
    user: Tensor,
    *,
    settings: LocalConfig,
    unit: Unit,
    reward_range: tuple[float, float],
    stream: Sequence[int | str] = (0,),
) -> Examples:
    """Cut one device's log into examples.

    Args:
        policy: its state decides the rule.
        log: the device's interactions.
        user: the device's features ``[user_features]``.
        settings: number of positions or blocks (``windows``) and targets a position (``horizon``).
        unit: privacy unit of the run.
        reward_range: public range of rewards, for the levels.
        stream: (seed, round, device) of the draw of positions; unused where nothing is drawn.

    Raises:
        DataError: an item outside the catalogue.
    """
    log.check_catalogue(policy.items)
    per_entry = unit in ("interaction", "both")
    length = policy.settings.history_length if policy.sees_history else 0
    levels = reward_levels(log.rewards, reward_range)
    if not per_entry and settings.episodes and len(log):
        cut = episode_cut(stream, len(log))
        cuts = _whole(policy, cut, settings, stream)
        cuts.append((np.arange(cut), np.arange(cut, len(log))[: settings.horizon if policy.sees_history else None]))
        return _gather(log, cuts, length, user, levels, queries=1)
    if not per_entry:
        cuts = _whole(policy, len(log), settings, stream)
    elif policy.sees_history:
        cuts = _blocks(log.items.numpy(), settings.windows, settings.horizon)
    else:
        cuts = _each_alone(len(log))
    return _gather(log, cuts, length, user, levels, per_entry=per_entry)


def _whole(policy: Policy, count: int, settings: LocalConfig, stream: Sequence[int | str]) -> list[_Cut]:
    """Examples from the first ``count`` entries under units that protect a device as a whole."""
    return _positions(count, settings, stream) if policy.sees_history else _all_in_one(count)


def episode_cut(stream: Sequence[int | str], count: int) -> int:
    """Entries before the cut of a log of ``count``, log-uniform in ``[0, count)``: little is as likely seen as much."""
    *parts, device = stream
    return int(episode_cuts(parts, np.array([int(device)]), np.array([count]))[0])


def episode_cuts(
    parts: Sequence[int | str], devices: NDArray[np.int64], counts: NDArray[np.int64]
) -> NDArray[np.int64]:
    """:func:`episode_cut` of many devices, int64 ``[devices]``; 0 for an empty log."""
    seed, *names = parts
    drawn = cell_uniforms(int(seed), *names, "episode", rows=devices, columns=np.zeros(1, dtype=np.int64))
    cuts = np.floor(np.exp(drawn * np.log1p(np.maximum(counts, 0)))).astype(np.int64) - 1
    return np.clip(cuts, 0, np.maximum(counts - 1, 0))


_Cut = tuple[NDArray[np.int64], NDArray[np.int64]]  # rows of the history, rows of the targets


def _all_in_one(count: int) -> list[_Cut]:
    return [(np.empty(0, np.int64), np.arange(count))] if count else []


def _each_alone(count: int) -> list[_Cut]:
    return [(np.empty(0, np.int64), np.array([row])) for row in range(count)]


def _blocks(items: NDArray[np.int64], blocks: int, horizon: int) -> list[_Cut]:
    block_of = block_numbers(items, blocks)
    cuts = []
    for block in np.unique(block_of):
        rows = np.flatnonzero(block_of == block)
        seen = max(0, len(rows) - horizon)
        cuts.append((rows[:seen], rows[seen:]))
    return cuts


def block_numbers(items: NDArray[np.int64], blocks: int) -> NDArray[np.int64]:
    """The block of each entry: a hash of its own item and of nothing else, int64 in ``[0, blocks)``."""
    mixed = (items.astype(np.uint64) + np.uint64(1)) * np.uint64(_HASH)
    return ((mixed >> np.uint64(33)) % np.uint64(blocks)).astype(np.int64)


def _positions(count: int, settings: LocalConfig, stream: Sequence[int | str]) -> list[_Cut]:
    if count > settings.windows:
        *parts, device = stream
        keys = position_keys(parts, np.array([int(device)]), np.arange(count), settings)
        chosen = np.sort(np.argpartition(keys, settings.windows - 1)[: settings.windows])
    else:
        chosen = np.arange(count)
    return [(np.arange(row), np.arange(row, min(row + settings.horizon, count))) for row in chosen]


def position_keys(
    parts: Sequence[int | str], devices: NDArray[np.int64], rows: NDArray[np.int64], settings: LocalConfig
) -> NDArray[np.float64]:
    """Keys of log positions: those with the smallest keys are drawn, without replacement.

    Args:
        parts: the stream's name without the device: (seed, round) or (seed, purpose).
        devices: indices, of a shape that broadcasts with ``rows``.
        rows: positions in the log.
        settings: ``positions``: alike, or weight 1 / (2 + row) (Efraimidis and Spirakis 2006).
    """
    seed, *names = parts
    keys = cell_uniforms(int(seed), *names, "examples", rows=devices, columns=rows)
    return keys if settings.positions == "uniform" else -np.log1p(-keys) * (2.0 + rows)


def _gather(
    log: Interactions,
    cuts: list[_Cut],
    length: int,
    user: Tensor,
    levels: Tensor,
    *,
    queries: int = 0,
    per_entry: bool = False,
) -> Examples:
    width = max((len(targets) for _, targets in cuts), default=0)
    history_rows = torch.full((len(cuts), length), -1)
    target_rows = torch.full((len(cuts), width), -1)
    for number, (history, targets) in enumerate(cuts):
        recent = history[max(0, len(history) - length) :]
        if len(recent):
            history_rows[number, length - len(recent) :] = torch.from_numpy(recent)
        target_rows[number, : len(targets)] = torch.from_numpy(targets)
    unknown = torch.zeros(len(log))
    return Examples(
        history=_take(log.items, history_rows, -1),
        levels=_take(levels, history_rows, 0),
        targets=_take(log.items, target_rows, -1),
        rewards=_take(log.rewards, target_rows, 0),
        propensities=_take(unknown if log.propensities is None else log.propensities, target_rows, 0),
        present=torch.ones(len(cuts)),
        query=(torch.arange(len(cuts)) >= len(cuts) - queries).to(torch.float32),
        position=torch.tensor([-1 if per_entry else len(seen) if length else 0 for seen, _ in cuts], dtype=torch.int64),
        user=user,
    )


def _take(column: Tensor, rows: Tensor, padding: float) -> Tensor:
    if not len(column):
        return torch.full(rows.shape, padding, dtype=column.dtype)
    return torch.where(rows >= 0, column[rows.clamp(min=0)], torch.tensor(padding, dtype=column.dtype))


def stack_examples(devices: Sequence[Examples]) -> Examples:
    """Pad many devices' examples to one shape and stack them: every field gains a leading axis ``[devices, ...]``.

    Histories are as wide as the longest of them.
    """
    counts = max([1, *(len(one.present) for one in devices)])
    width = max([1, *(one.targets.shape[1] for one in devices)])
    longest = max(int((one.history >= 0).any(0).sum()) for one in devices)
    length = min(devices[0].history.shape[1], max(1, longest))
    shape = (len(devices), counts)
    history = torch.full((*shape, length), -1)
    levels = torch.zeros((*shape, length), dtype=torch.int64)
    targets = torch.full((*shape, width), -1)
    rewards, propensities = torch.zeros(*shape, width), torch.zeros(*shape, width)
    present, query = torch.zeros(shape), torch.zeros(shape)
    position = torch.zeros(shape, dtype=torch.int64)
    for number, one in enumerate(devices):
        rows, columns = one.targets.shape
        recent = slice(one.history.shape[1] - length, None)
        history[number, :rows], levels[number, :rows] = one.history[:, recent], one.levels[:, recent]
        targets[number, :rows, :columns] = one.targets
        rewards[number, :rows, :columns] = one.rewards
        propensities[number, :rows, :columns] = one.propensities
        present[number, :rows], query[number, :rows] = one.present, one.query
        position[number, :rows] = one.position
    user = torch.stack([one.user for one in devices])
    return Examples(history, levels, targets, rewards, propensities, present, query, position, user)
