"""``fedrec budget show`` as a terminal and as JSON show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..privacy.accounting import Charge
from ..privacy.ledger import Debit, Ledger, LedgerSettings, Standing
from ..privacy.planning import describe_sampler
from ..privacy.statement import NEIGHBOURS, accountant_label
from .render import plain_table

_HISTORIES = 12
"""Distinct histories that are shown one a line."""
_NAMED = 28
"""Characters of a group's accounts that are shown."""


@dataclass(frozen=True, kw_only=True)
class Account:
    """A ledger that was opened, verified and read."""

    name: str
    path: Path
    settings: LedgerSettings
    count: int
    head: str
    debits: Sequence[Debit]
    standings: Sequence[Standing]
    more: Mapping[str, int | None]
    """By name of a standing: how many more debits like the last one it can pay; none where there is no limit."""

    def statement(self) -> str:
        """What gives the epsilons of this ledger their meaning."""
        settings = self.settings
        units = [unit for unit in NEIGHBOURS if settings.unit in (unit, "both")]
        meant = " and ".join(f"unit {unit} ({NEIGHBOURS[unit]})" for unit in units)
        return (
            f"epsilon at delta = {settings.delta:g}, {meant}, {accountant_label(settings.accountant)}, "
            "sampler: as each debit says"
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary: everything."""
        return {
            "name": self.name,
            "path": str(self.path),
            "settings": self.settings.to_dict(),
            "statement": self.statement(),
            "rows": self.count,
            "head": self.head,
            "debits": [
                {"row": debit.sequence, "key": debit.key, "accounts": debit.accounts, "settled": debit.settled}
                | {"charge": debit.charge.to_dict()}
                for debit in self.debits
            ],
            "accounts": {
                standing.name: standing.to_dict() | {"budget": standing.budget, "more": self.more.get(standing.name)}
                for standing in self.standings
            },
        }


def account_of(name: str, path: Path, ledger: Ledger) -> Account:
    """Read everything that is shown of an open ledger."""
    debits, standings = ledger.debits(), ledger.standings()
    more = {}
    if debits:
        more = {each.name: ledger.affordable(each, debits[-1].charge) for each in standings[:_HISTORIES]}
    return Account(
        name=name,
        path=path,
        settings=ledger.settings,
        count=ledger.count,
        head=ledger.head,
        debits=debits,
        standings=standings,
        more=more,
    )


def show_ledger(console: Console, account: Account, last: int) -> None:
    """Settings, the last debits, and accounts by history."""
    console.print(Text.assemble((account.name, "bold"), f"  {account.path}"), soft_wrap=True)
    console.print(Text(account.statement(), style="magenta"))
    budgets = account.settings.budget_epsilon
    limits = ", ".join(f"{kind} {value:g}" for kind, value in budgets.items()) if isinstance(budgets, Mapping) else ""
    limit = limits or ("no limit" if budgets is None else f"{budgets:g} an account")
    console.print(Text(f"budget: {limit}; {account.count} rows, verified; head {account.head}"))
    if not account.debits:
        console.print(Text("nothing was ever spent\n"))
        return
    console.print()
    shown = account.debits[-last:]
    title = f"Debits ({len(account.debits)})" + (f", the last {last}" if len(account.debits) > last else "")
    console.print(Text(title, style="bold"))
    console.print(_debits(shown))
    console.print()
    console.print(Text("Accounts by history", style="bold"))
    console.print(_standings(account))
    console.print()


def _debits(debits: Sequence[Debit]) -> Table:
    numbers = ("row", "accounts", "noise multiplier", "steps")
    shown = plain_table("row", "key", *numbers[1:], "sampler", "settled", numbers=numbers)
    for debit in debits:
        charge = debit.charge
        shown.add_row(
            f"{debit.sequence:,}",
            Text(debit.key),
            f"{debit.accounts:,}",
            f"{charge.noise_multiplier:.4g}",
            f"{charge.steps:,}",
            describe_sampler(charge.sample_rate),
            "yes" if debit.settled else "no",
        )
    return shown


def _standings(account: Account) -> Table:
    numbers = ("accounts", "epsilon", "remaining", "more like the last")
    shown = plain_table("who", numbers[0], "history", *numbers[1:], numbers=numbers)
    for standing in account.standings[:_HISTORIES]:
        more = account.more.get(standing.name)
        shown.add_row(
            Text(_short(standing.name)),
            f"{len(standing.accounts):,}",
            Text(_history(standing.charges)),
            f"{standing.epsilon:.4g}",
            "no limit" if standing.remaining is None else f"{standing.remaining:.4g}",
            "no limit" if more is None else f"{more:,}",
        )
    rest = account.standings[_HISTORIES:]
    if rest:
        worst = max(standing.epsilon for standing in rest)
        count = sum(len(standing.accounts) for standing in rest)
        shown.add_row(f"{len(rest)} more histories", f"{count:,}", "", f"<= {worst:.4g}", "", "")
    return shown


def _short(name: str) -> str:
    return name if len(name) <= _NAMED else f"{name.partition(':')[0]}: many"


def _history(charges: Sequence[Charge]) -> str:
    return "; ".join(
        f"{charge.steps:,} x noise {charge.noise_multiplier:.4g}"
        + ("" if charge.sample_rate == 1 else f" at rate {charge.sample_rate:.4g}")
        for charge in charges
    )
