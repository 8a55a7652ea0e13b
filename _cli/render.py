"""Results as a terminal shows them: a run's end, data sets, configuration keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.filesize import decimal
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from .keys import Key
from .progress import clock

if TYPE_CHECKING:
    from ..simulation.data.registry import DatasetInfo
    from ..simulation.run import Run
    from ..simulation.summary import Summary

_SHOWN_IDS = 5
_WIDE = 101
"""Columns of a terminal that has room for the sampled ranking, too; the report has it in any case."""
_FULL_RANKING = 3
"""Columns of the table up to the full ranking."""


def plain_table(*columns: str, numbers: Iterable[str] = ()) -> Table:
    """A table without frames; the columns named in ``numbers`` are set flush right."""
    right = set(numbers)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", no_wrap=column in right)
    return table


def show_run(console: Console, run: Run) -> None:
    """The table of results, what they cost, and where everything lies."""
    from ..simulation.result_table import summary_table
    from ..simulation.start import start_sentence

    summary = run.summary
    table = summary_table(summary)
    table.caption, table.box = None, box.SIMPLE
    table.title_justify, table.title_style = "left", "bold"
    if console.width < _WIDE:
        del table.columns[_FULL_RANKING:]
    console.print()
    console.print(table)
    console.print(_cost(summary))
    facts = Table.grid(padding=(0, 2))
    facts.add_row("chosen", f"round {summary['chosen_round']} of {summary['rounds']}, on validation")
    if "start" in summary:
        facts.add_row("start", start_sentence(summary["start"]))
    clips = summary.get("clip_by_round")
    if clips:
        (first, start), *_, (last, end) = [*clips.items()] * 2
        facts.add_row("clip", f"{start:.3g} in round {first}, {end:.3g} in round {last} (adaptive)")
    if "traffic" in summary:
        facts.add_row("traffic", _traffic(summary["traffic"], summary["config"]["server"].get("uplink", "float32")))
    facts.add_row("took", clock(summary["seconds"]))
    facts.add_row("run", Text(_path(run.directory)))
    facts.add_row("report", Text(_path(run.directory / "report.html"), style="cyan"))
    console.print(facts)


def _traffic(traffic: Mapping[str, int], uplink: str) -> str:
    """Bytes of a whole run, as its devices would exchange them."""
    return f"{decimal(traffic['down'])} to the devices, {decimal(traffic['up'])} from them (updates as {uplink})"


def _cost(summary: Summary) -> RenderableType:
    """Each unit's privacy sentence; the absence of any is in :func:`no_privacy`."""
    lines = [Text(statement["sentence"], style="magenta") for statement in summary["privacy"]]
    return Group(*lines, Text("")) if lines else Text("")


def no_privacy() -> Panel:
    """What stands, loudly, under every run of unit none."""
    text = (
        "The privacy unit of this run is none: updates were neither clipped nor noised, and they reveal what devices "
        "did. Epsilon is infinite. Set privacy.unit to user, interaction or both for a guarantee."
    )
    return Panel(text, title="NO PRIVACY", style="bold red", title_align="left", padding=(0, 1))


def _path(path: Path) -> str:
    """Relative to the working directory where it lies below it."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def datasets_table(infos: Sequence[DatasetInfo]) -> Table:
    """What ``fedrec data list`` shows."""
    numbers = ("devices", "items", "interactions")
    table = plain_table("name", "what", *numbers, "here", numbers=numbers)
    for info in infos:
        here = Text("generated") if info.kind == "generated" else Text("yes", style="green")
        missing = Text("not yet", style="yellow")
        counts = ["" if value is None else f"{value:,}" for value in (info.devices, info.items, info.interactions)]
        table.add_row(Text(info.name, style="bold"), Text(info.title), *counts, here if info.available else missing)
    return table


def description_table(values: Mapping[str, Any], device_ids: Sequence[Any]) -> Table:
    """What ``fedrec data describe`` shows: one fact a line, and some ids to try."""
    table = Table.grid(padding=(0, 3))
    for name, value in values.items():
        table.add_row(Text(name.replace("_", " "), style="dim"), Text(_fact(value)))
    shown = ", ".join(str(one) for one in device_ids[:_SHOWN_IDS])
    table.add_row(Text("some user ids", style="dim"), Text(shown + (", ..." if len(device_ids) > _SHOWN_IDS else "")))
    return table


def _fact(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_fact(inner)}" for name, inner in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return " to ".join(_fact(inner) for inner in value)
    return str(value)


def keys_list(keys: Sequence[Key]) -> RenderableType:
    """What ``fedrec config keys`` shows: a line for the key, one for its meaning."""
    lines: list[RenderableType] = []
    for key in keys:
        lines.append(Text.assemble((key.name, "bold"), " = ", (key.default, "cyan"), (f"  {key.kind}", "dim")))
        lines.append(Padding(Text(key.meaning.replace("``", "")), (0, 0, 1, 4)))
    return Group(*lines)
