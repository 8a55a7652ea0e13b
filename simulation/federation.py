"""A federation over a world: the plan the server gets, the participants behind the nodes, the validation between."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import cast

import torch
from flwr.app import Context

from ..client.adaptation import LocalMechanism
from ..client.app import Participant
from ..client.wire import TrainOrder, TrainReply
from ..config import Config
from ..errors import ConfigError
from ..meta.examples import changes_per_entry
from ..meta.policy import Named
from ..privacy.separation import most_participations
from ..server._durable import storage_errors
from ..server.plan import FederationPlan, RoundReport
from .budget import BudgetPlan, plan_budget, warm_floor
from .evaluation import evaluate_scores
from .participant import Cohort, personal_of
from .placement import compute_device
from .serving import Served
from .world import World

logger = logging.getLogger(__name__)

NODES = "nodes"
RUN_DIR = "fedrec-run-dir"
"""Run-config key of the app: where the run's files lie."""
RESUME = "fedrec-resume"
"""Run-config key of the app: go on from the last checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Validator:
    """Judges what a round serves: full ranking of the validation item on the training devices. Not private."""

    world: World
    nodes_dir: Path

    def __call__(self, round_number: int, served: Named) -> dict[str, float]:
        """Metric -> mean over devices."""
        scorer = Served(
            world=self.world,
            phi=served,
            which="valid",
            personal=personal_of(self.world, self.nodes_dir, round_number),
        )
        evaluation = evaluate_scores(
            scorer,
            self.world.dataset,
            self.world.split,
            "valid",
            devices=self.world.roster,
            ks=self.world.config.evaluation.ks,
        )
        return {name: interval.mean for name, interval in evaluation.aggregate.items()}


def budget_of(world: World) -> BudgetPlan:
    """The privacy plan of the world's configuration and policy.

    Raises:
        PrivacyError: the policy's examples and the local sampling rate do not go together.
    """
    changes = changes_per_entry(world.policy, world.config.privacy.unit)
    budget = plan_budget(world.config, changes=changes, population=len(world.roster))
    if budget.interaction is not None:
        LocalMechanism.of(world.policy, world.config, budget.interaction.adapt)
    return budget


def check_plan(world: World) -> None:
    """Find out before anything is written whether a federation over ``world`` can be held.

    Raises:
        ConfigError: nothing measures the validation metric, no noise reaches epsilon, there are too few devices, or no
            such ``engine.device``.
        PrivacyError: the policy's examples and the local sampling rate do not go together, or the cohort is too small
            for adaptive clipping.
    """
    compute_device(world.config.engine)
    settings = world.config.evaluation
    known = [f"{name}@{k}" for name in ("hr", "ndcg", "recall") for k in settings.ks] + ["mrr"]
    if settings.metric not in known:
        raise ConfigError(
            f"expected evaluation.metric to be one of {', '.join(known)}, got {settings.metric!r}; "
            "its cut-off must be among evaluation.ks"
        )
    for section, names in (("local.rates", world.config.local.rates), ("privacy.scales", world.config.privacy.scales)):
        unknown = sorted(set(names) - set(world.policy.specs))
        if unknown:
            there = ", ".join(world.policy.specs)
            logger.warning("%s.%s has no effect: this policy's parameters are %s", section, unknown[0], there)
    plan_of(world, Path()).check(world.config)


def plan_of(
    world: World,
    run_dir: Path,
    *,
    resume: bool = False,
    locked: bool = False,
    on_round: Callable[[RoundReport], None] | None = None,
) -> FederationPlan:
    """Everything that the server is told of a world."""
    config, budget = world.config, budget_of(world)
    phi0 = world.initialization()
    spent = _Spent(config, budget)
    return FederationPlan(
        phi0=phi0,
        schema=world.policy.schema(),
        trained=world.policy.released,
        population=len(world.roster),
        run_dir=run_dir,
        noise_multiplier=None if budget.user is None else budget.user.adapt,
        warm_noise_multiplier=None if budget.user is None else budget.user.warm,
        pairs_noise_multiplier=None if budget.user is None else budget.user.pairs,
        warm_floor=warm_floor(config, budget, len(world.roster)),
        scales=config.privacy.scales_of(world.policy.released),
        validate=Validator(world=world, nodes_dir=run_dir / NODES),
        epsilon=None if budget.interaction is None else spent,
        on_round=on_round,
        nodes=config.server.nodes,
        resume=resume,
        locked=locked,
    )


@dataclass(frozen=True)
class _Spent:
    """The most that a device can have spent after a round, under unit ``interaction``."""

    config: Config
    budget: BudgetPlan

    def __call__(self, round_number: int) -> dict[str, float]:
        from ..privacy.accounting import epsilon

        noise, privacy, server = self.budget.interaction, self.config.privacy, self.config.server
        before = server.rounds - self.config.adapt_rounds
        taken = min(round_number, before) + most_participations(max(0, round_number - before), server.min_separation)
        charges = () if noise is None else noise.charges[:taken]
        return {"interaction": epsilon(charges, privacy.delta, privacy.accountant)}


class Cohorts:
    """A factory of cohorts for nodes that live in this process, to be closed when the federation is over."""

    def __init__(self, world: World, run_dir: Path) -> None:
        """Cohorts of ``world``'s devices; what must last lies in ``run_dir``."""
        self._world, self._run_dir = world, run_dir
        self._made: list[Cohort] = []

    def __call__(self, context: Context) -> Participant:
        """The cohort of a node."""
        self._made.append(Cohort(self._world, self._run_dir / NODES, _nodes(context)))
        return Strict(self._made[-1])

    def close(self) -> None:
        """Release ledgers and worker processes."""
        for cohort in self._made:
            cohort.close()


class CohortFailed(BaseException):
    """A simulated cohort could not answer: the run stops there, resumable.

    Among real devices a round goes on without those that fail. Here it would end with other bits than a run whose disk
    was never full. No ``Exception``, because Flower's apps turn those into replies.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True)
class Strict:
    """A cohort whose failure is the run's."""

    cohort: Cohort

    def train(self, order: TrainOrder) -> TrainReply:
        """See :meth:`Cohort.train`."""
        try:
            with storage_errors(self.cohort.root, f"the rounds before {order.round} are safe"):
                return self.cohort.train(order)
        except Exception as error:
            raise CohortFailed(error) from error


def cohort_in(context: Context) -> Participant:
    """A cohort for a node of one of Flower's engines: the world is built anew, once a process.

    Flower tells the node how many there are by ``num-partitions``.
    """
    run_config = context.run_config
    config = {key: value for key, value in run_config.items() if not key.startswith("fedrec-")}
    world = world_of(tuple(sorted(config.items())))
    return Cohort(world, run_dir_of(context) / NODES, _nodes(context))


def run_dir_of(context: Context) -> Path:
    """The run directory that the run config names.

    Raises:
        ConfigError: none, or a relative path: server and nodes may work in different directories.
    """
    path = Path(str(context.run_config.get(RUN_DIR, "")))
    if not path.is_absolute():
        raise ConfigError(
            f"expected {RUN_DIR} in the run config to be an absolute path, got {str(path)!r}; "
            f"pass --run-config '{RUN_DIR}=\"/path/of/the/run\"'"
        )
    return path


@lru_cache(maxsize=2)
def world_of(flat: tuple[tuple[str, bool | float | int | str], ...]) -> World:
    """The world of a flat configuration, in a process that is to work on it: torch gets its threads."""
    config = Config.from_flat(dict(flat))
    if config.engine.threads:
        torch.set_num_threads(config.engine.threads)
    return World.build(config)


def _nodes(context: Context) -> int:
    return int(cast(int, context.node_config["num-partitions"]))
