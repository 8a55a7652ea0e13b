"""One worker process of a sweep: takes cells from its input, one JSON line each, and tells what happens, one line each.

It is started by ``pool.py``. When its input ends, because the sweep is over, was interrupted or was killed, it stops at
once: a run survives that at any moment.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...config import Config
from ...errors import FedrecError, RunError

if TYPE_CHECKING:
    from ...server.plan import RoundReport
    from ..world import World

Tell = Callable[..., None]
_PATIENCE = 5.0
"""Seconds that a run has to end by itself when the sweep is gone."""


def main() -> None:
    """Serve cells until the input ends."""
    tell = _teller()
    try:
        for task in _tasks():
            _serve(task, tell)
    except KeyboardInterrupt:
        pass
    os._exit(0)


def _serve(task: dict[str, Any], tell: Tell) -> None:
    try:
        began = time.perf_counter()
        run_cell(Path(task["directory"]), Config.from_mapping(task["config"]), task["data"], tell)
        tell(kind="done", seconds=time.perf_counter() - began)
    except FedrecError as error:
        tell(kind="failed", error=str(error))
    except Exception as error:  # a worker outlives whatever one cell does
        traceback.print_exc()
        tell(kind="failed", error=f"unexpected {type(error).__name__}: {error}; the traceback is in workers.log")


def run_cell(directory: Path, config: Config, data: str, tell: Tell) -> None:
    """Run a cell, or go on with it, and judge it for the sweep.

    Raises:
        FedrecError: the run's own, or the directory or the data are not what the sweep planned with.
    """
    from ..run import CONFIG, config_in, simulate
    from ..world import World, load_dataset
    from .judge import write_record

    dataset = load_dataset(config)
    if dataset.fingerprint() != data:
        raise RunError(f"expected the data that the sweep began with, got another {dataset.name}; sweep again")
    begun = (directory / CONFIG).exists()
    if begun and config_in(directory).fingerprint() != config.fingerprint():
        raise RunError(f"expected the cell's own configuration in {directory}, got another; delete that directory")
    run = simulate(None if begun else config, out=directory, resume=begun, dataset=dataset, listener=_Follower(tell))
    tell(kind="stage", text="judging the floors")
    write_record(run, World.build(config, dataset), data)


class _Follower:
    """A :class:`fedrec.simulation.run.Listener` that tells the sweep."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell

    def stage(self, text: str) -> None:
        """Something new begins."""
        self._tell(kind="stage", text=text)

    def started(self, world: World, label: str, rounds: int) -> None:
        """A federation begins."""
        self._tell(kind="started", text=label, rounds=rounds, devices=len(world.roster))

    def round(self, report: RoundReport) -> None:
        """A round is over."""
        self._tell(kind="round", round=report.round)


def _teller() -> Tell:
    """Write events to what was the output stream; whatever else is printed goes to the log."""
    events = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)

    def tell(**event: Any) -> None:
        events.write(json.dumps(event) + "\n")

    return tell


def _tasks() -> Iterator[dict[str, Any]]:
    """Cells from the input; a thread reads it, so that its end is noticed in the middle of one."""
    waiting: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(waiting,), daemon=True).start()
    while (line := waiting.get()) is not None:
        yield json.loads(line)


def _read(waiting: queue.SimpleQueue[str | None]) -> None:
    """Pass the input on; at its end, interrupt what is running, and end the process if that does not help."""
    for line in sys.stdin:
        waiting.put(line)
    waiting.put(None)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(_PATIENCE)
    os._exit(130)
