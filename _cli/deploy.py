"""``fedrec deploy``: from a signed bundle to the app folder that ``flwr run`` takes to a real federation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from ..errors import ConfigError
from . import render, terminal
from .flower import app_project

if TYPE_CHECKING:
    from ..server.deployment import Deployment

deploy = typer.Typer(help="A real federation: SuperLink, SuperNodes, one device each.", no_args_is_help=True)

_RUN_CONFIG = """\
# What the server is told; everything else is in the bundle. Devices read none of it.
[tool.flwr.app.config]
"""


@deploy.callback()
def _group() -> None:
    """Keep ``init`` a command of its own, however few there are."""


@deploy.command("init")
def init(
    folder: Annotated[Path, typer.Argument(help="Where to write the app folder.", show_default=False)],
    bundle: Annotated[Path, typer.Option(help="The signed bundle that the devices have adopted.", show_default=False)],
    key: Annotated[Path, typer.Option(help="Public key of its signer.", show_default=False)],
    run_dir: Annotated[
        Path, typer.Option("--out", help="Run directory: checkpoints, ledger, metrics.", show_default=False)
    ],
    population: Annotated[int, typer.Option(help="Devices of the federation, a public constant.", show_default=False)],
    nodes: Annotated[int, typer.Option(help="Devices to wait for before the first round.")] = 1,
    deadline: Annotated[
        float, typer.Option(help="Seconds after which a round goes on without the missing replies.")
    ] = 600.0,
) -> None:
    """Write the app folder of a federation, once its bundle and its plan hold; say what it will cost."""
    from ..server.deployment import Deployment, budget_of

    for place in (folder, run_dir):
        if place.exists() and not place.is_dir():
            raise ConfigError(f"expected a folder at {place}, or nothing yet, got a file; choose another path")
    deployment = Deployment(
        bundle=bundle.resolve(),
        key=key.resolve(),
        run_dir=run_dir.resolve(),
        population=population,
        nodes=nodes,
        deadline=deadline,
    )
    found = deployment.load()
    config = deployment.config(found)
    deployment.plan(found).check(config)
    _write(folder / "pyproject.toml", app_folder(deployment))
    out = terminal.output()
    rounds = config.server.rounds
    out.print(Text(f"{folder}: {rounds} rounds over {population} devices, from version {found.version} of the policy"))
    for statement in budget_of(found, config, population).statements:
        out.print(Text(statement.sentence()))
    if config.privacy.unit == "none":
        terminal.errors().print(render.no_privacy())


def app_folder(deployment: Deployment) -> str:
    """The ``pyproject.toml`` of a Flower app that runs ``deployment``."""
    lines = [f"{key} = {json.dumps(value)}  # {told}\n" for key, (value, told) in deployment.run_config().items()]
    head = app_project(
        about="A deployed federation, to be run with flwr run; docs/deploy.md tells how.",
        command="deploy init",
        name="fedrec-deployment",
        description="A fedrec federation of devices, one a SuperNode.",
        serverapp="fedrec.server.deployment:server_app",
        clientapp="fedrec.client.node:client_app",
    )
    return head + _RUN_CONFIG + "".join(lines)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(f"expected no file at {path}, got one; choose another folder or remove it") from None
    except OSError as error:
        raise ConfigError(f"can't write {path}: {error.strerror or error}; choose another folder") from None
