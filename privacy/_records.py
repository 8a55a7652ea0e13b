"""What a ledger takes and tells: its settings, its debits, the outcome of a reservation, what accounts have spent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .._validate import positive, probability
from ..errors import PrivacyError
from ._accounts import AccountSet
from ._packing import pack
from .accounting import Accountant, Charge, History
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
class NumberedReservations:
    """The outcome of ``Ledger.reserve_numbered``, ascending."""

    accepted: NDArray[np.int64]
    """Numbers of the accounts whose debit is on disk."""
    refused: NDArray[np.int64]
    """Numbers of those whose budget does not cover the charge; nothing was debited from them."""


@dataclass(frozen=True, kw_only=True)
class Debit:
    """One row of the ledger: a charge that some accounts paid under one key."""

    sequence: int
    key: str
    charge: Charge
    accounts: int
    """How many paid."""
    settled: bool
    """Whether what it paid for is known to have been released; it is spent in any case."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Accounts of one kind that have the same history, and what it has cost each of them."""

    accounts: AccountSet
    charges: History
    epsilon: float
    budget: float | None

    @property
    def name(self) -> str:
        """The one account's name, or the kind and its numbers (``device:0-4,7``; many are packed)."""
        (name,) = self.accounts.names or {f"{kind}:{pack(some)}" for kind, some in self.accounts.numbers.items()}
        return name

    @property
    def remaining(self) -> float | None:
        """Budget less what is spent, or ``None`` without a limit. Epsilon does not compose by adding: a hint only."""
        return None if self.budget is None else max(0.0, self.budget - self.epsilon)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return {
            "accounts": len(self.accounts),
            "epsilon": self.epsilon,
            "remaining": self.remaining,
            "charges": [charge.to_dict() for charge in self.charges],
        }


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
