"""The same noise under every accountant that is here: what the choice of an accountant is worth."""

from __future__ import annotations

from ...privacy.accounting import epsilon
from ...privacy.tradeoffs import pld_epsilon
from ...server.budget import PhaseNoise, plan_budget
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
    releases = sum(charge.steps for charge in phase.charges)
    tight = pld_epsilon(((charge, 1) for charge in phase.charges), delta) if releases <= _MOST_STEPS else None
    if tight is not None:
        found["PLD, upper bound (dp-accounting)"] = tight
    name = "GDP, APPROXIMATION: may be too low" if sampled else "GDP, exact without sampling"
    return found | {name: epsilon(phase.charges, delta, "gdp")}
