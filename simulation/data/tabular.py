"""Read logs and tables from CSV, TSV and other delimited text, and from parquet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import polars as pl

from ...errors import DataError
from .columns import ROLES, build_table, usual_column
from .delimited import TextFormat, read_chunks, read_header, sniff
from .logs import Piece, ids_of
from .tables import FeatureTable

PARQUET_ROWS = 2**22
"""Rows of a parquet file that are read at a time."""
USUAL_ORDER = ("user", "item", "rating", "timestamp")
"""What the columns of a file without a header are taken for."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ParquetPiece:
    """Some rows of a parquet file."""

    frame: pl.DataFrame
    file: str
    first_row: int

    def fail(self, row: int, column: str, expected: str, advice: str) -> NoReturn:
        """Raise the ``DataError`` that names file, row and column of a wrong value."""
        value = self.frame[column][row]
        found = "nothing" if value is None else repr(value)
        where = f"{self.file} row {self.first_row + row}, column {column}"
        raise DataError(f"{where}: expected {expected}, got {found}; {advice}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """A file that can be read piece by piece.

    Attributes:
        path: the file.
        columns: the names of its columns.
        format: how it is delimited; ``None`` for parquet.
    """

    path: Path
    columns: tuple[str, ...]
    format: TextFormat | None

    def pieces(self) -> Iterator[Piece]:
        """The content, piece by piece."""
        if self.format is not None:
            yield from read_chunks(self.path, self.format, columns=self.columns)
        else:
            yield from _parquet_pieces(self.path)


def open_source(path: Path, *, separator: str | None = None, header: bool | None = None) -> Source:
    """Look at the first line (or the schema) of a file.

    Args:
        path: a parquet file (by its suffix) or delimited text.
        separator: what stands between two fields; guessed by default.
        header: whether the first line names the columns; by default it does, unless it holds nothing but numbers.
    """
    if not path.is_file():
        raise DataError(f"expected a file at {path}, found none; check the path")
    if path.suffix in (".parquet", ".pq"):
        return Source(path=path, columns=_parquet_columns(path), format=None)
    format = sniff(path, separator=separator)
    names = read_header(path, format, unique=header is True)
    numbers = all(_is_number(name) for name in names)
    if header is False or (header is None and numbers):
        format = TextFormat(separator=format.separator, quote=format.quote, header=False)
    return Source(path=path, columns=tuple(read_header(path, format)), format=format)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _parquet_columns(path: Path) -> tuple[str, ...]:
    try:
        return tuple(pl.scan_parquet(path).collect_schema().names())
    except (OSError, pl.exceptions.PolarsError) as error:
        raise _unreadable(path, error) from error


def _parquet_pieces(path: Path) -> Iterator[Piece]:
    try:
        scan = pl.scan_parquet(path)
        rows = int(scan.select(pl.len()).collect().item())
        for first in range(0, rows, PARQUET_ROWS):
            frame = scan.slice(first, PARQUET_ROWS).collect()
            yield ParquetPiece(frame=frame, file=path.name, first_row=first + 1)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = (str(error).splitlines() or ["no reason given"])[0]
    return DataError(f"could not read {path.name} as parquet: {reason}; the file may be cut short: get it again")


def usual_mapping(source: Source, mapping: Mapping[str, str | None]) -> dict[str, str | None]:
    """The mapping, completed for a file without a header: user, item, rating and timestamp, in this order."""
    if source.format is None or source.format.header or mapping:
        return dict(mapping)
    return dict(zip(USUAL_ORDER, source.columns, strict=False))


def read_table(
    path: Path, role: str, *, id_column: str | None, kinds: Mapping[str, str], separator: str | None = None
) -> tuple[FeatureTable, list[str]]:
    """Read a table about items or users.

    Args:
        path: parquet or delimited text with a header.
        role: ``item`` or ``user``.
        id_column: the column with the id; by default one with a usual name, or called ``id``.
        kinds: what columns hold, where it is not to be guessed.
        separator: what stands between two fields; guessed by default.

    Returns:
        The table and the columns that were left out.
    """
    source = open_source(path, separator=separator, header=True)
    column = id_column or usual_column(role, source.columns) or ("id" if "id" in source.columns else None)
    if column not in source.columns:
        raise DataError(
            f"{path.name} line 1: expected a column for the {role}'s id among {', '.join(source.columns)}, got "
            f"{column!r}; name it in the mapping as {role}s.id=COLUMN"
        )
    frame, ids = read_rows(source, column)
    return build_table(path.name, ids, frame, kinds)


def read_rows(source: Source, id_column: str) -> tuple[pl.DataFrame, pl.Series]:
    """All rows of a smaller file: its other columns, and the ids, none of which may be missing."""
    frames, ids = [], []
    for piece in source.pieces():
        ids.append(ids_of(piece, id_column))
        frames.append(piece.frame.drop(id_column))
    if not frames:
        raise DataError(f"expected rows in {source.path.name}, got none; check the file")
    return pl.concat(frames), pl.concat(ids)


def check_mapping(
    mapping: Mapping[str, str | int | None],
    tables: Sequence[str] = ("items.id", "users.id"),
    roles: Sequence[str] = ROLES,
) -> None:
    """Refuse a mapping of something that is no role."""
    known = (*roles, *tables)
    unknown = sorted(set(mapping) - set(known))
    if unknown:
        raise DataError(f"expected a mapping of {', '.join(known)}, got {unknown[0]!r}")
