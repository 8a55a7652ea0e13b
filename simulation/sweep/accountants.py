"""The same noise under every accountant that is here: what the choice of an accountant is worth."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from typing import Any

from ...privacy.accounting import Charge, epsilon, normalise
from ..budget import PhaseNoise, plan_budget
from .groups import Group

_MOST_STEPS = 200_000
"""Releases up to which PLD is computed."""


def compare(group: Group) -> dict[str, dict[str, float]]:
    """Unit -> accountant, in words -> epsilon of the noise that the group's plan adds over the whole run.

    Without sampling ``PRV`` and ``GDP`` are the exact Gaussian formula and are called so; with it GDP is an
    approximation that may report too little.
    """
    config = group.cells[0].record.config
    plan = plan_budget(config)
    phases = {"user": plan.user, "interaction": plan.interaction}
    return {unit: _compared(phase, config.privacy.delta) for unit, phase in phases.items() if phase is not None}


def _compared(phase: PhaseNoise, delta: float) -> dict[str, float]:
    sampled = any(charge.sample_rate < 1 for charge in phase.charges)
    found = {"RDP, upper bound": epsilon(phase.charges, delta, "rdp")}
    found["PRV, upper bound" if sampled else "PRV, exact without sampling"] = epsilon(phase.charges, delta, "prv")
    tight = pld_epsilon(phase.charges, delta)
    if tight is not None:
        found["PLD, upper bound (dp-accounting)"] = tight
    name = "GDP, APPROXIMATION: may be too low" if sampled else "GDP, exact without sampling"
    return found | {name: epsilon(phase.charges, delta, "gdp")}


def pld_epsilon(charges: Iterable[Charge], delta: float) -> float | None:
    """Epsilon by dp-accounting's privacy loss distributions; none where it is not installed or would take long.

    Guarantee:
        A pessimistic estimate: never below the true cost. Add-or-remove neighbouring relation.
    """
    history = normalise(charges)
    if importlib.util.find_spec("dp_accounting") is None or sum(one.steps for one in history) > _MOST_STEPS:
        return None
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    accountant: Any = PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    for one in history:
        event = dp_accounting.GaussianDpEvent(one.noise_multiplier)
        if one.sample_rate < 1:
            event = dp_accounting.PoissonSampledDpEvent(one.sample_rate, event)
        accountant.compose(event, one.steps)
    return float(accountant.get_epsilon(delta))
