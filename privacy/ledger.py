"""The ledger is for life: a durable, append-only, hash-chained record of what was debited from each privacy account.

Debits are *reserved* on disk before anything that they pay for may leave; what was reserved counts as spent from then
on, settled or not. A crash can waste budget, never forget it. A missing, altered or unreadable ledger is refused.

Beside the database lies a small *witness* file with the length and head of the chain. It reveals a database that went
back in time: a restored copy, a lost write-ahead log, rows cut off the end. Someone who rewrites both files at once can
still deceive it; hand ``head`` and ``count`` to whoever should notice (``extends``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from .._validate import positive, probability
from ..errors import BudgetExhausted, LedgerError, PrivacyError
from . import _chain
from .accounting import Accountant, Charge, History, normalise
from .accounting import epsilon as _epsilon

LedgerUnit = Literal["interaction", "user", "both"]


@dataclass(frozen=True)
class Reservation:
    """A debit that is on disk: what it pays for may leave."""

    account: str
    charge: Charge
    key: str
    replayed: bool
    """True if an equal debit under the same key stood already and nothing new was written."""


@dataclass(frozen=True)
class Reservations:
    """The outcome of ``Ledger.reserve_many``."""

    accepted: frozenset[str]
    """Accounts whose debit is on disk."""
    refused: frozenset[str]
    """Accounts whose budget does not cover the charge; nothing was debited from them."""


@dataclass(frozen=True)
class LedgerSettings:
    """What a ledger was created with; part of the chain, never changed."""

    unit: LedgerUnit
    delta: float
    budget_epsilon: float | Mapping[str, float] | None
    """One budget for each account, ``None`` for no limit, or budgets by kind of account (the name up to a colon)."""
    accountant: Accountant
    mechanism: str = ""
    """In words, what a debit pays for and how often, where that is more than a plain sum of a Poisson sample."""

    def __post_init__(self) -> None:
        if not isinstance(self.mechanism, str):
            raise ValueError(f"expected the ledger's mechanism to be a text, got {self.mechanism!r}")
        if self.unit not in ("interaction", "user", "both"):
            raise ValueError(f"expected the ledger's unit to be interaction, user or both, got {self.unit!r}")
        probability("ledger.delta", self.delta, open_right=True)
        _epsilon((), self.delta, self.accountant)
        if isinstance(self.budget_epsilon, Mapping):
            for kind, budget in self.budget_epsilon.items():
                positive(f"the budget of {kind!r}", budget)
        elif self.budget_epsilon is not None:
            positive("ledger.budget_epsilon", self.budget_epsilon)

    def budget(self, account: str) -> float | None:
        """The budget of one account, or ``None`` for no limit."""
        if not isinstance(self.budget_epsilon, Mapping):
            return self.budget_epsilon
        kind = account.partition(":")[0]
        if kind not in self.budget_epsilon:
            raise PrivacyError(
                f"the ledger has budgets for {sorted(self.budget_epsilon)}, none for account {account!r}"
            )
        return self.budget_epsilon[kind]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        budget = self.budget_epsilon
        words = {"mechanism": self.mechanism} if self.mechanism else {}
        return words | {
            "unit": self.unit,
            "delta": float(self.delta),
            "budget_epsilon": dict(budget) if isinstance(budget, Mapping) else budget,
            "accountant": self.accountant,
        }


class Ledger:
    """Privacy accounts (``"federation"``, ``"device:17"``) in one SQLite file, safe for several processes at once.

    One instance belongs to one thread. Construct through ``create`` or ``open``; use as a context manager.
    """

    def __init__(self, chain: _chain.Chain, settings: LedgerSettings) -> None:
        self._chain = chain
        self.settings = settings
        self._histories: dict[str, History] = {}
        self._settled: set[str] = set()
        self._keys: dict[str, list[_chain.Row]] = {}
        self._interned: dict[History, History] = {}

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
        chain, record, rows = _chain.Chain.open(Path(path))
        try:
            ledger = cls(chain, LedgerSettings(**record))
            for row in rows:
                ledger._apply(row)
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
        names = _names(accounts)
        if not key:
            raise ValueError("expected a non-empty key that names the release")
        with self._chain.exclusive() as rows:
            self._absorb(rows)
            standing = self._standing(key, charge) & names if replay else frozenset()
            fresh = self._affordable(names - standing, charge)
            debit = _chain.Row(key, charge, "\n".join(sorted(fresh)))
            if fresh:
                self._chain.append(debit)
        self._apply(debit)
        return Reservations(standing | fresh, names - standing - fresh)

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
        return _epsilon(self._histories.get(account, ()), self.settings.delta, self.settings.accountant)

    def remaining(self, account: str) -> float | None:
        """Budget less what is spent, or ``None`` without a limit. Epsilon does not compose by adding: a hint only."""
        budget = self.settings.budget(account)
        return None if budget is None else max(0.0, budget - self.spent(account))

    def history(self, account: str) -> list[Charge]:
        """The account's debits, equal mechanisms merged."""
        return list(self._histories.get(account, ()))

    def accounts(self) -> list[str]:
        """Every account that was ever debited."""
        return sorted(self._histories)

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
        """Everything, JSON-able. No wall-clock times: an interrupted and resumed run exports what a plain one does."""
        accounts = {
            name: {"epsilon": self.spent(name), "charges": [charge.to_dict() for charge in self._histories[name]]}
            for name in self.accounts()
        }
        return {"settings": self.settings.to_dict(), "head": self.head, "count": self.count, "accounts": accounts}

    def refresh(self) -> None:
        """Read what other processes have appended since."""
        self._absorb(self._chain.tail())

    def close(self) -> None:
        """Release the file."""
        self._chain.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _standing(self, key: str, charge: Charge) -> frozenset[str]:
        rows = self._keys.get(key, [])
        for row in rows:
            if row.charge != charge:
                raise PrivacyError(
                    f"key {key!r} was reserved for {row.charge}, not for {charge}: another release needs another key"
                )
        return frozenset(name for row in rows for name in row.accounts)

    def _affordable(self, names: Iterable[str], charge: Charge) -> frozenset[str]:
        """Those whose budget covers one more charge; the verdict is worked out once for each distinct history."""
        verdicts: dict[tuple[int, float | None], bool] = {}
        accepted = []
        for name in names:
            history = self._histories.get(name, ())
            case = (id(history), self.settings.budget(name))
            if case not in verdicts:
                verdicts[case] = self._within(history, charge, case[1])
            if verdicts[case]:
                accepted.append(name)
        return frozenset(accepted)

    def _within(self, history: History, charge: Charge, budget: float | None) -> bool:
        settings = self.settings
        return budget is None or _epsilon((*history, charge), settings.delta, settings.accountant) <= budget

    def _absorb(self, rows: Iterable[_chain.Row]) -> None:
        for row in rows:
            self._apply(row)

    def _apply(self, row: _chain.Row) -> None:
        if row.charge is None:
            self._settled.add(row.key)
            return
        if not row.joined:
            return
        self._keys.setdefault(row.key, []).append(row)
        extended: dict[int, History] = {}  # one object for equal histories: devices share few
        for name in row.accounts:
            history = self._histories.get(name, ())
            if id(history) not in extended:
                extended[id(history)] = self._interned.setdefault(after := normalise((*history, row.charge)), after)
            self._histories[name] = extended[id(history)]


def _names(accounts: Iterable[str]) -> frozenset[str]:
    names = frozenset(accounts)
    for name in names:
        if not name or "\n" in name:
            raise PrivacyError(f"expected account names without line breaks, got {name!r}")
    return names
