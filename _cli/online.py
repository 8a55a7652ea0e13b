"""``fedrec online``: agents that act on simulated users and learn from what is clicked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from ..config import load_config
from . import render, terminal
from .progress import Progress, clock

if TYPE_CHECKING:
    from ..simulation.online.run import OnlineRun


def online(
    path: Annotated[
        Path | None, typer.Argument(metavar="CONFIG.toml", help="Configuration; without one, the default online run.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set one key; repeatable.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Directory; without one, a new one below runs/.")] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with an interrupted run, by its own configuration.")
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Print the default as a file to start from.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON on the output stream, and nothing else there.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table: print the run's path.")] = False,
) -> None:
    """Let policies and yardsticks recommend to the same simulated users, and compare what they earn."""
    default = Path(__file__).parents[1] / "simulation" / "online" / "default.toml"
    if show:
        print(default.read_text(encoding="utf-8"), end="")
        return
    if resume is not None and (path is not None or overrides or out is not None):
        raise typer.BadParameter(
            "expected --resume alone: a run goes on in its own directory, by its own configuration"
        )
    settings = None if resume is not None else load_config(path or default, overrides or ())
    console = terminal.errors(quiet=quiet)
    with Progress(console, live=console.is_terminal and not quiet) as progress:
        progress.stage("starting PyTorch and Flower")
        from ..simulation.online import run as runs

        terminal.quieten()
        where = resume or out
        if where is None and settings is not None:
            where = runs.default_directory(settings)
        try:
            done = runs.run_online(settings, out=where, resume=resume is not None, listener=progress)
        except KeyboardInterrupt:
            raise terminal.Interrupted(
                f"interrupted, and every finished round is safe; resume with: fedrec online --resume {where}"
            ) from None
    _show(done, as_json=as_json, quiet=quiet)


def _show(done: OnlineRun, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        print(json.dumps({**done.summary, "directory": str(done.directory)}, indent=1, ensure_ascii=False))
    elif quiet:
        print(done.directory)
    else:
        show_online(terminal.output(), done)


def show_online(console: Console, done: OnlineRun) -> None:
    """What every arm earned, what it cost, and where everything lies."""
    console.print()
    console.print(Group(arms_table(done.summary), Text(""), *_costs(done.summary)))
    facts = Table.grid(padding=(0, 2))
    facts.add_row("took", clock(float(done.summary["seconds"])))
    facts.add_row("run", Text(str(done.directory)))
    facts.add_row("report", Text(str(done.directory / "report.html"), style="cyan"))
    console.print(facts)


def arms_table(summary: Mapping[str, Any]) -> Table:
    """CTR and regret of every arm, for devices that train and for late ones."""
    groups = [name for name in ("training", "late") if summary["interactions"][name]]
    columns = [column for name in groups for column in (f"CTR, {name}", f"regret, {name}")]
    table = render.plain_table("arm", *columns, numbers=columns)
    table.columns[0].min_width = max(map(len, summary["arms"]))
    table.title = f"the last {summary['window']} of {summary['interactions']['training']} interactions"
    table.title_justify, table.title_style = "left", "bold"
    for name, arm in summary["arms"].items():
        points = [arm["headline"][group] for group in groups]
        values = [_value(point[metric]) for point in points for metric in ("ctr", "regret")]
        table.add_row(Text(name), *values, style="bold" if arm["kind"] == "meta" else "")
    return table


def _value(one: Mapping[str, float]) -> str:
    return f"{one['mean']:.3f}\n{one['low']:.3f} - {one['high']:.3f}"


def _costs(summary: Mapping[str, Any]) -> list[Text]:
    """Each federation's privacy sentence; those without any stand in one line."""
    lines, without = [], []
    for name, arm in summary["arms"].items():
        lines += [Text(f"{name}: {one['sentence']}", style="magenta") for one in arm["privacy"]]
        if arm["kind"] in ("meta", "joint") and not arm["privacy"]:
            without.append(name)
    if without:
        lines.append(Text(f"NO PRIVACY, updates reveal what devices did: {', '.join(without)}", style="bold red"))
    return lines
