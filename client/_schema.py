"""The tables of a device's store, and the steps from every older version to this one.

A new file takes all steps, an older one those that it lacks, in one transaction: half of a step is never seen.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import StoreError
from ._connection import Connection

APPLICATION = 0x66656472
"""SQLite's ``application_id`` of a device store: "fedr"."""
STEPS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
        # ids are never used twice: what was trained up to an id says by it on what
        "CREATE TABLE interactions (id INTEGER PRIMARY KEY AUTOINCREMENT, at INTEGER NOT NULL, item TEXT NOT NULL, "
        "kind TEXT NOT NULL, reward REAL NOT NULL, propensity REAL, first_draw REAL, position INTEGER, slate TEXT)",
        "CREATE TABLE impressions (id INTEGER PRIMARY KEY AUTOINCREMENT, at INTEGER NOT NULL, item TEXT NOT NULL, "
        "slate TEXT NOT NULL, position INTEGER NOT NULL, propensity REAL NOT NULL, first_draw REAL NOT NULL)",
        "CREATE TABLE packages (slot TEXT PRIMARY KEY, version INTEGER NOT NULL, manifest TEXT NOT NULL, "
        "tensors BLOB NOT NULL)",
        "CREATE TABLE items (id TEXT PRIMARY KEY) WITHOUT ROWID",
        "CREATE TABLE parameters (kind TEXT PRIMARY KEY, tensors BLOB NOT NULL)",
    ),
    (
        "CREATE TABLE trainings (id INTEGER PRIMARY KEY AUTOINCREMENT, at INTEGER NOT NULL, kind TEXT NOT NULL, "
        "name TEXT NOT NULL, version INTEGER NOT NULL, last INTEGER NOT NULL, used INTEGER NOT NULL, "
        "forgotten INTEGER NOT NULL DEFAULT 0)",
    ),
    (
        # a slate is logged once, however often it is recorded
        "CREATE INDEX impressions_of_slate ON impressions (slate)",
        "CREATE INDEX interactions_of_slate ON interactions (slate) WHERE slate IS NOT NULL",
    ),
)
VERSION = len(STEPS)


def migrate(connection: Connection, path: Path, *, new: bool = False) -> None:
    """Bring the file to :data:`VERSION`.

    Raises:
        StoreError: it is no device store, or of a newer fedrec.
    """
    application, version = _stamp(connection)
    if not new and application != APPLICATION:
        ((tables,),) = connection.rows("SELECT count(*) FROM sqlite_master")
        found = "another application's database" if tables or application or version else "a database without tables"
        raise StoreError(f"expected a device store in {path}, got {found}; check the path")
    if version > VERSION:
        raise StoreError(f"expected a device store of version {VERSION} or older, got {version}; update fedrec")
    if version == VERSION:
        return
    with connection.transaction():
        _, version = _stamp(connection)  # another process may have been first
        for step in STEPS[version:]:
            for statement in step:
                connection.rows(statement)
        connection.rows(f"PRAGMA application_id = {APPLICATION}")
        connection.rows(f"PRAGMA user_version = {VERSION}")


def _stamp(connection: Connection) -> tuple[int, int]:
    ((application,),) = connection.rows("PRAGMA application_id")
    ((version,),) = connection.rows("PRAGMA user_version")
    return int(application), int(version)
