"""One arm of an A/B test: a run's policy on every user's device, from the first interaction to the last."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ...errors import PolicyError
from ..behaviour.simulator import UserSimulator
from ..data.dataset import Dataset
from ..online.agents import PolicyAgent
from ..online.journal import Journal
from ..online.session import TRACES, Session
from .meeting import Meeting
from .settings import CompareSettings

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class LoggedLike(Journal):
    """A journal that writes down what happens the way the run's own log has it, because that is what it learned from.

    A click that brought the most there is has the greatest reward of the log's scale; propensities are kept where the
    log has them, so a policy that was trained on bare positives goes on learning from bare positives.
    """

    def __init__(self, like: Dataset, greatest_reward: float) -> None:
        """Begin with nothing.

        Args:
            like: the run's log.
            greatest_reward: most that one item can bring.
        """
        super().__init__(devices=like.devices)
        self._like, self._greatest = like, max(greatest_reward, 1e-12)

    def append(
        self, rows: Ints, slates: Ints, rewards: Floats, clicks: NDArray[np.bool_], propensities: Floats, times: Ints
    ) -> None:
        """See :class:`Journal`; rewards are those of the simulated users."""
        low, high = self._like.reward_range
        super().append(rows, slates, low + (high - low) * rewards / self._greatest, clicks, propensities, times)

    def remember(self, log: Dataset) -> None:
        """Write down what devices did before anybody compares anything: all of ``log``."""
        self._make_room(int(log.lengths.max(initial=0)))
        self.counts[:] = log.lengths
        room = np.arange(self.columns["items"].shape[1])
        there = room < self.counts[:, None]
        before = {
            "items": log.items,
            "rewards": log.rewards,
            "propensities": np.ones(log.interactions) if log.propensities is None else log.propensities,
            "times": (room - self.counts[:, None])[there],
            "clicked": np.ones(log.interactions, dtype=bool),
        }
        for name, value in before.items():
            self.columns[name][there] = value

    def dataset(self, like: Dataset) -> Dataset:
        """See :class:`Journal`."""
        kept = super().dataset(like)
        return kept if like.propensities is not None else kept.replace(propensities=None)


def play(place: int, meeting: Meeting, settings: CompareSettings, advance: Callable[[int], None]) -> dict[str, Floats]:
    """Let one policy act for every user that takes part; each user is met anew, with the same streams for every arm.

    Args:
        place: of the arm in the meeting, 0 or 1.
        meeting: policies and users.
        settings: how many interactions.
        advance: is told of every interaction of everybody.

    Returns:
        What every interaction brought: ``clicked``, ``reward``, ``regret``, each float64 ``[users, interactions]``.

    Raises:
        PolicyError: a score is NaN or infinite, or the run learns from propensities that its slates do not have.
    """
    session = Session(simulator=UserSimulator(meeting.population, meeting.behaviour))
    agent = _agent(place, meeting, settings)
    rows = np.sort(meeting.rows)
    for _ in range(settings.interactions):
        session.play(agent, rows, 1)
        advance(1)
    return {name: session.trace.values[name][meeting.rows] for name in TRACES}


def _agent(place: int, meeting: Meeting, settings: CompareSettings) -> PolicyAgent:
    served, how = meeting.served[place], meeting.how[place]
    log = served.world.dataset
    if log.propensities is not None and how.size > 1 and not how.plain:
        raise PolicyError(
            "expected temperature > 0, epsilon = 0 and diversity = 0 with slates of several items, whose propensities "
            f"devices of {log.name} learn from, got {how.temperature:g}, {how.epsilon:g} and {how.diversity:g}; "
            "change them, or show one item at a time"
        )
    journal = LoggedLike(log, meeting.behaviour.greatest_reward)
    if settings.start == "log":
        journal.remember(log)
    return PolicyAgent(
        served.world,
        served.phi,
        journal,
        how,
        seed=settings.seed,
        personal=served.personal if settings.start == "log" else None,
        repeats=served.world.config.exploration.repeats,
    )
