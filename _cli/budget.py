"""``fedrec budget``: what a plan costs before anything runs, and what a ledger says was spent."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..config import Config, load_config
from ..errors import ConfigError
from . import terminal

if TYPE_CHECKING:
    from ..privacy.scenario import Scenario

budget = typer.Typer(help="The privacy budget: plan it, and see what was spent.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON on the output stream, and nothing else there.")]
AXES = ("rounds", "devices", "epsilon")


@budget.command()
def plan(
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Start from this configuration, its warm start included.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Start from the defaults, or FILE, with this."),
    ] = None,
    unit: Annotated[Literal["user", "interaction", "both"] | None, typer.Option(help="Privacy unit.")] = None,
    epsilon: Annotated[float | None, typer.Option(help="Find the noise for this epsilon.")] = None,
    noise: Annotated[float | None, typer.Option(help="Tell the epsilon of this noise multiplier.")] = None,
    delta: Annotated[float | None, typer.Option(help="Delta.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds of the federation.")] = None,
    devices: Annotated[int | None, typer.Option(help="Devices that train.")] = None,
    participation: Annotated[float | None, typer.Option(help="Part of the devices in a round.")] = None,
    separation: Annotated[
        int | None, typer.Option(help="Rounds from one participation of a device to its next, at least.")
    ] = None,
    participations: Annotated[
        int | None, typer.Option(help="Most rounds a device takes part in (unit interaction).")
    ] = None,
    local_steps: Annotated[int | None, typer.Option(help="Local steps a round.")] = None,
    examples: Annotated[float | None, typer.Option(help="Examples a device.")] = None,
    sample_rate: Annotated[
        float | None, typer.Option(help="Poisson rate of examples in a local step (unit interaction).")
    ] = None,
    bit_noise: Annotated[
        float | None, typer.Option(help="Noise on the count of unclipped devices, where the clip adapts (unit user).")
    ] = None,
    clip: Annotated[float | None, typer.Option(help="l2 bound on a unit's contribution; the plan is the same.")] = None,
    accountant: Annotated[Literal["rdp", "prv", "gdp"] | None, typer.Option(help="Who states epsilon.")] = None,
    axis: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=V,...", help=f"Values of the table for {', '.join(AXES)}; repeatable."),
    ] = None,
    as_json: Json = False,
) -> None:
    """What noise an epsilon needs (or what epsilon a noise buys), what that means, and which knob buys most."""
    from .plan_tables import planned, show_plan

    given = {
        "delta": delta,
        "rounds": rounds,
        "participation": participation,
        "separation": separation,
        "participations": participations,
        "local_steps": local_steps,
        "examples": examples,
        "sample_rate": sample_rate,
        "bit_noise": bit_noise,
        "clip": clip,
        "accountant": accountant,
    }
    if epsilon is not None and noise is not None:
        raise typer.BadParameter("expected --epsilon or --noise, got both; give one")
    if epsilon is not None or noise is not None:
        given |= {"target_epsilon": epsilon, "noise_multiplier": noise}
    starts = _starts(config, overrides, unit, devices)
    scenarios = [_changed(start, given) for start in starts]
    axes = _axes(axis or ())
    with terminal.errors().status("planning"):
        plans = [planned(scenario, axes) for scenario in scenarios]
    if as_json:
        print(json.dumps([plan.to_dict() for plan in plans], indent=1))
        return
    for each in plans:
        show_plan(terminal.output(), each)


@budget.command()
def show(
    path: Annotated[
        Path, typer.Argument(metavar="LEDGER", help="A ledger file, or the directory of a run.", show_default=False)
    ],
    last: Annotated[int, typer.Option(min=1, help="Debits to show, the latest ones.")] = 12,
    as_json: Json = False,
) -> None:
    """What a ledger says was spent, by whom, and what is left; verifies all of it first."""
    from ..privacy.ledger import Ledger
    from .ledger_tables import account_of, show_ledger

    files = {"ledger": path}
    if path.is_dir():
        from ..simulation.accounts import ledgers_of

        terminal.quieten()
        files = ledgers_of(path)
    accounts = []
    for name, file in files.items():
        with Ledger.open(file) as ledger:
            accounts.append(account_of(name, file, ledger))
    if as_json:
        print(json.dumps([account.to_dict() for account in accounts], indent=1))
        return
    for account in accounts:
        show_ledger(terminal.output(), account, last)


def _starts(
    path: Path | None, overrides: Iterable[str] | None, unit: str | None, devices: int | None
) -> list[Scenario]:
    """Scenarios of the configuration asked for; without any, the defaults of a scenario."""
    from ..privacy.scenario import Scenario

    if path is None and not overrides:
        units: tuple[Literal["user", "interaction"], ...] = ("user", "interaction")
        chosen = [each for each in units if unit in (each, "both") or (unit is None and each == "user")]
        return [
            Scenario(unit=each, devices=1000 if devices is None else devices, target_epsilon=8.0) for each in chosen
        ]
    settings: Config = load_config(path, [*(overrides or ()), *([] if unit is None else [f"privacy.unit={unit}"])])
    from ..simulation.planner import scenarios_of

    return list(scenarios_of(settings, devices))


def _changed(start: Scenario, given: dict[str, Any]) -> Scenario:
    changes = {name: value for name, value in given.items() if value is not None or name == "noise_multiplier"}
    if "target_epsilon" not in given:
        changes.pop("noise_multiplier", None)
    elif given["noise_multiplier"] is not None:
        changes["target_epsilon"] = None
    separation = given["separation"]
    if separation is not None and given["participation"] is None:
        changes["participation"] = min(start.participation, 1 / max(separation, 1))
    return replace(start, **changes)


def _axes(texts: Iterable[str]) -> dict[str, tuple[float, ...]]:
    found: dict[str, tuple[float, ...]] = {}
    for text in texts:
        name, _, values = text.partition("=")
        try:
            numbers = tuple(float(value) for value in values.split(","))
        except ValueError:
            numbers = ()
        whole = name == "epsilon" or all(number == int(number) for number in numbers if abs(number) < 1e15)
        if name not in AXES or not numbers or not whole or not all(0 < number < 1e15 for number in numbers):
            raise ConfigError(
                f"expected --axis NAME=V,... with NAME one of {', '.join(AXES)} and numbers above 0, got {text!r}; "
                "for example --axis rounds=20,100"
            )
        found[name] = numbers
    return found
