"""The Flower strategy: draw devices, order adaptations, gate the replies, sum, noise, take the Reptile step."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from .._streams import torch_stream
from ..client.wire import TrainOrder, TrainReply, decode_named, encode_named, encode_order
from ..config import Config
from ..meta.inner_rates import learn_rates
from ..meta.policy import Named
from ..meta.popularity import NAME as WARM_STARTED
from ..meta.popularity import log_popularity
from ..meta.reptile import OuterState, mean_update, reptile_step
from ..privacy.entropy import NoiseSource, SeededNoise, SystemNoise
from ..privacy.mechanisms import gaussian_sum_noise
from ..privacy.sampling import poisson_participants
from .gate import ReplyGate, Verdict
from .plan import FederationPlan
from .roster import Roster

logger = logging.getLogger(__name__)


class MetaStrategy(Strategy):
    """One round of the federation, in Flower's two halves.

    Guarantee:
        Units user and both: one Gaussian of ``noise_multiplier`` times the clip is added to the sum of the clipped
        updates of Poisson-drawn devices, and the divisor is the fixed expected cohort size ``participation *
        population``. Missing, refused and quarantined replies change neither; a round that reaches nobody still
        releases noise. Neighbours: add or remove one device.
    """

    def __init__(self, config: Config, plan: FederationPlan, outer: OuterState | None = None) -> None:
        """Start from ``outer`` (none: fresh) under a checked plan."""
        self.outer = outer or OuterState()
        self.verdict = Verdict()
        self._config = config
        self._plan = plan
        self._roster = Roster(plan.population, plan.single)
        self._gate: ReplyGate | None = None
        self._phi: Named = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Draw the round's devices and write one order for each node that hosts some. ``config`` is not used."""
        phi = self._phi = decode_named(arrays)
        seed = self._config.seed if self._plan.simulation else None
        drawn = poisson_participants(seed, server_round, self._plan.population, self._config.server.participation)
        shares = self._roster.assign(drawn, grid.get_node_ids())
        self._gate = ReplyGate(
            round=server_round,
            schema=self._plan.schema,
            phi=self._asked(server_round, phi),
            ordered={node: len(share) for node, share in shares.items()},
            bound=self._plan.sensitivity(self._config, server_round),
        )
        messages = []
        for node, share in shares.items():
            devices = None if self._plan.single else share
            order = TrainOrder(server_round, phi, self._plan.schema, devices, self._plan.run_name(self._config))
            messages.append(Message(encode_order(order), node, MessageType.TRAIN, group_id=str(server_round)))
        return messages

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord, MetricRecord]:
        """Sum what passes the gate, in float64 and in node order, add the noise, divide, take the Reptile step.

        Raises:
            ValueError: the round was not configured.
        """
        gate = self._gate
        if gate is None or gate.round != server_round:
            raise ValueError(f"expected round {server_round} to be configured first; call configure_train")
        self._gate = None
        self.verdict = gate.inspect(replies)
        released = self._released(server_round, _sum(gate.phi, self.verdict.admitted))
        phi = self._folded(server_round, released)
        metrics = MetricRecord()
        metrics["participants"] = self.verdict.devices
        metrics["refused"] = self.verdict.refused
        metrics["quarantined"] = sum(self.verdict.quarantined.values())
        return encode_named(phi), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Nothing: no metric of a device crosses the wire."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> None:
        """Nothing: no metric of a device crosses the wire."""
        return

    def summary(self) -> None:
        """Log what this strategy does."""
        server, unit = self._config.server, self._config.privacy.unit
        bound = self._plan.sensitivity(self._config, server.rounds)
        logger.info(
            "Reptile: %d devices, Poisson rate %g, %s with step size %g; unit %s%s",
            self._plan.population,
            server.participation,
            server.outer_optimizer,
            server.outer_lr,
            unit,
            "" if bound is None else f", clip {bound.value:g}, noise {self._plan.noise_multiplier:g}",
        )

    def _released(self, server_round: int, total: Named) -> Named:
        """The noised sum (units user and both), or the sum itself where devices protect themselves or nobody does."""
        bound = self._plan.sensitivity(self._config, server_round)
        if bound is None:
            return total
        return gaussian_sum_noise(total, bound, self._plan.noise(self._config, server_round), self._noise(server_round))

    def _asked(self, server_round: int, phi: Named) -> Named:
        """The parameters that the round's updates are about."""
        return {name: phi[name] for name in self._plan.asked(self._config, server_round)}

    def _folded(self, server_round: int, released: Named) -> Named:
        """The next initialization: a Reptile step, or the warm start's bias."""
        if self._config.phase(server_round) == "popularity":
            return {**self._phi, WARM_STARTED: log_popularity(released[WARM_STARTED], self._plan.warm_floor)}
        mean = mean_update(released, self._config.server.participation * self._plan.population)
        trained = self._asked(server_round, self._phi)
        moved, self.outer = reptile_step(trained, mean, self.outer, self._config.server, server_round)
        rates, self.outer = learn_rates(self._phi, mean, self.outer)
        return {**self._phi, **moved, **rates}

    def _noise(self, server_round: int) -> NoiseSource:
        if self._plan.simulation:
            return SeededNoise(torch_stream(self._config.seed, server_round, "server-noise"))
        return SystemNoise()


def _sum(phi: Named, replies: Iterable[TrainReply]) -> Named:
    """Sum of the updates in float64, reply by reply."""
    total = {name: torch.zeros(phi[name].shape, dtype=torch.float64) for name in sorted(phi)}
    for reply in replies:
        for name, tensor in total.items():
            tensor.add_(reply.update[name])
    return total
