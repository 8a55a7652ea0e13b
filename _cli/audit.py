"""``fedrec audit``: its progress, its table and its verdict."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Literal, Self

import typer
from rich import box
from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ..config import load_config
from . import terminal
from .progress import clock

if TYPE_CHECKING:
    from ..simulation.audit import AuditReport
    from ..simulation.audit_attacks import Finding

REFUTED = 3
"""Exit code of an audit that measured more than is claimed."""

_NO_CLAIM = (
    "What is recommended is covered by no epsilon: what a device serves was adapted to its own log without noise and "
    "stays there. This is what somebody learns who sees an item's rank in a device's recommendations: with popularity, "
    "who knows no device. Above popularity, the device shows through."
)


def audit(
    target: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN|CONFIG.toml", help="A finished run, or a configuration; without one, the defaults."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set one key of a configuration; repeatable.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Some ten seconds: catches gross errors.")] = False,
    thorough: Annotated[
        bool, typer.Option("--thorough", help="Some minutes: catches a tenth too little noise.")
    ] = False,
    confidence: Annotated[
        float, typer.Option(help="Probability that no honest mechanism is refuted, over all attacks together.")
    ] = 0.99,
    out: Annotated[Path | None, typer.Option(help="Write audit.json here, too (a run gets its own).")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON on the output stream, and nothing else there.")
    ] = False,
) -> None:
    """Attack the privacy mechanisms and hold measured epsilon against the claim; exit code 3 if it is refuted."""
    if quick and thorough:
        raise typer.BadParameter("expected one of --quick and --thorough, got both")
    size: Literal["quick", "standard", "thorough"] = "quick" if quick else "thorough" if thorough else "standard"
    a_run = target is not None and target.is_dir()
    if a_run and overrides:
        raise typer.BadParameter("expected --set with a configuration only: a run is audited as it was run")
    settings = None if a_run else load_config(target, overrides or ())
    with Following(terminal.errors()) as following:
        following.begin("starting PyTorch and Flower", 1)
        from ..simulation import audit as audits

        terminal.quieten()
        if settings is None:
            report = audits.audit_run(target or Path(), size=size, confidence=confidence, listener=following)
        else:
            report = audits.audit(settings, size=size, confidence=confidence, listener=following)
    if out is not None:
        audits.write(report, out)
    if as_json:
        print(json.dumps(report.to_dict(), indent=1, ensure_ascii=False))
    else:
        terminal.output().print(shown(report, target if a_run else out))
    if report.refuted:
        raise typer.Exit(REFUTED)


class Following:
    """A :class:`fedrec.simulation.audit.Listener` for people: a bar in a terminal, a line an attack in a log file."""

    def __init__(self, console: Console) -> None:
        """Show it on ``console``."""
        self._console = console
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self._bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def begin(self, title: str, steps: int) -> None:
        """An attack begins."""
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task = self._bars.add_task(title, total=steps)
        if not self._console.is_terminal:
            self._console.print(Text(title), soft_wrap=True)

    def advance(self, steps: int) -> None:
        """Some steps are done."""
        if self._task is not None:
            self._bars.advance(self._task, steps)


def shown(report: AuditReport, where: Path | None) -> RenderableType:
    """What a terminal gets: findings, claims, membership, verdict."""
    parts: list[RenderableType] = []
    if report.findings:
        parts += [_findings(report), *(Text(sentence, style="magenta") for sentence in report.statements), Text("")]
    if report.membership:
        parts += [_membership(report), Text(_NO_CLAIM, style="dim"), Text("")]
    parts += [_verdict(report), _facts(report, where)]
    return Group(*parts)


def _findings(report: AuditReport) -> Table:
    table = Table(
        title=f"audit: lower bounds on epsilon, {report.confidence:.4g} confidence over all",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE,
    )
    table.add_column("attack", ratio=1)
    table.add_column("unit")
    for name in ("delta", "claimed", "measured", "at most"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict")
    for finding in report.findings:
        _add(table, finding)
    return table


def _add(table: Table, finding: Finding) -> None:
    """The stated delta, and below it the one at which the claim is tested hardest."""
    stated, closest = finding.points[0], finding.closest
    verdict = Text("refuted", style="bold red") if finding.refuted else Text("not refuted", style="green")
    table.add_row(
        finding.attack,
        finding.unit,
        f"{stated.delta:g}",
        f"{stated.claimed:.3f}",
        f">= {stated.measured:.3f}",
        f"{stated.ceiling:.2f}",
        verdict,
    )
    if closest.delta != stated.delta:
        table.add_row(
            "",
            "",
            f"{closest.delta:g}",
            f"{closest.claimed:.3f}",
            f">= {closest.measured:.3f}",
            f"{closest.ceiling:.2f}",
            Text("closest", style="dim"),
        )


def _membership(report: AuditReport) -> Table:
    table = Table(
        title="membership inference on what is recommended, 95 % intervals over devices (not private, no claim)",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE,
    )
    table.add_column("seen by")
    for name in ("AUC", *(f"TPR at {rate:.1%} FPR" for rate in report.membership[0].tpr)):
        table.add_column(name, justify="right")
    for one in report.membership:
        known = not math.isnan(one.auc.value)
        cells = [str(one.auc), *(str(value) for value in one.tpr.values())]
        table.add_row(one.seen_by, *(cells if known else ["nobody to ask"] * len(cells)))
    return table


def _verdict(report: AuditReport) -> Text:
    if not report.findings:
        return Text("no claim: the privacy unit is none, there is nothing to refute", style="bold red")
    bad = [finding.attack for finding in report.findings if finding.refuted]
    if bad:
        return Text(f"REFUTED by {len(bad)} of {len(report.findings)} attacks: {'; '.join(bad)}", style="bold red")
    return Text(
        f"not refuted by {len(report.findings)} attacks; that proves no more than they could have shown (at most)",
        style="bold green",
    )


def _facts(report: AuditReport, where: Path | None) -> Text:
    kept = "" if where is None else f", kept in {where / 'audit.json' if where.is_dir() else where}"
    return Text(f"{report.size}, took {clock(report.seconds)}{kept}", style="dim")
