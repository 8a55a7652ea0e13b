"""Who recommends: one interface for the policy and for what it is measured by, many devices at once.

An agent acts for some devices and is told what came of it:

    shown = agent.act(rows)
    feedback = simulator.respond(shown.slates, rows)
    agent.observe(rows, shown, feedback)

Draws depend on (seed, device, how often that device acted), so that the same device draws the same numbers whoever acts
beside it, under every agent of the same seed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..._streams import cell_uniforms
from ...meta.acting import Exploration, act, conditional
from ...meta.eligibility import allowed_items
from ...meta.policy import Named
from ..behaviour.simulator import Feedback
from ..serving import Served
from ..world import World
from .journal import Journal

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
_LEAST = 1e-30
"""Least propensity that is logged: float32 knows no smaller one, and weights are capped long before."""
_BLOCK = 1024
"""Devices whose scores of all items are held in double precision at once."""


class Shown(NamedTuple):
    """What some devices showed.

    Attributes:
        items: catalogue rows from the top, -1 where nothing was left, int64 ``[rows, slots]``.
        propensities: of every slot given those above, exact, float64 ``[rows, slots]``; 1 where nothing was left.
        first: of every shown item in the first slot, which training divides by; float64 ``[rows, slots]``.
    """

    items: Ints
    propensities: Floats
    first: Floats

    @property
    def slates(self) -> Ints:
        """The items as simulated users take them: an empty slot repeats the first item."""
        return np.where(self.items >= 0, self.items, self.items[:, :1])


class Agent(Protocol):
    """Acts for devices and learns from what came of it."""

    def act(self, rows: Ints) -> Shown:
        """What the devices ``rows``, int64 ``[rows]``, each once, show now."""
        ...

    def observe(self, rows: Ints, shown: Shown, feedback: Feedback) -> None:
        """What came of what those devices showed."""
        ...


class Draws:
    """Uniforms of devices: a function of seed, device, how often it acted, and place. Called for each position."""

    def __init__(self, seed: int, rows: Ints, ticks: Ints) -> None:
        """Name the streams: ``ticks`` says how often each device of ``rows`` has acted before."""
        self._seed, self._cells, self._calls = seed, (rows << 24) + ticks, 0

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        """Uniforms on [0, 1), float64 ``[rows, width]``, fresh at every call."""
        columns = np.arange(shape[1]) + self._calls * (1 << 32)
        self._calls += 1
        return torch.from_numpy(cell_uniforms(self._seed, "act", rows=self._cells[:, None], columns=columns))


class LoggingAgent(ABC):
    """Writes down on each device what was clicked there."""

    def __init__(self, journal: Journal, how: Exploration, *, items: int, seed: int, repeats: bool = False) -> None:
        """Set up.

        Args:
            journal: the devices' logs, written by :meth:`observe`.
            how: size of slates and exploration.
            items: catalogue size.
            seed: root of the draws.
            repeats: show again what was clicked.
        """
        self.journal, self.how, self.items, self.seed, self.repeats = journal, how, items, seed, repeats
        self.ticks = np.zeros(journal.devices, dtype=np.int64)

    @abstractmethod
    def act(self, rows: Ints) -> Shown:
        """See :class:`Agent`."""

    def observe(self, rows: Ints, shown: Shown, feedback: Feedback) -> None:
        """Write the clicks down, each with its propensity."""
        clicks = feedback.clicks & (shown.items >= 0)
        self.journal.append(rows, shown.items, feedback.rewards, clicks, shown.first, self.ticks[rows])
        self.ticks[rows] += 1


class ScoringAgent(LoggingAgent):
    """Draws slates from scores of all items; what a device has clicked is not shown to it again unless asked for."""

    @abstractmethod
    def scores(self, rows: Ints) -> Tensor:
        """Unnormalised log-probabilities of every item, ``[rows, items]``."""

    def features(self) -> Tensor | None:
        """Public content features ``[items, features]``, which diversity needs."""
        return None

    def act(self, rows: Ints) -> Shown:
        """Draw a slate for each device, as ``meta.acting.act`` does.

        Raises:
            PolicyError: a score is not finite.
        """
        scores = self.scores(rows)
        blocks = [slice(first, first + _BLOCK) for first in range(0, max(1, len(rows)), _BLOCK)]
        parts = [self._drawn(rows[block], scores[block]) for block in blocks]
        return Shown._make(np.concatenate(column) for column in zip(*parts, strict=True))

    def _drawn(self, rows: Ints, scores: Tensor) -> Shown:
        allowed = self.allowed(rows)
        slate = act(scores, allowed, self.how, Draws(self.seed, rows, self.ticks[rows]), self.features())
        first = slate.propensities if self.how.size == 1 else _first(slate.items, scores, allowed, self.how)
        return Shown(slate.items.numpy(), slate.propensities.numpy(), first.clamp(min=_LEAST).numpy())

    def allowed(self, rows: Ints) -> Tensor:
        """Candidates, bool ``[rows, items]``; who has clicked everything may see everything again."""
        if self.repeats:
            return torch.ones(len(rows), self.items, dtype=torch.bool)
        left = allowed_items(self.items, self.journal.clicked(rows))
        return left | ~left.any(1, keepdim=True)


class PolicyAgent(ScoringAgent):
    """The policy: the initialization, adapted without noise to each device's own log before it acts.

    What is served never leaves its device, so adapting it costs no privacy. :attr:`phi` and :attr:`personal` may be
    exchanged between rounds.
    """

    def __init__(
        self,
        world: World,
        phi: Named,
        journal: Journal,
        how: Exploration,
        *,
        seed: int,
        personal: Named | None = None,
        steps: int | None = None,
        everything: bool = False,
        repeats: bool = False,
    ) -> None:
        """Set up.

        Args:
            world: configuration, catalogue, devices and policy; its logs are not looked at.
            phi: shared parameters.
            journal: what the devices have met so far.
            how: size of slates and exploration.
            seed: root of the draws.
            personal: personal parameters by device, ``[devices, *shape]``; zeros where there are none.
            steps: noise-free local steps; none takes ``evaluation.serve_steps``.
            everything: let slow weights move as well (local-only).
            repeats: show again what was clicked.
        """
        super().__init__(journal, how, items=world.policy.items, seed=seed, repeats=repeats)
        self.world, self.phi, self.personal = world, phi, personal
        self.steps, self.everything = steps, everything

    def scores(self, rows: Ints) -> Tensor:
        """See :class:`ScoringAgent`; adapted to what each device has written down so far."""
        world = self.journal.world(self.world)
        served = Served(world=world, phi=self.phi, personal=self.personal, steps=self.steps, everything=self.everything)
        return served.score_until(rows, world.split.end[rows])

    def features(self) -> Tensor | None:
        """See :class:`ScoringAgent`."""
        return self.world.policy.features


def _first(items: Tensor, scores: Tensor, allowed: Tensor, how: Exploration) -> Tensor:
    """Probability of every shown item in the first slot, 1 where nothing was left; float64 ``[rows, slots]``.

    What ``meta.acting.first_draw`` finds from the conditionals, without the loss of digits where an item above was
    nearly sure.
    """
    likely = conditional(scores.to(torch.float64), allowed, how, items[:, :0], None)
    return torch.where(items >= 0, likely.gather(1, items.clamp(min=0)), 1.0)
