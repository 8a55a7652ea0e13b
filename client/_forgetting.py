"""What goes with an interaction that is forgotten: its rows, and what could still tell it from what is left.

A probability of a slate was worked out from the log as it was then and, below the top, from the items above: together
with the package it can name an item that is no longer there. So can the slate itself, which left out what was known.
Whatever was drawn knowing a forgotten interaction therefore goes with it, and other interactions lose their
probabilities.
"""

from __future__ import annotations

from typing import NamedTuple

from ._connection import Connection


class Forgotten(NamedTuple):
    """What :func:`forget_rows` did."""

    removed: int
    """Interactions and impressions that are gone."""
    learned: bool
    """Whether what was adapted on this device may have seen one of them; with everything, always."""


def forget_rows(connection: Connection, *, before: int | None, item: str | None) -> Forgotten:
    """Remove what is older than ``before``, or about ``item``, or everything; within the caller's transaction.

    Trainings are marked with how many of the interactions that they saw are forgotten. Those that a limit dropped
    earlier count as forgotten from now on: nobody can tell any more what they were about.
    """
    where, values = _where(before, item)
    if not where:
        removed = sum(_deleted(connection, table, "", ()) for table in ("interactions", "impressions"))
        connection.rows("UPDATE trainings SET forgotten = used")
        return Forgotten(removed, learned=True)
    gone = [(int(i), int(at)) for i, at in connection.rows(f"SELECT id, at FROM interactions{where}", values)]
    learned = _mark(connection, [one for one, _ in gone]) or bool(gone)
    drawn = [(slate,) for slate in _drawn_with(connection, where, values, gone)]
    removed = sum(_deleted(connection, table, where, values) for table in ("interactions", "impressions"))
    removed += sum(_deleted(connection, "impressions", " WHERE slate = ?", slate) for slate in drawn)
    hidden = "propensity = NULL, first_draw = NULL, position = NULL"
    connection.many(f"UPDATE interactions SET {hidden} WHERE slate = ?", drawn)
    return Forgotten(removed, learned)


def _drawn_with(
    connection: Connection, where: str, values: tuple[int | str, ...], gone: list[tuple[int, int]]
) -> set[str]:
    """Names of the slates that hold what goes, or were logged since: they may have been drawn knowing it."""
    asked = [(f"SELECT slate FROM {table}{where}", values) for table in ("interactions", "impressions")]
    if gone:
        first, at = min(one for one, _ in gone), min(time for _, time in gone)
        asked += [
            ("SELECT slate FROM impressions WHERE id >= (SELECT min(id) FROM impressions WHERE at >= ?)", (at,)),
            ("SELECT slate FROM interactions WHERE id > ?", (first,)),
        ]
    return {str(slate) for sql, given in asked for (slate,) in connection.rows(sql, given) if slate is not None}


def _mark(connection: Connection, gone: list[int]) -> bool:
    """Mark the trainings; returns whether one of them saw any that is forgotten now, before the rows are deleted."""
    marked = False
    for row, last, used, forgotten in connection.rows("SELECT id, last, used, forgotten FROM trainings"):
        ((there,),) = connection.rows("SELECT count(*) FROM interactions WHERE id <= ?", (last,))
        dropped = max(0, used - forgotten - there)  # by a limit
        lost = dropped + sum(one <= last for one in gone)
        if lost:
            connection.rows("UPDATE trainings SET forgotten = forgotten + ? WHERE id = ?", (lost, row))
        marked = marked or lost > 0
    return marked


def _deleted(connection: Connection, table: str, where: str, values: tuple[int | str, ...]) -> int:
    return len(connection.rows(f"DELETE FROM {table}{where} RETURNING id", values))


def _where(before: int | None, item: str | None) -> tuple[str, tuple[int | str, ...]]:
    if before is not None:
        return " WHERE at < ?", (before,)
    return (" WHERE item = ?", (item,)) if item is not None else ("", ())
