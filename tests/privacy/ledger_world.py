"""Ledgers to try things on."""

from fedrec.privacy.accounting import Charge
from fedrec.privacy.ledger import Ledger

DELTA = 1e-5
CHARGE = Charge(2.07, 0.25, 8)


def create(path, budget=8.0, unit="interaction", **settings):
    return Ledger.create(path, unit=unit, delta=DELTA, budget_epsilon=budget, **settings)


def filled(path):
    with create(path) as ledger:
        ledger.reserve_many([f"device:{d}" for d in range(40)], CHARGE, key="round:1")
        ledger.settle("round:1")
        ledger.reserve("device:3", CHARGE, key="round:2")
        return ledger.export()
