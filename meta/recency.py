"""The state encoder ``history`` for many devices, each history item embedded once.

The histories of a device's examples are overlapping parts of one log. Here every distinct entry (item and reward level)
of a device stands once, ``[devices, distinct, dim]``, and the recency-weighted means of all examples are one product
with a matrix of weights. ``Policy.encode_history`` is the plain form; the backward pass is written out.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from . import state as encoders
from .policy import LEVELS, Named, Parameters, Policy
from .slopes import own_rows


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
    packed = torch.from_numpy(np.sort(packed.numpy(), axis=1)) if packed.device.type == "cpu" else packed.sort(1).values
    ordered, order = packed >> bits, packed & ((1 << bits) - 1)
    begins = functional.pad((ordered[:, 1:] != ordered[:, :-1]).to(torch.int64), (1, 0))
    places = begins.cumsum(1)
    found = torch.full((len(keys), int(places[:, -1].amax()) + 1), nothing).scatter_(1, places, ordered)
    return found, torch.empty_like(keys).scatter_(1, order, places)


@dataclass(frozen=True, kw_only=True, eq=False)
class Entries:
    """Distinct entries of the histories of every device.

    Attributes:
        items: int64 ``[devices, distinct]``, ascending; 0 where there is none, before and behind them.
        levels: their reward levels, int64 ``[devices, distinct]``.
        places: place of every history entry among them, int64 ``[devices, examples, length]``.
        once: no item of a device stands twice, with two levels.
    """

    items: Tensor
    levels: Tensor
    places: Tensor
    once: bool

    @classmethod
    def of(cls, history: Tensor, levels: Tensor) -> Entries:
        """Find them: ``history`` and ``levels`` are int64 ``[devices, examples, length]``, -1 pads."""
        found, places = distinct((history * LEVELS + levels).flatten(1), -LEVELS)
        items = found.div(LEVELS, rounding_mode="floor")
        twice = (items[:, 1:] == items[:, :-1]) & (items[:, 1:] >= 0)
        return cls(
            items=items.clamp(min=0),
            levels=torch.where(items >= 0, found % LEVELS, 0),
            places=places.view(history.shape),
            once=not bool(twice.any()),
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
    """Recency weights of histories by their number of entries, and how they move with the scales; for many devices."""

    log_scale: Tensor
    """``[scales]``."""
    length: int
    """Entries of the longest history there may be."""

    @cached_property
    def weights(self) -> Tensor:
        """Weights of histories of 0 to ``length`` entries, ``[length + 1, scales, length]``."""
        mask = torch.ones(self.length + 1, self.length).tril(-1).flip(1)  # as many as the row's number, at the end
        return encoders.recency_weights(self.log_scale, mask).movedim(0, 1)

    @cached_property
    def slopes(self) -> Tensor:
        """Derivatives of the weights by the scales' own ``log_scale``, same shape.

        With ``w = raw / (sum of raw + constant)`` and ``raw = exp(-age / scale)``,
        ``dw / dlog(scale) = w (age - mean age) / scale``.
        """
        ages = torch.arange(self.length - 1, -1, -1, dtype=self.weights.dtype)
        return self.weights * (ages - (self.weights @ ages)[..., None]) * torch.exp(-self.log_scale)[:, None]

    def weights_of(self, known: Tensor, length: int) -> Tensor:
        """The last ``length`` weights of histories of ``known`` entries each, int64 ``[devices, examples]``."""
        return self._rows(self.weights, known, length)

    def slopes_of(self, known: Tensor, length: int) -> Tensor:
        """Derivatives of :meth:`weights_of`, ``[devices, examples, scales, length]``."""
        return self._rows(self.slopes, known, length)

    def _rows(self, table: Tensor, known: Tensor, length: int) -> Tensor:
        part = table[: length + 1, :, self.length - length :]
        return functional.embedding(known, part.flatten(1)).view(*known.shape, *part.shape[1:])


@dataclass(frozen=True, kw_only=True, eq=False)
class Recency:
    """A forward pass of the encoder with shared parameters.

    Attributes:
        entries: the devices' distinct entries.
        plain: their embeddings ``E(a)``, ``[devices, distinct, dim]``.
        rewarded: scaled and shifted by their levels, ``[devices, distinct, dim]``.
        table: recency weights by number of entries.
        known: entries of every history, which stand behind its padding, int64 ``[devices, examples]``.
        mixer: recency weights by distinct entry, ``[devices, examples * scales, distinct]``.
        means: ``[devices, examples, scales * dim]``.
        trust: ``[devices, examples, 1]``.
    """

    entries: Entries
    plain: Tensor
    rewarded: Tensor
    table: RecencyTable
    known: Tensor
    mixer: Tensor
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
        weights = table.weights_of(number, entries.places.shape[-1])
        mixer = torch.zeros(*weights.shape[:3], entries.items.shape[1])
        mixer.scatter_add_(-1, entries.places[:, :, None].expand_as(weights), weights)
        mixer = mixer.flatten(1, 2)
        means = (mixer @ rewarded).view(*number.shape, -1)
        return cls(
            entries=entries,
            plain=plain,
            rewarded=rewarded,
            table=table,
            known=number,
            mixer=mixer,
            means=means,
            trust=policy.trust_of(known),
        )

    def encoded(self, parameters: Parameters) -> Tensor:
        """``encode_history`` of every example, ``[devices, examples, dim]``."""
        mix = parameters["state.mix"].flatten(0, 1)
        return (self.means.flatten(0, 1) @ mix).view(*self.means.shape[:2], -1) * self.trust

    def back(self, parameters: Parameters, cotangent: Tensor, names: Collection[str]) -> tuple[Named, Tensor]:
        """Gradients of every device by the encoder's parameters, and by ``plain``."""
        mix, slope = parameters["state.mix"], cotangent * self.trust
        by_means = (slope.flatten(0, 1) @ mix.flatten(0, 1).T).view(len(slope), -1, mix.shape[1])
        by_rewarded = self.mixer.mT @ by_means
        small: Named = {}
        if "state.mix" in names:
            small["state.mix"] = (self.means.mT @ slope).view(-1, *mix.shape)
        if "state.log_scale" in names:
            small["state.log_scale"] = self._by_scale(by_means)
        if not {"state.reward_gain", "state.reward_shift"} & set(parameters):
            return small, by_rewarded
        if "state.reward_gain" in names:
            small["state.reward_gain"] = (self.entries.at_level.mT @ (by_rewarded * self.plain)).sum(-1)
        if "state.reward_shift" in names:
            small["state.reward_shift"] = self.entries.at_level.mT @ by_rewarded
        return small, by_rewarded * self.entries.gain(parameters)

    def _by_scale(self, by_means: Tensor) -> Tensor:
        """``[devices, scales]``."""
        slopes = self.table.slopes_of(self.known, self.entries.places.shape[-1])
        by_weights = (by_means @ self.rewarded.mT).view(*slopes.shape[:3], -1)
        by_weights = by_weights.gather(-1, self.entries.places[:, :, None].expand_as(slopes))
        return by_weights.mul_(slopes).sum((1, 3))

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
