"""What would make a privacy plan cheaper: its neighbours in a table, what each knob buys, every accountant.

Pure functions of public numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from ..errors import PrivacyError
from .accounting import Charge, epsilon, normalise
from .scenario import Scenario, Solution, solve


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One scenario of a table; no noise where none is enough."""

    rounds: int
    devices: int
    epsilon: float
    noise_multiplier: float | None
    noise_over_signal: float | None


def table(
    scenario: Scenario, *, rounds: Iterable[int], devices: Iterable[int], epsilons: Iterable[float]
) -> list[Cell]:
    """The scenario at every number of rounds, population and epsilon; its participation rate stays."""
    populations, cells = tuple(devices), []
    targets = tuple(epsilons)
    for number in rounds:
        for target in targets:
            changed = replace(scenario, rounds=number, target_epsilon=target, noise_multiplier=None)
            solution = _if_any(changed)
            for population in populations:
                there = None if solution is None else replace(solution, scenario=replace(changed, devices=population))
                cells.append(
                    Cell(
                        rounds=number,
                        devices=population,
                        epsilon=target,
                        noise_multiplier=None if there is None else there.noise_multiplier,
                        noise_over_signal=None if there is None else there.noise_over_signal,
                    )
                )
    return cells


def _if_any(scenario: Scenario) -> Solution | None:
    try:
        return solve(scenario)
    except PrivacyError:
        return None


@dataclass(frozen=True, kw_only=True)
class Knob:
    """One thing changed, the epsilon kept."""

    name: str
    noise_multiplier: float
    noise_over_signal: float
    factor: float
    """Noise over signal after the change, over what it was: below 1 the knob helps."""


def knobs(solution: Solution) -> list[Knob]:
    """What each knob buys at the same epsilon, the most helpful first; those that can't be turned are left out."""
    told = solution.statement.epsilon
    if not 0 < told < math.inf:
        return []
    base = replace(solution.scenario, target_epsilon=told, noise_multiplier=None)
    found = []
    for name, change in _KNOBS:
        changed = change(base)
        there = None if changed is None else _if_any(changed)
        if there is not None:
            found.append(
                Knob(
                    name=name,
                    noise_multiplier=there.noise_multiplier,
                    noise_over_signal=there.noise_over_signal,
                    factor=there.noise_over_signal / solution.noise_over_signal,
                )
            )
    return sorted(found, key=lambda knob: knob.factor)


Change = Callable[[Scenario], Scenario | None]


def _fewer_rounds(scenario: Scenario) -> Scenario | None:
    return None if scenario.adapt_rounds < 2 else replace(scenario, rounds=scenario.rounds - scenario.adapt_rounds // 2)


def _less_participation(scenario: Scenario) -> Scenario:
    separation = None if scenario.separation is None else 2 * scenario.separation
    return replace(scenario, participation=scenario.participation / 2, separation=separation)


def _fewer_participations(scenario: Scenario) -> Scenario | None:
    most = scenario.most_participations
    return replace(scenario, participations=most // 2) if scenario.unit == "interaction" and most > 1 else None


def _fewer_steps(scenario: Scenario) -> Scenario | None:
    return None if scenario.local_steps < 2 else replace(scenario, local_steps=scenario.local_steps // 2)


def _smaller_batches(scenario: Scenario) -> Scenario | None:
    return replace(scenario, sample_rate=scenario.sample_rate / 2) if scenario.unit == "interaction" else None


def _more_examples(scenario: Scenario) -> Scenario | None:
    return replace(scenario, examples=2 * scenario.examples) if scenario.unit == "interaction" else None


def _in_turns(scenario: Scenario) -> Scenario | None:
    """The largest separation that keeps the participation, two where everybody takes part."""
    apart = max(2, math.floor(1 / scenario.participation))
    if scenario.separation is not None or scenario.adapt_rounds < apart:
        return None
    return replace(scenario, separation=apart, participation=min(scenario.participation, 1 / apart))


def _tighter(scenario: Scenario) -> Scenario | None:
    return replace(scenario, accountant="prv") if scenario.accountant == "rdp" else None


_KNOBS: tuple[tuple[str, Change], ...] = (
    ("twice the devices", lambda scenario: replace(scenario, devices=2 * scenario.devices)),
    ("ten times the devices", lambda scenario: replace(scenario, devices=10 * scenario.devices)),
    ("half the rounds", _fewer_rounds),
    ("half the participation", _less_participation),
    ("devices in turns, no amplification", _in_turns),
    ("half the participations of a device", _fewer_participations),
    ("half the local steps", _fewer_steps),
    ("half the sampling rate of examples", _smaller_batches),
    ("twice the examples a device", _more_examples),
    ("twice the epsilon", lambda scenario: replace(scenario, target_epsilon=2 * (scenario.target_epsilon or 0.0))),
    ("delta / 10", lambda scenario: replace(scenario, delta=scenario.delta / 10)),
    ("delta * 10", lambda scenario: replace(scenario, delta=scenario.delta * 10) if scenario.delta < 0.1 else None),
    ("accountant prv in place of rdp", _tighter),
)


def compare_accountants(solution: Solution) -> dict[str, float | None]:
    """Epsilon of the same releases by every accountant that covers them; ``pld`` is none where it is not installed."""
    charges, delta = solution.charges, solution.scenario.delta
    found: dict[str, float | None] = {name: epsilon(charges, delta, name) for name in ("rdp", "prv", "gdp")}
    if all(charge.sample_rate == 1 for charge, _ in charges):
        found["gaussian"] = epsilon(charges, delta, "gaussian")
    return found | {"pld": pld_epsilon(charges, delta)}


def pld_epsilon(charges: Iterable[tuple[Charge, int]], delta: float) -> float | None:
    """Epsilon by dp-accounting's privacy loss distributions (Doroshenko et al. 2022), if installed.

    The discretization is pessimistic: it never tells less than the truth. Its step grows with a large epsilon, so
    that time and memory are bounded.
    """
    try:
        import dp_accounting
        from dp_accounting.pld import PLDAccountant
    except ImportError:
        return None
    pairs = list(charges)
    relation = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    bound = epsilon(pairs, delta, "rdp")
    if math.isinf(bound):
        return math.inf
    interval = max(1e-4, 1e-5 * bound)
    accountant: Any = PLDAccountant(relation, value_discretization_interval=interval)
    for charge in normalise(pairs):  # like ones at once: each composition convolves
        event: Any = dp_accounting.GaussianDpEvent(charge.noise_multiplier)
        if charge.sample_rate < 1:
            event = dp_accounting.PoissonSampledDpEvent(charge.sample_rate, event)
        accountant.compose(event, charge.steps)
    return float(accountant.get_epsilon(delta))
