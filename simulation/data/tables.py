"""A table about items or users before it is encoded: an id column and columns that say what they hold."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast, get_args

import polars as pl

from ...errors import DataError

Kind = Literal["category", "multilabel", "number", "year", "age", "text"]
KINDS: tuple[str, ...] = get_args(Kind)

_DTYPES: dict[str, pl.DataType] = {
    "category": pl.String(),
    "multilabel": pl.List(pl.String()),
    "number": pl.Float64(),
    "year": pl.Float64(),
    "age": pl.Float64(),
    "text": pl.String(),
}
_TITLE_YEAR = re.compile(r"(?P<title>.*?)\s*\((?P<year>\d{4})\)\s*(?:\([A-Z/]+\)\s*)?")


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureTable:
    """One row for each item (or user), not yet encoded.

    Attributes:
        frame: a column ``id`` (text, unique) and one for each feature: text for ``category`` and ``text``, a list
            of texts for ``multilabel``, a float for ``number``, ``year`` and ``age``; null where a value is missing.
        kinds: what each feature column holds.
        titles: a text to show for each row, where there is one.
    """

    frame: pl.DataFrame
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    titles: Sequence[str] | None = None

    def __post_init__(self) -> None:
        """Check the types of the columns and that no id comes twice."""
        for name, kind in self.kinds.items():
            if kind not in KINDS:
                raise DataError(f"expected the kind of {name} to be one of {', '.join(KINDS)}, got {kind!r}")
            if self.frame.schema[name] != _DTYPES[kind]:
                raise DataError(f"expected {name} ({kind}) to be {_DTYPES[kind]}, got {self.frame.schema[name]}")
        twice = self.frame["id"].is_duplicated()
        if twice.any():
            found = self.frame["id"].filter(twice)[0]
            raise DataError(f"expected one row for each id, got {found!r} more than once; drop the repeated rows")

    def __len__(self) -> int:
        return self.frame.height

    def reindex(self, ids: Sequence[str]) -> FeatureTable:
        """The rows of ``ids`` in that order; ids without a row get missing values, and their id as title."""
        wanted = pl.DataFrame({"id": pl.Series(ids, dtype=pl.String)})
        frame = self.frame
        if self.titles is not None:
            frame = frame.with_columns(pl.Series("_title", list(self.titles), dtype=pl.String))
        joined = wanted.join(frame, on="id", how="left", maintain_order="left")
        if self.titles is None:
            return FeatureTable(frame=joined, kinds=self.kinds)
        titles = joined.select(pl.coalesce("_title", "id"))["_title"].to_list()
        return FeatureTable(frame=joined.drop("_title"), kinds=self.kinds, titles=titles)

    def save(self, path: Path) -> None:
        """Write the table to ``path`` (parquet) and what its columns hold to a JSON file beside it."""
        frame = self.frame
        if self.titles is not None:
            frame = frame.with_columns(pl.Series("_title", list(self.titles), dtype=pl.String))
        frame.write_parquet(path)
        path.with_suffix(".json").write_text(json.dumps(dict(self.kinds)), encoding="utf-8")

    @staticmethod
    def open(path: Path) -> FeatureTable:
        """Read what ``save`` wrote."""
        try:
            frame = pl.read_parquet(path)
            kinds = cast(dict[str, Kind], json.loads(path.with_suffix(".json").read_text(encoding="utf-8")))
        except (OSError, ValueError, pl.exceptions.PolarsError) as error:
            raise DataError(f"could not read {path}: {error}; fetch or import the data set again") from error
        titles = frame["_title"].to_list() if "_title" in frame.columns else None
        return FeatureTable(frame=frame.drop("_title", strict=False), kinds=kinds, titles=titles)


def split_title(text: str) -> tuple[str, float | None]:
    """Split ``Toy Story (1995)`` into its title and year; a trailing note such as ``(V)`` is dropped."""
    match = _TITLE_YEAR.fullmatch(text.strip())
    if match is None:
        return text.strip(), None
    return match["title"], float(match["year"])


def join_title(title: str, year: float | None) -> str:
    """The way a title is shown: with its year, where that is known."""
    return title if year is None else f"{title} ({year:.0f})"
