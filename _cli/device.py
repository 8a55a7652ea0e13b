"""``fedrec device``: what an app does with a device, from the terminal: the same calls, the same files."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from ..errors import ConfigError
from . import terminal
from .render import plain_table

if TYPE_CHECKING:
    from ..client.device import Device, Status
    from ..client.package import PolicyPackage
    from ..client.slate import Reasons, Slate

device = typer.Typer(help="One device: recommend, record, adapt, explain, forget.", no_args_is_help=True)

Store = Annotated[Path, typer.Argument(metavar="STORE", help="The device's file.", show_default=False)]
KeyFile = Annotated[
    Path | None, typer.Option("--key-file", help="File with the key of an encrypted store.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on the output stream, and nothing else there.")]
RunSource = Annotated[Path | None, typer.Option("--run", help="Take the policy of a finished run.", show_default=False)]
BundleSource = Annotated[Path | None, typer.Option("--bundle", help="Take a signed bundle.", show_default=False)]
PublicKeys = Annotated[
    list[Path] | None, typer.Option("--key", help="Public key that must have signed it.", show_default=False)
]


@contextmanager
def _opened(store: Path, key_file: Path | None) -> Iterator[Device]:
    from ..client.device import Device

    with Device.open(store, _key(key_file)) as found:
        yield found


def _key(path: Path | None) -> bytes | None:
    """The content of a key file, without the line break that an editor adds."""
    if path is None:
        return None
    try:
        return path.read_bytes().rstrip(b"\r\n")
    except OSError as error:
        raise ConfigError(f"expected a readable key file at {path}, got {error.strerror}; check the path") from None


def _package(run: Path | None, bundle: Path | None, keys: list[Path] | None, version: int) -> PolicyPackage:
    if (run is None) == (bundle is None):
        raise typer.BadParameter("expected exactly one of --run and --bundle")
    if bundle is not None:
        from ..client.bundle import load_bundle
        from ..client.bundle_keys import load_public_key

        if not keys:
            raise typer.BadParameter("expected --key with --bundle: a bundle is adopted by its signature only")
        return load_bundle(bundle, [load_public_key(key) for key in keys]).package
    terminal.say("starting PyTorch and Flower")
    from ..simulation.packages import package_of
    from ..simulation.run import Run

    terminal.quieten()
    return package_of(Run.open(run or ""), version=version)


@device.command()
def create(
    store: Store,
    run: RunSource = None,
    bundle: BundleSource = None,
    keys: PublicKeys = None,
    key_file: KeyFile = None,
) -> None:
    """Begin a device; with --key-file its store is encrypted."""
    from ..client.device import Device

    package = _package(run, bundle, keys, 1)
    with Device.create(store, package, _key(key_file)) as made:
        terminal.output().print(status_table(made.status()))


@device.command()
def adopt(
    store: Store,
    run: RunSource = None,
    bundle: BundleSource = None,
    keys: PublicKeys = None,
    key_file: KeyFile = None,
) -> None:
    """Take a newer policy; the one before it is kept."""
    with _opened(store, key_file) as found:
        newest = int(found.store.setting("newest") or 0)  # a rollback drops a version that must not come back
        found.adopt(_package(run, bundle, keys, newest + 1))
        terminal.output().print(status_table(found.status()))


@device.command()
def rollback(store: Store, key_file: KeyFile = None) -> None:
    """Go back to the policy before the current one."""
    with _opened(store, key_file) as found:
        print(f"version {found.rollback()} serves again")


@device.command()
def recommend(
    store: Store,
    k: Annotated[int, typer.Option("-k", "--k", help="Positions.")] = 10,
    candidate: Annotated[
        list[str] | None, typer.Option(help="Item to choose from; repeatable; without one, the catalogue.")
    ] = None,
    blocked: Annotated[list[str] | None, typer.Option(help="Item that may not be shown; repeatable.")] = None,
    temperature: Annotated[float, typer.Option(help="Of the draw; 0 takes the best.")] = 0.3,
    epsilon: Annotated[float, typer.Option(help="Share of the draw that is uniform.")] = 0.0,
    diversity: Annotated[float, typer.Option(help="Weight of the likeness to what stands above.")] = 0.0,
    again: Annotated[bool, typer.Option("--again", help="Show what was met already, too.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the slate here, for record.", show_default=False)] = None,
    as_json: Json = False,
    key_file: KeyFile = None,
) -> None:
    """Draw a slate, each item with its exact propensity."""
    with _opened(store, key_file) as found:
        slate = found.recommend(
            candidate or None,
            k,
            temperature=temperature,
            epsilon=epsilon,
            diversity=diversity,
            blocked=blocked or (),
            again=again,
        )
    if out is not None:
        _write(out, slate.to_dict())
    if as_json:
        _print_json(slate.to_dict())
    else:
        terminal.output().print(slate_table(slate))


@device.command()
def record(
    store: Store,
    slate: Annotated[
        Path | None, typer.Option(help="Slate that was shown, as recommend wrote it; - reads it.", show_default=False)
    ] = None,
    clicked: Annotated[list[str] | None, typer.Option(help="Item; repeatable.", show_default=False)] = None,
    rating: Annotated[
        list[str] | None, typer.Option(metavar="ITEM=VALUE", help="Rating; repeatable.", show_default=False)
    ] = None,
    purchase: Annotated[list[str] | None, typer.Option(help="Item; repeatable.", show_default=False)] = None,
    key_file: KeyFile = None,
) -> None:
    """Log what was done with a slate, or outside of any."""
    with _opened(store, key_file) as found:
        shown = None if slate is None else _read_slate(slate)
        ratings = dict(_rating(text) for text in rating or ())
        count = found.record(shown, clicked or (), rating=ratings, purchase=purchase or ())
        total = found.store.count("interactions")
    print(f"{count} logged, {total} in all")


@device.command()
def adapt(store: Store, key_file: KeyFile = None) -> None:
    """Fine-tune what is served on the device's log; nothing of it leaves."""
    with _opened(store, key_file) as found:
        training = found.adapt()
    print(f"adapted on {training.used} interactions, from version {training.version}")


@device.command()
def explain(
    store: Store,
    item: Annotated[str, typer.Argument(help="Id of the item.", show_default=False)],
    as_json: Json = False,
    key_file: KeyFile = None,
) -> None:
    """Why an item gets its score now."""
    with _opened(store, key_file) as found:
        reasons = found.explain(item)
    if as_json:
        _print_json(reasons.to_dict())
    else:
        terminal.output().print(reasons_table(reasons))


@device.command()
def forget(
    store: Store,
    before: Annotated[datetime | None, typer.Option(help="What is older, by local time.", show_default=False)] = None,
    item: Annotated[str | None, typer.Option(help="What is about this item.", show_default=False)] = None,
    everything: Annotated[bool, typer.Option("--everything", help="All of it.")] = False,
    key_file: KeyFile = None,
) -> None:
    """Remove interactions for good, from the bytes of the file, too; the privacy ledger stays."""
    with _opened(store, key_file) as found:
        removed = found.forget(before=before, item=item, everything=everything)
        marked = found.status().forgotten
    print(f"{removed} interactions and impressions removed; {marked} releases were trained on something forgotten")


@device.command()
def export(
    store: Store,
    out: Annotated[Path | None, typer.Option(help="File to write; by default the output stream.")] = None,
    key_file: KeyFile = None,
) -> None:
    """Everything that the device holds about its user, as JSON."""
    with _opened(store, key_file) as found:
        values = found.export()
    if out is None:
        _print_json(values)
    else:
        _write(out, values)
        print(out)


@device.command()
def consent(
    store: Store,
    given: Annotated[bool, typer.Option("--give/--withdraw", help="Allow training, or forbid it.", show_default=False)],
    key_file: KeyFile = None,
) -> None:
    """Allow or forbid training on the device's log; withdrawing drops what was adapted."""
    with _opened(store, key_file) as found:
        found.consent(given)
    print("consent given" if given else "consent withdrawn: nothing is trained and nothing leaves")


@device.command()
def require(
    store: Store,
    charging: Annotated[bool, typer.Option("--charging", help="On external power.")] = False,
    unmetered: Annotated[bool, typer.Option("--unmetered", help="On a network that costs nothing.")] = False,
    idle: Annotated[bool, typer.Option("--idle", help="Nobody uses the device.")] = False,
    hours: Annotated[
        tuple[int, int] | None, typer.Option(metavar="FROM TO", help="Hours of local time.", show_default=False)
    ] = None,
    fresh: Annotated[float, typer.Option(help="Seconds for which a report holds.")] = 900.0,
    key_file: KeyFile = None,
) -> None:
    """Set what must hold while the device adapts, in place of what was set before; without options, nothing."""
    from ..client.conditions import Requirements

    wanted = Requirements(charging=charging, unmetered=unmetered, idle=idle, hours=hours, fresh=fresh)
    with _opened(store, key_file) as found:
        found.require(wanted)
        print(_conditions(found.missing()))


@device.command()
def limit(
    store: Store,
    interactions: Annotated[int, typer.Option(help="The newest that are kept, and as many impressions.")] = 10_000,
    days: Annotated[float | None, typer.Option(help="Keep none that are older.", show_default="no limit")] = None,
    key_file: KeyFile = None,
) -> None:
    """Set how much of the log is kept, from the next record on, in place of what was set before."""
    with _opened(store, key_file) as found:
        found.limit(interactions=interactions, days=days)
    age = "" if days is None else f", none older than {days:g} days"
    print(f"the newest {interactions:,} interactions are kept{age}; it holds from the next record on")


@device.command()
def conditions(
    store: Store,
    charging: Annotated[bool, typer.Option("--charging", help="On external power.")] = False,
    unmetered: Annotated[bool, typer.Option("--unmetered", help="On a network that costs nothing.")] = False,
    idle: Annotated[bool, typer.Option("--idle", help="Nobody uses the device.")] = False,
    key_file: KeyFile = None,
) -> None:
    """Report what holds now; what is left out counts as not met."""
    with _opened(store, key_file) as found:
        found.conditions(charging=charging, unmetered=unmetered, idle=idle)
        print(_conditions(found.missing()))


@device.command()
def status(store: Store, as_json: Json = False, key_file: KeyFile = None) -> None:
    """Counts, versions, consent, conditions and budget."""
    with _opened(store, key_file) as found:
        state = found.status()
    if as_json:
        _print_json(state.to_dict())
    else:
        terminal.output().print(status_table(state))


def slate_table(slate: Slate) -> Table:
    """A slate for a terminal."""
    table = plain_table("", "item", "title", "propensity", numbers=("", "propensity"))
    for slot in slate:
        table.add_row(str(slot.position + 1), Text(slot.item), Text(slot.title), f"{slot.propensity:.4g}")
    return table


def reasons_table(reasons: Reasons) -> Table:
    """An explanation for a terminal: terms, then logged items, then features."""
    table = plain_table("effect", "of", "", numbers=("effect",))
    table.title = f"{reasons.title}: score {reasons.score:.2f}, probability {reasons.probability:.2%}"
    table.title_justify = "left"
    rows = [(value, name, "term of the score") for name, value in reasons.terms.items()]
    rows += [(value, name, "logged") for name, value in reasons.because]
    rows += [(value, name, "feature") for name, value in reasons.features]
    for value, name, kind in rows:
        style = "cyan" if value >= 0 else "magenta"
        table.add_row(Text(f"{value:+.2f}", style=style), Text(name), Text(kind, style="dim"))
    return table


def status_table(state: Status) -> Table:
    """A device for a terminal: one fact a line."""
    table = Table.grid(padding=(0, 3))
    table.add_column(style="dim")
    for name, value in _facts(state):
        table.add_row(name, value)
    return table


def _facts(state: Status) -> Iterator[tuple[str, Text]]:
    yield "store", Text(os.path.relpath(state.path))
    yield "consent", Text("given", style="green") if state.consent else Text("not given", style="yellow")
    yield "interactions", Text(f"{state.interactions:,} ({state.impressions:,} shown)")
    yield "policy", Text(", ".join(f"{slot}: version {version}" for slot, version in state.versions.items()) or "none")
    yield "schema", Text(state.schema or "none")
    yield "served", Text("adapted on this device" if state.adapted else "as it came")
    yield "conditions", Text(_conditions(state.missing))
    marked = f", {state.forgotten} of them on something forgotten since" if state.forgotten else ""
    yield "releases", Text(f"{state.releases}{marked}")
    if state.unscrubbed:
        yield "forgetting", Text("unfinished: bytes are left in the file; make room and open it again", style="yellow")
    if state.refusal is not None:
        yield "refused", Text(f"order {state.refusal.order} ({state.refusal.reason}); the server is not told why")
    if state.problem is not None:
        yield "ledger", Text(state.problem, style="bold red")
    elif state.budget is None:
        yield "budget", Text(f"none of its own (unit {state.unit or 'unknown'})")
    else:
        yield "budget", Text(_budget(state), style="magenta")


def _conditions(missing: tuple[str, ...]) -> str:
    return f"missing: {', '.join(missing)}" if missing else "met"


def _budget(state: Status) -> str:
    """What was spent, with everything that an epsilon needs beside it."""
    budget = state.budget
    if budget is None:
        return ""
    limit = "no limit" if budget.epsilon is None else f"of {budget.epsilon:.4g}"
    return (
        f"epsilon {budget.spent:.4g} {limit} at delta {budget.delta:g}, unit {budget.unit} ({budget.neighbours}), "
        f"{budget.accountant}, {budget.releases} debits"
    )


def _rating(text: str) -> tuple[str, float]:
    item, _, value = text.rpartition("=")
    try:
        if item:
            return item, float(value)
        raise ValueError(text)
    except ValueError:
        raise typer.BadParameter(f"expected --rating ITEM=VALUE, got {text!r}") from None


def _read_slate(path: Path) -> Slate:
    from ..client.slate import Slate

    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
        values = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"expected a slate in {path}, got none ({error}); recommend --out writes one") from None
    if not isinstance(values, dict):
        raise ConfigError(f"expected a slate in {path}, got something else; recommend --out writes one")
    return Slate.from_dict(values)


def _write(path: Path, values: dict[str, Any]) -> None:
    from .. import _durable

    try:
        _durable.replace_file(path, (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode())
    except OSError as error:
        raise ConfigError(f"can't write {path}: {error.strerror}; choose another path") from None


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))
