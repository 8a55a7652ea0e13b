"""What the policy is measured by: popularity, the best fixed list, chance, and the truth. None of them is private."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...meta.acting import Exploration
from ..behaviour.choice import sigmoid
from ..behaviour.population import Population
from ..behaviour.simulator import Feedback, UserSimulator
from .agents import LoggingAgent, ScoringAgent, Shown
from .journal import Journal

Ints = NDArray[np.int64]
_GREEDY = 0.0


class RandomAgent(ScoringAgent):
    """All items alike."""

    def scores(self, rows: Ints) -> Tensor:
        """Zeros."""
        return torch.zeros(len(rows), self.items)


class PopularityAgent(ScoringAgent):
    """What was clicked most often on all devices so far, ties alike. Not private: it counts everybody's clicks."""

    def __init__(self, journal: Journal, size: int, *, items: int, seed: int, repeats: bool = False) -> None:
        """Begin with counts of zero."""
        super().__init__(journal, Exploration(size=size, temperature=_GREEDY), items=items, seed=seed, repeats=repeats)
        self.counts = np.zeros(items)

    def scores(self, rows: Ints) -> Tensor:
        """The counts, for everybody the same."""
        return torch.from_numpy(self.counts).expand(len(rows), -1)

    def observe(self, rows: Ints, shown: Shown, feedback: Feedback) -> None:
        """Count the clicks."""
        super().observe(rows, shown, feedback)
        clicked = shown.items[feedback.clicks & (shown.items >= 0)]
        self.counts += np.bincount(clicked, minlength=self.items)


class KnownPopularityAgent(PopularityAgent):
    """The best that popularity could be: items by their true mean probability of a click over all users."""

    def __init__(
        self, journal: Journal, size: int, population: Population, *, seed: int, repeats: bool = False
    ) -> None:
        """Rank by the truth."""
        super().__init__(journal, size, items=population.items, seed=seed, repeats=repeats)
        utilities = population.tastes @ population.qualities.T + population.user_bias[:, None] + population.item_bias
        self._mean = sigmoid(utilities).mean(axis=0)

    def scores(self, rows: Ints) -> Tensor:
        """The true means, for everybody the same."""
        return torch.from_numpy(self._mean).expand(len(rows), -1)


class OracleAgent(LoggingAgent):
    """The slate that is best at the moment, from the simulator's truth."""

    def __init__(self, journal: Journal, simulator: UserSimulator, *, size: int) -> None:
        """Ask ``simulator``."""
        super().__init__(journal, Exploration(size=size), items=simulator.population.items, seed=simulator.seed)
        self._simulator = simulator

    def act(self, rows: Ints) -> Shown:
        """The best slates; a slate that is best with fewer items repeats its first one."""
        slates, _ = self._simulator.oracle(self.how.size, rows)
        sure = np.ones(slates.shape)
        return Shown(slates, sure, sure)
