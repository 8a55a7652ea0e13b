"""Canaries in a federation: each is in or out by a coin, and after all rounds of the plan an observer calls the coins.

Unit ``user``: a canary is a device whose log holds an item of its own only, so that its update, whatever its size, goes
along an axis of its own. A real cohort adapts, the real strategy sums, noises and steps, round after round. Unit
``interaction``: a canary is one entry in the log of a device of its own, which takes part as often as it ever may.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .._streams import numpy_stream
from ..client.app import make_client_app
from ..config import Config, DataConfig, LocalConfig, PolicyConfig
from ..meta.popularity import NAME as WARM_STARTED
from ..privacy.accounting import Charge
from ..privacy.audit import Scores
from ..privacy.one_run import Coins
from ..server.budget import PhaseNoise
from .audit_device import Ints, device_releases, vote_releases
from .audit_server import evidence, released_means, rounds_observed, server_config, server_plan
from .audit_worlds import ITEMS, device_worlds, logs_of
from .federation import Cohorts
from .grid import LocalGrid
from .world import World

_FAR = 8.0
"""How far beyond the clip an update is: so little that a sum of unclipped ones passes the gate."""
_LOG = 102
"""Entries of a canary device's log, two of which are kept back for validation and test."""
_OTHERS = 2
"""Devices with a short log of other items."""
_UNUSED = 60
"""Items in nobody's log: they show what moves all items alike."""
Tick = Callable[[int], None]
"""Told how many rounds are done since the last time."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CanaryRun:
    """What an observer of one run holds against the coins.

    Attributes:
        scores: of each canary, higher where it seems to have been in, float64 ``[canaries]``.
        included: the coins, bool ``[canaries]``.
    """

    scores: Scores
    included: Coins


def separation(charges: tuple[Charge, ...]) -> float:
    """Distance of the means of the two ideal scores in standard deviations; a guess where sampling is below 1."""
    return math.sqrt(sum(charge.steps * (charge.sample_rate / charge.noise_multiplier) ** 2 for charge in charges))


def coins(config: Config, canaries: int) -> Coins:
    """In with probability 1/2, each independently."""
    return numpy_stream(config.seed, "coins").random(canaries) < 0.5


def canary_devices(config: Config, noise: PhaseNoise, canaries: int, tick: Tick) -> CanaryRun:
    """One federation with canary devices (unit ``user``), over all rounds of the plan."""
    included = coins(config, canaries)
    world = _world(config, included)
    config, population = world.config, len(world.roster)
    unit = config.privacy.clip * config.privacy.scales.get(WARM_STARTED, 1.0)
    scores = np.zeros(canaries)
    with tempfile.TemporaryDirectory(prefix="fedrec-audit-") as folder:
        phi = world.initialization()
        grid = LocalGrid(make_client_app(Cohorts(world, Path(folder))), 1)
        plan = server_plan(config, noise, phi, population=population, schema=world.policy.schema(), single=False)
        for number, mean in enumerate(released_means(config, plan, grid), start=1):
            total = mean.numpy() * population * config.server.participation
            warm = config.phase(number) == "popularity"
            common = 0.0 if warm else total[canaries : canaries + _UNUSED].mean()
            seen = (total[:canaries] - common) / (1.0 if warm else unit)
            scores += evidence(seen, (noise.warm or 1.0) if warm else noise.adapt, config.server.participation)
            tick(1)
    return CanaryRun(scores=scores, included=included)


def canary_interactions(config: Config, noise: PhaseNoise, canaries: int, tick: Tick) -> CanaryRun:
    """Devices with one canary entry each (unit ``interaction``), over all rounds that a device may take part in."""
    included = coins(config, canaries)
    scores = np.zeros(canaries)
    for coin in (False, True):
        devices = np.flatnonzero(included == coin).astype(np.int64)
        scores[devices] = life_releases(config, noise, devices, present=coin, tick=tick)[:, 0]
    return CanaryRun(scores=scores, included=included)


def life_releases(config: Config, noise: PhaseNoise, devices: Ints, *, present: bool, tick: Tick) -> Scores:
    """What devices release all their lives, with one canary entry in the log or without it, ``[devices, 1]``.

    The evidence for the entry, summed over the warm start and as many rounds as a device may ever take part in.
    """
    world = device_worlds(config)[0]
    log, votes = (world.other, (0, 0, 0, ITEMS - 1)) if present else (world.one, (0, 0, 0))
    steps = config.local.steps * config.privacy.sample_rate
    total = np.zeros(len(devices))
    if noise.warm is not None:
        total += vote_releases(votes, config, noise, devices)[:, 0] / noise.warm**2
    for number in range(2, config.privacy.max_participations + 2):
        seen = device_releases(world, log, config, noise.adapt, devices, round_number=number)[:, 0]
        total += seen * steps / noise.adapt**2
        tick(1)
    return total[:, None]


def _world(config: Config, included: Coins) -> World:
    """Canary devices, those that are out with empty logs; two ordinary devices; items that nobody has."""
    canaries = len(included)
    logs: list[tuple[int, ...]] = [(item,) * _LOG if coin else () for item, coin in enumerate(included)]
    first = canaries + _UNUSED
    logs += [tuple(range(first + 5 * other, first + 5 * other + 5)) for other in range(_OTHERS)]
    base = server_config(config, warm=config.server.warm_start == "popularity", rounds=rounds_observed(config))
    policy = PolicyConfig(state="none", content=False, ids=False, content_embedding=False, fast=(), frozen=("gain",))
    scale = config.privacy.scales.get(WARM_STARTED, 1.0)
    local = LocalConfig(steps=1, slow_lr=_FAR * config.privacy.clip * scale)
    still = base.model_copy(update={"policy": policy, "local": local, "data": DataConfig(name="synthetic", holdout=0)})
    return World.build(still, logs_of(logs, first + 5 * _OTHERS))
