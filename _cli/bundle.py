"""``fedrec bundle``: make, sign, verify, show and export the policy bundles that devices adopt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from . import terminal

if TYPE_CHECKING:
    from ..client.bundle import Bundle
    from ..privacy.statement import PrivacyStatement
    from ..simulation.run import Run

bundle = typer.Typer(help="Policy bundles: signed files from which devices take their policy.", no_args_is_help=True)

BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle's file.", show_default=False)]
SecretKey = Annotated[Path, typer.Option("--key", help="Private key to sign with.", show_default=False)]
PublicKeys = Annotated[
    list[Path], typer.Option("--key", help="Public key that must have signed, one of several.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on the output stream, and nothing else there.")]


@bundle.command()
def keygen(path: Annotated[Path, typer.Argument(help="Where the private key goes.", show_default=False)]) -> None:
    """Make a pair of ed25519 keys: the private one to sign with, PATH.pub for apps to pin."""
    from ..client.bundle_keys import fingerprint, load_public_key, make_keys

    secret, public = make_keys(path)
    print(f"{secret}: sign with it, and keep it secret")
    print(f"{public}: pin it in the app; its fingerprint is {fingerprint(load_public_key(public))}")


@bundle.command()
def make(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a finished run.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The bundle's file.", show_default=False)],
    version: Annotated[
        int | None, typer.Option(min=1, help="Of the bundle; by default the parent's and 1.", show_default=False)
    ] = None,
    parent: Annotated[Path | None, typer.Option(help="The bundle that this one follows.", show_default=False)] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Matrices in 8 bits, for inference.")] = False,
    key: Annotated[Path | None, typer.Option("--key", help="Sign it, too.", show_default=False)] = None,
) -> None:
    """Put the policy of a run into a bundle."""
    from ..client.bundle import inspect_bundle, make_bundle
    from ..client.bundle_file import sign as signed
    from ..client.bundle_keys import load_private_key

    secret = None if key is None else load_private_key(key)
    before = None if parent is None else inspect_bundle(parent)
    terminal.say("starting PyTorch and Flower")
    from ..simulation.packages import package_of
    from ..simulation.run import Run

    terminal.quieten()
    opened = Run.open(run)
    number = version or (1 if before is None else before.version + 1)
    package = package_of(opened, version=number)
    content = make_bundle(package, _statements(opened), parent=before, weights="int8" if int8 else "float32")
    _write(out, content if secret is None else signed(content, secret))
    terminal.output().print(bundle_table(inspect_bundle(out), out))


@bundle.command()
def sign(
    path: BundlePath,
    key: SecretKey,
    out: Annotated[Path | None, typer.Option(help="Where it goes; by default its place.", show_default=False)] = None,
) -> None:
    """Sign a bundle; a signature that it has is replaced."""
    from ..client.bundle import inspect_bundle
    from ..client.bundle_file import read
    from ..client.bundle_file import sign as signed
    from ..client.bundle_keys import load_private_key

    content = signed(read(path), load_private_key(key))
    found = inspect_bundle(content)
    _write(out or path, content)
    print(f"{out or path}: version {found.version}, signed by {_signer(found)}")


@bundle.command()
def verify(path: BundlePath, keys: PublicKeys) -> None:
    """Check a bundle as a device does before it loads it; exit code 2 where it must not be loaded."""
    from ..client.bundle import load_bundle
    from ..client.bundle_keys import load_public_key

    found = load_bundle(path, [load_public_key(key) for key in keys])
    print(f"{path}: version {found.version}, signed by {_signer(found)}, may be loaded")


@bundle.command()
def show(path: BundlePath, as_json: Json = False) -> None:
    """What a bundle holds; its signature is told, not checked."""
    from ..client.bundle import inspect_bundle

    found = inspect_bundle(path)
    if as_json:
        print(json.dumps(facts(found), indent=1, ensure_ascii=False))
        return
    terminal.output().print(bundle_table(found, path))


@bundle.command()
def export(
    path: BundlePath,
    onnx: Annotated[Path, typer.Option(help="The ONNX model's file.", show_default=False)],
    keys: Annotated[
        list[Path] | None, typer.Option("--key", help="Public key that must have signed; none checks no signature.")
    ] = None,
) -> None:
    """Write a bundle's scoring function as an ONNX model, checked against PyTorch."""
    from ..client.bundle import inspect_bundle, load_bundle
    from ..client.bundle_keys import load_public_key
    from ..client.export_onnx import checked_export

    found = load_bundle(path, [load_public_key(key) for key in keys]) if keys else inspect_bundle(path)
    content, off = checked_export(found)
    _write(onnx, content)
    print(f"{onnx}: {len(content):,} bytes; scores are within {off:.1e} of PyTorch's")


def facts(found: Bundle) -> dict[str, object]:
    """A bundle in plain values."""
    package = found.package
    return {
        "version": found.version,
        "digest": found.digest,
        "parent": found.parent,
        "signer": _signer(found) if found.signer else "",
        "created_by": found.created_by,
        "schema": package.schema,
        "items": len(package.catalogue),
        "parameters": sum(value.numel() for value in package.phi.values()),
        "weights": found.weights,
        "bytes": dict(found.sizes),
        "score_error": {"largest": found.score_error[0], "mean": found.score_error[1]},
        "reward_range": list(package.reward_range),
        "privacy": [statement.to_dict() for statement in found.privacy],
    }


def bundle_table(found: Bundle, path: Path) -> Table:
    """A bundle for a terminal."""
    from ..privacy.statement import NO_PRIVACY

    package, settings = found.package, found.package.config.policy
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    table.add_row("bundle", Text(str(path)))
    table.add_row("version", f"{found.version}, after {found.parent[:16]}" if found.parent else str(found.version))
    table.add_row("digest", found.digest)
    table.add_row("signature", f"by {_signer(found)}; fedrec bundle verify checks it" if found.signer else "none")
    table.add_row("made by", Text(found.created_by))
    table.add_row(
        "policy", f"{package.schema}: state {settings.state}, fast weights {', '.join(settings.fast) or 'none'}"
    )
    table.add_row("catalogue", f"{len(package.catalogue):,} items, {len(package.catalogue.feature_names)} features")
    table.add_row("rewards", f"{package.reward_range[0]:g} to {package.reward_range[1]:g}")
    table.add_row("weights", _weights(found))
    table.add_row("size", ", ".join(f"{name} {size:,}" for name, size in found.sizes.items()) + " bytes")
    for statement in found.privacy:
        table.add_row("privacy", Text(statement.sentence(), style="magenta"))
    if not found.privacy:
        table.add_row("privacy", Text(NO_PRIVACY, style="yellow"))
    return table


def _weights(found: Bundle) -> str:
    numbers = sum(value.numel() for value in found.package.phi.values())
    if found.weights == "float32":
        return f"{numbers:,} as float32"
    share = found.sizes["parameters"] / (4 * numbers)
    largest, mean = found.score_error
    return (
        f"{numbers:,}, matrices as int8: {share:.0%} of the bytes of float32; "
        f"scores are off by {largest:.2g} at most, {mean:.2g} on average (random histories)"
    )


def _signer(found: Bundle) -> str:
    from ..client.bundle_keys import fingerprint

    return fingerprint(found.signer)


def _statements(run: Run) -> list[PrivacyStatement]:
    """What the run says that it has cost."""
    from ..privacy.statement import PrivacyStatement

    return [PrivacyStatement.from_dict(one) for one in run.summary["privacy"]]


def _write(path: Path, content: bytes) -> None:
    from .._durable import replace_file
    from ..errors import BundleError

    try:
        replace_file(path, content)
    except OSError as error:
        raise BundleError(f"can't write {path}: {error.strerror or error}; choose another path") from None
