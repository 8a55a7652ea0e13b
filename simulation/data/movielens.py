"""Read MovieLens 100K and 1M, from GroupLens' own archives or from the atomic files of the mirror, to the same result.

Both sources list the ratings in the same order. The mirror of ml-1m has no movie ids: films are known by their title,
which is unique, so title and year are the item ids of ml-1m whatever the source.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from ...errors import DataError
from .build import Log
from .delimited import TextFormat, read_whole
from .logs import LogReader
from .tables import FeatureTable, Kind, join_title, split_title

GENRES = (
    *(
        "unknown",
        "Action",
        "Adventure",
        "Animation",
        "Children's",
        "Comedy",
        "Crime",
        "Documentary",
        "Drama",
        "Fantasy",
    ),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
"""The 19 flags at the end of a line of ``u.item``, in their order."""

OCCUPATIONS = (
    *("other", "academic/educator", "artist", "clerical/admin", "college/grad student", "customer service"),
    *("doctor/health care", "executive/managerial", "farmer", "homemaker", "K-12 student", "lawyer", "programmer"),
    *("retired", "sales/marketing", "scientist", "self-employed", "technician/engineer", "tradesman/craftsman"),
    *("unemployed", "writer"),
)
"""What the occupation codes of ml-1m mean, from its README."""

Layout = Literal["grouplens-100k", "atomic-100k", "grouplens-1m", "atomic-1m"]


@dataclass(frozen=True, kw_only=True)
class Files:
    """Which file of a source holds what."""

    log: Path
    items: Path
    users: Path


def read(layout: Layout, files: Files) -> tuple[Log, FeatureTable, FeatureTable]:
    """Read the ratings, the films and the users of one source."""
    if layout == "grouplens-100k":
        return _grouplens_100k(files)
    if layout == "grouplens-1m":
        return _grouplens_1m(files)
    return _atomic(files, prefix="1m_" if layout == "atomic-1m" else "")


def _grouplens_100k(files: Files) -> tuple[Log, FeatureTable, FeatureTable]:
    columns = ("user", "item", "rating", "timestamp")
    log = LogReader(files.log, TextFormat(separator="\t", header=False), columns=columns).read()
    named = ("item_id", "title", "release", "video", "url", *GENRES)
    items = read_whole(files.items, TextFormat(separator="|", header=False), columns=named)
    flags = items.select(GENRES).rows()
    genres = [[name for name, flag in zip(GENRES, row, strict=True) if flag == "1"] for row in flags]
    users = read_whole(
        files.users,
        TextFormat(separator="|", header=False),
        columns=("user_id", "age", "gender", "occupation", "zip_code"),
    )
    return log, _films(items["item_id"].to_list(), items["title"].to_list(), genres), _users(users)


def _grouplens_1m(files: Files) -> tuple[Log, FeatureTable, FeatureTable]:
    separated = TextFormat(separator="::", header=False)
    items = read_whole(files.items, separated, columns=("item_id", "title", "genres"))
    titles = [join_title(*split_title(title)) for title in items["title"].to_list()]
    renamed = dict(zip(items["item_id"].to_list(), titles, strict=True))
    log = LogReader(files.log, separated, columns=("user", "item", "rating", "timestamp")).read()
    log = _rename(log, items=renamed)
    genres = [text.split("|") for text in items["genres"].to_list()]
    users = read_whole(files.users, separated, columns=("user_id", "gender", "age", "occupation", "zip_code"))
    return log, _films(titles, titles, genres), _users(users)


def _atomic(files: Files, *, prefix: str) -> tuple[Log, FeatureTable, FeatureTable]:
    tabbed = TextFormat(separator="\t", header=True)
    log = LogReader(files.log, tabbed, columns=("user", "item", "rating", "timestamp")).read()
    items = read_whole(files.items, tabbed, columns=("item_id", "title", "year", "genres"))
    genres = [text.split(" ") for text in items["genres"].to_list()]
    titles = [_atomic_title(*row) for row in items.select("title", "year").rows()]
    users = read_whole(files.users, tabbed, columns=("user_id", "age", "gender", "occupation", "zip_code"))
    ids = items["item_id"].to_list()
    if prefix:
        log = _rename(log, users={user: user.removeprefix(prefix) for user in log.user_ids})
        log = _rename(log, items=dict(zip(ids, titles, strict=True)))
        users = users.with_columns(pl.col("user_id").str.strip_prefix(prefix))
        ids = titles
    return log, _films(ids, titles, genres), _users(users)


def _atomic_title(title: str, year: str) -> str:
    """Put title and year together again; film 267 is misspelt there, and of 1412 the note was taken for the year."""
    if year == "unkonwn":
        return "unknown"
    return f"{title} ({year})" if year.isdigit() else title


def _rename(log: Log, *, items: dict[str, str] | None = None, users: dict[str, str] | None = None) -> Log:
    def renamed(ids: Sequence[str], names: dict[str, str] | None) -> Sequence[str]:
        if names is None:
            return ids
        missing = [identifier for identifier in ids if identifier not in names]
        if missing:
            raise DataError(f"expected {missing[0]!r} of the ratings in the table too, got none; fetch the data again")
        return [names[identifier] for identifier in ids]

    return Log(
        users=log.users,
        items=log.items,
        rewards=log.rewards,
        timestamps=log.timestamps,
        user_ids=renamed(log.user_ids, users),
        item_ids=renamed(log.item_ids, items),
    )


def _films(ids: Sequence[str], titles: Sequence[str], genres: Sequence[Sequence[str]]) -> FeatureTable:
    parts = [split_title(title) for title in titles]
    frame = pl.DataFrame(
        {
            "id": pl.Series(ids, dtype=pl.String),
            "genre": pl.Series([_known_genres(row) for row in genres], dtype=pl.List(pl.String)),
            "year": pl.Series([year for _, year in parts], dtype=pl.Float64),
            "title": pl.Series([title for title, _ in parts], dtype=pl.String),
        }
    )
    kinds: dict[str, Kind] = {"genre": "multilabel", "year": "year", "title": "text"}
    return FeatureTable(frame=frame, kinds=kinds, titles=[join_title(*part) for part in parts])


def _known_genres(genres: Sequence[str]) -> list[str]:
    return [genre for genre in genres if genre != "unknown"]


def _users(users: pl.DataFrame) -> FeatureTable:
    """Age, gender and occupation; the postal code is left out: it says who somebody is, not what they like."""
    names = {str(code): name for code, name in enumerate(OCCUPATIONS)}
    frame = users.select(
        pl.col("user_id").alias("id"),
        pl.col("age").cast(pl.Float64),
        pl.col("gender"),
        pl.col("occupation").replace(names),
    )
    return FeatureTable(frame=frame, kinds={"age": "age", "gender": "category", "occupation": "category"})
