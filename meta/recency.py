"""The state encoder ``history`` for many devices, each history item embedded once.

The histories of a device's examples are overlapping parts of one log. Here every distinct entry (item and reward level)
of a device stands once, ``[devices, distinct, dim]``, and the recency-weighted means of all examples are one product
with a matrix of weights. ``Policy.encode_history`` is the plain form; the backward pass is written out.

Where the histories are what precedes some positions of one log, entries stand in its order, and the weights of every
history are the same ones, moved along (:class:`_Sliding`); elsewhere they are found by sorting (:class:`_Scattered`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from . import state as encoders
from .policy import LEVELS, Named, Parameters, Policy
from .slopes import DenseSlopes, own_rows
from .table import TableGradient

_LEVEL_BITS = (LEVELS - 1).bit_length()
_LEVEL_MASK = (1 << _LEVEL_BITS) - 1
_NOTHING = -1 << _LEVEL_BITS
"""The key of item -1 at level 0."""


def _packed(items: Tensor, levels: Tensor) -> Tensor:
    """Item and level as one key."""
    return (items << _LEVEL_BITS) + levels


def distinct(keys: Tensor, nothing: int) -> tuple[Tensor, Tensor]:
    """Distinct keys of every row.

    Args:
        keys: int64 ``[rows, n]``.
        nothing: stands behind the keys of rows that have fewer than others.

    Returns:
        The keys, ascending, int64 ``[rows, most]``, and the place of every key among them, int64 ``[rows, n]``.
    """
    width = keys.shape[1]
    bits = width.bit_length()
    # Key and column as one number: NumPy's sort of values is several times the speed of a sort that returns an order.
    packed = (keys << bits) + torch.arange(width)
    packed = _sorted(packed)
    ordered, order = packed >> bits, packed & ((1 << bits) - 1)
    begins = functional.pad((ordered[:, 1:] != ordered[:, :-1]).to(torch.int64), (1, 0))
    places = begins.cumsum(1)
    found = torch.full((len(keys), int(places[:, -1].amax()) + 1), nothing).scatter_(1, places, ordered)
    return found, torch.empty_like(keys).scatter_(1, order, places)


def _sorted(rows: Tensor) -> Tensor:
    """Every row in ascending order."""
    return torch.from_numpy(np.sort(rows.numpy(), axis=1)) if rows.device.type == "cpu" else rows.sort(1).values


def _twice(ascending: Tensor) -> bool:
    """Whether an item, at least 0, stands twice in any row."""
    return bool(((ascending[:, 1:] == ascending[:, :-1]) & (ascending[:, 1:] >= 0)).any())


@dataclass(frozen=True, kw_only=True, eq=False)
class Entries:
    """Distinct entries of the histories of every device.

    Attributes:
        items: int64 ``[devices, distinct]``, 0 where there is none; ascending, or in the order of the log.
        levels: their reward levels, int64 ``[devices, distinct]``.
        places: place of every history entry among them, int64 ``[devices, examples, length]``; none where histories
            are windows of the log.
        ends: there the place behind the last entry of every history, int64 ``[devices, examples]``.
        once: no item of a device stands twice, with two levels.
    """

    items: Tensor
    levels: Tensor
    places: Tensor | None
    ends: Tensor | None
    once: bool

    @classmethod
    def windows(cls, history: Tensor, levels: Tensor, known: Tensor, position: Tensor) -> Entries | None:
        """Find them where each history is what precedes a position of one log without any item twice; elsewhere none.

        Args:
            history: int64 ``[devices, examples, length]``, -1 pads on the left.
            levels: reward levels, same shape.
            known: entries of every history, int64 ``[devices, examples]``.
            position: entries of the log before the example, int64 ``[devices, examples]`` (``Examples.position``).
        """
        count, _, length = history.shape
        before = functional.pad(position, (1, 0))[:, :-1]
        there = known > 0
        strange = (position < before) & there | (known != position.clamp(min=0, max=length))
        if bool(strange.any()):
            return None
        ends = torch.minimum(position - before, known).clamp_(min=0).cumsum(1)
        width = max(1, int(ends[:, -1].amax()))
        ends = ends * there
        # What pads a history that is shorter than others falls on columns before the first: all of the log is in it.
        columns = (ends[..., None] + torch.arange(length)).flatten(1)
        keys = torch.full((count, length + width), _NOTHING)
        keys = keys.scatter_(1, columns, _packed(history, levels).flatten(1))[:, length:]
        items = keys >> _LEVEL_BITS
        if _twice(_sorted(items.to(torch.int32))):  # half the time of int64
            return None
        return cls(items=items.clamp(min=0), levels=keys & _LEVEL_MASK, places=None, ends=ends, once=True)

    @classmethod
    def of(cls, history: Tensor, levels: Tensor) -> Entries:
        """Find them: ``history`` and ``levels`` are int64 ``[devices, examples, length]``, -1 pads."""
        found, places = distinct(_packed(history, levels).flatten(1), _NOTHING)
        items = found >> _LEVEL_BITS
        return cls(
            items=items.clamp(min=0),
            levels=torch.where(items >= 0, found & _LEVEL_MASK, 0),
            places=places.view(history.shape),
            ends=None,
            once=not _twice(items),
        )

    @cached_property
    def at_level(self) -> Tensor:
        """1 where an entry is of a level, ``[devices, distinct, levels]``: its products sum rows of the same level."""
        return torch.zeros(*self.levels.shape, LEVELS).scatter_(-1, self.levels[..., None], 1.0)

    def gain(self, parameters: Parameters) -> Tensor:
        """Factor on every entry's embedding, ``[devices, distinct, 1]``."""
        return functional.embedding(self.levels, 1 + parameters["state.reward_gain"][:, None])


@dataclass(frozen=True, eq=False)
class RecencyTable:
    """Recency weights of histories, and how they move with the scales; for many devices.

    With ``raw = exp(-age / scale)`` the weights of a history of n entries are ``w = raw / (sum of n raw + constant)``,
    and ``dw / dlog(scale) = w (age - mean age) / scale``.
    """

    log_scale: Tensor
    """``[scales]``."""
    length: int
    """Entries of the longest history there may be."""

    @cached_property
    def ages(self) -> Tensor:
        """``0, 1, ..., length - 1``."""
        return torch.arange(self.length, dtype=self.log_scale.dtype)

    @cached_property
    def slowness(self) -> Tensor:
        """``1 / scale``, ``[scales]``."""
        return torch.exp(-self.log_scale)

    @cached_property
    def raw(self) -> Tensor:
        """``exp(-age / scale)``, and the same times the age, ``[2, scales, length]``."""
        raw = torch.exp(-self.ages * self.slowness[:, None])
        return torch.stack([raw, raw * self.ages])

    @cached_property
    def sums(self) -> Tensor:
        """One over the sum of the raw weights of n entries, and their mean age, ``[length + 1, 2, scales]``."""
        mass, aged = functional.pad(self.raw.cumsum(-1), (1, 0))
        share = 1 / (mass + encoders.EMPTY)
        return torch.stack([share, aged * share]).permute(2, 0, 1).contiguous()

    @cached_property
    def weights(self) -> Tensor:
        """Weights of histories of 0 to ``length`` entries, ``[length + 1, scales, length]``."""
        mask = torch.ones(self.length + 1, self.length).tril(-1).flip(1)  # as many as the row's number, at the end
        return encoders.recency_weights(self.log_scale, mask).movedim(0, 1)

    @cached_property
    def slopes(self) -> Tensor:
        """Derivatives of the weights by the scales' own ``log_scale``, same shape."""
        ages = self.ages.flip(0)
        return self.weights * (ages - (self.weights @ ages)[..., None]) * self.slowness[:, None]

    def prepare(self) -> None:
        """Compute now what windows of a log will ask for."""
        _ = self.sums

    def weights_of(self, known: Tensor, length: int) -> Tensor:
        """The last ``length`` weights of histories of ``known`` entries each, int64 ``[devices, examples]``."""
        return self._rows(self.weights, known, length)

    def slopes_of(self, known: Tensor, length: int) -> Tensor:
        """Derivatives of :meth:`weights_of`, ``[devices, examples, scales, length]``."""
        return self._rows(self.slopes, known, length)

    def _rows(self, table: Tensor, known: Tensor, length: int) -> Tensor:
        part = table[: length + 1, :, self.length - length :]
        return functional.embedding(known, part.flatten(1)).view(*known.shape, *part.shape[1:])


class _Mixing(Protocol):
    """Weighted means of rows of distinct entries for every history and scale."""

    def means(self, rows: Tensor) -> Tensor:
        """Of ``rows [devices, distinct, dim]``, ``[devices, examples * scales, dim]``."""
        ...

    def back(self, slope: Tensor) -> Tensor:
        """What the rows get of slopes by the means: ``[devices, distinct, dim]``."""
        ...

    def by_scale(self, slope: Tensor, rows: Tensor, means: Tensor) -> Tensor:
        """What the scales' logarithms get, ``[devices, scales]``."""
        ...


class _Scattered:
    """Entries anywhere: a matrix of weights, ``[devices, examples * scales, distinct]``."""

    def __init__(self, table: RecencyTable, places: Tensor, known: Tensor, width: int) -> None:
        self._table, self._places, self._known = table, places, known
        weights = table.weights_of(known, places.shape[-1])
        mixer = torch.zeros(*weights.shape[:3], width)
        self._mixer = mixer.scatter_add_(-1, places[:, :, None].expand_as(weights), weights).flatten(1, 2)

    def means(self, rows: Tensor) -> Tensor:
        return self._mixer @ rows

    def back(self, slope: Tensor) -> Tensor:
        return self._mixer.mT @ slope

    def by_scale(self, slope: Tensor, rows: Tensor, means: Tensor) -> Tensor:
        slopes = self._table.slopes_of(self._known, self._places.shape[-1])
        by_weights = (slope @ rows.mT).view(*slopes.shape[:3], -1)
        by_weights = by_weights.gather(-1, self._places[:, :, None].expand_as(slopes))
        return by_weights.mul_(slopes).sum((1, 3))


class _Sliding:
    """Entries in the order of a log: raw weights end where a history does, and sums are divided afterwards."""

    def __init__(self, table: RecencyTable, ends: Tensor, known: Tensor, width: int) -> None:
        self._table, self._ends, self._width = table, ends, width
        sums = functional.embedding(known, table.sums.flatten(1)).view(len(known), -1, *table.sums.shape[1:])
        self._share, self._age = (part.reshape(len(known), -1, 1) for part in sums.unbind(2))
        self._mixer = self._moved(table.raw[0])

    def _moved(self, raw: Tensor) -> Tensor:
        """``raw [scales, length]`` by age as weights of the entries, ``[devices, examples * scales, distinct]``."""
        count, width = len(raw), self._width
        used = min(width, raw.shape[1])
        line = torch.zeros(count, 2 * width)
        line[:, width - used : width] = raw[:, :used].flip(1)
        # Row k of the view begins at k: where a history ends at e, the last weight is to stand at entry e - 1.
        view = line.as_strided((width + 1, count, width), (1, 2 * width, 1))
        begins = width - self._ends
        if width < begins.numel():
            rows = functional.embedding(begins, view.reshape(width + 1, -1))
        else:  # more rows than histories: written down they could take more memory than everything else
            rows = view[begins]
        return rows.view(len(rows), -1, width)

    def means(self, rows: Tensor) -> Tensor:
        return (self._mixer @ rows).mul_(self._share)

    def back(self, slope: Tensor) -> Tensor:
        return self._mixer.mT @ (slope * self._share)

    def by_scale(self, slope: Tensor, rows: Tensor, means: Tensor) -> Tensor:
        aged = (self._moved(self._table.raw[1]) @ rows).mul_(self._share)
        moved = aged.addcmul_(means, self._age, value=-1).mul_(slope).sum(-1)
        scales = len(self._table.log_scale)
        return moved.view(len(moved), -1, scales).sum(1) * self._table.slowness


@dataclass(frozen=True, kw_only=True, eq=False)
class Recency:
    """A forward pass of the encoder with shared parameters.

    Attributes:
        entries: the devices' distinct entries.
        plain: their embeddings ``E(a)``, ``[devices, distinct, dim]``.
        rewarded: scaled and shifted by their levels, ``[devices, distinct, dim]``.
        mixing: how means of them are taken.
        means: ``[devices, examples, scales * dim]``.
        trust: ``[devices, examples, 1]``.
    """

    entries: Entries
    plain: Tensor
    rewarded: Tensor
    mixing: _Mixing
    means: Tensor
    trust: Tensor

    @classmethod
    def of(
        cls,
        policy: Policy,
        parameters: Parameters,
        table: RecencyTable,
        entries: Entries,
        plain: Tensor,
        known: Tensor,
    ) -> Recency:
        """Weight and average the embeddings ``plain`` of the distinct entries.

        Args:
            policy: the policy.
            parameters: at least those named ``state.*``, shared.
            table: recency weights at those parameters.
            entries: the devices' distinct entries.
            plain: their embeddings, ``[devices, distinct, dim]``.
            known: entries of every history, ``[devices, examples, 1]``.
        """
        rewarded = plain
        if policy.settings.history_rewards:
            shift = functional.embedding(entries.levels, parameters["state.reward_shift"])
            rewarded = shift.addcmul_(plain, entries.gain(parameters))
        number = known[..., 0].to(torch.int64)
        width = entries.items.shape[1]
        mixing: _Mixing
        if entries.ends is not None:
            mixing = _Sliding(table, entries.ends, number, width)
        elif entries.places is not None:
            mixing = _Scattered(table, entries.places, number, width)
        else:
            raise ValueError("expected places of the entries or ends of the histories, got neither")
        return cls(
            entries=entries,
            plain=plain,
            rewarded=rewarded,
            mixing=mixing,
            means=mixing.means(rewarded).view(*number.shape, -1),
            trust=policy.trust_of(known),
        )

    def encoded(self, parameters: Parameters) -> Tensor:
        """``encode_history`` of every example, ``[devices, examples, dim]``."""
        mix = parameters["state.mix"].flatten(0, 1)
        return (self.means.flatten(0, 1) @ mix).view(*self.means.shape[:2], -1) * self.trust

    def back(self, parameters: Parameters, cotangent: Tensor, names: Collection[str]) -> tuple[Named, Tensor]:
        """Gradients of every device by the encoder's parameters, without ``state.mix``, and by ``plain``."""
        mix, slope = parameters["state.mix"], cotangent * self.trust
        by_means = (slope.flatten(0, 1) @ mix.flatten(0, 1).T).view(len(slope), -1, mix.shape[1])
        by_rewarded = self.mixing.back(by_means)
        small: Named = {}
        if "state.log_scale" in names:
            small["state.log_scale"] = self.mixing.by_scale(by_means, self.rewarded, self.means.view(by_means.shape))
        if not {"state.reward_gain", "state.reward_shift"} & set(parameters):
            return small, by_rewarded
        if "state.reward_gain" in names:
            small["state.reward_gain"] = (self.entries.at_level.mT @ (by_rewarded * self.plain)).sum(-1)
        if "state.reward_shift" in names:
            small["state.reward_shift"] = self.entries.at_level.mT @ by_rewarded
        return small, by_rewarded * self.entries.gain(parameters)

    def by_mix(self, cotangent: Tensor) -> TableGradient:
        """The gradient by ``state.mix`` as factors, ``[scales * dim, dim]``."""
        means = DenseSlopes(self.means, torch.ones(self.means.shape[:2]))
        return TableGradient(slopes=means, states=cotangent * self.trust)

    def by_item(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Distinct items and their rows: summed where an item stands with two levels."""
        items = self.entries.items
        if self.entries.once:
            return items, rows
        ascending = items.cummax(dim=1).values  # but for the zeros behind a device's last entry, whose rows are zero
        same = torch.searchsorted(ascending, ascending)  # the first of equal ones
        merged = torch.zeros_like(rows).flatten(0, 1)
        merged.index_add_(0, own_rows(same, items.shape[1]).flatten(), rows.flatten(0, 1))
        return items, merged.view(rows.shape)
