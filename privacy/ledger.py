"""The ledger is for life: a durable, append-only, hash-chained record of what was debited from each privacy account.

Debits are *reserved* on disk before anything that they pay for may leave; what was reserved counts as spent from then
on, settled or not. A crash can waste budget, never forget it. A missing, altered or unreadable ledger is refused.

Beside the database lies a small *witness* file with the length and head of the chain. It reveals a database that went
back in time: a restored copy, a lost write-ahead log, rows cut off the end. Someone who rewrites both files at once can
still deceive it; hand ``head`` and ``count`` to whoever should notice (``extends``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BudgetExhausted, LedgerError, PrivacyError
from . import _chain
from ._accounts import AccountSet, Book
from ._records import (
    Debit,
    LedgerSettings,
    LedgerUnit,
    NumberedReservations,
    Reservation,
    Reservations,
    Standing,
)
from .accounting import Accountant, Charge, History
from .accounting import epsilon as _epsilon

__all__ = [
    "Debit",
    "Ledger",
    "LedgerSettings",
    "LedgerUnit",
    "NumberedReservations",
    "Reservation",
    "Reservations",
    "Standing",
]


_MOST = 2**20
"""Further debits that are counted one by one; more than twice as many are not told apart."""


class Ledger:
    """Privacy accounts (``"federation"``, ``"device:17"``) in one SQLite file, safe for several processes at once.

    One instance belongs to one thread. Construct through ``create`` or ``open``; use as a context manager.
    """

    def __init__(self, chain: _chain.Chain, settings: LedgerSettings) -> None:
        self._chain = chain
        self.settings = settings
        self._book = Book()
        self._settled: set[str] = set()
        self._keys: dict[str, list[Debit]] = {}

    @classmethod
    def create(
        cls,
        path: Path | str,
        *,
        unit: LedgerUnit,
        delta: float,
        budget_epsilon: float | Mapping[str, float] | None,
        accountant: Accountant = "rdp",
        mechanism: str = "",
    ) -> Ledger:
        """Start a new ledger; refuses to touch an existing file.

        Raises:
            LedgerError: the file exists or can't be written.
            ValueError: a setting is wrong.
        """
        settings = LedgerSettings(unit, delta, budget_epsilon, accountant, mechanism)
        return cls(_chain.Chain.create(Path(path), settings.to_dict()), settings)

    @classmethod
    def open(cls, path: Path | str) -> Ledger:
        """Open and verify a ledger: every hash, every charge, the settings, the witness.

        Raises:
            LedgerError: missing, altered, truncated, rolled back or unreadable. Nothing may be trained on it.
        """
        chain, record = _chain.Chain.open(Path(path))
        try:
            ledger = cls(chain, LedgerSettings(**record))
            ledger.refresh()
            chain.check_witness()
        except LedgerError:
            chain.close()
            raise
        except (TypeError, ValueError) as error:
            chain.close()
            raise LedgerError(
                f"the ledger {path} holds a record that is not valid ({error}); do not train on it"
            ) from None
        return ledger

    def reserve(self, account: str, charge: Charge, *, key: str, replay: bool = False) -> Reservation:
        """Debit one account; durable on return. See ``reserve_many`` for ``replay``.

        Raises:
            BudgetExhausted: the debit would exceed the budget. Nothing was written.
            LedgerError: it could not be made durable (disk full, file altered): nothing may be released.
        """
        before = self.count
        outcome = self.reserve_many([account], charge, key=key, replay=replay)
        if account in outcome.refused:
            raise BudgetExhausted(
                f"account {account!r} has spent epsilon {self.spent(account):.4g} of {self.settings.budget(account):g} "
                f"and can't pay for {charge.steps} more steps: it takes no part any more; nothing was spent"
            )
        return Reservation(account, charge, key, replayed=self.count == before)

    def reserve_many(self, accounts: Iterable[str], charge: Charge, *, key: str, replay: bool = False) -> Reservations:
        """Debit the same charge from many accounts, each against its own budget, in one durable transaction.

        Args:
            accounts: names without line breaks; repeated names count once.
            charge: what the release will cost.
            key: names the release ("round:3").
            replay: if an equal charge under the same key stands already, return it instead of debiting again. Right
                only where repeating the work releases *the same bits*: a seeded simulation that repeats a round after a
                crash publishes nothing new, so it owes nothing new. In a deployment the repeated work draws fresh
                noise: leave it False and the debit is made again.

        Raises:
            PrivacyError: ``replay`` under a key whose charge differs; a name with a line break.
            LedgerError: it could not be made durable: nothing may be released.
        """
        outcome, refused = self._reserve(AccountSet.of(accounts), charge, key, replay)
        return Reservations(frozenset(outcome), frozenset(refused))

    def reserve_numbered(
        self, kind: str, numbers: NDArray[np.integer[Any]], charge: Charge, *, key: str, replay: bool = False
    ) -> NumberedReservations:
        """``reserve_many`` for the accounts ``kind:number``: a million of them in a moment.

        Args:
            kind: what stands before the colon ("device").
            numbers: whole numbers in [0, 2^26), in any order; repeated ones count once.
            charge: what the release will cost.
            key: names the release ("round:3").
            replay: see ``reserve_many``.

        Raises:
            PrivacyError: as ``reserve_many``, or a number out of range.
            LedgerError: it could not be made durable: nothing may be released.
        """
        accepted, refused = self._reserve(AccountSet.numbered(kind, numbers), charge, key, replay)
        none = np.zeros(0, dtype=np.int64)
        return NumberedReservations(accepted.numbers.get(kind, none), refused.numbers.get(kind, none))

    def _reserve(self, accounts: AccountSet, charge: Charge, key: str, replay: bool) -> tuple[AccountSet, AccountSet]:
        """Those whose debit is on disk, and the others."""
        if not key:
            raise ValueError("expected a non-empty key that names the release")
        debit = None
        with self._chain.exclusive() as rows:
            self._absorb(rows)
            standing = self._standing(key, charge) & accounts if replay else AccountSet()
            fresh = self._book.where(accounts - standing, lambda name, history: self._covers(name, history, charge))
            if fresh:
                debit = self._chain.append(_chain.Row(key, charge, fresh))
        if debit is not None:
            self._apply(debit)
        paid = standing | fresh
        return paid, accounts - paid

    def settle(self, key: str) -> None:
        """Note that what was reserved under ``key`` has been released. Settling twice writes nothing.

        Raises:
            PrivacyError: nothing was reserved under that key.
        """
        with self._chain.exclusive() as rows:
            self._absorb(rows)
            if key not in self._keys:
                raise PrivacyError(f"nothing was reserved under {key!r}: reserve before anything is released")
            if key not in self._settled:
                self._chain.append(_chain.Row(key))
        self._settled.add(key)

    def spent(self, account: str) -> float:
        """Epsilon of everything ever reserved from the account, settled or not."""
        return _epsilon(self._book.history(account), self.settings.delta, self.settings.accountant)

    def remaining(self, account: str) -> float | None:
        """Budget less what is spent, or ``None`` without a limit. Epsilon does not compose by adding: a hint only."""
        budget = self.settings.budget(account)
        return None if budget is None else max(0.0, budget - self.spent(account))

    def history(self, account: str) -> list[Charge]:
        """The account's debits, equal mechanisms merged."""
        return list(self._book.history(account))

    def accounts(self) -> list[str]:
        """Every account that was ever debited: names first, then the numbered ones of each kind."""
        return [name for standing in self.standings() for name in standing.accounts]

    def standings(self) -> list[Standing]:
        """Every account that was ever debited and what it has spent, accounts of equal histories together."""
        settings = self.settings
        return [
            Standing(
                accounts=accounts,
                charges=history,
                epsilon=_epsilon(history, settings.delta, settings.accountant),
                budget=settings.budget(next(iter(accounts))),
            )
            for accounts, history in self._book.groups()
        ]

    def debits(self) -> list[Debit]:
        """Every debit, in the order in which they were made."""
        rows = (replace(debit, settled=key in self._settled) for key, debits in self._keys.items() for debit in debits)
        return sorted(rows, key=lambda debit: debit.sequence)

    def affordable(self, standing: Standing, charge: Charge) -> int | None:
        """How many more times each of these accounts can pay ``charge``; ``None`` without a limit."""
        if standing.budget is None:
            return None
        account = next(iter(standing.accounts))

        def covers(times: int) -> bool:
            more = Charge(charge.noise_multiplier, charge.sample_rate, charge.steps * times)
            return self._covers(account, standing.charges, more)

        low, high = 0, 1
        while high <= _MOST and covers(high):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if covers(middle) else (low, middle)
        return low

    def is_settled(self, key: str) -> bool:
        """Whether ``settle(key)`` was called."""
        return key in self._settled

    @property
    def head(self) -> str:
        """Hash over everything in the ledger, hexadecimal."""
        return self._chain.head

    @property
    def count(self) -> int:
        """Number of rows, the settings included. It only grows."""
        return self._chain.count

    def extends(self, count: int, head: str) -> bool:
        """Whether this ledger continues the one with this ``count`` and ``head``; if not, it was rolled back."""
        return self._chain.head_at(count) == head

    def export(self) -> dict[str, Any]:
        """What was spent by whom, JSON-able: accounts of equal histories together under one name, see ``Standing``.

        No wall-clock times: an interrupted and resumed run exports what a plain one does.
        """
        accounts = {standing.name: standing.to_dict() for standing in self.standings()}
        return {"settings": self.settings.to_dict(), "head": self.head, "count": self.count, "accounts": accounts}

    def refresh(self) -> None:
        """Read what other processes have appended since.

        Raises:
            LedgerError: it was altered; this instance is of no use any more.
        """
        try:
            self._absorb(self._chain.tail())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the file."""
        self._chain.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _standing(self, key: str, charge: Charge) -> AccountSet:
        standing = AccountSet()
        for debit in self._keys.get(key, []):
            if debit.charge != charge:
                raise PrivacyError(
                    f"key {key!r} was reserved for {debit.charge}, not for {charge}: another release needs another key"
                )
            standing = standing | self._chain.row(debit.sequence).accounts
        return standing

    def _covers(self, account: str, history: History, charge: Charge) -> bool:
        """Whether the account's budget covers one more charge."""
        settings, budget = self.settings, self.settings.budget(account)
        return budget is None or _epsilon((*history, charge), settings.delta, settings.accountant) <= budget

    def _absorb(self, rows: Iterable[_chain.Row]) -> None:
        for row in rows:
            self._apply(row)

    def _apply(self, row: _chain.Row) -> None:
        if row.charge is None:
            if row.key not in self._keys:
                raise LedgerError(
                    f"row {row.sequence} of the ledger settles {row.key!r}, which nobody reserved; do not train on it"
                )
            self._settled.add(row.key)
            return
        debit = Debit(sequence=row.sequence, key=row.key, charge=row.charge, accounts=len(row.accounts), settled=False)
        self._keys.setdefault(row.key, []).append(debit)
        self._book.add(row.accounts, row.charge)
