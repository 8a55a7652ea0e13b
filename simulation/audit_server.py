"""The audit's server: what is released under unit ``user``, with and without one device, again and again.

Two nodes with one device each answer real orders of the real strategy: their updates are far beyond the clip, are
clipped by the device's own code, cross the wire, pass the gate, are summed, noised and folded into the next
initialization, which is what an observer sees. An absent device is a node that is not there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from flwr.app import ConfigRecord, Context
from torch import Tensor

from .._streams import stream_seed
from ..client.adaptation import bound_update
from ..client.app import make_client_app
from ..client.wire import TrainOrder, TrainReply, decode_named, encode_named
from ..config import Config
from ..meta import pairs
from ..meta.adapt import Adaptation
from ..meta.policy import Named
from ..meta.popularity import NAME as WARM_STARTED
from ..meta.popularity import vote
from ..privacy.audit import Scores
from ..server.budget import PhaseNoise
from ..server.plan import FederationPlan
from ..server.strategy import MetaStrategy
from .grid import LocalGrid

WIDTH = 24
"""Parameters of the audited policy: the device's axis, its companion's, and silent ones that show the noise."""
_PAIR_BIAS = torch.log1p(torch.tensor([9.0, 7.0, 5.0, 3.0, 2.0]))
"""Popularity that is known when the audited devices vote on pairs."""
_FAR = 20.0
"""How far beyond the clip an update is."""
Company = Literal["apart", "against"]
"""Where the other device's update points: along an axis of its own, or against the audited one's."""


@dataclass(frozen=True, kw_only=True)
class _Node:
    """One device of the audit: it answers every order with the same update, or the same vote."""

    config: Config
    item: int
    axis: int
    sign: float

    def train(self, order: TrainOrder) -> TrainReply:
        """Answer as a device does: clip the whole update, send nothing else."""
        if self.config.phase(order.round) == "popularity":
            update = {WARM_STARTED: vote(torch.tensor([self.item]), WIDTH, unit_norm=True)}
            return TrainReply(order.round, order.schema, update=update, devices=1)
        pull = torch.zeros(WIDTH)
        pull[self.axis] = self.sign * _FAR * self.config.privacy.clip
        scale = self.config.privacy.scales.get(WARM_STARTED, 1.0)
        clipped = bound_update(Adaptation(update={WARM_STARTED: pull * scale}, personal={}), self.config)
        update = {} if clipped is None else clipped.value
        return TrainReply(order.round, order.schema, update=update, devices=1)


def server_releases(
    config: Config,
    noise: PhaseNoise,
    runs: range,
    *,
    present: bool,
    company: Company = "apart",
    warm: bool = False,
) -> Scores:
    """Statistics of independent rounds with the audited device or without it, float64 ``[runs, 3]``.

    They are its axis and its companion's, in units of the sensitivity, and the log of the noise's size.

    Args:
        config: clip, participation and scales of the run.
        noise: the plan's noise multipliers.
        runs: their numbers, which name their random streams.
        present: whether the audited device is there.
        company: see :data:`Company`.
        warm: audit the warm start instead of a round of adaptation.
    """
    config = server_config(config, warm=warm)
    grid, plan = _stage(config, noise, present=present, company=company)
    seeds = [stream_seed(config.seed, int(present), run) for run in runs]
    rows = [next(released_means(config.model_copy(update={"seed": seed}), plan, grid)) for seed in seeds]
    unit = 1.0 if warm else config.privacy.clip * config.privacy.scales.get(WARM_STARTED, 1.0)
    values = torch.stack(rows) * config.server.participation * 2 / unit
    spread = values[:, 2:].square().mean(1).add(1e-30).log()
    found: Scores = torch.stack([values[:, 0], values[:, 1], spread], dim=1).numpy()
    return found


def plan_releases(config: Config, noise: PhaseNoise, runs: range, *, present: bool) -> Scores:
    """Statistics of independent federations over all rounds of the plan, ``[runs, 2]``.

    They are the evidence for the audited device, summed over the rounds, and the log of the noise's size.
    """
    warm = config.server.warm_start == "popularity"
    config = server_config(config, warm=warm, rounds=rounds_observed(config))
    grid, plan = _stage(config, noise, present=present, company="apart")
    rate = config.server.participation
    unit = config.privacy.clip * config.privacy.scales.get(WARM_STARTED, 1.0)
    rows = []
    for run in runs:
        own = config.model_copy(update={"seed": stream_seed(config.seed, int(present), run)})
        values = torch.stack(list(released_means(own, plan, grid))).numpy() * rate * 2
        warmed = np.array([config.phase(number) == "popularity" for number in range(1, len(values) + 1)])
        seen = values[:, 0] / np.where(warmed, 1.0, unit)
        found = evidence(seen, np.where(warmed, noise.warm or 1.0, noise.adapt), rate).sum()
        rows.append((found, np.log(np.square(values[~warmed, 2:] / unit).mean() + 1e-30)))
    return np.array(rows)


def pairs_releases(config: Config, noise: PhaseNoise, runs: range, *, present: bool) -> Scores:
    """Statistics of independent noised sums of votes on pairs, with the audited device or without it, ``[runs, 2]``.

    They are the projection on the device's own vote, which is the best statistic there is, and the log of the noise's
    size. The votes are the devices' own code, the release the strategy's.
    """
    settings = {"warm_start": "popularity", "warm_pairs": len(_PAIR_BIAS), "rounds": 3}
    base = server_config(config, warm=True)
    base = base.model_copy(update={"server": base.server.model_copy(update=settings)})
    plan = replace(
        server_plan(base, noise, {WARM_STARTED: _PAIR_BIAS}, population=2, schema="audit", single=True),
        pairs_noise_multiplier=noise.pairs,
    )
    votes = [
        pairs.vote(torch.tensor(log), _PAIR_BIAS, len(_PAIR_BIAS), window=2).double()
        for log in ([4, 0], [0, 2, 0, 4])[: 1 + present]
    ]
    direction = pairs.vote(torch.tensor([0, 2, 0, 4]), _PAIR_BIAS, len(_PAIR_BIAS), window=2).double()
    total = {pairs.NAME: torch.stack(votes).sum(0)}
    rows = []
    for run in runs:
        own = base.model_copy(update={"seed": stream_seed(config.seed, int(present), run)})
        released = MetaStrategy(own, plan)._released(2, plan.sensitivity(own, 2), total)[pairs.NAME]
        rest = released - direction * (released @ direction)
        rows.append((float(released @ direction), float((rest.square().mean() + 1e-30).log())))
    return np.array(rows)


def rounds_observed(config: Config) -> int:
    """Rounds that attacks on a whole run look at: all but a vote on pairs, which has an attack of its own.

    To look away can only weaken an attack: its bound holds for the claim on everything.
    """
    return config.server.rounds - bool(config.server.warm_pairs)


def evidence(seen: Scores, noise: Scores | float, rate: float) -> Scores:
    """Log likelihood ratio for a device that is drawn with ``rate``, from sums in units of its sensitivity."""
    exponent = (2 * seen - 1) / (2 * np.square(noise))
    return np.asarray(np.logaddexp(math.log1p(-rate) if rate < 1 else -np.inf, math.log(rate) + exponent))


def released_means(config: Config, plan: FederationPlan, grid: LocalGrid) -> Iterator[Tensor]:
    """The mean update (or vote) of every round of a federation, as it shows in its initializations, float64."""
    strategy, phi = MetaStrategy(config, plan), dict(plan.phi0)
    for number in range(1, config.server.rounds + 1):
        messages = strategy.configure_train(number, encode_named(phi), ConfigRecord(), grid)
        replies = grid.send_and_receive(messages)
        after = decode_named(strategy.aggregate_train(number, replies)[0])
        yield _mean(config, plan, number, phi, after)
        phi = after


def _mean(config: Config, plan: FederationPlan, number: int, before: Named, after: Named) -> Tensor:
    if config.phase(number) == "popularity":
        votes = torch.expm1(after[WARM_STARTED].double()) * plan.warm_floor
        return votes / (config.server.participation * plan.population)
    return after[WARM_STARTED].double() - before[WARM_STARTED].double()


def _stage(config: Config, noise: PhaseNoise, *, present: bool, company: Company) -> tuple[LocalGrid, FederationPlan]:
    """Nodes that are there, and the plan."""
    nodes = (_Node(config=config, item=1, axis=1, sign=1.0), _Node(config=config, item=0, axis=0, sign=1.0))
    if company == "against":
        nodes = (_Node(config=config, item=1, axis=0, sign=-1.0), nodes[1])
    there = nodes[: 2 if present else 1]

    def participant(context: Context) -> _Node:
        return there[cast(int, context.node_config["partition-id"])]

    phi = {WARM_STARTED: torch.zeros(WIDTH)}
    plan = server_plan(config, noise, phi, population=2, schema="audit", single=True)
    return LocalGrid(make_client_app(participant), len(there)), plan


def server_config(config: Config, *, warm: bool, rounds: int = 1) -> Config:
    """The configuration with a Reptile step that only adds: what comes after the noise is no part of the claim."""
    settings = {
        "outer_optimizer": "sgd",
        "outer_lr": 1.0,
        "decay": "none",
        "rounds": rounds,
        "nodes": 1,
        "warm_items": 1,
        "warm_pairs": 0,
        "warm_start": "popularity" if warm else "none",
    }
    unit = config.privacy.model_copy(update={"unit": "user"})
    return config.model_copy(update={"server": config.server.model_copy(update=settings), "privacy": unit})


def server_plan(
    config: Config, noise: PhaseNoise, phi0: Named, *, population: int, schema: str, single: bool
) -> FederationPlan:
    """A plan with the noise of the audited one, in which the bias is all that is trained."""
    return FederationPlan(
        phi0=phi0,
        schema=schema,
        trained=(WARM_STARTED,),
        population=population,
        run_dir=Path(),
        noise_multiplier=noise.adapt,
        warm_noise_multiplier=noise.warm,
        warm_floor=max(noise.warm or 0.0, 0.3),
        scales=config.privacy.scales_of((WARM_STARTED,)),
        single=single,
    )
