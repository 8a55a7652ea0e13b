"""``--map role=column``: which column of a file holds what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..errors import DataError


def parse_mapping(entries: Sequence[str]) -> Mapping[str, str | None]:
    """``user=who,item=track`` as a mapping; ``reward`` is another word for the rating, ``none`` for no column."""
    found: dict[str, str | None] = {}
    for entry in (part for text in entries for part in text.split(",")):
        role, separator, column = (part.strip() for part in entry.partition("="))
        if not (role and separator and column):
            raise DataError(f"expected --map role=column, got {entry!r}; for example --map user=who,item=track")
        found["rating" if role == "reward" else role] = None if column == "none" else column
    return found
