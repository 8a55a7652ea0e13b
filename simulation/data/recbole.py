"""RecBole's atomic files: tab-separated text whose header tells the type of each column, such as ``genre:token_seq``.

A data set is ``x.inter`` (the log) and, beside it, ``x.item`` and ``x.user`` where they exist.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from ...errors import DataError
from .columns import build_table, guess_kind, plain, usual_column
from .delimited import TextFormat
from .tables import FeatureTable
from .tabular import Source, open_source, read_rows

TYPES = ("token", "token_seq", "float", "float_seq")


@dataclass(frozen=True, kw_only=True)
class AtomicFiles:
    """The files of one data set."""

    log: Path
    items: Path | None
    users: Path | None


def find_atomic_files(path: Path) -> AtomicFiles | None:
    """The atomic files at ``path``: a ``.inter`` file, or a directory with one; ``None`` where it is something else."""
    if path.is_dir():
        logs = sorted(path.glob("*.inter"))
        if len(logs) != 1:
            found = ", ".join(log.name for log in logs) or "none"
            raise DataError(f"expected one .inter file in {path}, found {found}; name the file to import")
        path = logs[0]
    if path.suffix != ".inter":
        return None
    items, users = path.with_suffix(".item"), path.with_suffix(".user")
    return AtomicFiles(log=path, items=items if items.is_file() else None, users=users if users.is_file() else None)


def open_atomic(path: Path) -> tuple[Source, dict[str, str]]:
    """Open an atomic file; its columns lose their types, which are returned by name."""
    source = open_source(path, separator="\t", header=True)
    types: dict[str, str] = {}
    for column in source.columns:
        name, _, kind = column.rpartition(":")
        if kind not in TYPES:
            wanted = f"a name and one of the types {', '.join(TYPES)}, such as user_id:token"
            raise DataError(f"{path.name} line 1, column {column}: expected {wanted}; correct the header")
        types[name] = kind
    named = Source(path=path, columns=tuple(types), format=TextFormat(separator="\t", header=True))
    return named, types


def read_atomic_table(path: Path, role: str, kinds: dict[str, str]) -> tuple[FeatureTable, list[str]]:
    """Read ``x.item`` or ``x.user``; returns the table and the columns that were left out.

    ``token`` columns are categories (a year, an age or a text where the name says so), ``token_seq`` are labels or,
    by name, text; ``float`` are numbers; ``float_seq`` is left out.
    """
    source, types = open_atomic(path)
    column = usual_column(role, source.columns) or source.columns[0]
    frame, ids = read_rows(source, column)
    wanted = {name: kinds.get(name) or _kind(frame[name], types[name]) for name in frame.columns}
    unknown: Sequence[str] = sorted(set(kinds) - set(wanted))
    if unknown:
        raise DataError(f"{path.name} line 1: expected columns among {', '.join(wanted)}, got {unknown[0]!r}")
    return build_table(path.name, ids, frame, wanted, separator=" ")


def _kind(series: pl.Series, declared: str) -> str:
    guessed = guess_kind(series)
    if declared == "float_seq":
        return "skip"
    if guessed == "text" or (declared in ("token", "float") and guessed in ("year", "age")):
        return guessed
    if declared == "token_seq":
        return "multilabel"
    if declared == "float":
        return "number"
    if plain(series.name).endswith("year"):
        return "category"
    return "skip" if guessed == "skip" else "category"
