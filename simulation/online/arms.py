"""The arms of an online run: federations whose devices act, and what they are measured by, over the same users.

Every arm meets the same users with the same streams, and in every round the same devices act: those that the server
draws from (seed, round), and the late ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...client.app import make_client_app
from ...config import Config
from ...errors import ConfigError
from ...privacy.sampling import poisson_participants
from ...privacy.separation import turn_of, turns
from ...server.loop import run_federation
from ...server.metrics import MetricsLog
from ...server.plan import RoundReport
from ..federation import NODES, CohortFailed, Strict, check_plan, plan_of
from ..grid import LocalGrid
from ..results import LOCAL_STEPS
from .agents import LoggingAgent, PolicyAgent
from .cohort import ActingCohort, acting_devices
from .journal import Ints, Journal
from .session import Session, Trace
from .users import Users
from .yardsticks import KnownPopularityAgent, OracleAgent, PopularityAgent, RandomAgent

FEDERATED = ("meta", "joint")
YARDSTICKS = ("local", "popularity", "known-popularity", "random", "oracle")
_NAME = re.compile(r"(meta|joint)@(\d+(?:\.\d+)?)")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One of the things compared.

    Attributes:
        name: as the configuration has it.
        kind: what acts.
        epsilon: of a federation with privacy; none without.
    """

    name: str
    kind: str
    epsilon: float | None = None

    @classmethod
    def of(cls, name: str) -> Arm:
        """Read an entry of ``online.arms``.

        Raises:
            ConfigError: there is no such arm.
        """
        found = _NAME.fullmatch(name)
        if found is not None and float(found[2]) > 0:
            return cls(name=name, kind=found[1], epsilon=float(found[2]))
        if name in (*FEDERATED, *YARDSTICKS):
            return cls(name=name, kind=name)
        known = ", ".join((*FEDERATED, *YARDSTICKS))
        raise ConfigError(
            f"expected online.arms among {known}, or meta@8 for epsilon 8, got {name!r}; choose from them"
        )

    @property
    def federated(self) -> bool:
        """Whether a federation learns."""
        return self.kind in FEDERATED

    def config(self, config: Config) -> Config:
        """What the arm runs by: its unit and epsilon, K = 1 for the joint one."""
        if not self.federated:
            return config
        if self.epsilon is None:
            privacy: dict[str, Any] = {"unit": "none", "clipping": "fixed"}
        else:
            unit = config.privacy.unit if config.privacy.unit != "none" else "user"
            privacy = {"unit": unit, "epsilon": self.epsilon, "noise_multiplier": None}
        changes = {f"privacy__{key}": value for key, value in privacy.items()}
        return config.updated(**changes, **({"local__steps": 1} if self.kind == "joint" else {}))


def arms_of(config: Config) -> tuple[Arm, ...]:
    """The arms of a configuration, each once.

    Raises:
        ConfigError: none, or one that is not known.
    """
    arms = tuple(Arm.of(name) for name in dict.fromkeys(config.online.arms))
    if not arms:
        raise ConfigError('expected one or more arms in online.arms, got none; such as ["meta", "popularity"]')
    return arms


def check_arm(arm: Arm, users: Users) -> None:
    """Find out before anything is written whether an arm can be run.

    Raises:
        ConfigError: no noise reaches its epsilon, or its configuration contradicts itself.
    """
    if arm.federated:
        check_plan(users.under(arm.config(users.config)).world)


def federate(arm: Arm, users: Users, run_dir: Path, *, on_round: Callable[[RoundReport], None] | None = None) -> Trace:
    """Run an arm that learns, from its last checkpoint where it has one: real orders, a real ClientApp, real ledgers.

    Raises:
        FedrecError: as ``fedrec simulate``; nothing on disk is corrupted.
    """
    own = users.under(arm.config(users.config))
    plan = plan_of(own.world, run_dir, resume=True, on_round=on_round)
    run_dir.mkdir(parents=True, exist_ok=True)
    acted = [row["round"] for row in MetricsLog(run_dir / "metrics.jsonl").rows if row.get("participants")]
    with closing(ActingCohort(own, run_dir / NODES, acted)) as cohort:
        grid = LocalGrid(make_client_app(lambda _: Strict(cohort)), 1)
        try:
            run_federation(grid, replace(plan, validate=None), own.config)
        except CohortFailed as failed:
            raise failed.error from failed.__cause__
        return cohort.trace_after(own.config.server.rounds)


def measure(arm: Arm, users: Users, *, on_round: Callable[[int], None] = lambda number: None) -> Trace:
    """Run an arm that learns nothing from other devices by gradients, beside the federations."""
    config, late = users.config, np.flatnonzero(users.world.held_out)
    session = Session(simulator=users.simulator())
    agent = _agent(arm, users, session)
    for number in range(1, config.server.rounds + 1):
        drawn = users.world.roster[participants(config, number, len(users.world.roster))]
        if len(drawn):
            acting = acting_devices(drawn, late, number, config.online.late_round)
            session.play(agent, acting, config.online.interactions)
        on_round(number)
    return session.trace


def participants(config: Config, round_number: int, population: int) -> Ints:
    """Places of the devices that the server draws for a round, as ``server.strategy`` does."""
    drawn = poisson_participants(config.seed, round_number, population, config.server.participation)
    separation = config.server.min_separation
    if separation == 1 or config.phase(round_number) != "adapt":
        return drawn
    before = config.server.rounds - config.adapt_rounds
    turn = turn_of(round_number - before, separation)
    return np.asarray(drawn[turns(config.seed, population, separation)[drawn] == turn])


def _agent(arm: Arm, users: Users, session: Session) -> LoggingAgent:
    config, world, how = users.config, users.world, users.exploration
    journal = Journal(devices=users.population.users, kept=config.online.log)
    items, seed, repeats = world.policy.items, config.seed, config.exploration.repeats
    if arm.kind == "oracle":
        return OracleAgent(journal, session.simulator, size=how.size)
    if arm.kind == "random":
        return RandomAgent(journal, how, items=items, seed=seed, repeats=repeats)
    if arm.kind == "popularity":
        return PopularityAgent(journal, how.size, items=items, seed=seed, repeats=repeats)
    if arm.kind == "known-popularity":
        return KnownPopularityAgent(journal, how.size, users.population, seed=seed, repeats=repeats)
    phi = world.initialization()
    return PolicyAgent(world, phi, journal, how, seed=seed, steps=LOCAL_STEPS, everything=True, repeats=repeats)
