"""``fedrec budget plan`` as a terminal and as JSON show it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..privacy.scenario import Scenario, Solution, solve
from ..privacy.tradeoffs import Cell, Knob, compare_accountants, knobs, table
from .render import plain_table

_EPSILONS = (1.0, 2.0, 4.0, 8.0)
_ACCOUNTANTS = {
    "rdp": "RDP, an upper bound",
    "prv": "PRV, a tighter upper bound",
    "gaussian": "exact (no sampling)",
    "pld": "PLD of dp-accounting, the referee",
    "gdp": "GDP, an approximation that may underestimate",
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that is shown of one unit's plan."""

    solution: Solution
    cells: Sequence[Cell]
    accountants: Mapping[str, float | None]
    knobs: Sequence[Knob]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        solution = self.solution
        return {
            "scenario": asdict(solution.scenario),
            "statement": solution.statement.to_dict(),
            "noise_multiplier": solution.noise_multiplier,
            "warm_noise_multiplier": solution.warm_noise_multiplier,
            "pairs_noise_multiplier": solution.pairs_noise_multiplier,
            "update_noise_multiplier": solution.update_noise,
            "noise_over_signal": solution.noise_over_signal,
            "most_participations": solution.scenario.most_participations,
            "charges": [charge.to_dict() | {"times": times} for charge, times in solution.charges],
            "table": [asdict(cell) for cell in self.cells],
            "accountants": dict(self.accountants),
            "knobs": [asdict(knob) for knob in self.knobs],
        }


def planned(scenario: Scenario, axes: Mapping[str, Sequence[float]]) -> Plan:
    """Solve a scenario and all that is shown beside it."""
    solution = solve(scenario)
    rounds = axes.get("rounds") or sorted(
        {max(1 + len(scenario.shares), 2, scenario.rounds // 4), scenario.rounds, 4 * scenario.rounds}
    )
    devices = axes.get("devices") or sorted({scenario.devices, 10 * scenario.devices, 100 * scenario.devices})
    cells = table(
        scenario,
        rounds=[int(number) for number in rounds],
        devices=[int(number) for number in devices],
        epsilons=axes.get("epsilon") or _EPSILONS,
    )
    return Plan(solution=solution, cells=cells, accountants=compare_accountants(solution), knobs=knobs(solution))


def show_plan(console: Console, plan: Plan) -> None:
    """Statement, what it means, and the three tables."""
    solution, scenario = plan.solution, plan.solution.scenario
    console.print(Text(solution.statement.sentence(), style="magenta"))
    for line in _meaning(solution):
        console.print(Text(line))
    where = f"unit {scenario.unit}, delta {scenario.delta:g}, {scenario.accountant} accountant"
    console.print()
    console.print(Text(f"Noise multiplier and noise over signal ({where}; sampler as above)", style="bold"))
    console.print(_grid(plan.cells))
    console.print()
    console.print(
        Text(f"The same releases by every accountant (unit {scenario.unit}, delta {scenario.delta:g})", style="bold")
    )
    console.print(_accountants(plan.accountants))
    if plan.knobs:
        console.print()
        kept = f"epsilon {solution.statement.epsilon:.4g} kept, {where}"
        console.print(Text(f"Which knob buys most ({kept})", style="bold"))
        console.print(_knobs(plan.knobs))
    console.print()


def _meaning(solution: Solution) -> list[str]:
    scenario, ratio = solution.scenario, solution.noise_over_signal
    what = "the clip" if scenario.unit == "user" else "the largest signal of its clipped gradients"
    lines = [
        f"A round has {scenario.cohort:,.4g} of {scenario.devices:,} devices in the mean. Noise in one coordinate of "
        f"the mean update: {ratio:.3g} of {what} (signal to noise {1 / ratio:.3g}); over d of them sqrt(d) times it."
    ]
    if scenario.separation is not None:
        lines.append(
            f"A device takes part {scenario.most_participations} times at most, {scenario.separation} rounds apart or "
            "more; no amplification by sampling is claimed."
        )
    elif scenario.unit == "interaction":
        lines.append(f"A device takes part in {scenario.most_participations} rounds of adaptation at most.")
    if solution.warm_noise_multiplier is not None:
        lines.append(f"The warm start in round 1 has noise multiplier {solution.warm_noise_multiplier:.4g}.")
    if solution.pairs_noise_multiplier is not None:
        lines.append(f"The vote on pairs in round 2 has noise multiplier {solution.pairs_noise_multiplier:.4g}.")
    if solution.update_noise != solution.noise_multiplier:
        lines.append(
            f"The updates have noise multiplier {solution.update_noise:.4g}: the bits of the adaptive clip take some."
        )
    return lines


def _grid(cells: Sequence[Cell]) -> Table:
    epsilons = list(dict.fromkeys(cell.epsilon for cell in cells))
    heads = [f"epsilon {value:g}" for value in epsilons]
    grid = plain_table("rounds", "devices", *heads, numbers=("rounds", "devices", *heads))
    found = {(cell.rounds, cell.devices, cell.epsilon): cell for cell in cells}
    for rounds, devices in dict.fromkeys((cell.rounds, cell.devices) for cell in cells):
        row = [_cell(found[rounds, devices, value]) for value in epsilons]
        grid.add_row(f"{rounds:,}", f"{devices:,}", *row)
    return grid


def _cell(cell: Cell) -> str:
    if cell.noise_multiplier is None or cell.noise_over_signal is None:
        return "none"
    return f"{cell.noise_multiplier:.3g}  {cell.noise_over_signal:.2g}"


def _accountants(found: Mapping[str, float | None]) -> Table:
    shown = plain_table("accountant", "epsilon", numbers=("epsilon",))
    for name, meaning in _ACCOUNTANTS.items():
        if name in found:
            value = found[name]
            text = "not installed" if value is None else "infinite" if math.isinf(value) else f"{value:.4g}"
            shown.add_row(meaning, text)
    return shown


def _knobs(found: Sequence[Knob]) -> Table:
    numbers = ("noise multiplier", "noise over signal", "against now")
    shown = plain_table("change", *numbers, numbers=numbers)
    for knob in found:
        percent = 100 * (knob.factor - 1)
        against = "the same" if abs(percent) < 0.5 else f"{percent:+.0f} %"
        shown.add_row(knob.name, f"{knob.noise_multiplier:.3g}", f"{knob.noise_over_signal:.3g}", against)
    return shown
