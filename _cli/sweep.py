"""``fedrec sweep``: many runs, one question."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from ..errors import RunError
from . import render, terminal
from .progress import clock
from .sweep_progress import SweepProgress

if TYPE_CHECKING:
    from ..simulation.summary import IntervalDict
    from ..simulation.sweep import Sweep

Spec = Annotated[
    Path | None, typer.Argument(metavar="SPEC.toml", help="Base, axes and bundles; without one, the default sweep.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set one key in every cell; an axis keeps this value alone."),
]


def sweep(
    path: Spec = None,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Directory; without one, runs/sweep-NAME.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes at once; without it, one a core.")] = None,
    show: Annotated[bool, typer.Option("--show", help="Print the specification as a file to start from.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON on the output stream, and nothing else there.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress, no table: print the report's path.")
    ] = False,
) -> None:
    """Run every cell of a sweep that is not there yet; the same command goes on after an interruption."""
    from ..simulation.sweep.spec import DEFAULT, load_spec, plan_cells

    if show:
        print((path or DEFAULT).read_text(encoding="utf-8"), end="")
        return
    spec = load_spec(path, overrides or ())
    plan_cells(spec)  # whatever is wrong is said before anything heavy is loaded
    console = terminal.errors(quiet=quiet)
    with SweepProgress(console, live=console.is_terminal and not quiet) as progress:
        progress.stage("starting PyTorch and Flower")
        from ..simulation.sweep import run_sweep

        terminal.quieten()
        try:
            done = run_sweep(spec, out, workers=workers, listener=progress)
        except KeyboardInterrupt:
            raise terminal.Interrupted(
                "interrupted, and every finished cell and round is safe; go on with the same command"
            ) from None
    _show(done, as_json=as_json, quiet=quiet)
    if done.failed:
        cell, error = next(iter(done.failed.items()))
        raise RunError(
            f"{len(done.failed)} of {len(done.failed) + len(done.finished)} cells failed, the others are finished; the "
            f"same command tries them again; the first is {cell}: {error}"
        )


def _show(done: Sweep, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        state = json.loads((done.directory / "sweep.json").read_text(encoding="utf-8"))
        print(json.dumps({**state, "directory": str(done.directory)}, indent=1, ensure_ascii=False))
        return
    if quiet:
        print(done.report)
        return
    output = terminal.output()
    output.print()
    output.print(_table(done))
    facts = Table.grid(padding=(0, 2))
    facts.add_row("cells", f"{len(done.finished)} finished, {done.ran} of them by this call, in {clock(done.seconds)}")
    facts.add_row("tables", Text(f"{done.directory / 'cells.csv'}, {done.directory / 'summary.csv'}"))
    facts.add_row("report", Text(str(done.report), style="cyan"))
    output.print(facts)


def _table(done: Sweep) -> Table:
    """A line for each place on the axes: served, against what is above and below it."""
    from ..simulation.plots import metric_name
    from ..simulation.summary import DP_POPULARITY, POPULARITY, SERVED
    from ..simulation.sweep.figures import delta_line, unit_line
    from ..simulation.sweep.tables import CEILING

    axes = list(done.groups[0].axes) if done.groups else []
    metric = metric_name(done.groups[0].metric) if done.groups else "metric"
    numbers = ("spent", f"{metric} served", "DP popularity", "popularity", "no privacy", "of no privacy")
    table = render.plain_table(*(key.rsplit(".", 1)[-1] for key in axes), *numbers, numbers=numbers)
    for group in done.groups:
        levels = [group.levels.get(label) for label in (SERVED, DP_POPULARITY, POPULARITY, CEILING)]
        share = group.shares.get(CEILING)
        table.add_row(
            *(str(value) for value in group.axes.values()),
            "infinite" if group.unit == "none" else f"{group.epsilon:.3g}",
            *(_number(level, interval=place == 0) for place, level in enumerate(levels)),
            "" if share is None else f"{share['mean'] * 100:.0f} %",
        )
    table.title = f"{done.spec.name}: test items, full ranking, 95 % intervals over devices and seeds"
    table.title_justify, table.title_style = "left", "bold"
    units = {group.unit: f"{unit_line([group])}; {delta_line([group])}" for group in done.groups}
    table.caption, table.caption_justify, table.caption_style = "\n".join(units.values()), "left", "magenta"
    return table


def _number(value: IntervalDict | None, *, interval: bool) -> str:
    if value is None:
        return ""
    return f"{value['mean']:.4f}" + (f" [{value['low']:.3f}, {value['high']:.3f}]" if interval else "")
