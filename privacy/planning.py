"""Before a run: epsilon given, noise found; noise given, epsilon told; with the sentence that belongs to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from .._validate import at_least, positive, probability
from ..errors import PrivacyError
from .accounting import Accountant, Charge, epsilon, find_noise_multiplier
from .statement import PrivacyStatement


@dataclass(frozen=True)
class Plan:
    """A mechanism and what it costs over a lifetime."""

    noise_multiplier: float
    per_round: Charge
    """What one round debits."""
    statement: PrivacyStatement
    """Epsilon after all planned rounds."""


def plan(
    unit: Literal["interaction", "user"],
    *,
    rounds: int,
    sample_rate: float,
    clip: float,
    delta: float,
    steps: int = 1,
    target_epsilon: float | None = None,
    noise_multiplier: float | None = None,
    accountant: Accountant = "rdp",
    seeded: bool = False,
) -> Plan:
    """Plan one unit; for ``both`` plan each and print two statements.

    Args:
        unit: ``user``: each round releases one noised sum over devices. ``interaction``: each round in which a device
            takes part is a number of DP-SGD steps on that device. The server knows who takes part, so the draw of
            devices amplifies nothing under ``interaction``.
        rounds: releases of the federation (user), or the most rounds a device ever takes part in (interaction).
        sample_rate: Poisson rate of the devices (user), or of the examples on a device (interaction).
        clip: l2 bound on one device's update (user), or on one example's gradient (interaction).
        delta: in (0, 1); to mean anything, well below one over the number of units.
        steps: releases per round: 1 (user), DP-SGD steps (interaction).
        target_epsilon: find the noise for this epsilon over all rounds; give this or ``noise_multiplier``.
        noise_multiplier: tell the epsilon for this noise.
        accountant: see ``accounting.epsilon``.
        seeded: the noise will be reproducible (simulation only).

    Raises:
        ValueError: both or none of target_epsilon and noise_multiplier, or a number out of range.
    """
    at_least("rounds", rounds, 1)
    at_least("steps", steps, 1)
    positive("clip", clip)
    if target_epsilon is not None and noise_multiplier is None:
        noise_multiplier = find_noise_multiplier(target_epsilon, delta, sample_rate, rounds * steps, accountant)
    elif target_epsilon is not None or noise_multiplier is None:
        raise ValueError(
            f"expected either target_epsilon or noise_multiplier, got {target_epsilon!r} and {noise_multiplier!r}"
        )
    per_round = Charge(noise_multiplier, sample_rate, steps)
    statement = PrivacyStatement(
        epsilon=epsilon([(per_round, rounds)], delta, accountant),
        delta=delta,
        unit=unit,
        accountant=accountant,
        sampler=describe_sampler(sample_rate),
        noise_multiplier=per_round.noise_multiplier,
        clip=clip,
        rounds=rounds,
        seeded=seeded,
    )
    return Plan(per_round.noise_multiplier, per_round, statement)


@dataclass(frozen=True)
class Part:
    """A part of a run's releases that shares its budget with others."""

    steps: int
    """Releases over the whole lifetime."""
    sample_rate: float
    """Poisson rate of the unit in each."""
    share: float
    """Part of the budget, in inverse noise variance over all its steps; shares need not add up to 1."""


def split_noise(
    target_epsilon: float, delta: float, parts: Sequence[Part], accountant: Accountant = "rdp"
) -> tuple[float, ...]:
    """Noise multipliers, one a part, with which all parts together cost at most ``target_epsilon``.

    With noise ``z_i = c * sqrt(steps_i / share_i)`` a part of Gaussian releases takes its share of the sum of inverse
    variances; ``c`` is found by bisection on the accountant's epsilon of everything, so the total holds for Poisson
    samples too.

    Raises:
        ValueError: a number is out of range.
        PrivacyError: no noise is enough.
    """
    positive("target_epsilon", target_epsilon)
    shapes = [math.sqrt(at_least("steps", part.steps, 1) / positive("share", part.share)) for part in parts]

    def cost(factor: float) -> float:
        charges = [
            Charge(factor * shape, part.sample_rate, part.steps) for shape, part in zip(shapes, parts, strict=True)
        ]
        return epsilon(charges, delta, accountant)

    exceeds = _Crossing(cost, target_epsilon, _central_limit_factor(shapes, parts, target_epsilon, delta)).exceeds
    low, high = 1e-3, 1.0
    while exceeds(high):
        low, high = high, 2 * high
        if high > 1e6:
            raise PrivacyError(
                f"no noise reaches epsilon {target_epsilon!r} for {sum(part.steps for part in parts)} releases: "
                "allow fewer or a larger epsilon"
            )
    while high / low > 1 + 1e-4:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if exceeds(middle) else (low, middle)
    return tuple(high * shape for shape in shapes)


class _Crossing:
    """Tells on which side of ``target`` a falling ``cost`` is; near a guess it knows most answers without asking."""

    def __init__(self, cost: Callable[[float], float], target: float, guess: float) -> None:
        self._cost = cost
        self._target = target
        self._low, self._high = 0.0, math.inf
        self._approach(guess)

    def exceeds(self, factor: float) -> bool:
        """Whether ``cost(factor) > target``."""
        if self._low < factor < self._high:
            self._ask(factor)
        return factor <= self._low

    def _ask(self, factor: float) -> float:
        value = self._cost(factor)
        if value > self._target:
            self._low = max(self._low, factor)
        else:
            self._high = min(self._high, factor)
        return value

    def _approach(self, guess: float) -> None:
        """Secant steps in log-log, each aimed a hair beyond the crossing, until both sides of it are known closely."""
        slope, last, factor = -1.3, (0.0, 0.0), guess
        for attempt in range(10):
            value = self._ask(factor)
            if not 0 < value < math.inf:
                return
            here = (math.log(factor), math.log(value / self._target))
            if attempt and here[0] != last[0]:
                measured = (here[1] - last[1]) / (here[0] - last[0])
                slope = measured if -4 < measured < -0.3 else slope
            last = here
            beyond = 1e-5 if value > self._target else -1e-5
            factor = math.exp(here[0] - here[1] / slope + beyond)
            if not self._low < factor < self._high:
                return


def _central_limit_factor(shapes: Sequence[float], parts: Sequence[Part], target: float, delta: float) -> float:
    """The factor by the central-limit formula, which costs nothing to evaluate."""
    low, high = -7.0, 14.0
    for _ in range(30):
        middle = (low + high) / 2
        charges = [
            Charge(math.exp(middle) * z, part.sample_rate, part.steps) for z, part in zip(shapes, parts, strict=True)
        ]
        low, high = (low, middle) if epsilon(charges, delta, "gdp") <= target else (middle, high)
    return math.exp(high)


def shared_noise(
    adapt: Part,
    before: Sequence[Part],
    *,
    delta: float,
    accountant: Accountant,
    target_epsilon: float | None = None,
    noise_multiplier: float | None = None,
) -> tuple[float, tuple[float, ...]]:
    """Noise multipliers of adaptation, and of what is released once before it, by their shares of one budget.

    Args:
        adapt: all rounds of adaptation; its share is what the others leave.
        before: the releases before them, in order.
        delta: of the target.
        accountant: of the target.
        target_epsilon: find the noise for this epsilon over everything; give this or ``noise_multiplier``.
        noise_multiplier: of adaptation; the others follow from their shares, as for plain Gaussian releases.

    Raises:
        ValueError: neither is given, or a number is out of range.
        PrivacyError: no noise is enough.
    """
    if target_epsilon is not None:
        found = split_noise(target_epsilon, delta, [adapt, *before], accountant)
        return found[0], found[1:]
    noise = positive("noise_multiplier", noise_multiplier or 0.0)
    return noise, tuple(noise * math.sqrt(adapt.share / (part.share * adapt.steps)) for part in before)


def describe_sampler(rate: float) -> str:
    """The sampler in the words of a statement."""
    probability("sampling rate", rate)
    return "everything, every time" if rate == 1 else f"Poisson, rate {rate:.4g}"
