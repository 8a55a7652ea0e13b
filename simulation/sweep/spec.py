"""What a sweep is: a base, axes, bundles and a ceiling; every cell's configuration is built before anything runs."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

from ...config import Config, parse_override, read_toml
from ...errors import ConfigError

Flat = Mapping[str, Any]
"""Dotted configuration keys with their values."""

DEFAULT = Path(__file__).with_name("default.toml")
"""The sweep of ``fedrec sweep`` without a file."""
SEED = "seed"
_TABLES = ("name", "base", "axes", "bundle", "ceiling")


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """Settings of the cells that lie at certain values of some axes, such as the clip that suits an epsilon."""

    match: Flat
    """Axis -> value, or list of values, of the cells that are meant."""
    settings: Flat
    """What holds there."""

    def fits(self, axes: Flat) -> bool:
        """Whether a cell at ``axes`` is meant."""
        return all(key in axes and _is_among(axes[key], wanted) for key, wanted in self.match.items())


@dataclass(frozen=True, kw_only=True)
class SweepSpec:
    """A sweep, as read from a file: see ``docs/sweeps.md``.

    Attributes:
        name: heads the report.
        base: what holds in every cell.
        axes: dotted key -> values; the cells are their product.
        bundles: settings that go with axis values; a later one wins.
        ceiling: settings of the runs without privacy that stand above the curves; none leaves them out.
        pins: settings of the command line: they win over everything but an axis of several values.
    """

    name: str
    base: Flat
    axes: Mapping[str, tuple[Any, ...]]
    bundles: tuple[Bundle, ...] = ()
    ceiling: Flat | None = None
    pins: Flat = field(default_factory=dict)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], directory: Path | None = None, name: str = "sweep") -> SweepSpec:
        """Read nested ``values``, as TOML gives them.

        Args:
            values: ``base``, ``axes``, ``bundle``, ``ceiling``, ``name``.
            directory: what a path in ``base`` is relative to.
            name: where ``values`` hold none.

        Raises:
            ConfigError: a table, an axis or a bundle is not what it should be.
        """
        for table in values:
            if table not in _TABLES:
                raise ConfigError(f"unknown table {table} of a sweep{_nearest(table, _TABLES)}")
        axes = {key: _axis(key, found) for key, found in _flattened(_table(values, "axes"), deep=True).items()}
        if not axes:
            raise ConfigError('expected [axes] with one axis or more, got none; such as "privacy.epsilon" = [8, 4]')
        return cls(
            name=str(values.get("name", name)),
            base=_base(values.get("base", {}), directory or Path()),
            axes=axes,
            bundles=tuple(_bundle(one, axes) for one in _listed(values.get("bundle", []))),
            ceiling=_flattened(_table(values, "ceiling")) if "ceiling" in values else None,
        )

    def pinned(self, settings: Flat) -> SweepSpec:
        """The same sweep with ``settings`` in every cell; an axis among them is left with that one value."""
        axes = {key: (settings[key],) if key in settings else found for key, found in self.axes.items()}
        rest = {key: value for key, value in settings.items() if key not in self.axes}
        return replace(self, axes=axes, pins={**self.pins, **rest})


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a sweep.

    Attributes:
        axes: axis -> value; a ceiling has only the axes that matter without privacy.
        config: the whole configuration.
        kind: ``cell``, or ``ceiling`` for the runs without privacy.
    """

    axes: Flat
    config: Config
    kind: Literal["cell", "ceiling"] = "cell"

    @property
    def label(self) -> str:
        """``privacy.epsilon=8, seed=0``, as messages have it."""
        places = ", ".join(f"{key}={value}" for key, value in self.axes.items())
        return places if self.kind == "cell" else f"ceiling without privacy, {places}".rstrip(", ")

    @property
    def group(self) -> tuple[tuple[str, Any], ...]:
        """Its place but for the seed: cells of one group are repetitions."""
        return tuple((key, value) for key, value in self.axes.items() if key != SEED)


def load_spec(path: str | Path | None = None, overrides: Iterable[str] = ()) -> SweepSpec:
    """Read a sweep's file.

    Args:
        path: TOML; none takes the default sweep.
        overrides: texts such as ``server.rounds=4`` for every cell; an axis is left with that one value.

    Raises:
        ConfigError: the file is missing or wrong.
    """
    source = DEFAULT if path is None else Path(path)
    spec = SweepSpec.from_mapping(read_toml(source), source.parent, source.stem)
    return spec.pinned(dict(parse_override(text) for text in overrides))


def plan_cells(spec: SweepSpec) -> tuple[Cell, ...]:
    """Every cell with its validated configuration, ceilings last.

    Raises:
        ConfigError: a configuration is wrong (the cell is named), or two cells would be the same run.
    """
    cells = [_cell(spec, dict(zip(spec.axes, values, strict=True))) for values in product(*spec.axes.values())]
    seen: dict[str, Cell] = {}
    for cell in cells:
        twin = seen.setdefault(cell.config.fingerprint(), cell)
        if twin is not cell:
            raise ConfigError(
                f"expected every cell to be another run, got the same for {twin.label} and {cell.label}; drop the axis "
                "that changes no result"
            )
    return (*cells, *_ceilings(spec, cells))


def _cell(spec: SweepSpec, axes: dict[str, Any]) -> Cell:
    layers = [bundle.settings for bundle in spec.bundles if bundle.fits(axes)]
    config = _config([spec.base, *layers, spec.pins, axes], axes)
    return Cell(axes=_canonical(axes, config), config=config)


def _ceilings(spec: SweepSpec, cells: Sequence[Cell]) -> list[Cell]:
    """The runs without privacy: one for each place on the axes that matter to them."""
    if spec.ceiling is None:
        return []
    found: dict[str, Cell] = {}
    for cell in cells:
        axes = {k: v for k, v in cell.axes.items() if not k.startswith("privacy.") and k not in spec.ceiling}
        layers = [bundle.settings for bundle in spec.bundles if bundle.fits(axes)]
        pins = {key: value for key, value in spec.pins.items() if not key.startswith("privacy.")}
        config = _config([spec.base, *layers, spec.ceiling, pins, axes, {"privacy.unit": "none"}], axes)
        found.setdefault(config.fingerprint(), Cell(axes=axes, config=config, kind="ceiling"))
    return list(found.values())


def _config(layers: Sequence[Flat], axes: Flat) -> Config:
    """Later layers win."""
    merged: dict[str, Any] = {"engine.threads": 1}
    for layer in layers:
        for key, value in layer.items():
            merged.pop(key, None)  # a later layer is applied later, entries of a map after the map
            merged[key] = copy.deepcopy(value)
    try:
        return Config.from_flat(merged)
    except ConfigError as error:
        place = ", ".join(f"{key}={value}" for key, value in axes.items())
        raise ConfigError(f"{error} (in the cell {place})") from None


def _canonical(axes: Flat, config: Config) -> dict[str, Any]:
    """Axis values as the configuration holds them: 8 and 8.0 are one epsilon."""
    known = config.flat()
    return {key: known.get(key, value) for key, value in axes.items()}


def _base(value: object, directory: Path) -> Flat:
    if isinstance(value, str):
        return _flattened(read_toml(directory / value))
    if not isinstance(value, Mapping):
        raise ConfigError(f"expected base to be a path or a table, got {value!r}; such as base = 'my.toml'")
    rest = {key: inner for key, inner in value.items() if key != "file"}
    under = read_toml(directory / str(value["file"])) if "file" in value else {}
    return {**_flattened(under), **_flattened(rest)}


def _bundle(values: Mapping[str, Any], axes: Mapping[str, tuple[Any, ...]]) -> Bundle:
    for key in values:
        if key not in ("match", "set"):
            raise ConfigError(f"unknown key {key} of a bundle; expected match and set")
    match = _flattened(_table(values, "match"), deep=True)
    for key, wanted in match.items():
        if key not in axes:
            raise ConfigError(f"expected match to name an axis, got {key}{_nearest(key, axes)}")
        if not any(_is_among(value, wanted) for value in axes[key]):
            raise ConfigError(f"expected match to meet a value of axis {key} ({list(axes[key])}), got {wanted!r}")
    settings = _flattened(_table(values, "set"))
    clash = sorted(settings.keys() & axes.keys())
    if clash or not settings:
        found = f"the axis {clash[0]}" if clash else "nothing"
        raise ConfigError(f"expected a bundle to set keys that are no axes, got {found}; change its set")
    return Bundle(match=match, settings=settings)


def _axis(key: str, values: object) -> tuple[Any, ...]:
    if not isinstance(values, list) or not values:
        raise ConfigError(f"expected axis {key} to be a list of values, got {values!r}; such as {key} = [1, 2]")
    twice = [value for place, value in enumerate(values) if value in values[:place]]
    if twice:
        raise ConfigError(f"expected the values of axis {key} to differ, got {twice[0]!r} twice; drop one")
    return tuple(values)


def _is_among(value: object, wanted: object) -> bool:
    return value == wanted or (isinstance(wanted, list) and value in wanted)


def _flattened(values: Mapping[str, Any], *, deep: bool = False, prefix: str = "") -> dict[str, Any]:
    """Sections as dotted keys, so that ``[axes] privacy.epsilon`` and ``"privacy.epsilon"`` are the same.

    Two levels, below which a table is a map such as ``local.rates``; ``deep`` goes on to its entries.
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and (deep or (not prefix and "." not in key)):
            flat |= _flattened(value, deep=deep, prefix=f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _table(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = values.get(name, {})
    if not isinstance(found, Mapping):
        raise ConfigError(f"expected {name} to be a table, got {found!r}; see docs/sweeps.md")
    return found


def _listed(value: object) -> list[Mapping[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
        raise ConfigError(f"expected bundles as [[bundle]] tables, got {value!r}; see docs/sweeps.md")
    return value


def _nearest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.4)
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"
