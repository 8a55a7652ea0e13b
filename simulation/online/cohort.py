"""A cohort whose devices act before they adapt: the participant of an online federation.

Everything but acting is :class:`simulation.participant.Cohort`: debit, adaptation, personal parameters, settlement. In
a round its devices first recommend from the initialization in the order, each adapted to its own log; what is clicked
goes into the log with its propensity, and the log is what they adapt on. Where they stand then (users, logs, traces) is
on disk before the first debit, so that a round that is held again after a crash is the same round.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...client.wire import TrainOrder, TrainReply
from ..participant import Cohort
from ..workers import Workers
from .agents import PolicyAgent
from .journal import Journal
from .session import Session, Trace
from .standing import StandingStore
from .users import Users


class ActingCohort(Cohort):
    """All devices of a run; see the module."""

    def __init__(self, users: Users, nodes_dir: Path, acted: Sequence[int] = ()) -> None:
        """Serve all devices of ``users`` as one node; what must last lies below ``nodes_dir``.

        ``acted`` are the rounds before in which devices took part: where users stood after them has to be there.
        """
        super().__init__(users.world, nodes_dir, 1)
        config = users.config
        self.session = Session(simulator=users.simulator())
        self._late = np.flatnonzero(users.world.held_out)
        self._journal = Journal(devices=users.population.users, kept=config.online.log)
        self._agent = PolicyAgent(
            users.world, {}, self._journal, users.exploration, seed=config.seed, repeats=config.exploration.repeats
        )
        self._standing = StandingStore(nodes_dir)
        self._begun = False
        self._acted = acted

    def train(self, order: TrainOrder) -> TrainReply:
        """Act, then adapt: see :meth:`Cohort.train`."""
        devices = self._devices(order)
        self._begin_after(order.round - 1)
        self._agent.phi = order.phi
        self._agent.personal = self._personal.load(order.round - 1) or None
        self.session.play(self._agent, self._acting(order.round, devices), self._config.online.interactions)
        self._standing.save(order.round, self.session, self._agent)
        self._world = self._journal.world(self._world)
        return super().train(order)

    def trace_after(self, round_number: int) -> Trace:
        """What every interaction up to ``round_number`` brought, also where an earlier process held the rounds."""
        self._begin_after(round_number)
        return self.session.trace

    def _begin_after(self, round_number: int) -> None:
        if not self._begun:
            acted = max((number for number in self._acted if number <= round_number), default=0)
            self._standing.load(round_number, self.session, self._agent, acted=acted)
            self._begun = True

    def _acting(self, round_number: int, drawn: NDArray[np.int64]) -> NDArray[np.int64]:
        return acting_devices(drawn, self._late, round_number, self._config.online.late_round)

    def _helpers(self, sizes: NDArray[np.int64]) -> Workers | None:
        """None: worker processes would hold the logs as they were when they began."""
        return None


def acting_devices(
    drawn: NDArray[np.int64], late: NDArray[np.int64], round_number: int, late_round: int
) -> NDArray[np.int64]:
    """Who recommends in a round: the devices drawn, and from ``late_round`` on those that never train."""
    return np.concatenate([drawn, late]) if round_number >= late_round else drawn
