"""The federation's privacy account: debited on disk before a round's orders leave."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from ..config import Config
from ..errors import LedgerError
from ..privacy.accounting import Charge, epsilon
from ..privacy.ledger import Ledger, LedgerSettings
from . import _durable
from .checkpoint import Checkpoint
from .plan import FederationPlan

ACCOUNT = "federation"
LEDGER = "ledger.sqlite"


class FederationAccount:
    """Pays for the central noise of units user and both; under the other units there is nothing to pay.

    A seeded simulation that repeats a round after a crash releases the same bits and owes nothing new; elsewhere the
    repeated round draws fresh noise and is debited again.
    """

    def __init__(self, config: Config, plan: FederationPlan, ledger: Ledger | None) -> None:
        """Use :meth:`open`."""
        self._privacy = config.privacy
        self._rate = config.server.participation
        self._config = config
        self._plan = plan
        self._simulation = plan.simulation
        self._ledger = ledger

    @classmethod
    def open(cls, config: Config, plan: FederationPlan, checkpoint: Checkpoint | None) -> FederationAccount:
        """Open the run's ledger, or create it for a run that has none yet.

        Raises:
            LedgerError: it is missing, altered or older than the checkpoint.
        """
        if config.privacy.unit not in ("user", "both"):
            return cls(config, plan, None)
        path = plan.run_dir / LEDGER
        if checkpoint is None and not path.exists():
            create_ledger(path, _settings(config))
        ledger = Ledger.open(path)
        if ledger.settings != _settings(config):
            ledger.close()
            raise LedgerError(
                f"expected the ledger {path} to have the settings {_settings(config)}, got {ledger.settings}; "
                "resume with the run's own configuration"
            )
        if checkpoint is not None and not ledger.extends(checkpoint.ledger_count, checkpoint.ledger_head):
            ledger.close()
            raise LedgerError(
                f"the ledger {path} is older than the checkpoint of round {checkpoint.round}, or another run's; "
                "restore the newer copy, nothing may be trained on this one"
            )
        return cls(config, plan, ledger)

    def reserve(self, number: int) -> None:
        """Debit round ``number``; durable on return.

        Raises:
            BudgetExhausted: nothing was debited and the round may not be held.
        """
        if self._ledger is not None:
            charge = self._charge(number)
            self._ledger.reserve(ACCOUNT, charge, key=_key(number), replay=self._simulation)

    def settle(self, number: int) -> None:
        """Note that the round's noised sum exists."""
        if self._ledger is not None:
            self._ledger.settle(_key(number))

    def affords(self, number: int) -> bool:
        """Whether round ``number`` can be paid after all the rounds before it."""
        if self._ledger is None or self._privacy.epsilon is None:
            return True
        return self._cost(number - 1, extra=1) <= self._privacy.epsilon

    def spent(self, number: int) -> dict[str, float]:
        """Epsilon by unit after round ``number``."""
        return {} if self._ledger is None else {"user": self._cost(number, extra=0)}

    @property
    def position(self) -> tuple[int, str]:
        """Rows and head of the ledger; (0, "") without one."""
        return (0, "") if self._ledger is None else (self._ledger.count, self._ledger.head)

    def close(self) -> None:
        """Release the file."""
        if self._ledger is not None:
            self._ledger.close()

    def _charge(self, number: int) -> Charge:
        return Charge(self._plan.noise(self._config, number), self._rate, 1)

    def _cost(self, rounds: int, extra: int) -> float:
        """Epsilon of ``rounds`` and ``extra`` more.

        A seeded simulation that fell back to an earlier round finds later debits in its ledger, for releases that it is
        about to repeat: it counts rounds. A deployment counts every debit.
        """
        if not self._simulation and self._ledger is not None:
            charges = self._ledger.history(ACCOUNT)
            charges += [self._charge(rounds + 1 + place) for place in range(extra)]
        else:
            charges = [self._charge(number) for number in range(1, rounds + extra + 1)]
        return epsilon(charges, self._privacy.delta, self._privacy.accountant)


def create_ledger(path: Path, settings: LedgerSettings) -> None:
    """Create a ledger that is either there whole or not at all: the database is moved into place last.

    Raises:
        RunError: the disk is full or not writable.
    """
    with _durable.storage_errors(path, "nothing was released"):
        _durable.sweep(path.parent, path.name)
        nursery = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            young = nursery / path.name
            Ledger.create(
                young,
                unit=settings.unit,
                delta=settings.delta,
                budget_epsilon=settings.budget_epsilon,
                accountant=settings.accountant,
            ).close()
            for file in sorted(nursery.iterdir(), key=lambda file: file.name == path.name):
                os.replace(file, path.parent / file.name)
            _durable.sync_directory(path.parent)
        finally:
            shutil.rmtree(nursery, ignore_errors=True)


def _settings(config: Config) -> LedgerSettings:
    privacy = config.privacy
    return LedgerSettings("user", privacy.delta, privacy.epsilon, privacy.accountant)


def _key(number: int) -> str:
    return f"round:{number}"
