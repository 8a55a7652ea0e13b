"""A configuration as the app folder that ``flwr run`` wants: one ``pyproject.toml`` and no code."""

from __future__ import annotations

import json
from collections.abc import Mapping

from .. import __version__
from ..config import Config

_HEADER = """\
# A simulated federation on Flower's engines, to be run with flwr run; docs/federation.md tells how.
# Written by `fedrec config flower`. No code and no dependencies: fedrec is taken from where Flower is installed.
[project]
name = "fedrec-simulation"
version = "{version}"
description = "A simulated fedrec federation for Flower's engines."
license = "Apache-2.0"
requires-python = ">=3.11"
dependencies = []

[tool.flwr.app]
publisher = "fedrec"

[tool.flwr.app.components]
serverapp = "fedrec.simulation.app:server_app"
clientapp = "fedrec.simulation.app:client_app"

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
    return _HEADER.format(version=__version__) + top + "".join(tables)


def _lines(values: Mapping[str, bool | float | int | str]) -> str:
    return "".join(f"{key} = {_value(value)}\n" for key, value in values.items())


def _value(value: bool | float | int | str) -> str:
    """TOML; a text with quotes in it (JSON, that is) stands between single ones, where nothing needs escaping."""
    if isinstance(value, str) and '"' in value and value.isprintable() and "'" not in value:
        return f"'{value}'"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
