"""Read a log of interactions from text or parquet into codes, rewards and times, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ...errors import DataError
from .build import Log
from .delimited import TextFormat, read_chunks

ROLES = ("user", "item", "rating", "timestamp", "propensity")


class Piece(Protocol):
    """A part of a log: columns as text (or, from parquet, typed) and a way to name a wrong value."""

    @property
    def frame(self) -> pl.DataFrame:
        """One row for each interaction."""

    def fail(self, row: int, column: str, expected: str, advice: str) -> NoReturn:
        """Raise the error that names where the value of ``row`` and ``column`` stands."""


@dataclass
class _Codes:
    """Numbers for ids, in the order in which they are first met."""

    known: dict[str, int] = field(default_factory=dict)

    def encode(self, values: pl.Series) -> NDArray[np.int32]:
        """The number of every id; new ids get the next ones."""
        fresh = values.unique(maintain_order=True).to_list()
        numbers = [self.known.setdefault(identifier, len(self.known)) for identifier in fresh]
        table = pl.DataFrame({"id": pl.Series(fresh, dtype=pl.String), "code": pl.Series(numbers, dtype=pl.Int32)})
        codes = pl.DataFrame({"id": values}).join(table, on="id", how="left", maintain_order="left")["code"]
        return codes.to_numpy()


class LogReader:
    """Reads one log.

    Args:
        path: the text file.
        format: how it is delimited.
        columns: what to call its columns, where the header is not to be used.
        roles: for each of ``user``, ``item``, ``rating``, ``timestamp`` and ``propensity`` the column that holds it;
            by default the column of that name. Without a rating every interaction counts 1.
    """

    def __init__(
        self,
        path: Path,
        format: TextFormat,
        *,
        columns: Sequence[str] | None = None,
        roles: dict[str, str] | None = None,
    ) -> None:
        self._pieces: Iterator[Piece] = read_chunks(path, format, columns=columns)
        self._path = path
        self._roles = roles or {role: role for role in ROLES if role in (columns or ())}

    def read(self) -> Log:
        """Read it all; ``DataError`` names file, line and column of the first wrong value."""
        return read_log(self._pieces, self._roles, source=self._path.name)


def read_log(pieces: Iterator[Piece], roles: dict[str, str], *, source: str) -> Log:
    """Turn the pieces of a log into one ``Log``; see ``LogReader``."""
    users, items = _Codes(), _Codes()
    parts: list[dict[str, NDArray[Any]]] = []
    for piece in pieces:
        part: dict[str, NDArray[Any]] = {
            "users": users.encode(ids_of(piece, roles["user"])),
            "items": items.encode(ids_of(piece, roles["item"])),
            "rewards": _rewards(piece, roles.get("rating")),
        }
        if "timestamp" in roles:
            part["timestamps"] = _timestamps(piece, roles["timestamp"])
        if "propensity" in roles:
            part["propensities"] = _propensities(piece, roles["propensity"])
        parts.append(part)
    if not parts:
        raise DataError(f"expected interactions in {source}, got none; check the file")
    columns = {name: np.concatenate([part.pop(name) for part in parts]) for name in list(parts[0])}
    return Log(
        users=columns["users"],
        items=columns["items"],
        rewards=columns["rewards"],
        timestamps=columns.get("timestamps"),
        propensities=columns.get("propensities"),
        user_ids=list(users.known),
        item_ids=list(items.known),
    )


def _first(mask: pl.Series | NDArray[np.bool_]) -> int | None:
    found = np.flatnonzero(np.asarray(mask))
    return int(found[0]) if len(found) else None


def ids_of(piece: Piece, column: str) -> pl.Series:
    """The ids in a column, as text without blanks around them; an empty one is an error."""
    values = piece.frame[column].cast(pl.String).str.strip_chars()
    empty = _first((values.is_null() | (values == "")).fill_null(True).to_numpy())
    if empty is not None:
        piece.fail(empty, column, "an id", "complete or remove the line")
    return values


def _as_numbers(piece: Piece, column: str) -> NDArray[np.float64]:
    """A column as float64; a value that is no finite number is an error."""
    values = piece.frame[column]
    if values.dtype == pl.String:
        values = values.str.strip_chars()
    numbers: NDArray[np.float64] = values.cast(pl.Float64, strict=False).fill_null(np.nan).to_numpy()
    wrong = _first(~np.isfinite(numbers))
    if wrong is not None:
        piece.fail(wrong, column, "a finite number", "correct or remove the line, or map another column")
    return numbers


def _rewards(piece: Piece, column: str | None) -> NDArray[np.float32]:
    if column is None:
        return np.ones(piece.frame.height, dtype=np.float32)
    numbers = _as_numbers(piece, column)
    wrong = _first(np.abs(numbers) > np.finfo(np.float32).max)
    if wrong is not None:
        piece.fail(wrong, column, "a number that fits 32 bits", "correct or remove the line")
    return numbers.astype(np.float32)


def _propensities(piece: Piece, column: str) -> NDArray[np.float32]:
    numbers = _as_numbers(piece, column).astype(np.float32)
    wrong = _first((numbers <= 0) | (numbers > 1))
    if wrong is not None:
        piece.fail(wrong, column, "a probability in (0, 1]", "correct or remove the line")
    return numbers


def _timestamps(piece: Piece, column: str) -> NDArray[np.int64]:
    """Whole numbers, decimal numbers (cut) or ISO dates, as int64."""
    values = piece.frame[column]
    if values.dtype.is_temporal():
        seconds = values.cast(pl.Datetime("us")).dt.epoch("s")
    elif values.dtype == pl.String:
        seconds = _text_times(values.str.strip_chars())
    else:
        seconds = values.cast(pl.Float64).cast(pl.Int64, strict=False) if values.dtype.is_float() else values
    wrong = _first(seconds.is_null().to_numpy())
    if wrong is not None:
        piece.fail(wrong, column, "seconds since 1970 or an ISO date", "correct the line or leave the column out")
    return seconds.cast(pl.Int64).to_numpy()


def _text_times(values: pl.Series) -> pl.Series:
    times = values.cast(pl.Int64, strict=False)
    if times.null_count():
        decimal = values.cast(pl.Float64, strict=False)
        finite = pl.select(pl.when(decimal.is_finite()).then(decimal)).to_series()
        times = times.zip_with(times.is_not_null(), finite.cast(pl.Int64, strict=False))
    missing = times.is_null()
    if missing.any():
        times = times.scatter(missing.arg_true(), _text_dates(values.filter(missing)))
    return times


def _text_dates(values: pl.Series) -> pl.Series:
    """ISO dates as seconds since 1970, UTC where no zone is told; null for what is no date."""
    try:
        dates = values.str.to_datetime(strict=False, time_unit="us", time_zone="UTC")
    except pl.exceptions.PolarsError:  # nothing that looks like a date among them
        return pl.Series([None] * len(values), dtype=pl.Int64)
    return dates.dt.epoch("s")
