"""One agent among all users: the journal, the users as they are now, and what each interaction brought."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..behaviour.simulator import UserSimulator
from .agents import Agent

Ints = NDArray[np.int64]
TRACES = ("clicked", "reward", "regret")


@dataclass(kw_only=True, eq=False)
class Trace:
    """What every interaction of every device brought. A simulation's diagnostic: not private.

    Attributes:
        devices: how many there are.
        values: ``clicked`` (1 where a slot of the slate was), ``reward`` (mean reward of the slate, exact) and
            ``regret`` (what it lacks to the best slate of the moment), float64 ``[devices, interactions]``; NaN where a
            device has not got so far.
    """

    devices: int
    values: dict[str, NDArray[np.float64]] = field(init=False)

    def __post_init__(self) -> None:
        """Begin with nothing."""
        self.values = {name: np.full((self.devices, 0), np.nan) for name in TRACES}

    def add(self, rows: Ints, times: Ints, **values: NDArray[np.float64]) -> None:
        """Write down interaction ``times`` of each of ``rows``."""
        wanted = int(times.max(initial=-1)) + 1
        for name, value in values.items():
            old = self.values[name]
            if wanted > old.shape[1]:
                old = np.pad(old, ((0, 0), (0, wanted - old.shape[1])), constant_values=np.nan)
            old[rows, times] = value
            self.values[name] = old


@dataclass(kw_only=True, eq=False)
class Session:
    """Plays an agent against users.

    Attributes:
        simulator: the users; a device is the user in its place.
        trace: what came of it.
    """

    simulator: UserSimulator
    trace: Trace = field(init=False)

    def __post_init__(self) -> None:
        """Begin with nothing."""
        self.trace = Trace(devices=len(self.simulator.users))

    def play(self, agent: Agent, rows: Ints, interactions: int) -> None:
        """Let each of ``rows`` recommend so many times, all once before any of them twice."""
        for _ in range(interactions if len(rows) else 0):
            times = self.simulator.state.time[rows]
            shown = agent.act(rows)
            feedback = self.simulator.respond(shown.slates, rows)
            agent.observe(rows, shown, feedback)
            clicked = np.any(feedback.clicks, axis=1).astype(np.float64)
            self.trace.add(rows, times, clicked=np.asarray(clicked), reward=feedback.expected, regret=feedback.regret)
