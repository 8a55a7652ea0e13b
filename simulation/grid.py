"""An in-process Flower Grid: real orders, a real ClientApp, real replies; no server, no processes, no network."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from typing import Any

from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.app.message.message import make_message
from flwr.app.metadata import Metadata
from flwr.clientapp import ClientApp
from flwr.common.constant import NUM_PARTITIONS_KEY, PARTITION_ID_KEY, SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from .._validate import at_least

logger = logging.getLogger(__name__)

RUN_ID = 1
_FIRST_NODE = SUPERLINK_NODE_ID + 1


class LocalGrid(Grid):
    """Runs a ClientApp for each addressed node, one after the other, in the order of the messages.

    Each node has its own context (``partition-id``, ``num-partitions``, the run config) whose state lasts from round to
    round. What crosses between the sides are the records' bytes: nobody shares memory. An exception in the ClientApp
    becomes an error reply, as on Flower's engines.
    """

    def __init__(
        self,
        app: ClientApp,
        nodes: int,
        run_config: Mapping[str, Any] | None = None,
        *,
        run_id: int = RUN_ID,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set up ``nodes`` nodes that run ``app``; ``clock`` (seconds) is what timeouts are measured with."""
        at_least("nodes", nodes, 1)
        self._app = app
        self._clock = clock
        self._run = Run.create_empty(run_id)
        self._contexts = {
            _FIRST_NODE + index: Context(
                run_id=run_id,
                node_id=_FIRST_NODE + index,
                node_config={PARTITION_ID_KEY: index, NUM_PARTITIONS_KEY: nodes},
                state=RecordDict(),
                run_config=dict(run_config or {}),
            )
            for index in range(nodes)
        }
        self._sent = 0
        self._waiting: dict[str, Message] = {}
        _identify(run_id)

    def set_run(self, run: Run) -> None:
        """Take another run's identity."""
        self._run = run
        _identify(run.run_id)

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message from the server to a node."""
        _identify(self._run.run_id)
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All node ids, sorted."""
        _identify(self._run.run_id)
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Accept messages; they run when their replies are pulled."""
        pushed = []
        for message in messages:
            self._sent += 1
            _set_message_id(message, f"{self._run.run_id}-{self._sent}")
            self._waiting[message.metadata.message_id] = _copied(message)
            pushed.append(message.metadata.message_id)
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Run the messages and return their replies; a message answers once."""
        return [self._answer(self._waiting.pop(key)) for key in list(message_ids) if key in self._waiting]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Run each message in turn. A reply that comes after ``timeout`` seconds is lost, and so is all after it."""
        end = None if timeout is None else self._clock() + timeout
        replies: list[Message] = []
        pushed = list(self.push_messages(messages))
        try:
            for place, key in enumerate(pushed):
                answers = list(self.pull_messages([key]))
                if end is not None and self._clock() > end:
                    logger.warning(
                        "the deadline passed: %d of %d replies are missing", len(pushed) - place, len(pushed)
                    )
                    break
                replies.extend(answers)
        finally:
            for key in pushed:
                self._waiting.pop(key, None)
        return replies

    def _answer(self, message: Message) -> Message:
        """The node's reply; its context changes only if the app succeeds."""
        node = message.metadata.dst_node_id
        try:
            context = self._contexts[node]
            trial = Context(
                context.run_id, node, dict(context.node_config), _copied_records(context.state), context.run_config
            )
            reply = _copied(self._app(message, trial))
            self._contexts[node] = trial
        except Exception as error:
            logger.exception("the ClientApp of node %d failed", node)
            code = ErrorCode.NODE_UNAVAILABLE if node not in self._contexts else ErrorCode.CLIENT_APP_RAISED_EXCEPTION
            reply = Message(Error(code, f"{type(error)}:<{error}>"), reply_to=message)
        _set_message_id(reply, f"{message.metadata.message_id}-reply")
        return reply


def _identify(run_id: int) -> None:
    """Tell Flower who builds messages in this process, as its runtimes do when they start an app (private API)."""
    TaskIdentity.task_id = 1
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = SUPERLINK_NODE_ID


def _set_message_id(message: Message, message_id: str) -> None:
    """The id that a SuperLink would assign (private API)."""
    message.metadata.__dict__["_message_id"] = message_id


def _copied(message: Message) -> Message:
    """The message as its receiver would build it: own metadata, own records, the same bytes."""
    old = message.metadata
    metadata = Metadata(
        run_id=old.run_id,
        message_id=old.message_id,
        src_node_id=old.src_node_id,
        dst_node_id=old.dst_node_id,
        reply_to_message_id=old.reply_to_message_id,
        group_id=old.group_id,
        created_at=old.created_at,
        ttl=old.ttl,
        message_type=old.message_type,
        src_task_id=old.src_task_id,
        dst_task_id=old.dst_task_id,
    )
    if message.has_error():
        return make_message(metadata, error=Error(message.error.code, message.error.reason))
    return make_message(metadata, content=_copied_records(message.content))


def _copied_records(records: RecordDict) -> RecordDict:
    copied = RecordDict()
    for name, record in records.items():
        if isinstance(record, ArrayRecord):
            arrays = {key: Array(item.dtype, tuple(item.shape), item.stype, item.data) for key, item in record.items()}
            copied[name] = ArrayRecord(arrays)
        elif isinstance(record, ConfigRecord):
            copied[name] = ConfigRecord({key: copy(value) for key, value in record.items()})
        else:
            copied[name] = MetricRecord({key: copy(value) for key, value in record.items()})
    return copied
