"""A device's privacy account: the ledger beside its store, for life.

The ledger is a file of its own. It outlives the store: whoever forgets everything, deletes the store or restores an old
copy of it has spent what was spent. The store notes how far the ledger had come, so that a ledger which went back in
time together with its witness is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import LedgerError, PrivacyError

if TYPE_CHECKING:
    from ..privacy.accounting import Charge
    from ..privacy.ledger import Ledger
    from .package import PolicyPackage
    from .store import Store

ACCOUNT = "device"
_POSITION = "ledger"


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a device has spent of its privacy budget; every epsilon with what it means."""

    unit: str
    epsilon: float | None
    """What may be spent over the life of the device; none: no limit."""
    spent: float
    remaining: float | None
    """Budget less what is spent: a hint, as epsilon does not compose by adding."""
    delta: float
    accountant: str
    neighbours: str = "add or remove one interaction"
    """Neighbouring relation."""
    releases: int = 0
    """Debits: how often something was made to leave."""


class DeviceAccount:
    """Opens the ledger for one call at a time, so that any thread may pay."""

    def __init__(self, store: Store) -> None:
        """The account of ``store``'s device."""
        self._store = store
        self.path = store.path.with_name(store.path.name + ".ledger")

    def begin(self, package: PolicyPackage) -> None:
        """Create the ledger that ``package`` needs, or go on with the one that is there; idempotent.

        Raises:
            PrivacyError: the ledger that is there was begun under another delta or accountant.
            LedgerError: it was begun and is missing, or it is unreadable.
        """
        if package.noise is None:
            return
        from ..privacy.birth import create_ledger
        from ..privacy.ledger import LedgerSettings

        privacy = package.config.privacy
        settings = LedgerSettings("interaction", privacy.delta, package.noise.epsilon, privacy.accountant)
        if not self.path.exists() and self._store.setting(_POSITION) is None:
            create_ledger(self.path, settings)
        with self._open() as ledger:
            if (ledger.settings.delta, ledger.settings.accountant) != (settings.delta, settings.accountant):
                raise PrivacyError(
                    f"expected a package with delta {ledger.settings.delta:g} and accountant "
                    f"{ledger.settings.accountant}, as this device's ledger was begun, got {settings.delta:g} and "
                    f"{settings.accountant}; a ledger is for life"
                )
            self._remember(ledger)

    def reserve(self, charge: Charge, key: str) -> None:
        """Debit a release; on the disk when this returns.

        Raises:
            BudgetExhausted: nothing was debited, and nothing may leave.
            LedgerError: missing, altered or rolled back: nothing may leave.
        """
        with self._open() as ledger:
            ledger.reserve(ACCOUNT, charge, key=key)
            self._remember(ledger)

    def settle(self, key: str) -> None:
        """Note that what ``key`` paid for is about to leave."""
        with self._open() as ledger:
            ledger.settle(key)
            self._remember(ledger)

    def budget(self) -> Budget | None:
        """What was spent; none for a device that never needed a ledger.

        Raises:
            LedgerError: missing, altered or rolled back.
        """
        if not self.path.exists() and self._store.setting(_POSITION) is None:
            return None
        with self._open() as ledger:
            settings = ledger.settings
            return Budget(
                unit=settings.unit,
                epsilon=settings.budget(ACCOUNT),
                spent=ledger.spent(ACCOUNT),
                remaining=ledger.remaining(ACCOUNT),
                delta=settings.delta,
                accountant=settings.accountant,
                releases=len(ledger.debits()),
            )

    @contextmanager
    def _open(self) -> Iterator[Ledger]:
        from ..privacy.ledger import Ledger

        position = self._store.setting(_POSITION) or ""  # before the ledger is read: other processes may add to it
        count, _, head = position.partition(" ")
        with Ledger.open(self.path) as ledger:
            if count and not ledger.extends(int(count), head):
                raise LedgerError(
                    f"the ledger {self.path} is older than its device remembers, or another's; restore the newer copy, "
                    "nothing may be trained on this one"
                )
            yield ledger

    def _remember(self, ledger: Ledger) -> None:
        """How far the ledger has come; if that can't be noted, the ledger itself still knows what was spent."""
        self._store.put(_POSITION, f"{ledger.count} {ledger.head}")
