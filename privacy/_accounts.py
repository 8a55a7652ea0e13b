"""Sets of accounts, and the book that says which history each account has.

An account is a name; ``device:17`` is number 17 of the kind ``device``. Numbers are held in arrays and histories are
shared, so that a million devices of few histories cost four bytes each, and a verdict is worked out once a history.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import PrivacyError
from ._packing import LIMIT, Numbers, pack, unpack
from .accounting import Charge, History, normalise

_NUMBERED = re.compile(r"([^:\n]+):(0|[1-9][0-9]{0,7})")
_NONE: Numbers = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class AccountSet:
    """Some accounts."""

    names: frozenset[str] = frozenset()
    """Those that are not numbered."""
    numbers: Mapping[str, Numbers] = field(default_factory=dict)
    """Distinct ascending numbers by kind; no kind without any."""

    @classmethod
    def of(cls, accounts: Iterable[str]) -> Self:
        """The accounts of these names; repeated ones count once.

        Raises:
            PrivacyError: a name is empty or has a line break.
        """
        names: set[str] = set()
        numbers: dict[str, list[int]] = {}
        for account in accounts:
            match = _NUMBERED.fullmatch(account)
            if match is not None and int(match[2]) < LIMIT:
                numbers.setdefault(match[1], []).append(int(match[2]))
            elif not account or "\n" in account:
                raise PrivacyError(f"expected account names without line breaks, got {account!r}")
            else:
                names.add(account)
        return cls(frozenset(names), {kind: _ascending(np.array(some)) for kind, some in numbers.items()})

    @classmethod
    def numbered(cls, kind: str, numbers: NDArray[np.integer[Any]]) -> Self:
        """Accounts ``kind:number``; repeated numbers count once.

        Raises:
            PrivacyError: the kind is no word, or a number lies outside of [0, 2^26).
        """
        if not _NUMBERED.fullmatch(f"{kind}:0"):
            raise PrivacyError(f"expected a kind of account without colon or line break, got {kind!r}")
        some = _ascending(numbers)
        if len(some) and not (some[0] >= 0 and some[-1] < LIMIT):
            raise PrivacyError(f"expected numbers of accounts in [0, {LIMIT}), got {int(some[0])} to {int(some[-1])}")
        return cls(numbers={kind: some} if len(some) else {})

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Read what :meth:`record` wrote; validates again.

        Raises:
            ValueError: it wrote nothing of the kind; or TypeError, KeyError, AttributeError, PrivacyError.
        """
        found = cls.of(record["names"])
        numbers = {kind: unpack(text) for kind, text in record["numbers"].items()}
        for kind in numbers:
            cls.numbered(kind, _NONE)
        found = cls(found.names, numbers)
        if set(record) != {"names", "numbers"} or record["names"] != sorted(found.names) or not found:
            raise ValueError(f"expected one or more accounts, got {str(record)[:80]}")
        return found

    def record(self) -> dict[str, Any]:
        """A JSON-able dictionary, one for each set."""
        return {
            "names": sorted(self.names),
            "numbers": {kind: pack(self.numbers[kind]) for kind in sorted(self.numbers)},
        }

    def __len__(self) -> int:
        return len(self.names) + sum(len(some) for some in self.numbers.values())

    def __iter__(self) -> Iterator[str]:
        yield from sorted(self.names)
        for kind in sorted(self.numbers):
            yield from (f"{kind}:{number}" for number in self.numbers[kind].tolist())

    def __or__(self, other: AccountSet) -> AccountSet:
        return self._joined(self.names | other.names, other, _together)

    def __and__(self, other: AccountSet) -> AccountSet:
        return self._joined(self.names & other.names, other, lambda a, b: a[np.isin(a, b, assume_unique=True)])

    def __sub__(self, other: AccountSet) -> AccountSet:
        return self._joined(self.names - other.names, other, _without)

    def _joined(
        self, names: frozenset[str], other: AccountSet, join: Callable[[Numbers, Numbers], Numbers]
    ) -> AccountSet:
        kinds = self.numbers.keys() | other.numbers.keys()
        joined = {kind: join(self.numbers.get(kind, _NONE), other.numbers.get(kind, _NONE)) for kind in kinds}
        return AccountSet(names, {kind: some for kind, some in joined.items() if len(some)})


def _together(some: Numbers, others: Numbers) -> Numbers:
    if not len(others):
        return some
    return np.union1d(some, others) if len(some) else others


def _without(some: Numbers, others: Numbers) -> Numbers:
    if len(some) == len(others) and (some == others).all():
        return _NONE
    return some[~np.isin(some, others, assume_unique=True)] if len(others) else some


def _ascending(numbers: NDArray[np.integer[Any]]) -> Numbers:
    """The numbers sorted, each once."""
    some = numbers.astype(np.int64)
    return some if (some[1:] > some[:-1]).all() else np.unique(some)


class Book:
    """Which history each account has."""

    def __init__(self) -> None:
        self._histories: list[History] = [()]
        self._index: dict[History, int] = {(): 0}
        self._named: dict[str, int] = {}
        self._numbered: dict[str, NDArray[np.int32]] = {}

    def history(self, account: str) -> History:
        """The debits of one account."""
        some = AccountSet.of([account])
        for kind, numbers in some.numbers.items():
            return self._histories[int(self._of(kind, numbers)[0])]
        return self._histories[self._named.get(account, 0)]

    def add(self, accounts: AccountSet, charge: Charge) -> None:
        """Add ``charge`` to the history of each account."""
        longer: dict[int, int] = {}

        def after(index: int) -> int:
            if index not in longer:
                longer[index] = self._intern(normalise((*self._histories[index], charge)))
            return longer[index]

        for name in accounts.names:
            self._named[name] = after(self._named.get(name, 0))
        for kind, numbers in accounts.numbers.items():
            before = self._of(kind, numbers)
            table = np.zeros(len(self._histories), dtype=np.int32)
            for index in _distinct(before):
                table[index] = after(index)
            self._column(kind, int(numbers[-1]))[numbers] = table[before]

    def where(self, accounts: AccountSet, verdict: Callable[[str, History], bool]) -> AccountSet:
        """Those accounts for which ``verdict`` (of any account of that kind, and a history) is true."""
        told: dict[tuple[str, int], bool] = {}

        def holds(account: str, index: int) -> bool:
            case = (account.partition(":")[0], index)
            if case not in told:
                told[case] = verdict(account, self._histories[index])
            return told[case]

        names = frozenset(name for name in accounts.names if holds(name, self._named.get(name, 0)))
        kept = {}
        for kind, numbers in accounts.numbers.items():
            indices = self._of(kind, numbers)
            table = np.zeros(len(self._histories), dtype=np.bool_)
            for index in _distinct(indices):
                table[index] = holds(f"{kind}:{numbers[0]}", index)
            kept[kind] = numbers[table[indices]]
        return AccountSet(names, {kind: some for kind, some in kept.items() if len(some)})

    def groups(self) -> Iterator[tuple[AccountSet, History]]:
        """Accounts of one kind and one history together: names first, then each kind's, the most accounts first."""
        for name in sorted(self._named):
            yield AccountSet(frozenset([name])), self._histories[self._named[name]]
        for kind in sorted(self._numbered):
            column = self._numbered[kind]
            counts = np.bincount(column, minlength=len(self._histories))
            counts[0] = 0
            for index in np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)].tolist():
                yield AccountSet(numbers={kind: np.flatnonzero(column == index)}), self._histories[index]

    def _intern(self, history: History) -> int:
        if history not in self._index:
            self._index[history] = len(self._histories)
            self._histories.append(history)
        return self._index[history]

    def _of(self, kind: str, numbers: Numbers) -> NDArray[np.int32]:
        """The places of the histories of these accounts."""
        column = self._numbered.get(kind)
        if column is None:
            return np.zeros(len(numbers), dtype=np.int32)
        if numbers[-1] < len(column):
            return column[numbers]
        return np.where(numbers < len(column), column[np.minimum(numbers, len(column) - 1)], 0).astype(np.int32)

    def _column(self, kind: str, top: int) -> NDArray[np.int32]:
        """The kind's array, grown to hold number ``top``; pages of it that nobody touches take no memory."""
        column = self._numbered.get(kind)
        if column is None or len(column) <= top:
            longer = np.zeros(max(top + 1, 2 * (0 if column is None else len(column))), dtype=np.int32)
            if column is not None:
                longer[: len(column)] = column
            self._numbered[kind] = column = longer
        return column


def _distinct(indices: NDArray[np.int32]) -> list[int]:
    return np.flatnonzero(np.bincount(indices)).tolist()
