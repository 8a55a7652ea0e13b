"""Guess what the columns of a stranger's file hold, from their names and values; everything can be overridden."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import polars as pl

from ...errors import DataError
from .tables import KINDS, FeatureTable, Kind, join_title, split_title

ROLES = ("user", "item", "rating", "timestamp", "propensity")
_USUAL: dict[str, tuple[str, ...]] = {
    "user": ("userid", "user", "uid", "deviceid", "device", "customerid", "visitorid", "reviewerid", "memberid"),
    "item": (
        *("itemid", "item", "iid", "movieid", "movie", "productid", "product", "asin", "bookid", "isbn", "trackid"),
        *("songid", "artistid", "articleid", "newsid", "businessid", "gameid", "animeid", "jokeid"),
    ),
    "rating": (
        *("rating", "score", "stars", "overall", "reward", "click", "clicked", "label", "count", "plays", "playcount"),
        *("listens", "weight", "preference"),
    ),
    "timestamp": ("timestamp", "time", "ts", "unixtime", "unixreviewtime", "datetime", "date", "createdat"),
    "propensity": ("propensity", "propensityscore", "pscore"),
    "position": ("position", "slot", "rank", "place"),
    "slate": ("slate", "slateid", "impression", "impressionid", "requestid"),
    "marginal": ("marginal", "placepropensity", "pscoreitemposition"),
}
CLICK_NAMES = ("click", "clicked", "label")
COUNT_NAMES = ("count", "plays", "playcount", "listens")
_TITLE_NAMES = ("title", "name", "movietitle", "itemtitle", "itemname", "productname", "booktitle")
_TEXT_NAMES = ("description", "overview", "plot", "summary", "text", "abstract", "headline")
_LABEL_NAMES = ("genre", "genres", "class", "tags", "categories", "labels", "keywords")


def plain(name: str) -> str:
    """A column's name without case, type and punctuation: ``User_ID:token`` is ``userid``."""
    return re.sub(r"[^a-z0-9]", "", name.lower().split(":")[0])


def find_roles(file: str, columns: Sequence[str], mapping: Mapping[str, str | None]) -> dict[str, str]:
    """Which column holds the user, the item, the rating, the time and the propensity.

    Args:
        file: name of the file, for errors.
        columns: the columns it has.
        mapping: the role's column as the user names it, ``None`` for none; roles that are not named are guessed.

    Raises:
        DataError: a named column does not exist, or there is no user or item column.
    """
    roles: dict[str, str] = {}
    for role in ROLES:
        if role in mapping:
            named = mapping[role]
            if named is None:
                continue
            if named not in columns:
                raise _no_column(file, role, columns, f"got {named!r}")
            roles[role] = named
        elif guessed := usual_column(role, columns):
            roles[role] = guessed
    for role in ("user", "item"):
        if role not in roles:
            raise _no_column(file, role, columns, "recognised none")
    return roles


def usual_column(role: str, columns: Sequence[str]) -> str | None:
    """The first column whose name is usual for ``role``, the likeliest name first."""
    by_name = {plain(column): column for column in reversed(columns)}
    return next((by_name[name] for name in _USUAL[role] if name in by_name), None)


def _no_column(file: str, role: str, columns: Sequence[str], found: str) -> DataError:
    listed = ", ".join(columns)
    return DataError(
        f"{file} line 1: expected a column for the {role} among {listed}, {found}; name it in the mapping as "
        f"{role}=COLUMN"
    )


def build_table(
    file: str, ids: pl.Series, frame: pl.DataFrame, kinds: Mapping[str, str], separator: str = "|"
) -> tuple[FeatureTable, list[str]]:
    """Make a ``FeatureTable`` of the columns of a file.

    Args:
        file: name of the file, for errors.
        ids: the id of each row, text.
        frame: the other columns, text or typed.
        kinds: what columns hold, where that is known (``skip`` leaves one out); the others are guessed.
        separator: what stands between the labels of a multi-label column.

    Returns:
        The table, and the columns that were left out because every row has a value of its own.
    """
    unknown = sorted(set(kinds) - set(frame.columns))
    if unknown:
        raise DataError(f"{file} line 1: expected columns among {', '.join(frame.columns)}, got {unknown[0]!r}")
    wanted = {series.name: kinds.get(series.name) or guess_kind(series) for series in frame.iter_columns()}
    left_out = [name for name, kind in wanted.items() if kind == "skip"]
    found = {name: _known(name, kind) for name, kind in wanted.items() if kind != "skip"}
    columns = {name: convert(file, frame[name], kind, separator) for name, kind in found.items()}
    titles = _take_titles(columns, found)
    twice = ids.is_duplicated()
    if twice.any():
        raise DataError(f"{file}: expected every id once, got {ids.filter(twice)[0]!r} again; drop one of the rows")
    shown = None if titles is None else [title or ids[row] for row, title in enumerate(titles)]
    return FeatureTable(frame=pl.DataFrame({"id": ids, **columns}), kinds=found, titles=shown), left_out


def _take_titles(columns: dict[str, pl.Series], kinds: dict[str, Kind]) -> list[str] | None:
    """The titles to show, where a column has them.

    The text that is encoded loses its year; a year that no column tells becomes a column of its own.
    """
    named = [name for name, kind in kinds.items() if kind == "text" and plain(name) in _TITLE_NAMES]
    if not named:
        return None
    titles: list[str] = columns[named[0]].fill_null("").to_list()
    columns[named[0]] = pl.Series([split_title(title)[0] for title in titles], dtype=pl.String)
    if "year" in kinds.values():
        return titles
    titles, years = _split_titles(titles)
    if years is not None:
        columns["title year"], kinds["title year"] = years, "year"
    return titles


def _split_titles(titles: list[str]) -> tuple[list[str], pl.Series | None]:
    """The titles as shown and, where most of them end in a year, the years."""
    parts = [split_title(title) for title in titles]
    dated = sum(year is not None for _, year in parts)
    if not dated or 2 * dated < len(parts):
        return titles, None
    return [join_title(*part) for part in parts], pl.Series([year for _, year in parts], dtype=pl.Float64)


def _known(column: str, kind: str) -> Kind:
    for known in KINDS:
        if kind == known:
            return known  # type: ignore[return-value]
    raise DataError(f"expected the kind of column {column} to be one of {', '.join(KINDS)} or skip, got {kind!r}")


def guess_kind(series: pl.Series) -> str:
    """What a column holds, from its name and values; ``skip`` where every row has a text of its own."""
    name = plain(series.name)
    if isinstance(series.dtype, pl.List):
        return "multilabel"
    if name in _TITLE_NAMES or name in _TEXT_NAMES:
        return "text"
    known = series.drop_nulls()
    if name.endswith("year") and len(known) and 2 * _years(known).null_count() < len(known):
        return "year"
    numeric = bool(len(known)) and known.cast(pl.Float64, strict=False).null_count() == 0
    if numeric and not name.endswith(("id", "code", "zip")):
        return "age" if name == "age" else "number"
    if (
        series.dtype == pl.String
        and not numeric
        and (name in _LABEL_NAMES or known.str.contains("|", literal=True).any())
    ):
        return "multilabel"
    return "skip" if known.n_unique() > max(20, len(series) // 2) or not len(known) else "category"


def convert(file: str, series: pl.Series, kind: str, separator: str) -> pl.Series:
    """The values of a column in the type that ``kind`` asks for; empty texts are missing values."""
    if kind in ("number", "age"):
        return _finite(file, series)
    if kind == "year":
        return _years(series)
    if kind == "multilabel" and isinstance(series.dtype, pl.List):
        return series.cast(pl.List(pl.String))
    text = series.cast(pl.String).str.strip_chars()
    if kind == "multilabel":
        return text.str.split(separator).list.eval(pl.element().str.strip_chars())
    return text


def _years(series: pl.Series) -> pl.Series:
    """The first four digits in a row of every value; missing where there are none."""
    return series.cast(pl.String).str.extract(r"(\d{4})").cast(pl.Float64)


def _finite(file: str, series: pl.Series) -> pl.Series:
    text = series.str.strip_chars() if series.dtype == pl.String else series
    numbers = text.cast(pl.Float64, strict=False)
    wrong = ((numbers.is_null() & text.is_not_null()) | ~numbers.is_finite()).fill_null(False).arg_true()
    if len(wrong):
        row = int(wrong[0])
        where = f"{file} row {row + 1}, column {series.name}"
        raise DataError(f"{where}: expected a finite number, got {series[row]!r}; correct it or map another kind")
    return numbers
