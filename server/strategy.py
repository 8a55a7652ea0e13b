"""The Flower strategy: draw devices, order adaptations, gate the replies, sum, noise, take the Reptile step."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from .._streams import torch_stream
from ..client.compression import payload_bytes, shapes_of
from ..client.wire import TrainOrder, TrainReply, decode_named, encode_named, encode_order
from ..config import Config
from ..meta import pairs
from ..meta.inner_rates import learn_rates
from ..meta.policy import Named
from ..meta.popularity import NAME as WARM_STARTED
from ..meta.popularity import log_popularity
from ..meta.reptile import OuterState, mean_update, reptile_step
from ..privacy.adaptive import joint_release, next_clip
from ..privacy.entropy import NoiseSource, SeededNoise, SystemNoise
from ..privacy.mechanisms import Sensitivity, gaussian_sum_noise
from ..privacy.sampling import poisson_participants
from ..privacy.separation import turns
from .anomaly import Scores, anomaly_scores
from .combine import combined, stack_of
from .gate import ReplyGate, Verdict
from .places import Places
from .plan import FederationPlan
from .roster import Roster

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Traffic:
    """Bytes of tensors in a round, one device a node; a cohort's node gets one order for many and sends one sum."""

    down: int = 0
    """To the devices that were ordered."""
    up: int = 0
    """From those whose updates count."""


class MetaStrategy(Strategy):
    """One round of the federation, in Flower's two halves.

    Guarantee:
        Units user and both: one Gaussian of ``noise_multiplier`` times the clip is added to the sum of the clipped
        updates of Poisson-drawn devices, and the divisor is the fixed expected cohort size ``participation *
        population``. Missing, refused and quarantined replies change neither; a round that reaches nobody still
        releases noise. Neighbours: add or remove one device. Where the clip adapts, sum and number of unclipped devices
        are one joint release at the same price (``privacy.adaptive``). With a minimum separation only those devices are
        drawn whose turn it is (``privacy.separation``), and the divisor is a b-th.
    """

    def __init__(
        self,
        config: Config,
        plan: FederationPlan,
        outer: OuterState | None = None,
        clip: float | None = None,
        scores: Scores | None = None,
    ) -> None:
        """Start from ``outer`` and ``scores`` (none: fresh) and, where it adapts, ``clip`` (none: the first)."""
        self.outer = outer or OuterState()
        self.clip = (clip or config.privacy.clip) if config.privacy.clipping == "adaptive" else None
        """S of the next round of adaptation, where the clip is adaptive."""
        self.scores = (scores or Scores.of(plan.population)) if config.server.anomaly != "off" else None
        """Anomaly scores of the roster's devices, where they are kept."""
        self.flagged: int | None = None
        """How many of the round's devices were above the threshold; none where nothing was scored."""
        self.verdict = Verdict()
        self.traffic = Traffic()
        """What the last round's devices were sent and sent."""
        self._config = config
        self._plan = plan
        self._roster = Roster(plan.population, plan.single)
        self._places = Places(plan.run_dir, plan.population) if plan.lasting else None
        self._gate: ReplyGate | None = None
        self._phi: Named = {}
        self._shares: dict[int, npt.NDArray[np.int64]] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Draw the round's devices and write one order for each node that hosts some. ``config`` is not used."""
        phi = self._phi = decode_named(arrays)
        seed = self._config.seed if self._plan.simulation else None
        drawn = poisson_participants(seed, server_round, self._plan.population, self._config.server.participation)
        shares = self._shares = self._hosts(self._in_turn(server_round, drawn), grid.get_node_ids())
        clip = self.clip_of(server_round)
        gate = self._gate = ReplyGate(
            round=server_round,
            schema=self._plan.schema,
            phi=self._plan.asked(self._config, server_round, phi),
            ordered={node: len(share) for node, share in shares.items()},
            bound=self._plan.sensitivity(self._config, server_round, clip),
            bits=clip is not None,
            stacked=self._stacked(server_round),
            encoding=self._config.uplink(server_round),
        )
        self.traffic = Traffic(payload_bytes(shapes_of(phi)) * sum(gate.ordered.values()))
        messages = []
        for node, share in shares.items():
            devices = None if self._plan.single else share
            run = self._plan.run_name(self._config)
            order = TrainOrder(server_round, phi, self._plan.schema, devices, run, clip, gate.stacked, gate.encoding)
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
        self.flagged = None
        self.verdict = gate.inspect(replies)
        up = payload_bytes(shapes_of(gate.phi), gate.encoding) * self.verdict.devices
        self.traffic = replace(self.traffic, up=up)
        total = self._combined(gate) if gate.stacked else _sum(gate.phi, self.verdict.admitted)
        released = self._released(server_round, gate.bound, total)
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
        bound = self._plan.sensitivity(self._config, server.rounds, self.clip)
        adapts = "" if self.clip is None else " (adaptive)"
        logger.info(
            "Reptile: %d devices, Poisson rate %g%s, %s with step size %g; unit %s%s",
            self._plan.population,
            server.participation,
            "" if server.min_separation == 1 else f", minimum separation {server.min_separation}",
            server.outer_optimizer,
            server.outer_lr,
            unit,
            "" if bound is None else f", clip {bound.value:g}{adapts}, noise {self._plan.noise_multiplier:g}",
        )

    def clip_of(self, server_round: int) -> float | None:
        """S that goes out with a round's orders; none where it is fixed, and in the warm start, which has its own."""
        return self.clip if self._config.phase(server_round) == "adapt" else None

    def _hosts(self, devices: npt.NDArray[np.int64], node_ids: Iterable[int]) -> dict[int, npt.NDArray[np.int64]]:
        """The drawn devices by the node that hosts them; those whose node is not there are missing replies."""
        if self._places is None:
            return self._roster.assign(devices, node_ids)
        there = self._places.of(node_ids)
        return {there[place]: np.array([place]) for place in devices.tolist() if place in there}

    def _in_turn(self, server_round: int, drawn: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Those of the drawn devices whose turn the round is."""
        turn = self._plan.turn(self._config, server_round)
        if turn is None:
            return drawn
        own = turns(self._config.seed, self._plan.population, self._config.server.min_separation)
        mine: npt.NDArray[np.int64] = drawn[own[drawn] == turn]
        return mine

    def _released(self, server_round: int, bound: Sensitivity | None, total: Named) -> Named:
        """The noised sum (units user and both), or the sum itself where devices protect themselves or nobody does."""
        if bound is None:
            return total
        noise_multiplier = self._plan.noise(self._config, server_round)
        bit_noise = self._config.bit_noise(self._plan.population)
        if bit_noise is None or self.clip_of(server_round) is None:
            return gaussian_sum_noise(total, bound, noise_multiplier, self._noise(server_round, "server-noise"))
        joint = joint_release(
            total,
            bound,
            unclipped=self.verdict.unclipped,
            participants=self.verdict.devices,
            expected_devices=self._config.expected_cohort(self._plan.population),
            noise_multiplier=noise_multiplier,
            bit_noise=bit_noise,
            noise=self._noise(server_round, "server-noise"),
            bits=self._noise(server_round, "bit-noise"),
        )
        privacy = self._config.privacy
        self.clip = next_clip(bound.value, joint.fraction, privacy.clip_quantile, privacy.clip_lr)
        return joint.update

    def _combined(self, gate: ReplyGate) -> Named:
        """What a robust aggregator makes of the stacked updates, in place of their sum."""
        stack = stack_of(self.verdict, self._shares)
        if stack is None:
            return _sum(gate.phi, ())
        server = self._config.server
        kept = np.ones(len(stack.devices), dtype=np.bool_)
        if self.scores is not None:
            self.scores = self.scores.after(stack.devices, anomaly_scores(stack.rows))
            odd = self.scores.above(stack.devices, server.anomaly_threshold)
            self.flagged = int(odd.sum())
            kept = ~odd if server.anomaly == "exclude" else kept
        return combined(stack, kept, server, self._plan.scales)

    def _folded(self, server_round: int, released: Named) -> Named:
        """The next initialization: a Reptile step, or the warm start's bias, or the table of pairs."""
        server, phase, phi = self._config.server, self._config.phase(server_round), self._phi
        if phase == "popularity":
            return {**phi, WARM_STARTED: log_popularity(released[WARM_STARTED], self._plan.warm_floor)}
        if phase == "pairs":
            rank = phi[pairs.NAME].shape[1]
            table = pairs.factorise(released[pairs.NAME], phi[WARM_STARTED], server.warm_pairs, rank)
            return {**phi, pairs.NAME: table}
        mean = mean_update(released, self._config.expected_cohort(self._plan.population))
        trained = self._plan.asked(self._config, server_round, phi)
        moved, self.outer = reptile_step(trained, mean, self.outer, server, server_round)
        rates, self.outer = learn_rates(phi, mean, self.outer)
        return {**phi, **moved, **rates}

    def _stacked(self, server_round: int) -> bool:
        """Whether a round asks for every device's own update; votes are sums, and the norm of each is bounded."""
        return self._config.server.stacked and self._config.phase(server_round) == "adapt"

    def _noise(self, server_round: int, purpose: str) -> NoiseSource:
        if self._plan.simulation:
            return SeededNoise(torch_stream(self._config.seed, server_round, purpose))
        return SystemNoise()


def _sum(phi: Named, replies: Iterable[TrainReply]) -> Named:
    """Sum of the updates in float64, reply by reply."""
    total = {name: torch.zeros(phi[name].shape, dtype=torch.float64) for name in sorted(phi)}
    for reply in replies:
        for name, tensor in total.items():
            tensor.add_(reply.update[name])
    return total
