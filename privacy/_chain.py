"""The ledger's storage: SQLite rows, append-only, each hashed over its content and the row before it."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import FedrecError, LedgerError, PrivacyError
from ._accounts import AccountSet
from .accounting import Charge

_FORMAT = 2
_READABLE = (1, 2)
"""Format 1 lists the accounts of a debit one by one; debits that are added to it do not."""
_BUSY_SECONDS = 60.0
_SCHEMA = (
    "CREATE TABLE entries (sequence INTEGER PRIMARY KEY, body TEXT NOT NULL, hash TEXT NOT NULL)",
    "CREATE TRIGGER no_update BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END",
    "CREATE TRIGGER no_delete BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END",
)


@dataclass(frozen=True)
class Row:
    """A debit of ``charge`` from ``accounts`` under ``key``, or (no charge) the note that ``key`` was released."""

    key: str
    charge: Charge | None = None
    accounts: AccountSet = field(default_factory=AccountSet)
    sequence: int = -1
    """Its place in the chain, once it has one."""

    def body(self) -> str:
        """The row as it is stored and hashed."""
        if self.charge is None:
            return json.dumps({"kind": "settle", "key": self.key})
        charge, accounts = self.charge.to_dict(), self.accounts.record()
        return json.dumps({"kind": "reserve", "key": self.key, "charge": charge, "accounts": accounts})


def _parse(body: str, sequence: int) -> Row:
    record = json.loads(body)
    kind = record.pop("kind")
    if not (isinstance(record["key"], str) and record["key"]):
        raise ValueError(f"expected a key, got {record['key']!r}")
    if kind == "settle" and set(record) == {"key"}:
        return Row(record["key"], sequence=sequence)
    if kind != "reserve" or set(record) != {"key", "charge", "accounts"}:
        raise ValueError(f"unknown kind {kind!r} or fields {sorted(record)}")
    return Row(record["key"], Charge.from_dict(record["charge"]), _accounts(record["accounts"]), sequence)


def _accounts(record: Any) -> AccountSet:
    """The accounts of a debit; in format 1 they are names, one a line."""
    return AccountSet.of(record.split("\n")) if isinstance(record, str) else AccountSet.from_record(record)


class Chain:
    """The open file. Rows are verified as they are read, before anything is built on them."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path = path
        self._connection = connection
        self._heads: list[str] = []
        self._witness: tuple[int, str] = (0, "")

    @classmethod
    def create(cls, path: Path, settings: dict[str, Any]) -> Chain:
        """Write a new file with its first row, the settings."""
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except FileExistsError:
            raise LedgerError(f"a ledger exists at {path} already; open it, a ledger is never started over") from None
        except OSError as error:
            raise LedgerError(f"can't create the ledger {path}: {error.strerror}") from None
        with _storage_errors(path):
            chain = cls(path, _connect(path))
            chain._connection.execute("BEGIN IMMEDIATE")
            for statement in _SCHEMA:
                chain._connection.execute(statement)
            chain._insert(json.dumps({"kind": "settings", "format": _FORMAT, "settings": settings}))
            chain._connection.execute("COMMIT")
            chain._write_witness()
        return chain

    @classmethod
    def open(cls, path: Path) -> tuple[Chain, dict[str, Any]]:
        """Open the file and read its settings; :meth:`tail` reads the rows, :meth:`check_witness` must follow it."""
        if not path.is_file():
            raise LedgerError(
                f"the ledger {path} is missing; without it nothing may be trained (recommending still works)"
            )
        with _storage_errors(path), _record_errors(path):
            connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)
            chain = cls(path, connection)
            try:
                chain._check_schema()  # before anything is set: a file of somebody else's stays as it is
                _make_durable(connection)
                chain._witness = chain._read_witness()  # before the rows: another process may append meanwhile
                chain._check_file()
                _sweep(path)
                return chain, _settings(next(chain._read(limit=1))[1])
            except BaseException:
                chain.close()
                raise

    @property
    def head(self) -> str:
        """Hash of the last row read."""
        return self._heads[-1]

    @property
    def count(self) -> int:
        """Number of rows read."""
        return len(self._heads)

    def head_at(self, count: int) -> str | None:
        """The head when the chain had ``count`` rows, ``None`` if it never had."""
        return self._heads[count - 1] if 0 < count <= len(self._heads) else None

    def tail(self) -> Iterator[Row]:
        """Rows that were appended since the last look, each verified before it is given."""
        with _storage_errors(self._path), _record_errors(self._path):
            for sequence, body in self._read():
                yield _parse(body, sequence)

    def row(self, sequence: int) -> Row:
        """A row that was read before, once more."""
        with _storage_errors(self._path), _record_errors(self._path):
            query = "SELECT body FROM entries WHERE sequence = ?"
            (body,) = self._connection.execute(query, (sequence,)).fetchone()
            if _digest(self._heads[sequence - 1], body) != self._heads[sequence]:
                raise LedgerError(f"the ledger {self._path} was altered at row {sequence}; do not train on it")
            return _parse(body, sequence)

    @contextmanager
    def exclusive(self) -> Iterator[list[Row]]:
        """Hold the write lock: yields what others appended; commits at the end, durably, or nothing at all."""
        with _storage_errors(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                rows = list(self.tail())
                seen = self.count
                yield rows
                self._connection.execute("COMMIT")
            except (FedrecError, ValueError) as error:
                if isinstance(error, LedgerError):
                    self.close()
                else:
                    self._connection.execute("ROLLBACK")
                    del self._heads[seen:]
                raise
            except BaseException:  # whether the rows are on disk is not known: only a fresh ``open`` may go on
                self.close()
                raise
            if self.count > seen:
                self._write_witness()

    def append(self, row: Row) -> Row:
        """Add a row within ``exclusive``; returns it with its place."""
        self._insert(row.body())
        return replace(row, sequence=self.count - 1)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _insert(self, body: str) -> None:
        digest = _digest(self._heads[-1] if self._heads else "", body)
        self._connection.execute("INSERT INTO entries VALUES (?, ?, ?)", (self.count, body, digest))
        self._heads.append(digest)

    def _read(self, limit: int = -1) -> Iterator[tuple[int, str]]:
        """Places and bodies of the rows after those known, each checked against the chain."""
        query = "SELECT sequence, body, hash FROM entries WHERE sequence >= ? ORDER BY sequence LIMIT ?"
        for sequence, body, stored in self._connection.execute(query, (self.count, limit)):
            digest = _digest(self._heads[-1] if self._heads else "", body)
            if sequence != self.count or digest != stored:
                raise LedgerError(f"the ledger {self._path} was altered at row {self.count}; do not train on it")
            self._heads.append(digest)
            yield sequence, body

    def _check_schema(self) -> None:
        schema = {sql for (sql,) in self._connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")}
        if schema != set(_SCHEMA):
            raise LedgerError(f"the file {self._path} is not a ledger of this format, or its guards were removed")

    def _check_file(self) -> None:
        result = self._connection.execute("PRAGMA integrity_check").fetchone()[0]
        if result != "ok":
            raise LedgerError(f"the ledger {self._path} is damaged ({result}); do not train on it")
        lowest = self._connection.execute("SELECT min(sequence) FROM entries").fetchone()[0]
        if lowest != 0:
            raise LedgerError(f"the ledger {self._path} was altered: its first rows are missing; do not train on it")

    def _read_witness(self) -> tuple[int, str]:
        path = _witness_path(self._path)
        try:
            count, head = path.read_text(encoding="ascii").split()
            return int(count), head
        except (OSError, ValueError):
            raise LedgerError(
                f"the witness {path} of the ledger is missing or unreadable; do not train on that ledger"
            ) from None

    def check_witness(self) -> None:
        """Refuse a chain that has not all the rows that its witness has seen."""
        count, head = self._witness
        if self.head_at(count) != head:
            raise LedgerError(
                f"the ledger {self._path} was rolled back: its witness has seen {count} rows that are not there; "
                "restore the newer copy, or do not train on it"
            )

    def _write_witness(self) -> None:
        """Replace the witness atomically. Another process may have written a later one: an earlier one is valid too."""
        target = _witness_path(self._path)
        draft = _draft(target, os.getpid())
        with open(draft, "w", encoding="ascii") as file:
            file.write(f"{self.count} {self.head}\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, target)
        directory = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _witness_path(path: Path) -> Path:
    return path.with_name(path.name + ".witness")


def _draft(witness: Path, process: int | str) -> Path:
    """Where a process writes the next witness: each its own, for they write without a lock."""
    return witness.with_name(f"{witness.name}.{process}")


def _sweep(path: Path) -> None:
    """Remove drafts of the witness that killed processes left; those of the living stay."""
    witness = _witness_path(path)
    for draft in witness.parent.glob(_draft(Path(glob.escape(witness.name)), "*").name):
        process = draft.name.rpartition(".")[2]
        if process.isdecimal() and not _lives(int(process)):
            with suppress(OSError):  # it does no harm
                draft.unlink()


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        pass
    return True


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)
    _make_durable(connection)
    return connection


def _make_durable(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")


def _digest(previous: str, body: str) -> str:
    return hashlib.sha256(f"{previous}\n{body}".encode()).hexdigest()


def _settings(body: str) -> dict[str, Any]:
    record = json.loads(body)
    if record.get("kind") != "settings" or record.get("format") not in _READABLE:
        raise ValueError(f"expected settings of format {_FORMAT} in the first row, got {record.get('format')!r}")
    settings: dict[str, Any] = record["settings"]
    return settings


@contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    """Turn storage errors into one sentence that says what may not happen now."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise LedgerError(f"the ledger {path} can't be used ({error}); nothing may be released on it") from error


@contextmanager
def _record_errors(path: Path) -> Iterator[None]:
    """Turn whatever an unreadable record causes into one sentence."""
    try:
        yield
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, PrivacyError) as error:
        if isinstance(error, LedgerError):
            raise
        raise LedgerError(
            f"the ledger {path} holds a record that can't be read ({error}); do not train on it"
        ) from error
