"""Import somebody's own data set: read it, check it, and only then keep it under a name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError
from .build import Log, Repeats, build_dataset
from .cache import directory_of, is_stored, store
from .columns import CLICK_NAMES, COUNT_NAMES, find_roles, plain
from .dataset import Dataset, RewardKind
from .features import FeatureOptions
from .fetching import REGISTERED, Progress, to_stderr
from .logs import read_log
from .recbole import find_atomic_files, open_atomic, read_atomic_table
from .registry import GENERATED
from .tables import FeatureTable
from .tabular import check_mapping, open_source, read_table, usual_mapping


def import_dataset(
    path: str | Path,
    name: str,
    *,
    mapping: Mapping[str, str | int | None] | None = None,
    items: str | Path | None = None,
    users: str | Path | None = None,
    separator: str | None = None,
    header: bool | None = None,
    repeats: Repeats = "last",
    reward_kind: RewardKind | None = None,
    reward_range: tuple[float, float] | None = None,
    item_kinds: Mapping[str, str] | None = None,
    user_kinds: Mapping[str, str] | None = None,
    features: FeatureOptions | None = None,
    replace: bool = False,
    progress: Progress = to_stderr,
) -> Dataset:
    """Import a log of interactions, and what is known about items and users, into the cache.

    Args:
        path: CSV, TSV or other delimited text (``.gz`` too), parquet, a RecBole ``.inter`` file or its directory.
        name: what ``load`` will know it by.
        mapping: which column is the ``user``, ``item``, ``rating``, ``timestamp`` or ``propensity`` of the log, and
            ``items.id`` or ``users.id`` of the tables; ``None`` for "there is none". Usual names are found without it.
            Columns of a file without a header are called ``1``, ``2``, ...
        items: a table about items (the ``.item`` file beside a ``.inter`` file is found without it).
        users: a table about users, likewise.
        separator: what stands between two fields of the log; guessed by default.
        header: whether the log's first line names its columns; by default it does unless it holds numbers only.
        repeats: of several interactions of a user with one item keep the ``last``, the ``first``, or ``keep`` them all.
        reward_kind: ``rating``, ``click`` or ``count``; by default by the column's name and values. Without a rating
            column every interaction is a click worth 1.
        reward_range: bounds of the scale; by default the least and greatest reward found.
        item_kinds: what columns of the item table hold (``category``, ``multilabel``, ``number``, ``year``, ``age``,
            ``text``, or ``skip``), where it is not to be guessed.
        user_kinds: the same for the user table.
        features: how wide the encoded features are.
        replace: replace an imported data set of the same name.
        progress: is told, line by line, what was found.

    Raises:
        DataError: one sentence that names file, line and column. Nothing is registered then.
    """
    named = {role: None if column is None else str(column) for role, column in (mapping or {}).items()}
    check_mapping(named)
    _check_name(name, replace=replace)
    kinds = _Kinds(items=dict(item_kinds or {}), users=dict(user_kinds or {}))
    parts = _read(Path(path), named, items, users, separator=separator, header=header, kinds=kinds, progress=progress)
    dataset = build_dataset(
        name,
        parts.log,
        items=parts.items,
        users=parts.users,
        options=features,
        reward_kind=reward_kind or _reward_kind(parts.log, parts.rating_column),
        reward_range=reward_range,
        repeats=repeats,
    )
    dropped = len(parts.log.items) - dataset.interactions
    if dropped:
        progress(f"{name}: {dropped} interactions repeat an earlier user and item; the {repeats} of each was kept")
    dataset = _in_seconds(dataset)
    store(dataset, items=parts.items, users=parts.users, overwrite=replace)
    progress(
        f"{name}: {dataset.interactions} interactions of {dataset.devices} devices with {dataset.items_count} items"
    )
    return dataset


@dataclass(frozen=True, kw_only=True)
class _Kinds:
    items: dict[str, str]
    users: dict[str, str]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Parts:
    log: Log
    rating_column: str | None
    items: FeatureTable | None
    users: FeatureTable | None


def _check_name(name: str, *, replace: bool) -> None:
    if name in REGISTERED or name in GENERATED:
        raise DataError(f"expected a name of your own, got {name!r}, which is registered; choose another")
    if directory_of(name).exists() and not replace:
        state = "an imported data set" if is_stored(name) else "something else"
        raise DataError(f"expected a new name, got {name!r}, which is {state} already; choose another or replace it")


def _read(
    path: Path,
    mapping: dict[str, str | None],
    items: str | Path | None,
    users: str | Path | None,
    *,
    separator: str | None,
    header: bool | None,
    kinds: _Kinds,
    progress: Progress,
) -> _Parts:
    """Read the log and the tables from whichever form they have."""
    atomic = find_atomic_files(path)
    if atomic is not None:
        source, _ = open_atomic(atomic.log)
        items, users = items or atomic.items, users or atomic.users
    else:
        source = open_source(path, separator=separator, header=header)
    roles = find_roles(source.path.name, source.columns, usual_mapping(source, mapping))
    progress(f"{source.path.name}: " + ", ".join(f"{role} = column {column}" for role, column in roles.items()))
    log = read_log(source.pieces(), roles, source=source.path.name)
    return _Parts(
        log=log,
        rating_column=roles.get("rating"),
        items=_table(items, "item", mapping.get("items.id"), kinds.items, progress),
        users=_table(users, "user", mapping.get("users.id"), kinds.users, progress),
    )


def _table(
    path: str | Path | None, role: str, id_column: str | None, kinds: dict[str, str], progress: Progress
) -> FeatureTable | None:
    if path is None:
        if kinds:
            raise DataError(f"expected a table of {role}s to apply the kinds of {', '.join(kinds)} to, got none")
        return None
    path = Path(path)
    if path.suffix == f".{role}":
        table, left_out = read_atomic_table(path, role, kinds)
    else:
        table, left_out = read_table(path, role, id_column=id_column, kinds=kinds)
    found = ", ".join(f"{column} ({kind})" for column, kind in table.kinds.items()) or "no features"
    note = f"; left out {', '.join(left_out)}" if left_out else ""
    progress(f"{path.name}: {len(table)} {role}s with {found}{note}")
    return table


def _reward_kind(log: Log, column: str | None) -> RewardKind:
    if column is None or plain(column) in CLICK_NAMES:
        return "click"
    if plain(column) in COUNT_NAMES:
        return "count"
    return "click" if bool(np.isin(log.rewards, (0, 1)).all()) else "rating"


def _in_seconds(dataset: Dataset) -> Dataset:
    """Times that would lie thousands of years ahead are milli-, micro- or nanoseconds: make them seconds."""
    times = dataset.timestamps
    if times is None or not len(times):
        return dataset
    middle = float(np.median(np.abs(times)))
    factor = next((factor for factor, least in ((10**9, 1e17), (10**6, 1e14), (10**3, 1e11)) if middle > least), 1)
    changes: dict[str, Any] = {"timestamps": times // factor}
    return dataset if factor == 1 else dataset.replace(**changes)
