"""``fedrec``: the command line. Every command calls one public function and shows what it returns.

Heavy rooms are imported inside the commands, so that ``fedrec --help`` answers at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from . import __version__
from ._cli import render, terminal
from ._cli.audit import audit
from ._cli.budget import budget
from ._cli.bundle import bundle
from ._cli.compare import compare
from ._cli.deploy import deploy
from ._cli.device import device
from ._cli.flower import flower_app
from ._cli.keys import known_keys, markdown
from ._cli.mapping import parse_mapping
from ._cli.online import online
from ._cli.ope import ope
from ._cli.progress import Progress
from ._cli.sweep import sweep
from .config import Config, load_config

if TYPE_CHECKING:
    from .simulation.run import Run

app = typer.Typer(
    name="fedrec",
    help="Federated, privacy-preserving recommendation: a meta-learned policy that every device adapts.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data = typer.Typer(help="Data sets: list, fetch, import, describe.", no_args_is_help=True)
config = typer.Typer(help="The configuration: what holds, and which keys there are.", no_args_is_help=True)
app.add_typer(data, name="data")
app.add_typer(config, name="config")
app.add_typer(budget, name="budget")
app.add_typer(bundle, name="bundle")
app.add_typer(deploy, name="deploy")
app.add_typer(device, name="device")
app.command()(audit)
app.command()(sweep)
app.command()(ope)
app.command()(compare)
app.command()(online)

Json = Annotated[bool, typer.Option("--json", help="Print JSON on the output stream, and nothing else there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table: print the run's path.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set one key; repeatable.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a finished run.", show_default=False)]
ConfigPath = Annotated[
    Path | None, typer.Argument(metavar="CONFIG.toml", help="Configuration; without one, the defaults.")
]

_WITHOUT_CONTENT = """ --set policy.content=false --set 'policy.fast=["latent"]'"""
"""What a data set without a table about its items needs."""


def main() -> None:
    """Entry point of the script ``fedrec``."""
    sys.exit(invoke(sys.argv[1:]))


def invoke(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code: 0, 1 unexpected, 2 wrong input, 3 refuted, 130 interrupted."""
    debug = "--debug" in arguments
    rest = [argument for argument in arguments if argument != "--debug"]
    terminal.quieten(debug=debug)
    return terminal.guarded(lambda: app(args=rest, prog_name="fedrec", standalone_mode=False), debug=debug)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"fedrec {__version__}")
        raise typer.Exit


@app.callback()
def _global(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks, warnings and Flower's log.")] = False,
) -> None:
    del version, debug  # read before parsing, see invoke


@app.command()
def simulate(
    path: ConfigPath = None,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; without one, a new one below runs/.")] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with an interrupted run, by its own configuration.")
    ] = None,
    start_from: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Begin with what a finished run has learned about the content of both."),
    ] = None,
    engine: Annotated[
        Literal["cohort", "reference"] | None,
        typer.Option(
            help="Adapt many devices at once, or one after the other on Opacus: the same result.", show_default=False
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Simulate a federation on this machine, judge it and write a report."""
    others = (path, out, start_from, engine)
    if resume is not None and (overrides or any(other is not None for other in others)):
        raise typer.BadParameter(
            "expected --resume alone: a run goes on in its own directory, by its own configuration"
        )
    chosen = [] if engine is None else [f"engine.kind={engine}"]
    settings = None if resume is not None else load_config(path, [*(overrides or ()), *chosen])
    with _progress(quiet=quiet) as progress:
        progress.stage("starting PyTorch and Flower")
        from .simulation import run as runs

        terminal.quieten()
        where = resume or out or runs.default_directory(settings or Config())
        try:
            run = runs.simulate(settings, out=where, resume=resume is not None, start=start_from, listener=progress)
        except KeyboardInterrupt:
            raise terminal.Interrupted(_how_to_go_on(where)) from None
    _show(run, as_json=as_json, quiet=quiet)


@app.command()
def evaluate(
    run: RunPath,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Judge a finished run anew from its checkpoints; writes summary and report again."""
    with _progress(quiet=quiet) as progress:
        progress.stage("starting PyTorch and Flower")
        from .simulation.run import evaluate as judge

        terminal.quieten()
        judged = judge(run, listener=progress)
    _show(judged, as_json=as_json, quiet=quiet)


@app.command()
def recommend(
    run: RunPath,
    user: Annotated[str, typer.Option(help="The data set's own id of a user.", show_default=False)],
    k: Annotated[int, typer.Option("-k", "--k", help="Length of the list.")] = 10,
    explain: Annotated[bool, typer.Option("--explain", help="Say what drove each score.")] = False,
    sample: Annotated[
        bool, typer.Option("--sample", help="Draw a slate as the run's exploration section says, with propensities.")
    ] = False,
    temperature: Annotated[float | None, typer.Option(help="Of --sample.", show_default=False)] = None,
    epsilon: Annotated[
        float | None, typer.Option(help="Share of uniform draws of --sample.", show_default=False)
    ] = None,
    diversity: Annotated[float, typer.Option(help="Weight of likeness to what stands above, of --sample.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of --sample.")] = 0,
    as_json: Json = False,
) -> None:
    """What the policy of a run would recommend to one user now, and why: a ranking, or with --sample a drawn slate."""
    if not sample and (temperature is not None or epsilon is not None or diversity):
        raise typer.BadParameter(
            "expected --sample with --temperature, --epsilon or --diversity: a ranking draws nothing"
        )
    with _progress(quiet=False, closing=False) as progress:
        progress.stage("starting PyTorch and Flower")
        from .simulation.exploring import exploration_of
        from .simulation.recommend import recommend as rank
        from .simulation.recommend import recommendation_table
        from .simulation.run import Run

        terminal.quieten()
        progress.stage(f"adapting the policy to user {user}")
        opened = Run.open(run)
        how = exploration_of(opened.config, temperature=temperature, epsilon=epsilon, diversity=diversity)
        found = rank(opened, user, k, explain=explain, how=how if sample else None, seed=seed)
    if as_json:
        _print_json([one.to_dict() for one in found])
        return
    terminal.output().print(recommendation_table(found))


@data.command("list")
def data_list(as_json: Json = False) -> None:
    """Every data set that can be used by name."""
    from dataclasses import asdict

    from .simulation.data.registry import list_datasets

    infos = list_datasets()
    if as_json:
        _print_json([asdict(info) for info in infos])
        return
    terminal.output().print(render.datasets_table(infos))


@data.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(help="ml-100k, ml-1m or open-bandit.", show_default=False)],
    archive: Annotated[Path | None, typer.Option(help="An archive of it that you have already.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Fetch it again even if it is here.")] = False,
) -> None:
    """Fetch a registered data set into the cache, verified by hash; prints its licence notice."""
    from .simulation.data.fetching import fetch

    fetched = fetch(name, archive=archive, force=force, progress=terminal.say)
    origin = "was here already" if fetched.source == "cache" else f"came from {fetched.source}"
    print(f"{fetched.name} {origin}: {fetched.directory}")


@data.command("import")
def data_import(
    path: Annotated[Path, typer.Argument(help="CSV, TSV, parquet, or RecBole's .inter.", show_default=False)],
    name: Annotated[str, typer.Option(help="What to call it.", show_default=False)],
    mapping: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="ROLE=COLUMN,...",
            help="Which column is the user, item, reward, timestamp or propensity; also items.id and users.id.",
        ),
    ] = None,
    items: Annotated[Path | None, typer.Option(help="A table about the items.")] = None,
    users: Annotated[Path | None, typer.Option(help="A table about the users.")] = None,
    separator: Annotated[str | None, typer.Option(help="What stands between two fields; guessed.")] = None,
    header: Annotated[bool | None, typer.Option("--header/--no-header", help="Does line 1 name columns?")] = None,
    repeats: Annotated[
        Literal["last", "first", "keep"], typer.Option(help="Which of several interactions with one item.")
    ] = "last",
    reward: Annotated[Literal["rating", "click", "count"] | None, typer.Option(help="Kind of reward; guessed.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace an imported data set of this name.")] = False,
) -> None:
    """Import your own log of interactions, and tables about items and users."""
    from .simulation.data.importing import import_dataset
    from .simulation.data.open_bandit import find_log

    imported = import_dataset(
        find_log(path, progress=terminal.say),
        name,
        mapping=parse_mapping(mapping or ()),
        items=None if items is None else find_log(items, progress=terminal.say),
        users=users,
        separator=separator,
        header=header,
        repeats=repeats,
        reward_kind=reward,
        replace=replace,
        progress=terminal.say,
    )
    without = "" if imported.catalogue.feature_names else _WITHOUT_CONTENT
    print(f"{imported.name} is ready: fedrec simulate --set data.name={imported.name}{without}")


@data.command("describe")
def data_describe(
    name: Annotated[str, typer.Argument(help="Name of a data set.", show_default=False)], as_json: Json = False
) -> None:
    """What a data set holds."""
    from .simulation.data.registry import describe, load

    dataset = load(name, progress=terminal.say)
    values = describe(dataset)
    if as_json:
        _print_json(values)
        return
    terminal.output().print(render.description_table(values, dataset.device_ids))


@config.command("show")
def config_show(path: ConfigPath = None, overrides: Overrides = None) -> None:
    """Print the whole configuration as TOML, defaults included."""
    print(load_config(path, overrides or ()).to_toml(), end="")


@config.command("flower")
def config_flower(path: ConfigPath = None, overrides: Overrides = None) -> None:
    """Print the configuration as a Flower app: save it as pyproject.toml in a folder, then flwr run that folder."""
    print(flower_app(load_config(path, overrides or ())), end="")


@config.command("keys")
def config_keys(
    as_markdown: Annotated[bool, typer.Option("--markdown", help="As docs/configuration.md.")] = False,
) -> None:
    """Every key with its type, bounds, default and meaning."""
    if as_markdown:
        print(markdown(), end="")
        return
    terminal.output().print(render.keys_list(known_keys()))


def _progress(*, quiet: bool, closing: bool = True) -> Progress:
    console = terminal.errors(quiet=quiet)
    return Progress(console, live=console.is_terminal and not quiet, closing=closing)


def _show(run: Run, *, as_json: bool, quiet: bool) -> None:
    """The end of a run: JSON, its path, or everything."""
    if as_json:
        _print_json({**run.summary, "directory": str(run.directory)})
    elif quiet:
        print(run.directory)
    else:
        render.show_run(terminal.output(), run)
    if run.config.privacy.unit == "none":
        terminal.errors().print(render.no_privacy())


def _how_to_go_on(where: Path) -> str:
    if (where / "config.toml").exists():
        return f"interrupted, and every finished round is safe; resume with: fedrec simulate --resume {where}"
    return "interrupted before the first round; nothing is lost"


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
