"""What a device remembers: one SQLite file with the log, the packages, what was adapted, and what was trained on what.

Every change is one transaction that is on the disk when the call returns (WAL, ``synchronous = FULL``): a process that
is killed leaves the file as it was before the call or after it. The privacy ledger is a file of its own beside this one
(``privacy.ledger``): it outlives the store, must not be rewritten when something is forgotten, and a restored copy of
the store must not take it back in time.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from .. import _durable
from ..errors import NotAllowed, StoreError
from ._connection import Connection, NoSpace, drain
from ._forgetting import forget_rows
from ._schema import migrate

logger = logging.getLogger(__name__)

Kind = Literal["click", "rating", "purchase"]
Adapted = Literal["served", "personal"]
Slot = Literal["current", "previous"]
_ENTRY = "id, at, item, kind, reward, propensity, first_draw, position, slate"
_SHOWN = "id, at, item, slate, position, propensity, first_draw"
_TRAINING = "at, kind, name, version, last, used, forgotten"
_SCRUB = "scrub"
_EPOCH = "epoch"
_VOID = "void"
_FORGOT = "forgot"
_MEANWHILE = {"forgotten": "something was forgotten", "consent": "consent was withdrawn"}
"""What began an epoch, as it is said."""
_AT_ONCE = 500
"""Values of one statement: older builds of SQLite take 999."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One interaction: what somebody did with an item."""

    item: str
    """The catalogue's own id."""
    kind: Kind
    reward: float
    at: int
    """Seconds since 1970, by the device's clock."""
    propensity: float | None = None
    """Probability of the item at its position of the slate given those above it; none outside of a slate."""
    first_draw: float | None = None
    """Probability of the item at the first position: the logging policy's ``pi(a | s)``; none outside of a slate."""
    position: int | None = None
    """Slot of the slate, from 0."""
    slate: str | None = None
    """Name of the slate."""
    id: int = 0
    """Grows with every interaction, is never used twice; 0 until it is stored."""


@dataclass(frozen=True, kw_only=True)
class Impression:
    """One item of a slate that was shown, whether anybody did anything with it or not."""

    item: str
    slate: str
    position: int
    propensity: float
    first_draw: float
    at: int
    id: int = 0


@dataclass(frozen=True, kw_only=True)
class Training:
    """What was once trained on the log."""

    at: int
    kind: Literal["local", "released"]
    """``local`` never left the device; ``released``: an update was made to leave."""
    name: str
    """``run:round`` of what was released; ``serving`` of what was not."""
    version: int
    """Version of the package that it began from."""
    last: int
    """Id of the last interaction that it saw."""
    used: int
    """How many interactions it saw."""
    forgotten: int = 0
    """How many of those were forgotten since."""


class Added(NamedTuple):
    """What :meth:`Store.add` did, in rows."""

    interactions: int
    """Logged now; those of a slate that were logged before are none."""
    dropped: int
    """Interactions and impressions beyond the limits."""


class Store:
    """The open file. One instance may be used by many threads, and many processes may have the file open."""

    def __init__(self, path: Path, connection: Connection) -> None:
        """Use :meth:`create` or :meth:`open`."""
        self.path = path
        self._connection = connection
        self._lock = threading.RLock()
        self._inside = False

    @classmethod
    def create(cls, path: Path, key: str | bytes | None = None) -> Store:
        """Begin a store where there is none: it is there whole or not at all.

        Raises:
            StoreError: there is a file already, or it can't be written.
        """
        try:
            with _durable.alone_in(path.parent):
                if path.exists():
                    raise StoreError(f"a file exists at {path} already; open it, or choose another path")
                _durable.sweep(path.parent, f"{path.name}.new.")
                nursery = Path(tempfile.mkdtemp(prefix=f".{path.name}.new.", dir=path.parent))
                try:
                    _begin(nursery / path.name, key)
                    os.replace(nursery / path.name, path)
                    _durable.sync_directory(path.parent)
                finally:
                    shutil.rmtree(nursery, ignore_errors=True)
        except OSError as error:
            raise StoreError(f"can't create the device store {path}: {error.strerror}; choose another path") from None
        return cls.open(path, key)

    @classmethod
    def open(cls, path: Path, key: str | bytes | None = None) -> Store:
        """Open a store, bring it to this version, and finish a ``forget`` that was interrupted.

        Where that can't be finished now (no space, another process that reads) the store opens all the same, and the
        next opening tries again: see :attr:`unscrubbed`.

        Raises:
            StoreError: missing, damaged, of another key, of a newer version.
        """
        try:
            size = path.stat().st_size if path.is_file() else None
        except OSError as error:
            raise StoreError(f"can't open the device store {path}: {error.strerror}; check the path") from None
        if size is None:
            raise StoreError(f"expected a device store in {path}, got none; create one first")
        if size == 0:
            raise StoreError(f"expected a device store in {path}, got an empty file; remove it and create one")
        _durable.sweep(path.parent, f"{path.name}.new.")  # what a creation that was killed in the end has left
        connection = Connection(path, key)
        try:
            migrate(connection, path)
            ((found,),) = connection.rows("PRAGMA quick_check(1)")
            if found != "ok":
                what = " ".join(str(found).split())
                raise StoreError(f"the device store {path} is damaged ({what}); restore a copy: its ledger stays")
            store = cls(path, connection)
            if store.unscrubbed:
                store._try_scrub()
        except BaseException:
            connection.close()
            raise
        return store

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside, by this thread alone, or nothing of it; one within another is part of it."""
        with self._lock:
            if self._inside:
                yield
                return
            self._inside = True
            try:
                with self._connection.transaction():
                    yield
            finally:
                self._inside = False

    def data_version(self) -> int:
        """A number that changes when another process or instance has written."""
        with self._lock:
            ((version,),) = self._connection.rows("PRAGMA data_version")
            return int(version)

    def setting(self, name: str) -> str | None:
        """A setting's text; none where it was never set."""
        with self._lock:
            rows = self._connection.rows("SELECT value FROM settings WHERE name = ?", (name,))
        return str(rows[0][0]) if rows else None

    def values(self, name: str) -> dict[str, Any]:
        """A setting that holds JSON; empty where it was never set.

        Raises:
            StoreError: it holds something else by now.
        """
        found = None
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(self.setting(name) or "{}")
        if not isinstance(found, dict):
            raise StoreError(f"the setting {name!r} of the device store {self.path} is damaged; restore a copy")
        return found

    def put(self, name: str, value: str | None) -> None:
        """Set or remove a setting. Within :meth:`transaction` it is part of it."""
        with self._lock:
            if value is None:
                self._connection.rows("DELETE FROM settings WHERE name = ?", (name,))
            else:
                self._connection.rows("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, value))

    def add(
        self,
        entries: Sequence[Entry],
        shown: Sequence[Impression],
        *,
        drawn: int | None = None,
        most: int,
        oldest: int | None,
    ) -> Added:
        """Append to the log, each slate once, and drop what is beyond the limits.

        Args:
            entries: what was done.
            shown: what was shown.
            drawn: when the slate was drawn, seconds since 1970. Where something was forgotten since, what was shown
                and all probabilities are left out: they were worked out knowing it.
            most: interactions that are kept, and as many impressions: the newest.
            oldest: time before which nothing is kept; none keeps all ages.
        """
        with self.transaction():
            if drawn is not None and self.forgot is not None and drawn <= self.forgot:
                entries = [replace(one, propensity=None, first_draw=None, position=None) for one in entries]
                shown = []
            known = {name for name in {one.slate for one in shown} if self._knows(name)}
            shown = [one for one in shown if one.slate not in known]
            entries = [one for one in entries if one.slate is None or not self._logged(one)]
            self._connection.many(
                f"INSERT INTO interactions ({_ENTRY}) VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)",
                [(e.at, e.item, e.kind, e.reward, e.propensity, e.first_draw, e.position, e.slate) for e in entries],
            )
            self._connection.many(
                f"INSERT INTO impressions ({_SHOWN}) VALUES (NULL, ?, ?, ?, ?, ?, ?)",
                [(one.at, one.item, one.slate, one.position, one.propensity, one.first_draw) for one in shown],
            )
            dropped = sum(self._limit(table, most, oldest) for table in ("interactions", "impressions"))
            return Added(len(entries), dropped)

    def _knows(self, slate: str) -> bool:
        return bool(self._connection.rows("SELECT 1 FROM impressions WHERE slate = ? LIMIT 1", (slate,)))

    def _logged(self, entry: Entry) -> bool:
        found = "SELECT 1 FROM interactions WHERE slate = ? AND item = ? AND kind = ? AND reward = ?"
        return bool(self._connection.rows(found, (entry.slate, entry.item, entry.kind, entry.reward)))

    def _limit(self, table: str, most: int, oldest: int | None) -> int:
        beyond = self._connection.rows(f"SELECT id FROM {table} ORDER BY id DESC LIMIT 1 OFFSET ?", (most,))
        dropped = []
        if beyond:
            dropped += self._connection.rows(f"DELETE FROM {table} WHERE id <= ? RETURNING id", beyond[0])
        if oldest is not None:
            dropped += self._connection.rows(f"DELETE FROM {table} WHERE at < ? RETURNING id", (oldest,))
        return len(dropped)

    def entries(self, after: int = 0) -> list[Entry]:
        """Interactions with ids above ``after``, oldest first."""
        with self._lock:
            rows = self._connection.rows(f"SELECT {_ENTRY} FROM interactions WHERE id > ? ORDER BY id", (after,))
        names = _ENTRY.split(", ")
        return [Entry(**dict(zip(names, row, strict=True))) for row in rows]

    def impressions(self) -> list[Impression]:
        """What was shown, oldest first."""
        with self._lock:
            rows = self._connection.rows(f"SELECT {_SHOWN} FROM impressions ORDER BY id")
        names = _SHOWN.split(", ")
        return [Impression(**dict(zip(names, row, strict=True))) for row in rows]

    def count(self, table: Literal["interactions", "impressions"]) -> int:
        """How many rows it has."""
        with self._lock:
            ((rows,),) = self._connection.rows(f"SELECT count(*) FROM {table}")
        return int(rows)

    def forget(self, *, now: int, before: int | None = None, item: str | None = None) -> int:
        """Remove what is older than ``before``, or about ``item``, or (with neither) everything; from the bytes, too.

        What could tell it from what is left goes with it (``_forgetting``). What was trained on a removed interaction
        is marked, and what it left on this device is dropped.

        Args:
            now: seconds since 1970: what slates of before say is not to be logged any more.
            before: seconds since 1970.
            item: id.

        Returns:
            How many interactions and impressions were removed.

        Raises:
            StoreError: the rows are gone, their bytes are not yet: another process reads the file all the time, or no
                space is left to write it anew. Opening the store again finishes it.
        """
        everything = before is None and item is None
        with self.transaction():
            forgotten = forget_rows(self._connection, before=before, item=item)
            if forgotten.learned:
                self._connection.rows("DELETE FROM parameters")
            if everything:
                self.put("profile", None)
                self.put("refusal", None)  # it says what the owner chose
            self._begin_epoch("forgotten")
            self.put(_FORGOT, str(now))
            self.put(_SCRUB, "pending")
        self.scrub()
        return forgotten.removed

    @property
    def forgot(self) -> int | None:
        """When something was last forgotten, in seconds since 1970; none where nothing was."""
        found = self.setting(_FORGOT)
        return None if found is None else int(found)

    @property
    def epoch(self) -> int:
        """Grows when something is forgotten or adapted parameters are dropped: a training of before is void."""
        return int(self.setting(_EPOCH) or 0)

    def _begin_epoch(self, why: str) -> None:
        self.put(_EPOCH, str(self.epoch + 1))
        self.put(_VOID, why)

    def scrub(self) -> None:
        """Write the file anew without what was deleted, and cut the write-ahead log to nothing.

        ``secure_delete`` overwrites what is deleted, but pages that were divided or merged may keep copies in the gaps
        between their rows: a rewritten file has no such gaps. It takes free space of the size of the file.
        """
        with self._lock:
            try:
                drain(self._connection)  # the log may hold the room that the new file needs
                self._connection.rows("VACUUM")
                drained = drain(self._connection)
            except NoSpace:
                size = math.ceil(self.path.stat().st_size / 2**20)
                raise StoreError(
                    f"the rows are deleted, but no space is left to write {self.path} anew without their bytes; make "
                    f"{size} MB of room and open the store again: that finishes it"
                ) from None
            if not drained:
                raise StoreError(
                    f"the rows are deleted, but another process keeps the old bytes of {self.path} open; "
                    "close it there and open the store again: that finishes it"
                )
            self.put(_SCRUB, None)

    @property
    def unscrubbed(self) -> bool:
        """Whether bytes of something that was forgotten are still in the file."""
        return self.setting(_SCRUB) is not None

    def _try_scrub(self) -> None:
        try:
            self.scrub()
        except StoreError as error:
            logger.warning("%s", error)

    def adopt(self, version: int, manifest: str, tensors: bytes, items: Iterable[str]) -> None:
        """Make a package the current one and keep the one before it; what was adapted from that goes."""
        with self.transaction():
            self._connection.rows("DELETE FROM packages WHERE slot = 'previous'")
            self._connection.rows("UPDATE packages SET slot = 'previous' WHERE slot = 'current'")
            self._connection.rows("INSERT INTO packages VALUES ('current', ?, ?, ?)", (version, manifest, tensors))
            self._replace_items(items)
            self._connection.rows("DELETE FROM parameters WHERE kind = 'served'")

    def roll_back(self, items: Iterable[str]) -> None:
        """Make the previous package, whose ``items`` these are, the current one again; the other is dropped."""
        with self.transaction():
            self._connection.rows("DELETE FROM packages WHERE slot = 'current'")
            self._connection.rows("UPDATE packages SET slot = 'current' WHERE slot = 'previous'")
            self._replace_items(items)
            self._connection.rows("DELETE FROM parameters WHERE kind = 'served'")

    def _replace_items(self, items: Iterable[str]) -> None:
        self._connection.rows("DELETE FROM items")
        self._connection.many("INSERT INTO items VALUES (?)", [(one,) for one in items])

    def package(self, slot: Slot = "current") -> tuple[str, bytes] | None:
        """Manifest and tensors of a package; none where there is none."""
        with self._lock:
            rows = self._connection.rows("SELECT manifest, tensors FROM packages WHERE slot = ?", (slot,))
        return (str(rows[0][0]), bytes(rows[0][1])) if rows else None

    def versions(self) -> dict[str, int]:
        """Version of every package that is kept."""
        with self._lock:
            return dict(self._connection.rows("SELECT slot, version FROM packages"))

    def unknown(self, items: Iterable[str]) -> str | None:
        """The first of ``items`` that the current package's catalogue lacks; none where it has all."""
        wanted = list(items)
        with self._lock:
            for start in range(0, len(wanted), _AT_ONCE):
                part = wanted[start : start + _AT_ONCE]
                places = ", ".join("?" * len(part))
                found = self._connection.rows(f"SELECT id FROM items WHERE id IN ({places})", part)
                lacking = set(part).difference(one for (one,) in found)
                if lacking:
                    return next(item for item in part if item in lacking)
        return None

    def parameters(self, kind: Adapted) -> bytes | None:
        """What was adapted, as safetensors; none where nothing was."""
        with self._lock:
            rows = self._connection.rows("SELECT tensors FROM parameters WHERE kind = ?", (kind,))
        return bytes(rows[0][0]) if rows else None

    def keep(self, training: Training, epoch: int, kind: Adapted | None = None, tensors: bytes = b"") -> None:
        """Note a training and, in the same transaction, what it left on the device.

        Raises:
            NotAllowed: since ``epoch`` something was forgotten or consent was withdrawn, or what is to be served began
                from a package that is no longer the current one: what was trained is void.
        """
        values = (training.at, training.kind, training.name, training.version, training.last, training.used)
        with self.transaction():
            if self.epoch != epoch:
                why = self.setting(_VOID) or "forgotten"
                raise NotAllowed(why, f"{_MEANWHILE.get(why, why)} meanwhile: what was trained is thrown away")
            if kind == "served" and self.versions().get("current", training.version) != training.version:
                raise NotAllowed("adopted", "another package was adopted meanwhile: what was trained is thrown away")
            self._connection.rows(
                "INSERT INTO trainings (at, kind, name, version, last, used) VALUES (?, ?, ?, ?, ?, ?)", values
            )
            if kind is not None:
                self._connection.rows("INSERT OR REPLACE INTO parameters VALUES (?, ?)", (kind, tensors))

    def drop_adapted(self) -> None:
        """Remove everything that was adapted on this device. Within :meth:`transaction` it is part of it."""
        with self._lock:
            self._connection.rows("DELETE FROM parameters")
            self._begin_epoch("consent")

    def trainings(self) -> list[Training]:
        """Everything that was ever trained on this device's log, oldest first."""
        with self._lock:
            rows = self._connection.rows(f"SELECT {_TRAINING} FROM trainings ORDER BY id")
        names = _TRAINING.split(", ")
        return [Training(**dict(zip(names, row, strict=True))) for row in rows]

    def discard(self) -> None:
        """Close the file and remove it: of a creation that failed later on. A ledger beside it stays."""
        self.close()
        for suffix in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    def close(self) -> None:
        """Release the file."""
        with self._lock:
            self._connection.close()


def _begin(path: Path, key: str | bytes | None) -> None:
    connection = Connection(path, key)
    try:
        migrate(connection, path, new=True)
        drain(connection)
    finally:
        connection.close()
    os.chmod(path, 0o600)
