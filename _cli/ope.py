"""``fedrec ope``: what a run's policy would have earned, from a log that another policy wrote."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text

from . import terminal
from .mapping import parse_mapping
from .progress import Progress

if TYPE_CHECKING:
    from ..simulation.ope.report import OpeReport


def ope(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a finished run.", show_default=False)],
    log: Annotated[
        str,
        typer.Option(
            metavar="LOG",
            help="CSV or parquet of impressions: item, reward, propensity; user, position, timestamp, slate where "
            "known. Or open-bandit/random-all and the like.",
            show_default=False,
        ),
    ],
    mapping: Annotated[
        list[str] | None, typer.Option("--map", metavar="ROLE=COLUMN,...", help="Which column is what; guessed.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Of the policy's softmax; below 1, closer to its ranking.")] = 1.0,
    switch: Annotated[
        float | None, typer.Option(help="Weight beyond which Switch-DR trusts the model; picked.", show_default=False)
    ] = None,
    keep_seen: Annotated[bool, typer.Option("--keep-seen", help="What a user has met may be shown again.")] = False,
    resamples: Annotated[int, typer.Option(help="Of the bootstrap.")] = 2000,
    seed: Annotated[
        int | None, typer.Option(help="Of folds and bootstrap; by default the run's.", show_default=False)
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON on the output stream, and nothing else there.")
    ] = False,
) -> None:
    """Estimate offline what the policy of a run would earn, from a log of impressions with propensities."""
    console = terminal.errors()
    with Progress(console, live=console.is_terminal, closing=False) as progress:
        progress.stage("starting PyTorch and Flower")
        from ..simulation.ope.evaluate import off_policy_evaluation
        from ..simulation.ope.report import OpeSettings
        from ..simulation.run import Run

        terminal.quieten()
        opened = Run.open(run)
        settings = OpeSettings(
            temperature=temperature,
            threshold=switch,
            keep_seen=keep_seen,
            resamples=resamples,
            seed=opened.config.seed if seed is None else seed,
        )
        progress.stage(f"judging the policy on {log}")
        report = off_policy_evaluation(
            opened, log, settings=settings, mapping=parse_mapping(mapping or ()), progress=terminal.say
        )
    if as_json:
        print(json.dumps(_finite(report.to_dict()), indent=1, ensure_ascii=False))
        return
    terminal.output().print(report_table(report))


def report_table(report: OpeReport) -> Group:
    """Estimates with intervals, what they rest on, and the warnings."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    table.add_column("estimator")
    for name in ("value", "95 % interval", "effective sample"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in report.estimates:
        style = "dim" if one.name == "logged" else ""
        name = "the logging policy itself" if one.name == "logged" else one.name
        interval = f"{one.low:.5f} .. {one.high:.5f}"
        table.add_row(Text(name), f"{one.value:.5f}", interval, f"{one.effective_sample_size:,.0f}", style=style)
    support = report.support
    has_model = any(one.name == "DM" for one in report.estimates)
    article = "an" if report.unit == "impression" else "a"
    note = Text.assemble(
        ("\nValue: ", "bold"),
        f"mean reward of {article} {report.unit}; {report.rows:,} in {report.log}, {report.rewarded:,} of them with a "
        f"reward; {report.clusters:,} resampled.\n",
        ("Policy: ", "bold"),
        f"{report.states}.\n",
        ("Support: ", "bold"),
        f"mean weight {support.mean_weight:.3f} +- {support.standard_error:.3f} (1 expected); "
        f"{support.missing_mass:.1%} of what the policy shows is not in the log.",
        "\nAn interval covers other users like these, not a model's error: that of DM says little." * has_model,
    )
    warnings = [Text.assemble(("warning: ", "bold yellow"), text) for text in report.warnings]
    return Group(table, note, *warnings)


def _finite(value: object) -> object:
    """The same with null for NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
