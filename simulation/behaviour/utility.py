"""Present utilities: exact ones of slates, and a short list of candidates for the best slate.

A slate's utilities are summed coordinate by coordinate in double precision, so that a user gets the same bits alone as
among thousands; the list of candidates comes from one matrix product in single precision.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from .dynamics import UserState, effective_taste, freshness_effects, repeat_effects
from .options import UserOptions
from .population import Population

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SURE = 30.0
"""Utility, for who promotes an item, of that item; all others have its negative."""
_CHUNK = 1024
"""Users whose utilities of all items are held at once."""


class Utilities:
    """Utilities of a population's items under a set of options."""

    def __init__(self, population: Population, options: UserOptions) -> None:
        """Lay the tables out as they are read."""
        self.population, self.options = population, options
        self._by_coordinate = np.ascontiguousarray(population.qualities.T)
        self._table = torch.from_numpy(self._by_coordinate.astype(np.float32))
        self._bias = torch.from_numpy(population.item_bias.astype(np.float32))

    def of_slates(self, state: UserState, promotes: NDArray[np.bool_], slates: Ints) -> Floats:
        """Utility of every slot; ``-inf`` where an item is repeated or not there yet, float64 ``[users, slots]``."""
        population, options = self.population, self.options
        taste = effective_taste(options, state)
        total = population.item_bias[slates] + population.user_bias[state.users][:, None]
        for coordinate, quality in enumerate(self._by_coordinate):
            total += quality[slates] * taste[:, coordinate, None]
        if options.repeats_matter:
            effects = repeat_effects(options, state)
            for place in range(effects.shape[1]):
                total += np.where(slates == state.clicked[:, place, None], effects[:, place, None], 0.0)
        total += freshness_effects(population, options, slates, state.time[:, None])
        if promotes.any():
            sure = np.where(slates == options.promoted, SURE, -SURE)
            total = np.where(promotes[:, None] & (total > -np.inf), sure, total)
        total[_repeated(slates)] = -np.inf
        return total

    def candidates(self, state: UserState, promotes: NDArray[np.bool_], count: int) -> Ints:
        """The ``count`` items of greatest utility, repeat effects left out, int64 ``[users, count]``."""
        taste = torch.from_numpy(effective_taste(self.options, state).astype(np.float32))
        found = np.empty((len(taste), count), dtype=np.int64)
        for first in range(0, len(taste), _CHUNK):
            rows = slice(first, first + _CHUNK)
            scores = torch.addmm(self._bias, taste[rows], self._table)
            if self.population.published is not None:
                scores += torch.from_numpy(self._freshness(state.time[rows]))
            scores[torch.from_numpy(promotes[rows]), self.options.promoted] = torch.inf
            found[rows] = torch.topk(scores, count, dim=1, sorted=False).indices.numpy()
        return np.sort(found, axis=1)

    def _freshness(self, time: Ints) -> NDArray[np.float32]:
        """What age adds to every item, float32 ``[users or 1, items]``."""
        times = time[:1] if (time == time[0]).all() else time
        items = np.arange(self.population.items)[None]
        return freshness_effects(self.population, self.options, items, times[:, None]).astype(np.float32)


def _repeated(slates: Ints) -> NDArray[np.bool_]:
    """Which slots show an item that an earlier slot shows."""
    repeated = np.zeros(slates.shape, dtype=bool)
    for slot in range(1, slates.shape[1]):
        repeated[:, slot] = (slates[:, :slot] == slates[:, slot, None]).any(axis=1)
    return repeated
