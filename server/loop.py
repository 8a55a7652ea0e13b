"""The round loop: reserve, order, gather, aggregate, validate, checkpoint. Flower's own ``start`` can't resume or stop.

A round's durable steps stand in this order: the debit, then (after the orders came back) its settlement, the row of
``metrics.jsonl``, the checkpoint. Killed anywhere, a seeded run that is resumed ends with the same bits.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import cast

from flwr.app import ConfigRecord
from flwr.serverapp import Grid

from ..client.wire import decode_named, encode_named
from ..config import Config
from ..errors import BudgetExhausted, ConfigError, RunError
from ..meta.policy import Named
from ..meta.reptile import OuterState, served
from .account import LEDGER, FederationAccount
from .checkpoint import Checkpoint, CheckpointStore, check_same_run, settings_of
from .lock import RunLock
from .metrics import MetricsLog
from .plan import FederationPlan, FederationResult, RoundReport, StopReason
from .strategy import MetaStrategy

logger = logging.getLogger(__name__)


def run_federation(grid: Grid, plan: FederationPlan, config: Config) -> FederationResult:
    """Run a federation to its end, or on from its last checkpoint.

    Args:
        grid: Flower's, or the in-process one.
        plan: initialization, public constants, hooks, run directory.
        config: the whole configuration.

    Returns:
        How it ended. A run that had ended before is not continued: its result is returned again.

    Raises:
        RunError: the directory is locked, in use, of another configuration or damaged; the disk is full; no node came.
        LedgerError: the federation's ledger is missing, altered or rolled back.
        ConfigError: plan and configuration contradict each other.
        KeyboardInterrupt: Ctrl-C; the run can be resumed.
    """
    plan.check(config)
    with ExitStack() as stack:
        if not plan.locked:
            stack.enter_context(RunLock(plan.run_dir))
        federation = _Federation(plan, config)
        stack.callback(federation.close)
        try:
            return federation.run(grid)
        except KeyboardInterrupt:
            logger.warning("interrupted: %d rounds are safe in %s; resume goes on", federation.done, plan.run_dir)
            raise


class _Federation:
    """A run in progress. ``_last`` is always the checkpoint that is on disk."""

    def __init__(self, plan: FederationPlan, config: Config) -> None:
        self._plan = plan
        self._config = config
        self._store = CheckpointStore(plan.run_dir)
        self._log = MetricsLog(plan.run_dir / "metrics.jsonl")
        if not plan.resume and (self._store.rounds() or self._log.rows or (plan.run_dir / LEDGER).exists()):
            raise RunError(
                f"expected a directory without a run, got one of {len(self._log.rows)} rounds in {plan.run_dir}; "
                "resume it or choose another directory"
            )
        found = self._store.load()
        if found is not None:
            check_same_run(found, config, plan.schema, plan.population)
        self._account = FederationAccount.open(config, plan, found)
        try:
            self._last = found or self._first()
            self._log.keep_until(self._last.round)
        except BaseException:
            self._account.close()
            raise
        self._strategy = MetaStrategy(config, plan, self._last.outer, self._last.clip, self._last.scores)

    @property
    def done(self) -> int:
        """Rounds that are safe on disk."""
        return self._last.round

    def close(self) -> None:
        """Release the ledger."""
        self._account.close()

    def run(self, grid: Grid) -> FederationResult:
        """Hold rounds until one of the reasons to stop."""
        if self._last.stopped is None:
            self._strategy.summary()
            _wait_for_nodes(grid, self._plan)
        while self._last.stopped is None:
            self._round(grid, self._last.round + 1)
        return self._result()

    def _first(self) -> Checkpoint:
        count, head = self._account.position
        first = Checkpoint(
            round=0,
            phi=dict(self._plan.phi0),
            outer=OuterState(),
            schema=self._plan.schema,
            config=settings_of(self._config),
            population=self._plan.population,
            ledger_count=count,
            ledger_head=head,
        )
        self._store.save(first)
        return first

    def _round(self, grid: Grid, number: int) -> None:
        started = time.perf_counter()
        try:
            self._account.reserve(number)
        except BudgetExhausted as error:
            logger.warning("round %d is not held: %s", number, error)
            self._save(replace(self._last, stopped="budget"))
            return
        clip = self._strategy.clip_of(number)
        phi = self._train(grid, number)
        self._account.settle(number)
        final = self._final(number)
        validation = self._validation(number, phi, due=final is not None or number % self._config.evaluation.every == 0)
        checkpoint = self._judged(number, phi, validation, final)
        report = self._report(number, validation, clip, time.perf_counter() - started)
        self._log.append(report.row())
        self._save(checkpoint)
        if self._plan.on_round is not None:
            self._plan.on_round(report)

    def _train(self, grid: Grid, number: int) -> Named:
        """Orders out, replies in, Reptile step."""
        arrays = encode_named(self._last.phi)
        messages = list(self._strategy.configure_train(number, arrays, ConfigRecord(), grid))
        replies = (
            list(grid.send_and_receive(messages, timeout=self._plan.deadline or self._config.server.deadline))
            if messages
            else []
        )
        moved, _ = self._strategy.aggregate_train(number, replies)
        return decode_named(moved)

    def _final(self, number: int) -> StopReason | None:
        """Why no round can follow this one, as far as it is known before its validation."""
        if number >= self._config.server.rounds:
            return "rounds"
        return None if self._account.affords(number + 1) else "budget"

    def _served(self, phi: Named) -> Named:
        return {**phi, **served(phi, self._strategy.outer, self._config.server)}

    def _validation(self, number: int, phi: Named, *, due: bool) -> Mapping[str, float] | None:
        if self._plan.validate is None or not due:
            return None
        metrics = {name: float(value) for name, value in self._plan.validate(number, self._served(phi)).items()}
        if self._config.evaluation.metric not in metrics:
            raise ConfigError(
                f"expected evaluation.metric to be one of {', '.join(sorted(metrics))}, "
                f"got {self._config.evaluation.metric!r}"
            )
        wrong = {name: value for name, value in metrics.items() if not math.isfinite(value)}
        if wrong:
            raise RunError(f"expected finite validation metrics in round {number}, got {wrong}; lower the step sizes")
        return metrics

    def _judged(
        self, number: int, phi: Named, validation: Mapping[str, float] | None, final: StopReason | None
    ) -> Checkpoint:
        """The round's checkpoint: best round so far, patience, reason to stop. A higher metric is better."""
        count, head = self._account.position
        after = replace(
            self._last,
            round=number,
            phi=phi,
            outer=self._strategy.outer,
            clip=self._strategy.clip,
            scores=self._strategy.scores,
            stopped=final,
            ledger_count=count,
            ledger_head=head,
        )
        if validation is None:
            return after
        metric = validation[self._config.evaluation.metric]
        if self._last.best_metric is None or metric > self._last.best_metric:
            return replace(after, best=self._served(phi), best_round=number, best_metric=metric, stale=0)
        stale = self._last.stale + 1
        patience = self._config.server.patience
        impatient = final is None and patience is not None and stale >= patience
        return replace(after, stale=stale, stopped="patience" if impatient else final)

    def _report(
        self, number: int, validation: Mapping[str, float] | None, clip: float | None, seconds: float
    ) -> RoundReport:
        extra = self._plan.epsilon(number) if self._plan.epsilon is not None else {}
        verdict = self._strategy.verdict
        return RoundReport(
            round=number,
            participants=verdict.devices,
            epsilon=self._account.spent(number) | dict(extra),
            validation=validation,
            seconds=seconds,
            quarantined=verdict.quarantined,
            refused=verdict.refused,
            rounds=self._config.server.rounds,
            clip=clip,
            bytes_down=self._strategy.traffic.down,
            bytes_up=self._strategy.traffic.up,
            flagged=self._strategy.flagged,
        )

    def _save(self, checkpoint: Checkpoint) -> None:
        self._store.save(checkpoint)
        self._last = checkpoint

    def _result(self) -> FederationResult:
        last = self._last
        now = self._served(last.phi)
        return FederationResult(
            phi=last.phi,
            served=now,
            best=last.best or now,
            best_round=last.best_round or last.round,
            best_metric=last.best_metric,
            rounds=last.round,
            stop=cast(StopReason, last.stopped),
            epsilon=self._log.rows[-1]["epsilon"] if self._log.rows else self._account.spent(0),
            rows=tuple(self._log.rows),
        )


def _wait_for_nodes(grid: Grid, plan: FederationPlan) -> None:
    """A round that reaches nobody costs as much as any other: don't begin before all are there."""
    deadline = time.monotonic() + plan.node_wait
    least = plan.nodes or plan.least_nodes
    while (found := len(list(grid.get_node_ids()))) < least:
        if time.monotonic() >= deadline:
            number = "one Flower node" if least == 1 else f"{least} Flower nodes"
            raise RunError(
                f"expected {'' if plan.nodes else 'at least '}{number} within {plan.node_wait:g} s, "
                f"got {found or 'none'}; start the nodes first"
            )
        time.sleep(min(1.0, plan.node_wait))
    if plan.nodes is not None and found > plan.nodes:
        raise RunError(f"expected {plan.nodes} Flower nodes, got {found}; set server.nodes to the number of nodes")
