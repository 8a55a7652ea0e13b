"""A configuration as the app folder that ``flwr run`` wants: one ``pyproject.toml`` and no code."""

from __future__ import annotations

import json
from collections.abc import Mapping

from .. import __version__
from ..config import Config

_PROJECT = """\
# {about}
# Written by `fedrec {command}`. No code and no dependencies: fedrec is taken from where Flower is installed.
[project]
name = "{name}"
version = "{version}"
description = "{description}"
license = "Apache-2.0"
requires-python = ">=3.11"
dependencies = []

[tool.flwr.app]
publisher = "fedrec"

[tool.flwr.app.components]
serverapp = "{serverapp}"
clientapp = "{clientapp}"

"""
_DEFAULTS = """\
# Defaults of --run-config; docs/configuration.md tells what each key means. Flower knows neither null nor lists: the
# text "none" stands for no value, and JSON text for a list or a map.
[tool.flwr.app.config]
fedrec-run-dir = ""  # the run directory, an absolute path: has to be given
fedrec-resume = false  # go on with the run in there
"""


def flower_app(config: Config) -> str:
    """The ``pyproject.toml`` of a Flower app that runs ``config``, every key of it open to ``--run-config``."""
    sections: dict[str, dict[str, bool | float | int | str]] = {"": {}}
    for key, value in config.flat().items():
        section, _, name = key.rpartition(".")
        sections.setdefault(section, {})[name] = value
    top = _lines(sections.pop(""))
    tables = [f"\n[tool.flwr.app.config.{section}]\n{_lines(body)}" for section, body in sections.items()]
    head = app_project(
        about="A simulated federation on Flower's engines, to be run with flwr run; docs/federation.md tells how.",
        command="config flower",
        name="fedrec-simulation",
        description="A simulated fedrec federation for Flower's engines.",
        serverapp="fedrec.simulation.app:server_app",
        clientapp="fedrec.simulation.app:client_app",
    )
    return head + _DEFAULTS + top + "".join(tables)


def app_project(*, about: str, command: str, name: str, description: str, serverapp: str, clientapp: str) -> str:
    """A Flower app's ``pyproject.toml`` up to its run config.

    Args:
        about: heads the file.
        command: of fedrec, that writes it.
        name: of the app.
        description: of the app, too.
        serverapp: ``module:attribute``.
        clientapp: the same.
    """
    return _PROJECT.format(
        about=about,
        command=command,
        name=name,
        version=__version__,
        description=description,
        serverapp=serverapp,
        clientapp=clientapp,
    )


def _lines(values: Mapping[str, bool | float | int | str]) -> str:
    return "".join(f"{key} = {_value(value)}\n" for key, value in values.items())


def _value(value: bool | float | int | str) -> str:
    """TOML; a text with quotes in it (JSON, that is) stands between single ones, where nothing needs escaping."""
    if isinstance(value, str) and '"' in value and value.isprintable() and "'" not in value:
        return f"'{value}'"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
