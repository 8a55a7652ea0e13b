"""A federation in numbers, and what one privacy unit pays in it: epsilon given, noise found; noise given, epsilon told.

The measure of a plan is its *noise over signal*: the standard deviation of the noise in one coordinate of the mean
update, over the largest norm that the mean of all clipped contributions can have. An update of d coordinates meets
noise of sqrt(d) times that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from .._validate import at_least, positive, probability
from .accounting import Accountant, Charge, epsilon
from .adaptive import describe_adaptive
from .adaptive import split_noise as split_bit_noise
from .planning import Part, describe_sampler, shared_noise
from .separation import describe_separation, most_participations
from .statement import PrivacyStatement


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A federation in numbers, and one unit's target. Give ``target_epsilon`` or ``noise_multiplier``."""

    unit: Literal["interaction", "user"]
    delta: float = 1e-5
    rounds: int = 40
    """Rounds of the federation, a warm start included."""
    devices: int = 1000
    participation: float = 1.0
    """Part of the devices that a round has in the mean: the rate of the Poisson draw, without ``separation``."""
    separation: int | None = None
    """Rounds from one participation of a device to its next, at least. A device then takes part a fixed number of
    times at most, and nothing is claimed for the draw (no amplification)."""
    participations: int | None = None
    """Most rounds of adaptation that a device takes part in (unit ``interaction``); none: all that the rounds allow."""
    local_steps: int = 5
    sample_rate: float = 1.0
    """Poisson rate of the examples in a local step (unit ``interaction``)."""
    examples: float = 20.0
    """Examples a device."""
    changes: int = 1
    """Examples that one log entry can move (unit ``interaction``)."""
    warm_share: float | None = None
    """Share of the budget, in inverse noise variance, that a warm start in the first round takes; none without one."""
    pairs_share: float | None = None
    """The same of a vote on pairs in the second round (unit ``user``); none without one."""
    bit_noise: float | None = None
    """Noise on the count of unclipped devices, in devices, where the clip adapts (unit ``user``)."""
    clip_quantile: float = 0.5
    """Share of devices that an adaptive clip leaves unclipped."""
    clip: float = 0.5
    """l2 bound on what one unit contributes: a device's update, or ``changes`` times an example's gradient."""
    target_epsilon: float | None = None
    noise_multiplier: float | None = None
    accountant: Accountant = "rdp"
    seeded: bool = False

    def __post_init__(self) -> None:
        at_least("rounds", self.rounds, 1 + len(self.shares))
        at_least("devices", self.devices, 1)
        at_least("local_steps", self.local_steps, 1)
        at_least("changes", self.changes, 1)
        for name in ("separation", "participations"):
            if getattr(self, name) is not None:
                at_least(name, getattr(self, name), 1)
        probability("delta", self.delta, open_right=True)
        probability("participation", self.participation)
        probability("sample_rate", self.sample_rate)
        positive("examples", self.examples)
        positive("clip", self.clip)
        if self.warm_share is not None:
            probability("warm_share", self.warm_share, open_right=True)
        if self.pairs_share is not None:
            probability("pairs_share", self.pairs_share, open_right=True)
            if self.unit != "user" or self.warm_share is None:
                raise ValueError(
                    f"expected pairs_share under unit user after a warm start, got unit {self.unit}; leave it out"
                )
        if not sum(self.shares) < 1:
            raise ValueError(
                f"expected shares that leave some budget to adapt with, got {sum(self.shares):g}; lower one"
            )
        if (self.target_epsilon is None) == (self.noise_multiplier is None):
            raise ValueError(
                "expected either an epsilon or a noise multiplier, got "
                f"{self.target_epsilon!r} and {self.noise_multiplier!r}; give one"
            )
        if self.separation is not None and self.participation > 1 / self.separation * (1 + 1e-9):
            raise ValueError(
                f"expected participation <= 1 / separation = {1 / self.separation:.4g}, got {self.participation:g}; "
                "lower one of them"
            )

    @property
    def adapt_rounds(self) -> int:
        """Rounds in which devices adapt."""
        return self.rounds - len(self.shares)

    @property
    def shares(self) -> tuple[float, ...]:
        """Shares of the budget of the releases before the first adaptation, in order."""
        return tuple(share for share in (self.warm_share, self.pairs_share) if share is not None)

    @property
    def cohort(self) -> float:
        """Devices in a round, in the mean."""
        return self.devices * self.participation

    @property
    def most_participations(self) -> int:
        """Most rounds of adaptation in which one device can take part."""
        reach = most_participations(self.adapt_rounds, self.separation or 1)
        if self.participations is None or self.unit == "user":
            return reach
        return self.participations if self.separation is None else min(self.participations, reach)

    @property
    def release(self) -> Charge:
        """What a round debits, at noise 1. Rate and steps: see ``planning.plan``."""
        if self.unit == "interaction":
            return Charge(1.0, self.sample_rate, self.local_steps)
        return Charge(1.0, self.participation if self.separation is None else 1.0, 1)

    def sampler(self) -> str:
        """The sampler in the words of a statement."""
        drawn = describe_sampler(self.release.sample_rate)
        if self.separation is None:
            return drawn
        apart = describe_separation(self.adapt_rounds, self.separation, self.most_participations)
        return apart if self.unit == "user" else f"{drawn}; {apart}"

    def clipping(self) -> str:
        """How the clip moves, in the words of a statement; empty: it does not."""
        adapts = self.unit == "user" and self.bit_noise is not None
        return describe_adaptive(self.clip_quantile, self.bit_noise) if adapts else ""


@dataclass(frozen=True, kw_only=True)
class Solution:
    """A scenario whose noise and epsilon are both known."""

    scenario: Scenario
    noise_multiplier: float
    """Of a round (user) or a local step (interaction); what is accounted."""
    warm_noise_multiplier: float | None
    pairs_noise_multiplier: float | None
    charges: tuple[tuple[Charge, int], ...]
    """Everything that one unit pays for: charge, and how many times."""
    statement: PrivacyStatement

    @property
    def update_noise(self) -> float:
        """Noise multiplier of the updates: above the accounted one where the clip adapts and its bits take a part."""
        scenario = self.scenario
        if scenario.unit == "user" and scenario.bit_noise is not None:
            return split_bit_noise(self.noise_multiplier, scenario.bit_noise)
        return self.noise_multiplier

    @property
    def noise_over_signal(self) -> float:
        """Noise in one coordinate of the mean update over the largest norm of its signal.

        Unit ``user``: noise z S on the sum of N q updates of norm S at most, z / (N q). Unit ``interaction``: K steps
        on each of M = N q devices have noise sqrt(K) sigma C in the sum of n r clipped gradients a step, at most
        K n r C in norm, and the mean over devices averages it: changes * sigma / (n r sqrt(K M)).
        """
        scenario = self.scenario
        if scenario.unit == "user":
            return self.update_noise / scenario.cohort
        batch = scenario.examples * scenario.sample_rate
        return scenario.changes * self.noise_multiplier / (batch * math.sqrt(scenario.local_steps * scenario.cohort))


def solve(scenario: Scenario) -> Solution:
    """Find the noise for an epsilon, or tell the epsilon of a noise.

    Guarantee:
        The epsilon of the statement covers every release of ``scenario`` to which one unit can contribute, add or
        remove one unit: under unit ``user`` all rounds, sampled at the rate of the draw, or, with a minimum separation,
        the most rounds that one device can take part in, without amplification; under ``interaction`` every local step
        of the most participations of one device.

    Raises:
        PrivacyError: no noise is enough, or ``bit_noise`` is too small for the noise.
    """
    release, steps = scenario.release, scenario.most_participations * scenario.release.steps
    noise, before = _noise(scenario, release, steps)
    charges = [(Charge(one, _warm_rate(scenario), 1), 1) for one in before]
    charges.append((replace(release, noise_multiplier=noise), scenario.most_participations))
    cost = epsilon(charges, scenario.delta, scenario.accountant)
    statement = PrivacyStatement(
        epsilon=cost,
        delta=scenario.delta,
        unit=scenario.unit,
        accountant=scenario.accountant,
        sampler=scenario.sampler(),
        noise_multiplier=noise,
        clip=scenario.clip,
        rounds=sum(times for _, times in charges),
        seeded=scenario.seeded,
        clipping=scenario.clipping(),
    )
    solution = Solution(
        scenario=scenario,
        noise_multiplier=noise,
        warm_noise_multiplier=before[0] if before else None,
        pairs_noise_multiplier=before[1] if len(before) > 1 else None,
        charges=tuple(charges),
        statement=statement,
    )
    _ = solution.update_noise  # refuses bits that cost more than all
    return solution


def _noise(scenario: Scenario, release: Charge, steps: int) -> tuple[float, tuple[float, ...]]:
    """Noise multipliers of an adaptation and of what is released before the first one."""
    return shared_noise(
        Part(steps, release.sample_rate, 1 - sum(scenario.shares)),
        [Part(1, _warm_rate(scenario), share) for share in scenario.shares],
        delta=scenario.delta,
        accountant=scenario.accountant,
        target_epsilon=scenario.target_epsilon,
        noise_multiplier=scenario.noise_multiplier,
    )


def _warm_rate(scenario: Scenario) -> float:
    """A warm start is a release like the others (user), or one of everything on the device (interaction)."""
    return scenario.release.sample_rate if scenario.unit == "user" else 1.0
