"""The reply gate: nothing that a node sends counts before it was checked. A bad reply is set aside and counted.

Of stacked updates a bad row alone is set aside: the other rows of the reply are other devices', which did no wrong.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Message
from torch import Tensor

from ..client.wire import TrainReply, WireVersionError, decode_reply
from ..config import Encoding
from ..errors import WireError
from ..meta.policy import Named
from ..privacy.mechanisms import Sensitivity
from .robust import row_norms

logger = logging.getLogger(__name__)

NORM_SLACK = 1e-4
"""Relative excess of a sum's norm over its bound that float32 rounding explains."""


@dataclass(frozen=True)
class Verdict:
    """A round's replies after the gate."""

    admitted: tuple[TrainReply, ...] = ()
    """Replies that count, in the order of their node ids: the order of arrival does not matter."""
    refused: int = 0
    """Devices that said they have no budget or no consent."""
    quarantined: Mapping[str, int] = field(default_factory=dict)
    """Number of replies set aside, by reason (sorted); ``row:<reason>`` counts rows of a stack."""
    nodes: tuple[int, ...] = ()
    """Who sent each admitted reply."""

    @property
    def devices(self) -> int:
        """Devices whose updates count."""
        return sum(reply.devices for reply in self.admitted)

    @property
    def unclipped(self) -> int:
        """Those among them whose update was not clipped, where the clip is adaptive. Private: released noised only."""
        return sum(reply.unclipped or 0 for reply in self.admitted)


class _Rejected(Exception):
    """A reply must not count: a reason to count and a sentence to log."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


@dataclass(frozen=True)
class ReplyGate:
    """What a round's replies must look like."""

    round: int
    """The round that is open."""
    schema: str
    """Fingerprint of the policy."""
    phi: Named
    """The initialization that went out: names and shapes of an update."""
    ordered: Mapping[int, int]
    """Devices ordered, by node id."""
    bound: Sensitivity | None
    """What clipping promises for one device (units user and both), in scaled space; none checks no norm."""
    bits: bool = False
    """Whether the order held a clip: a reply then counts the devices within it, from 0 to all (the wire format checks
    that), and otherwise it counts nothing."""
    stacked: bool = False
    """Whether the order asked for stacked updates."""
    encoding: Encoding = "float32"
    """How the order wants a device's own update; float32 is welcome always, as sums of several travel so."""

    def inspect(self, replies: Iterable[Message]) -> Verdict:
        """Check every reply. A node that replied more than once counts with none: no arrival order would be right."""
        messages = sorted(replies, key=lambda message: message.metadata.src_node_id)
        seen = Counter(message.metadata.src_node_id for message in messages if not message.has_error())
        admitted: dict[int, TrainReply] = {}
        refused = 0
        reasons: Counter[str] = Counter()
        for message in messages:
            node = message.metadata.src_node_id
            try:
                reply = self._check(message, node, seen[node])
            except _Rejected as rejection:
                reasons[rejection.reason] += 1
                logger.warning("round %d: the reply of node %d does not count: %s", self.round, node, rejection)
                continue
            refused += reply.refused
            if reply.rows is not None:
                reply = self._sound(reply, reply.rows, node, reasons)
            if reply.status == "ok" and (reply.rows is None or len(reply.rows)):
                admitted[node] = reply
        return Verdict(tuple(admitted.values()), refused, dict(sorted(reasons.items())), tuple(admitted))

    def _check(self, message: Message, node: int, copies: int) -> TrainReply:
        if message.has_error():
            raise _Rejected("flower-error", f"Flower reports error {message.error.code}")
        if node not in self.ordered:
            raise _Rejected("unordered-node", "expected replies of nodes that have an order, got another")
        if copies > 1:
            raise _Rejected("duplicate-node", f"expected one reply, got {copies}")
        reply = self._decoded(message)
        if reply.status == "error":
            known = reply.reason == "wire-version"
            raise _Rejected(reply.reason if known else f"error:{reply.reason}", "the device reports an error")
        if reply.round != self.round:
            raise _Rejected("round", f"expected round {self.round}, got {reply.round}")
        if reply.schema != self.schema:
            raise _Rejected("schema", f"expected policy {self.schema:.12}, got {reply.schema:.12}")
        if reply.devices + reply.refused > self.ordered[node]:
            raise _Rejected(
                "devices",
                f"expected at most {self.ordered[node]} devices, got {reply.devices} and {reply.refused} refused",
            )
        if reply.status == "ok":
            self._check_encoding(reply)
            self._check_rows(reply, node)
            self._check_update(reply)
        return reply

    def _decoded(self, message: Message) -> TrainReply:
        try:
            return decode_reply(message.content)
        except WireVersionError as error:
            raise _Rejected("wire-version", str(error)) from None
        except WireError as error:
            raise _Rejected("wire", str(error)) from None

    def _check_update(self, reply: TrainReply) -> None:
        if (reply.unclipped is not None) != self.bits:
            wanted = "a number of unclipped devices" if self.bits else "no number of unclipped devices"
            raise _Rejected("unclipped", f"expected {wanted}, got {reply.unclipped}")
        if reply.update.keys() != self.phi.keys():
            wrong = sorted(reply.update.keys() ^ self.phi.keys())
            raise _Rejected("names", f"expected the tensors of the policy, got a difference at {wrong[:5]}")
        for name, tensor in sorted(reply.update.items()):
            shape = tensor.shape if reply.rows is None else tensor.shape[1:]
            if shape != self.phi[name].shape:
                expected, got = tuple(self.phi[name].shape), tuple(shape)
                raise _Rejected("shapes", f"expected shape {expected} for {name!r}, got {got}")
        if reply.rows is None:
            whole = {name: tensor[None] for name, tensor in reply.update.items()}
            fault = self._faults(whole, reply.devices)[0]
            if fault is not None:
                raise fault

    def _check_encoding(self, reply: TrainReply) -> None:
        if reply.packed is not None and reply.packed.encoding != self.encoding:
            raise _Rejected("encoding", f"expected an update as {self.encoding}, got {reply.packed.encoding}")

    def _check_rows(self, reply: TrainReply, node: int) -> None:
        if (reply.rows is not None) != self.stacked:
            wanted = "stacked updates" if self.stacked else "a sum"
            raise _Rejected("stacked", f"expected {wanted}, got the other")
        if reply.rows is not None and int(reply.rows[-1]) >= self.ordered[node]:
            raise _Rejected("rows", f"expected places among {self.ordered[node]} devices, got {int(reply.rows[-1])}")

    def _sound(self, reply: TrainReply, rows: npt.NDArray[np.int64], node: int, reasons: Counter[str]) -> TrainReply:
        """A stack without the rows that must not count."""
        faults = self._faults(reply.update, 1)
        for place, fault in zip(rows.tolist(), faults, strict=True):
            if fault is not None:
                reasons[f"row:{fault.reason}"] += 1
                logger.warning("round %d: row %d of node %d does not count: %s", self.round, place, node, fault)
        good = np.array([fault is None for fault in faults])
        if good.all():
            return reply
        update = {name: tensor[torch.from_numpy(good)] for name, tensor in reply.update.items()}
        return replace(reply, update=update, rows=rows[good], devices=int(good.sum()), packed=None)

    def _faults(self, rows: Mapping[str, Tensor], devices: int) -> list[_Rejected | None]:
        """What is wrong with each row, which answers for so many devices."""
        norms = row_norms(rows, self.bound)
        limit = devices * self.bound.value * (1 + NORM_SLACK) if self.bound is not None else math.inf
        limit = limit if devices else 0.0
        return [_fault(norm, limit) for norm in norms.tolist()]


def _fault(norm: float, limit: float) -> _Rejected | None:
    if not math.isfinite(norm):
        return _Rejected("non-finite", "expected finite numbers, got NaN or inf")
    return None if norm <= limit else _Rejected("norm", f"expected a norm of at most {limit:g}, got {norm:g}")
