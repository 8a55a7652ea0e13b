"""Every configuration key with its type, bounds, default and meaning, read from the schema itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..config import Config

_BOUNDS = (("exclusiveMinimum", ">"), ("minimum", ">="), ("exclusiveMaximum", "<"), ("maximum", "<="))
_HEADER = """\
# Configuration

Every run is described by one schema. A TOML file, `--set key=value` on the command line, `fedrec.Config` in Python and
Flower's run config all end in it; an unknown key or a wrong value is refused with a sentence before anything starts.

```console
$ fedrec config show --set privacy.epsilon=2
$ fedrec config keys
```

`fedrec config show` prints the whole configuration as TOML: `fedrec config show > my.toml` is a file to start from.
Values after `--set` are TOML; a bare word is a text, and `none` stands for no value. Everything but `engine` may change
a result and is part of the run's fingerprint.

This page is written by `fedrec config keys --markdown` and a test keeps it in step with the schema.
"""


@dataclass(frozen=True, kw_only=True)
class Key:
    """One configuration key.

    Attributes:
        name: dotted, as ``--set`` takes it.
        kind: type, choices or bounds, in words.
        default: as TOML would have it.
        meaning: the docstring of its field.
    """

    name: str
    kind: str
    default: str
    meaning: str


def known_keys() -> list[Key]:
    """Every key of the schema, in its order."""
    return [key for section in sections().values() for key in section]


def sections() -> dict[str, list[Key]]:
    """The keys by section; those outside of any stand under the empty name."""
    schema = Config.model_json_schema()
    found: dict[str, list[Key]] = {"": []}
    for name, entry in schema["properties"].items():
        if "$ref" not in entry:
            found[""].append(_key(name, entry))
            continue
        body = schema["$defs"][entry["$ref"].rsplit("/", maxsplit=1)[-1]]
        found[name] = [_key(f"{name}.{inner}", value) for inner, value in body["properties"].items()]
    return found


def _key(name: str, entry: Mapping[str, Any]) -> Key:
    default = entry.get("default", {} if entry.get("type") == "object" else None)
    text = "none" if default is None else json.dumps(default, ensure_ascii=False).strip('"')
    return Key(name=name, kind=_kind(entry), default=text, meaning=" ".join(entry.get("description", "").split()))


def _kind(entry: Mapping[str, Any]) -> str:
    """A JSON schema type in words: ``number > 0, or none``."""
    if "anyOf" in entry:
        return ", or ".join(_kind(choice) for choice in entry["anyOf"])
    if "enum" in entry:
        return ", ".join(entry["enum"][:-1]) + f" or {entry['enum'][-1]}"
    if entry.get("type") == "array":
        return f"list of {_kind(entry['items'])}"
    if entry.get("type") == "object":
        return f"map from name to {_kind(entry['additionalProperties'])}"
    names = {"null": "none", "boolean": "true or false", "string": "text"}
    kind = names.get(entry["type"], entry["type"])
    bounds = [f"{sign} {entry[key]:g}" for key, sign in _BOUNDS if key in entry]
    return " ".join([kind, " and ".join(bounds)]).strip()


def markdown() -> str:
    """``docs/configuration.md``."""
    parts = [_HEADER]
    for section, keys in sections().items():
        parts.append(f"\n## {section or 'Top level'}\n\n| key | value | default | meaning |\n|---|---|---|---|\n")
        parts += [f"| `{key.name}` | {key.kind} | `{key.default}` | {_cell(key.meaning)} |\n" for key in keys]
    return "".join(parts)


def _cell(text: str) -> str:
    return text.replace("``", "`").replace("|", "\\|")
