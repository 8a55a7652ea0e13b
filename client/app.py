"""The device's Flower ClientApp: decode the order, let the participant adapt, encode the reply."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from .._launcher import end_with_launcher
from ..errors import WireError
from .wire import (
    TrainOrder,
    TrainReply,
    WireVersionError,
    decode_order,
    encode_hello,
    encode_reply,
    reason_of,
    round_of,
)

logger = logging.getLogger(__name__)

_KEPT = 64


class Participant(Protocol):
    """Whoever adapts: one device, or a simulated cohort of them.

    An instance may be kept between the rounds of a run and may be built anew at any time: what must survive is on disk.
    """

    def train(self, order: TrainOrder) -> TrainReply:
        """Adapt from ``order.phi`` and return the clipped updates' sum (or their stack), or a typed refusal.

        Where the order asks for a stack, a single device may answer as ever: its stack is made of it here.

        Every debit is on disk before this returns. One device's failure must not become its neighbours': catch it.
        """


ParticipantFactory = Callable[[Context], Participant]


def make_client_app(factory: ParticipantFactory) -> ClientApp:
    """A ClientApp that trains with ``factory(context)`` and answers the version handshake.

    Participants are kept per (run, node) within the process. Whatever goes wrong becomes a typed ``error`` reply that
    names the exception's class and nothing else; the text stays in the local log.
    """
    app = ClientApp()
    participants: OrderedDict[tuple[int, int], Participant] = OrderedDict()

    def participant(context: Context) -> Participant:
        key = (context.run_id, context.node_id)
        if key not in participants:
            participants[key] = factory(context)
        participants.move_to_end(key)
        while len(participants) > _KEPT:
            participants.popitem(last=False)
        return participants[key]

    @app.train()
    def train(message: Message, context: Context) -> Message:
        end_with_launcher()
        records = _answer(message.content, lambda order: participant(context).train(order))
        return Message(records, reply_to=message)

    @app.query()
    @app.evaluate()
    def hello(message: Message, context: Context) -> Message:
        return Message(encode_hello(), reply_to=message)

    return app


def _answer(records: RecordDict, train: Callable[[TrainOrder], TrainReply]) -> RecordDict:
    schema = ""
    try:
        order = decode_order(records)
        schema = order.schema
        return encode_reply(_as_asked(order, train(order)))
    except WireVersionError as error:
        logger.warning("%s", error)
        reason = "wire-version"
    except Exception as error:
        logger.exception("the order of round %d failed on this device", round_of(records))
        reason = reason_of(error)
    return encode_reply(TrainReply(round_of(records), schema, "error", reason=reason))


def _as_asked(order: TrainOrder, reply: TrainReply) -> TrainReply:
    """The reply as a stack of one where the order asks for stacked updates and a single device answered.

    Raises:
        WireError: the order asks for a stack and the reply is a sum over several devices, or the other way round.
    """
    if reply.status != "ok" or order.stacked == (reply.rows is not None):
        return reply
    if not order.stacked or reply.devices != 1:
        wanted = "stacked updates" if order.stacked else "a sum"
        raise WireError(f"expected {wanted}, got an answer of {reply.devices} devices of another kind")
    update = {name: tensor[None] for name, tensor in reply.update.items()}
    packed = None if reply.packed is None else reply.packed.stack()
    return replace(reply, update=update, packed=packed, rows=np.zeros(1, dtype=np.int64))
