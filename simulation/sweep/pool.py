"""Worker processes of a sweep: as many cells at once as there are cores; a cell whose worker dies is taken up again.

Workers are fresh interpreters (nothing is forked, nothing is pickled), each with one thread of torch, and talk JSON
lines. A worker that dies, whatever killed it, costs its cell the rounds since the last checkpoint and nothing else.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

Event = Mapping[str, Any]
ATTEMPTS = 3
"""Workers that a cell may cost before it counts as failed."""
CELLS_PER_WORKER = 12
"""After so many cells a worker is replaced, and its memory goes with it."""
_START = """\
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from fedrec.simulation.sweep.worker import main
main()"""
_SINGLE = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS")


class _Worker:
    """One process and the cell it is at."""

    def __init__(self, log: IO[bytes], events: queue.SimpleQueue[tuple[_Worker, Event | None]]) -> None:
        self.task: int | None = None
        self.served = 0
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _START, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            encoding="utf-8",
            env={**os.environ, **dict.fromkeys(_SINGLE, "1"), "FLWR_TELEMETRY_ENABLED": "0"},
            start_new_session=True,  # Ctrl-C is for the sweep, which tells its workers itself
        )
        threading.Thread(target=self._listen, args=(events,), daemon=True).start()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def take(self, number: int, task: Mapping[str, Any]) -> None:
        """Begin a cell."""
        self.task = number
        self.served += 1
        with suppress(OSError):  # it died: its listener says so
            self._process.stdin.write(json.dumps(task) + "\n")  # type: ignore[union-attr]
            self._process.stdin.flush()  # type: ignore[union-attr]

    def dismiss(self) -> None:
        """Let it end; a run in it is interrupted and can be resumed."""
        with suppress(OSError):
            self._process.stdin.close()  # type: ignore[union-attr]

    def ended(self, patience: float) -> str:
        """Wait for its end, make it end after ``patience`` seconds, and say how it ended."""
        try:
            code = self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self.dismiss()
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def _listen(self, events: queue.SimpleQueue[tuple[_Worker, Event | None]]) -> None:
        with self._process.stdout as output:  # type: ignore[union-attr]
            for line in output:
                with suppress(ValueError):
                    events.put((self, json.loads(line)))
        events.put((self, None))


def run_tasks(
    tasks: Sequence[Mapping[str, Any]],
    *,
    workers: int,
    log: Path,
    on_event: Callable[[int, Event], None],
    on_wait: Callable[[], None] = lambda: None,
) -> None:
    """Run every task in its order, ``workers`` at a time, and report what happens to each.

    Args:
        tasks: what ``worker.main`` reads: ``directory``, ``config``, ``data``.
        workers: processes at once.
        log: where the workers' error streams go.
        on_event: is told (number of the task, event); the last one of a task is ``done`` or ``failed``.
        on_wait: is called a few times a second.

    Raises:
        KeyboardInterrupt: Ctrl-C; the workers have ended by then.
    """
    events: queue.SimpleQueue[tuple[_Worker, Event | None]] = queue.SimpleQueue()
    waiting, deaths, crew = deque(range(len(tasks))), Counter[int](), list[_Worker]()
    with log.open("ab") as stream:
        try:
            left = len(tasks)
            while left:
                _hire(crew, waiting, tasks, workers, lambda: _Worker(stream, events), on_event)
                for worker, event in _arrived(events, on_wait):
                    left -= _handle(worker, event, crew, waiting, deaths, on_event)
        finally:
            for worker in crew:
                worker.dismiss()
            for worker in crew:
                worker.ended(10.0)


def _hire(
    crew: list[_Worker],
    waiting: deque[int],
    tasks: Sequence[Mapping[str, Any]],
    workers: int,
    start: Callable[[], _Worker],
    on_event: Callable[[int, Event], None],
) -> None:
    """Give every idle worker a cell, and start workers while there are more cells."""
    while waiting:
        worker = next((one for one in crew if one.task is None), None)
        if worker is None and len(crew) >= workers:
            return
        if worker is None:
            worker = start()
            crew.append(worker)
        number = waiting.popleft()
        on_event(number, {"kind": "taken", "pid": worker.pid})
        worker.take(number, tasks[number])


def _arrived(
    events: queue.SimpleQueue[tuple[_Worker, Event | None]], on_wait: Callable[[], None]
) -> Iterator[tuple[_Worker, Event | None]]:
    """The next event, if there is one soon."""
    with suppress(queue.Empty):
        yield events.get(timeout=0.25)
    on_wait()


def _handle(
    worker: _Worker,
    event: Event | None,
    crew: list[_Worker],
    waiting: deque[int],
    deaths: Counter[int],
    on_event: Callable[[int, Event], None],
) -> int:
    """Act on an event; returns the number of tasks that are over by it."""
    number = worker.task
    if worker not in crew:  # it was replaced
        return 0
    if event is None:
        crew.remove(worker)
        return 0 if number is None else _after_death(number, worker.ended(10.0), waiting, deaths, on_event)
    if number is None:
        return 0
    on_event(number, event)
    if event["kind"] not in ("done", "failed"):
        return 0
    worker.task = None
    if worker.served >= CELLS_PER_WORKER:
        crew.remove(worker)
        worker.dismiss()
        worker.ended(10.0)
    return 1


def _after_death(
    number: int, how: str, waiting: deque[int], deaths: Counter[int], on_event: Callable[[int, Event], None]
) -> int:
    """Queue the cell of a dead worker again, unless it has cost enough of them."""
    deaths[number] += 1
    if deaths[number] < ATTEMPTS:
        waiting.appendleft(number)
        on_event(number, {"kind": "lost", "how": how})
        return 0
    sentence = (
        f"expected a worker to live through the cell, got {ATTEMPTS} that died (the last by {how}); if memory ran out, "
        "use fewer with --workers, and see workers.log"
    )
    on_event(number, {"kind": "failed", "error": sentence})
    return 1
