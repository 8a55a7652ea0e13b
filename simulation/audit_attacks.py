"""The attacks that suit a configuration, each with the claim that it is held against."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np

from ..config import Config
from ..meta.examples import changes_per_entry
from ..privacy.accounting import Charge, epsilon
from ..privacy.audit import Scores
from ..privacy.one_run import called, one_run_epsilon, planned_guesses
from ..privacy.profile import Bound, distinguish, release_epsilon
from ..server.budget import PhaseNoise, plan_budget
from .audit_canaries import CanaryRun, Tick, canary_devices, canary_interactions, life_releases, separation
from .audit_device import Ints, audit_seed, device_releases, vote_releases
from .audit_server import pairs_releases, plan_releases, rounds_observed, server_releases
from .audit_worlds import ITEMS, DeviceWorld, device_worlds

DELTAS = (0.01, 0.03, 0.1, 0.3)
"""Where else than at its own delta a claim is tested: what an accountant says there it says of the same mechanism."""
_STEP = 250
Unit = Literal["user", "interaction"]
Side = Callable[[range, bool], Scores]
"""Statistics of numbered independent runs, with the audited unit or without it."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one attack measured.

    Attributes:
        attack: in words.
        unit: the privacy unit whose claim it is held against.
        points: claim and bound at every delta tested; the stated delta first.
        confidence: that all of these bounds hold.
        runs: independent runs each way, or canaries.
        seconds: it took.
        details: guesses and hits of a run with canaries.
    """

    attack: str
    unit: Unit
    points: tuple[Bound, ...]
    confidence: float
    runs: int
    seconds: float
    details: Mapping[str, int] = field(default_factory=dict)

    @property
    def refuted(self) -> bool:
        """Whether the claim is refuted at any delta."""
        return any(point.refuted for point in self.points)

    @property
    def closest(self) -> Bound:
        """The point that goes farthest beyond its claim; where none does, the one that comes closest in proportion."""
        if self.refuted:
            return max(self.points, key=lambda point: point.measured - point.claimed)
        return max(self.points, key=lambda point: point.measured / max(point.claimed, 1e-9))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the stated delta's numbers stand on top."""
        stated = self.points[0]
        return {
            "attack": self.attack,
            "unit": self.unit,
            "claimed_epsilon": stated.claimed,
            "delta": stated.delta,
            "measured_epsilon": stated.measured,
            "largest_measurable": stated.ceiling,
            "confidence": self.confidence,
            "verdict": "refuted" if self.refuted else "not refuted",
            "runs": self.runs,
            "seconds": round(self.seconds, 1),
            "points": [asdict(point) | {"refuted": point.refuted} for point in self.points],
            **self.details,
        }


@dataclass(frozen=True, kw_only=True)
class Attack:
    """An attack that is ready to run.

    Attributes:
        title: in words.
        steps: of its progress.
        run: measure with a confidence, telling of steps.
    """

    title: str
    steps: int
    run: Callable[[float, Tick], Finding]


def attacks_on(
    config: Config,
    rounds: int,
    plans: int,
    devices: int,
    canaries: int,
    stated: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[list[Attack], tuple[str, ...]]:
    """The attacks on a configuration's claims, and the claims as sentences.

    Args:
        config: whose plan it is.
        rounds: see ``simulation.audit.Size``, as the three that follow.
        plans: as there.
        devices: as there.
        canaries: as there.
        stated: statements by unit, as ``PrivacyStatement.to_dict`` writes them; without them, the plan's.
    """
    plan = plan_budget(config, changes=changes_per_entry(config.policy, config.privacy.unit))
    claims = stated or {statement.unit: statement.to_dict() for statement in plan.statements}
    found: list[Attack] = []
    if plan.user is not None:
        claim = float(claims["user"]["epsilon"])
        found += _on_users(config, plan.user, claim, rounds, plans, canaries)
    if plan.interaction is not None:
        claim = float(claims["interaction"]["epsilon"])
        found += _on_interactions(config, plan.interaction, claim, devices, canaries)
    return found, tuple(str(claim["sentence"]) for claim in claims.values())


def _on_users(
    config: Config, noise: PhaseNoise, claim: float, rounds: int, plans: int, canaries: int
) -> Iterator[Attack]:
    rate, delta = config.server.participation, config.privacy.delta

    def side(name: str, runs: range, present: bool, **how: Any) -> Scores:
        return server_releases(audit_seed(config, name), noise, runs, present=present, **how)

    once = partial(_profile, [Charge(noise.adapt, rate, 1)], delta)
    title = "one round, with and without a device"
    yield _neighbours(title, "user", partial(side, "round"), rounds, once)
    if rate < 1:
        title = "one round, with and without a device, others against it"
        yield _neighbours(title, "user", partial(side, "against", company="against"), rounds, once)
    if noise.warm is not None:
        voted = partial(_profile, [Charge(noise.warm, rate, 1)], delta)
        yield _neighbours(
            "warm start, with and without a device", "user", partial(side, "warm", warm=True), rounds, voted
        )
    if noise.pairs is not None:
        paired = partial(_profile, [Charge(noise.pairs, 1.0, 1)], delta)  # the device is not drawn: nothing amplifies
        pair_seed = audit_seed(config, "pairs")
        pair = lambda runs, present: pairs_releases(pair_seed, noise, runs, present=present)  # noqa: E731
        yield _neighbours("vote on pairs, with and without a device", "user", pair, rounds, paired)
    if plans:
        whole = partial(_profile, noise.charges, delta, claim)
        seeded = audit_seed(config, "plan")
        life = lambda runs, present: plan_releases(seeded, noise, runs, present=present)  # noqa: E731
        yield _neighbours("all rounds, with and without a device", "user", life, plans, whole, step=10)
    run = partial(canary_devices, audit_seed(config, "canaries"), noise, canaries)
    guesses = separation(noise.charges)
    yield _canaries(
        "canary devices in one run, all rounds", "user", run, canaries, guesses, (delta, claim), rounds_observed(config)
    )


def _on_interactions(config: Config, noise: PhaseNoise, claim: float, devices: int, canaries: int) -> Iterator[Attack]:
    delta, lives = config.privacy.delta, config.privacy.max_participations
    once = partial(_profile, [Charge(noise.adapt, config.privacy.sample_rate, config.local.steps)], delta)
    for number, world in enumerate(device_worlds(config)):
        seeded = audit_seed(config, f"release {number}")
        yield _neighbours(
            f"one release, {world.title}", "interaction", _Release(seeded, noise.adapt, world), devices, once, step=2000
        )
    if noise.warm is not None:
        voted = partial(_profile, [Charge(noise.warm, 1.0, 1)], delta)
        votes = _Vote(audit_seed(config, "vote"), noise)
        yield _neighbours("warm start vote, N = 3 against N = 4", "interaction", votes, devices, voted, step=2000)
    whole = partial(_profile, noise.charges, delta, claim)
    life = _Life(audit_seed(config, "life"), noise)
    yield _neighbours("all participations, with and without an entry", "interaction", life, devices, whole, step=2000)
    run = partial(canary_interactions, audit_seed(config, "canary entries"), noise, canaries)
    guesses = separation(noise.charges)
    title = "canary interactions in one run, all participations"
    yield _canaries(title, "interaction", run, canaries, guesses, (delta, claim), 2 * lives)


@dataclass(frozen=True)
class _Release:
    config: Config
    noise: float
    world: DeviceWorld

    def __call__(self, runs: range, present: bool) -> Scores:
        log = self.world.other if present else self.world.one
        return device_releases(self.world, log, self.config, self.noise, _numbers(runs, present))


@dataclass(frozen=True)
class _Vote:
    config: Config
    noise: PhaseNoise

    def __call__(self, runs: range, present: bool) -> Scores:
        log = (0, 0, 0, ITEMS - 1) if present else (0, 0, 0)
        return vote_releases(log, self.config, self.noise, _numbers(runs, present))


@dataclass(frozen=True)
class _Life:
    config: Config
    noise: PhaseNoise

    def __call__(self, runs: range, present: bool) -> Scores:
        return life_releases(
            self.config, self.noise, _numbers(runs, present), present=present, tick=lambda rounds: None
        )


def _numbers(runs: range, present: bool) -> Ints:
    """Numbers of devices: those with the canary differ from those without."""
    return 2 * np.arange(runs.start, runs.stop, dtype=np.int64) + int(present)


def _profile(charges: Sequence[Charge], delta: float, claim: float | None = None) -> dict[float, float]:
    """Claimed epsilon by delta: exact for one release, else by the tightest accountant that is an upper bound."""
    deltas = [other for other in DELTAS if other > delta] + ([delta] if claim is None else [])
    stated = {} if claim is None else {delta: claim}
    if len(charges) == 1 and charges[0].steps == 1:
        return stated | {one: release_epsilon(charges[0], one) for one in deltas}
    return stated | {one: epsilon(charges, one, "prv") for one in deltas}


def _neighbours(
    title: str, unit: Unit, side: Side, runs: int, profile: Callable[[], Mapping[float, float]], step: int = _STEP
) -> Attack:
    def run(confidence: float, tick: Tick) -> Finding:
        started, sides = time.perf_counter(), []
        for present in (True, False):
            parts = []
            for first in range(0, runs, step):
                part = range(first, min(first + step, runs))
                parts.append(side(part, present))
                tick(len(part))
            sides.append(np.concatenate(parts))
        points = distinguish(sides[0], sides[1], profile(), confidence)
        seconds = time.perf_counter() - started
        return Finding(attack=title, unit=unit, points=points, confidence=confidence, runs=runs, seconds=seconds)

    return Attack(title=title, steps=2 * runs, run=run)


def _canaries(
    title: str,
    unit: Unit,
    run_them: Callable[[Tick], CanaryRun],
    count: int,
    apart: float,
    claim: tuple[float, float],
    steps: int,
) -> Attack:
    def run(confidence: float, tick: Tick) -> Finding:
        started, (delta, claimed) = time.perf_counter(), claim
        guesses = planned_guesses(count, apart, delta, confidence)
        found = run_them(tick)
        hits = called(found.scores, found.included, guesses)
        point = Bound(
            delta=delta,
            claimed=claimed,
            measured=one_run_epsilon(count, guesses, hits, delta, confidence),
            ceiling=one_run_epsilon(count, guesses, guesses, delta, confidence),
        )
        return Finding(
            attack=title,
            unit=unit,
            points=(point,),
            confidence=confidence,
            runs=count,
            seconds=time.perf_counter() - started,
            details={"guesses": guesses, "correct": hits},
        )

    return Attack(title=title, steps=steps, run=run)
