"""One connection to a device's SQLite file, plain or encrypted, and its failures in one sentence each.

Plain files are read by Python's own ``sqlite3``, encrypted ones by SQLite3 Multiple Ciphers (``apsw-sqlite3mc``, extra
``fedrec[encryption]``): the same SQLite with the same durability, whose pages and write-ahead log are encrypted.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import FedrecError, StoreError

BUSY_SECONDS = 10.0
"""How long a call waits for another process that writes to the same file."""
_FULL = "disk is full"
"""What SQLite says, whichever library calls it."""
_PLAIN = b"SQLite format 3\x00"
_SETTINGS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",  # a commit is on the disk before it is acknowledged: a power cut takes nothing back
    "PRAGMA secure_delete = ON",
    "PRAGMA temp_store = MEMORY",  # nothing of the log in temporary files
)


class NoSpace(StoreError):
    """The disk is full, or a quota is reached."""


class Connection:
    """SQL in, rows out. Not safe for threads by itself: the store holds a lock."""

    def __init__(self, path: Path, key: str | bytes | None) -> None:
        """Open an existing file, or begin one where there is none.

        Raises:
            StoreError: it can't be read with this key, or at all.
        """
        self._path = path
        self._keyed = key is not None
        with self._told():
            self._raw, self._errors = _encrypted(path, key) if key is not None else _plain(path)
        try:
            with self._told():
                self.rows("SELECT count(*) FROM sqlite_master")
                for setting in _SETTINGS:
                    self.rows(setting)
        except StoreError:
            self.close()
            raise

    _errors: tuple[type[Exception], ...] = (sqlite3.Error, OSError)

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run one statement and return all of its rows.

        Raises:
            StoreError: the file can't be read or written.
        """
        with self._told():
            return list(self._raw.execute(sql, tuple(values)))

    def many(self, sql: str, values: Sequence[Sequence[Any]]) -> None:
        """Run one statement for each row of ``values``."""
        with self._told():
            self._raw.executemany(sql, [tuple(one) for one in values])

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, on the disk when it ends without an exception."""
        self.rows("BEGIN IMMEDIATE")
        try:
            yield
            self.rows("COMMIT")
        except BaseException:
            with contextlib.suppress(StoreError):  # after a failed COMMIT there may be nothing to roll back
                self.rows("ROLLBACK")
            raise

    def close(self) -> None:
        """Release the file; the last one who does folds the write-ahead log into it."""
        with contextlib.suppress(*self._errors):
            self._raw.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except FedrecError:
            raise
        except self._errors as error:
            kind = NoSpace if _FULL in str(error) else StoreError
            raise kind(_sentence(self._path, self._keyed, str(error))) from None


def _plain(path: Path) -> tuple[Any, tuple[type[Exception], ...]]:
    raw = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    return raw, (sqlite3.Error, OSError)


def _encrypted(path: Path, key: str | bytes) -> tuple[Any, tuple[type[Exception], ...]]:
    try:
        import apsw
    except ImportError:
        raise StoreError(
            'expected the extra for encrypted stores, got none; install it with: pip install "fedrec[encryption]"'
        ) from None
    if not getattr(apsw, "mc_version", None):
        raise StoreError(
            "expected apsw-sqlite3mc, got an apsw without ciphers; install fedrec[encryption] in its place"
        )
    secret = _secret(key)
    raw = apsw.Connection(str(path))
    raw.set_busy_timeout(int(BUSY_SECONDS * 1000))
    raw.pragma("hexkey", secret.hex())
    return raw, (apsw.Error, OSError)


def _secret(key: object) -> bytes:
    """A key's bytes. No message shows any of them."""
    if not isinstance(key, str | bytes):
        raise StoreError(f"expected a key of text or bytes, got {type(key).__name__}")
    try:
        secret = key.encode() if isinstance(key, str) else key
    except UnicodeEncodeError:
        raise StoreError("expected a key of text that UTF-8 can hold, got halves of characters; give bytes") from None
    if not secret:
        raise StoreError("expected a key of one byte or more, got an empty one; leave it out for a plain store")
    return secret


def _sentence(path: Path, keyed: bool, error: str) -> str:
    """What is wrong with the file, as well as it can be told."""
    if "locked" in error.lower() or "busy" in error.lower():
        return f"the device store {path} is in use by another process for more than {BUSY_SECONDS:g} s; try again"
    if _FULL in error:
        return f"no space is left for the device store {path}: nothing was changed; make room and try again"
    if "closed" in error:
        return f"the device store {path} was closed; open it again"
    if "readonly" in error.lower() or "unable to open" in error:
        return f"the device store {path} can't be written; allow writing to the file and to its folder"
    plain = _begins_plain(path)
    if keyed and plain:
        return f"expected an encrypted device store in {path}, got a plain one; open it without a key"
    unreadable = "not a database" in error
    if unreadable and keyed:
        return f"the device store {path} can't be read with this key: it is another one's, or the file is damaged"
    if unreadable:
        return f"expected a device store in {path}, got a file that is encrypted or none at all; give its key"
    if "disk I/O error" in error:
        return (
            f"the device store {path} can't be read or written now ({error}): nothing was changed; check the disk and "
            "the process's limits and try again, and only where it stays restore a copy: its ledger stays"
        )
    return f"the device store {path} can't be used ({error}); restore a copy, or begin a new one: its ledger stays"


def _begins_plain(path: Path) -> bool:
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(len(_PLAIN)) == _PLAIN
    return False


def drain(connection: Connection) -> bool:
    """Fold the write-ahead log into the file and cut it to nothing; whether nobody stood in the way."""
    limit = time.monotonic() + BUSY_SECONDS
    while True:
        (busy, *_), *_ = connection.rows("PRAGMA wal_checkpoint(TRUNCATE)")
        if not busy:
            return True
        if time.monotonic() > limit:
            return False
        time.sleep(0.05)
