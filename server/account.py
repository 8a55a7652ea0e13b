"""The federation's privacy account: debited on disk before a round's orders leave."""

from __future__ import annotations

from ..config import Config
from ..errors import LedgerError
from ..privacy.accounting import Charge, epsilon
from ..privacy.adaptive import describe_adaptive
from ..privacy.birth import create_ledger
from ..privacy.ledger import Ledger, LedgerSettings
from ..privacy.separation import describe_separation, most_participations
from .checkpoint import Checkpoint
from .plan import FederationPlan

ACCOUNT = "federation"
LEDGER = "ledger.sqlite"


class FederationAccount:
    """Pays for the central noise of units user and both; under the other units there is nothing to pay.

    With a minimum separation there is one account for each turn, named ``federation:turn-1-of-4``: a round is debited
    from those whose devices may be in it, so that an account holds what one device took part in. The dearest is what
    the federation has spent.

    A seeded simulation that repeats a round after a crash releases the same bits and owes nothing new; elsewhere the
    repeated round draws fresh noise and is debited again.
    """

    def __init__(self, config: Config, plan: FederationPlan, ledger: Ledger | None) -> None:
        """Use :meth:`open`."""
        self._privacy = config.privacy
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
            create_ledger(path, ledger_settings(config, plan.population))
        ledger = Ledger.open(path)
        wanted = ledger_settings(config, plan.population)
        if ledger.settings != wanted:
            ledger.close()
            raise LedgerError(
                f"expected the ledger {path} to have the settings {wanted}, got {ledger.settings}; "
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
        if self._ledger is None:
            return
        for turn in self._turns(number):
            self._ledger.reserve(self._account(turn), self._charge(number), key=_key(number), replay=self._simulation)

    def settle(self, number: int) -> None:
        """Note that the round's noised sum exists."""
        if self._ledger is not None:
            self._ledger.settle(_key(number))

    def affords(self, number: int) -> bool:
        """Whether round ``number`` can be paid after all the rounds before it."""
        budget = self._privacy.epsilon
        if self._ledger is None or budget is None:
            return True
        coming = (self._charge(number), 1)
        return all(self._epsilon([*self._paid(turn, number - 1), coming]) <= budget for turn in self._turns(number))

    def spent(self, number: int) -> dict[str, float]:
        """Epsilon by unit after round ``number``: that of the account which paid most."""
        if self._ledger is None:
            return {}
        every = range(self._config.server.min_separation)
        return {"user": max(self._epsilon(self._paid(turn, number)) for turn in every)}

    @property
    def position(self) -> tuple[int, str]:
        """Rows and head of the ledger; (0, "") without one."""
        return (0, "") if self._ledger is None else (self._ledger.count, self._ledger.head)

    def close(self) -> None:
        """Release the file."""
        if self._ledger is not None:
            self._ledger.close()

    def _charge(self, number: int) -> Charge:
        return Charge(self._plan.noise(self._config, number), self._config.server.accounted_rate, 1)

    def _turns(self, number: int) -> list[int]:
        """Turns of the devices that may be in a round."""
        turn = self._plan.turn(self._config, number)
        return list(range(self._config.server.min_separation)) if turn is None else [turn]

    def _account(self, turn: int) -> str:
        separation = self._config.server.min_separation
        return ACCOUNT if separation == 1 else f"{ACCOUNT}:turn-{turn + 1}-of-{separation}"

    def _paid(self, turn: int, rounds: int) -> list[tuple[Charge, int]]:
        """What an account has paid after ``rounds``: charges and how often.

        A seeded simulation that fell back to an earlier round finds later debits in its ledger, for releases that it is
        about to repeat: it counts rounds. A deployment counts every debit.
        """
        if not self._simulation and self._ledger is not None:
            return [(charge, 1) for charge in self._ledger.history(self._account(turn))]
        before = self._config.server.rounds - self._config.adapt_rounds
        own = most_participations(max(0, rounds - before - turn), self._config.server.min_separation)
        counted = [(number, 1) for number in range(1, min(rounds, before) + 1)] + [(before + 1, own)]
        return [(self._charge(number), times) for number, times in counted if times]

    def _epsilon(self, charges: list[tuple[Charge, int]]) -> float:
        return epsilon(charges, self._privacy.delta, self._privacy.accountant)


def ledger_settings(config: Config, population: int) -> LedgerSettings:
    """The settings of a federation's ledger, in words what its debits pay for where that is more than a plain sum."""
    privacy, server = config.privacy, config.server
    words = []
    if privacy.clipping == "adaptive":
        words.append(describe_adaptive(privacy.clip_quantile, config.bit_noise(population)))
    if server.min_separation > 1:
        words.append(describe_separation(config.adapt_rounds, server.min_separation))
    return LedgerSettings("user", privacy.delta, privacy.epsilon, privacy.accountant, "; ".join(words))


def _key(number: int) -> str:
    return f"round:{number}"
