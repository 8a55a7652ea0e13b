"""The privacy plan of a run: which noise each phase needs, and the sentence that says what it buys."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..config import Config
from ..errors import ConfigError
from ..privacy.accounting import Charge, epsilon
from ..privacy.adaptive import describe_adaptive
from ..privacy.planning import Part, describe_sampler, shared_noise
from ..privacy.separation import describe_separation, most_participations
from ..privacy.statement import PrivacyStatement


@dataclass(frozen=True, kw_only=True)
class PhaseNoise:
    """Noise multipliers of one privacy unit.

    Attributes:
        adapt: of an adaptation round (user), or of a local step (interaction).
        warm: of the warm start; none where there is none.
        pairs: of the release of pairs; none where there is none.
        charges: everything one unit pays over its life, in order.
    """

    adapt: float
    warm: float | None
    pairs: float | None
    charges: tuple[Charge, ...]


@dataclass(frozen=True, kw_only=True)
class BudgetPlan:
    """What a configuration's ``privacy`` section comes to.

    Attributes:
        user: noise of the server's sums (units user and both), else none.
        interaction: noise of the devices' releases (units interaction and both), else none.
        statements: one for each unit, to stand wherever an epsilon is shown.
    """

    user: PhaseNoise | None
    interaction: PhaseNoise | None
    statements: tuple[PrivacyStatement, ...]


def plan_budget(config: Config, *, changes: int = 1, population: int | None = None, seeded: bool = True) -> BudgetPlan:
    """Find the noise for ``privacy.epsilon``, or take ``privacy.noise_multiplier`` and tell the epsilon.

    Args:
        config: the run.
        changes: examples that one log entry can move (``meta.examples.changes_per_entry``): part of the sensitivity.
        population: devices that train, for the words of the statement alone; none says nothing that depends on it.
        seeded: whether the noise will be seeded, as every simulation's: another word of the statement.
    """
    unit = config.privacy.unit
    user = _noise(config, "user") if unit in ("user", "both") else None
    interaction = _noise(config, "interaction") if unit in ("interaction", "both") else None
    statements = []
    if user is not None:
        statements.append(_statement(config, "user", user, config.privacy.clip, population, seeded))
    if interaction is not None:
        bound = changes * config.privacy.example_clip
        statements.append(_statement(config, "interaction", interaction, bound, None, seeded))
    return BudgetPlan(user=user, interaction=interaction, statements=tuple(statements))


def warm_floor(config: Config, plan: BudgetPlan, population: int) -> float:
    """Public floor of the warm start's counts: the standard deviation of their noise, at least 0.3."""
    noise = 0.0
    if plan.user is not None:
        noise = plan.user.warm or 0.0
    if plan.interaction is not None:
        local = (plan.interaction.warm or 0.0) * math.sqrt(population * config.server.participation)
        noise = math.hypot(noise, local)
    return max(noise, 0.3)


def _noise(config: Config, unit: Literal["user", "interaction"]) -> PhaseNoise:
    privacy, warm = config.privacy, config.server.warm_start != "none"
    rate = config.server.accounted_rate if unit == "user" else privacy.sample_rate
    steps = participations(config, unit) * (1 if unit == "user" else config.local.steps)
    warm_rate = rate if unit == "user" else 1.0
    shares = [privacy.warm_share] * warm + [privacy.pairs_share] * bool(config.server.warm_pairs)
    try:
        adapt, first = shared_noise(
            Part(steps, rate, 1 - sum(shares)),
            [Part(1, warm_rate, share) for share in shares],
            delta=privacy.delta,
            accountant=privacy.accountant,
            target_epsilon=privacy.epsilon,
            noise_multiplier=privacy.noise_multiplier,
        )
    except OverflowError:
        raise ConfigError(f"expected an epsilon that noise can reach, got {privacy.epsilon}; raise it") from None
    charges: tuple[Charge, ...] = tuple(Charge(noise, warm_rate, 1) for noise in first)
    per_round = 1 if unit == "user" else config.local.steps
    charges += (Charge(adapt, rate, per_round),) * (steps // per_round)
    released = dict(zip(["warm"] * warm + ["pairs"] * bool(config.server.warm_pairs), first, strict=True))
    return PhaseNoise(adapt=adapt, warm=released.get("warm"), pairs=released.get("pairs"), charges=charges)


def participations(config: Config, unit: Literal["user", "interaction"]) -> int:
    """Rounds of adaptation that one device's account is to last for."""
    turns = most_participations(config.adapt_rounds, config.server.min_separation)
    if unit == "user":
        return turns
    most = config.privacy.max_participations
    return most if config.server.min_separation == 1 else min(most, turns)


def _statement(
    config: Config,
    unit: Literal["user", "interaction"],
    noise: PhaseNoise,
    clip: float,
    population: int | None,
    seeded: bool,
) -> PrivacyStatement:
    privacy = config.privacy
    adaptive = unit == "user" and privacy.clipping == "adaptive"
    bits = privacy.bit_noise if population is None else config.bit_noise(population)
    return PrivacyStatement(
        epsilon=epsilon(noise.charges, privacy.delta, privacy.accountant),
        delta=privacy.delta,
        unit=unit,
        accountant=privacy.accountant,
        sampler=_sampler(config, unit),
        noise_multiplier=noise.adapt,
        clip=clip,
        rounds=len(noise.charges),
        seeded=seeded,
        clipping=describe_adaptive(privacy.clip_quantile, bits) if adaptive else "",
    )


def _sampler(config: Config, unit: Literal["user", "interaction"]) -> str:
    rate = config.server.participation if unit == "user" else config.privacy.sample_rate
    separation = config.server.min_separation
    if separation == 1:
        return describe_sampler(rate)
    apart = describe_separation(config.adapt_rounds, separation, participations(config, unit))
    return apart if unit == "user" else f"{describe_sampler(rate)}; {apart}"
