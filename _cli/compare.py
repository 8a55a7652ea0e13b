"""``fedrec compare``: an A/B test of two runs over the same simulated users."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text

from . import terminal
from .audit import Following
from .render import plain_table

if TYPE_CHECKING:
    from ..simulation.compare.judge import Comparison

NOT_SO = 3
"""Exit code where the answer is not what --require asks for."""


def compare(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help="A finished run.", show_default=False)],
    run_b: Annotated[
        Path, typer.Argument(metavar="RUN_B", help="Another one: differences are B minus A.", show_default=False)
    ],
    users: Annotated[
        int | None, typer.Option(help="Users that meet both; by default all there are.", show_default=False)
    ] = None,
    interactions: Annotated[int, typer.Option(help="Slates that each run shows to each user.")] = 20,
    alpha: Annotated[float, typer.Option(help="Probability of telling equally good runs apart, ever.")] = 0.05,
    metric: Annotated[Literal["ctr", "reward"], typer.Option(help="What decides.")] = "ctr",
    devices: Annotated[
        Literal["all", "held-out", "training"],
        typer.Option(help="All, those that neither run trained on, or those that both did."),
    ] = "all",
    start: Annotated[
        Literal["new", "log"], typer.Option(help="What devices know first: nothing, or their log of the runs' data.")
    ] = "new",
    slate: Annotated[int | None, typer.Option(help="Items shown at a time; the runs' own.", show_default=False)] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Of the softmax, 0 shows the best; each run's own.", show_default=False)
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option(help="Share of uniform draws; each run's own.", show_default=False)
    ] = None,
    diversity: Annotated[float, typer.Option(help="Weight of the likeness to what stands above.")] = 0.0,
    choice: Annotated[
        Literal["logit", "position", "cascade"] | None,
        typer.Option(help="How users choose; as the runs have it.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of users, arrival, clicks and slates.")] = 0,
    require: Annotated[
        Literal["better", "not-worse"] | None,
        typer.Option(help="Exit code 3 unless B is found better, or if it is found worse.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write comparison.json and report.html here.", show_default=False)
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON on the output stream, and nothing else there.")
    ] = False,
) -> None:
    """Let two runs act for the same simulated users and test which is better, after every user if you like."""
    with Following(terminal.errors()) as following:
        following.begin("starting PyTorch and Flower", 1)
        from ..simulation.compare.result import to_dict, write
        from ..simulation.compare.run import compare as run_both
        from ..simulation.compare.settings import CompareSettings

        terminal.quieten()
        settings = CompareSettings(
            users=users,
            interactions=interactions,
            alpha=alpha,
            metric=metric,
            group=devices,
            start=start,
            slate=slate,
            temperature=temperature,
            epsilon=epsilon,
            diversity=diversity,
            choice=choice,
            seed=seed,
        )
        found = run_both(run_a, run_b, settings=settings, listener=following)
        report = None if out is None else write(found, out)
    if as_json:
        print(json.dumps(to_dict(found), indent=1, ensure_ascii=False))
    else:
        terminal.output().print(comparison_table(found, report))
    if (require == "better" and found.decided != "b") or (require == "not-worse" and found.decided == "a"):
        raise typer.Exit(NOT_SO)


def comparison_table(found: Comparison, report: Path | None) -> Group:
    """What a terminal gets: means, paired differences, the test and the answer."""
    from ..simulation.compare.verdict import METRIC_NAMES, remarks, verdict

    numbers = ("run A", "run B", "B minus A", "paired interval")
    table = plain_table("mean over users", *numbers, numbers=numbers)
    for name, measured in found.metrics.items():
        table.add_row(
            METRIC_NAMES[name],
            f"{measured.first.mean:.4f}",
            f"{measured.second.mean:.4f}",
            f"{measured.difference.mean:+.4f}",
            f"{measured.difference.low:+.4f} .. {measured.difference.high:+.4f}",
        )
    style = "bold yellow" if found.decided is None else "bold green"
    notes = [Text(remark, style="dim") for remark in remarks(found)]
    return Group(table, Text(""), Text(verdict(found), style=style), _facts(found, report), *notes)


def _facts(found: Comparison, report: Path | None) -> Table:
    level = f"{(1 - found.settings.alpha) * 100:g} %"
    low, high = found.test.interval
    facts = Table.grid(padding=(0, 2))
    stopped = "does not stop" if found.test.stopped is None else f"stops after {found.test.stopped:,} users"
    facts.add_row("sequential test", f"{stopped}; p = {found.test.p_values[-1]:.2g} after {found.users:,}")
    facts.add_row("always valid", f"B minus A between {low:+.4f} and {high:+.4f} ({level}, looked at after every user)")
    groups = ", ".join(f"{kind} {value.devices:,}: {value.mean:+.4f}" for kind, value in found.groups.items())
    facts.add_row("by device", groups)
    if report is not None:
        facts.add_row("report", Text(str(report), style="cyan"))
    return facts
