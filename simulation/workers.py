"""Worker processes for the cohort engine: Python's lock holds threads up, and not processes.

A worker is this package started anew on a pipe, so that a caller's script is never imported a second time and no thread
of the caller's is forked. It gets the world once and a round's task once, through a private temporary file that all of
them map; then numbers of parts of the round, the next one while it is at one, so that it never waits for the caller. It
ends when its pipe closes, whatever became of the caller.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import mmap
import os
import pickle
import subprocess
import sys
import tempfile
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from ..config import Config
from ..errors import RunError
from .cohort import CohortResult, Task
from .memory import keep_freed_memory, with_huge_pages
from .placement import compute_device
from .schedule import Ints
from .world import World

_WORTH = 5_000_000_000
"""Floats of all rounds from which the start of processes (some seconds) is worth it: about a minute of one core."""
_AHEAD = 2
"""Parts that a worker is given at once: one to do and one to go on with."""
_START = "from fedrec.simulation.workers import serve; serve()"


def worker_count(config: Config, floats: int) -> int:
    """How many processes adapt a round that touches so many floats; 1 where this one's threads do."""
    asked = config.engine.workers
    if asked or config.engine.kind == "reference":
        return asked or 1
    if compute_device(config.engine).type != "cpu":
        return 1
    worth = config.server.nodes == 1 and floats * config.adapt_rounds >= _WORTH
    return torch.get_num_threads() if worth else 1


class Workers:
    """Processes that adapt parts of a round of one world's devices."""

    def __init__(self, world: World, count: int) -> None:
        """Start ``count`` of them; close them with :meth:`close`."""
        self._folder = tempfile.TemporaryDirectory(prefix="fedrec-workers-")
        self._world = world
        self._rounds = itertools.count()
        path = self.folder / "world"
        _ship(world, path, {})
        self.processes = [_Process(path) for _ in range(count)]
        self._finalizer = weakref.finalize(self, _end, self.processes, self._folder)

    @property
    def folder(self) -> Path:
        """Where the files lie that the processes map."""
        return Path(self._folder.name)

    def adapt(self, task: Task, parts: Sequence[Sequence[Ints]]) -> Iterator[CohortResult]:
        """``task.adapt`` of every part, in order.

        Raises:
            RunError: a worker process ended or failed.
        """
        self._confirm()
        path = self.folder / f"task-{next(self._rounds)}"
        _ship((task, parts), path, _names_of(self._world))
        try:
            yield from self._answers(path, len(parts))
        finally:
            for process in self.processes:
                process.finish()
            path.unlink()

    def _answers(self, path: Path, count: int) -> Iterator[CohortResult]:
        """Answers to the parts of the task in a file, in their order; few more are asked for than are taken."""
        found: dict[int, CohortResult] = {}
        asked = 0
        for taken in range(count):
            while taken not in found:
                for ahead in range(_AHEAD):
                    for process in self.processes:
                        last = count - asked <= len(self.processes)  # the end: a part for whoever is ready first
                        if process.owes <= (0 if last else ahead) and asked < min(count, taken + self._most):
                            process.ask(path, asked)
                            asked += 1
                for process in self._ready():
                    found.update([process.answer()])
            yield found.pop(taken)

    @property
    def _most(self) -> int:
        return 2 * _AHEAD * len(self.processes)

    def _ready(self) -> list[_Process]:
        """Who has an answer, or has ended; waits until one has."""
        owing = {process.pipe: process for process in self.processes if process.owes}
        return [owing[pipe] for pipe in wait(list(owing)) if isinstance(pipe, Connection)]

    def _confirm(self) -> None:
        """Wait until all of them have the world, and remove its file: whatever becomes of the caller, none is left."""
        world = self.folder / "world"
        if world.exists():
            for process in self.processes:
                process.receive()
            world.unlink()

    def close(self) -> None:
        """End the processes and remove what they were given."""
        self._finalizer()


def _end(processes: Sequence[_Process], folder: tempfile.TemporaryDirectory[str]) -> None:
    for process in processes:
        process.close()
    folder.cleanup()


class _Process:
    """One worker, seen from the caller."""

    def __init__(self, world: Path) -> None:
        here = {**with_huge_pages(os.environ), "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self.pipe, far = Pipe()
        with far:
            self._popen = subprocess.Popen(
                [sys.executable, "-c", _START],
                stdin=far.fileno(),
                env=here,
                process_group=0 if os.name == "posix" else None,
            )
        self._asked: deque[int] = deque()
        self._send(world)

    @property
    def id(self) -> int:
        """The system's number of the process."""
        return self._popen.pid

    @property
    def owes(self) -> int:
        """How many answers it owes."""
        return len(self._asked)

    def ask(self, task: Path, part: int) -> None:
        """Have it adapt a part of the task in a file."""
        self._asked.append(part)
        self._send((task, part))

    def answer(self) -> tuple[int, CohortResult]:
        """The part that was asked for first of those it owes, and what came of it; raises what went wrong there.

        Raises:
            RunError: it has ended.
        """
        part, answer = self._asked.popleft(), self.receive()
        if not isinstance(answer, CohortResult):
            raise TypeError(f"expected a CohortResult, got {type(answer).__name__}")
        return part, answer

    def finish(self) -> None:
        """Take what it still owes, so that the next answer is to the next question."""
        while self._asked:
            with contextlib.suppress(Exception):  # the first thing that went wrong is on its way already
                self.answer()

    def receive(self) -> object:
        """Its next message; raises what went wrong there.

        Raises:
            RunError: it has ended.
        """
        try:
            message = pickle.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            code = self._popen.wait()
            raise RunError(
                f"expected an answer of a worker process, got its end with code {code}; resume the run, with fewer "
                "engine.workers if memory was short"
            ) from None
        if isinstance(message, Exception):
            raise message
        return message

    def _send(self, message: object) -> None:
        with contextlib.suppress(ConnectionError):  # it has ended: asking for its answer says so
            self.pipe.send_bytes(_packed(message))

    def close(self) -> None:
        """Close the pipe, which ends it, and wait."""
        self.pipe.close()
        try:
            self._popen.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()


def serve() -> None:
    """A worker's life: the world, then parts of tasks until the pipe closes."""
    os.dup2(2, 1)  # what anything prints is for people
    torch.set_num_threads(1)
    keep_freed_memory()
    path: Path | None = None
    task: Task | None = None
    parts: Sequence[Sequence[Ints]] = ()
    with Connection(os.dup(0)) as pipe, contextlib.suppress(EOFError, ConnectionError):
        known = {name: thing for thing, name in _things(_unship(pickle.loads(pipe.recv_bytes()), {}))}
        pipe.send_bytes(_packed("ready"))
        while True:
            asked, number = pickle.loads(pipe.recv_bytes())
            if asked != path:
                path, (task, parts) = asked, _unship(asked, known)
            pipe.send_bytes(_packed(_answer(task, parts[number])))


def _answer(task: Task | None, part: Sequence[Ints]) -> object:
    try:
        return None if task is None else task.adapt(part)
    except Exception as error:
        return error if _travels(error) else RunError(f"a worker process failed: {error!r}")


def _travels(error: Exception) -> bool:
    try:
        return isinstance(pickle.loads(pickle.dumps(error)), type(error))
    except Exception:
        return False


def _things(world: World) -> list[tuple[object, str]]:
    """What a worker has already, and the name by which a task refers to it."""
    return [(world, "world"), (world.policy, "policy")]


def _names_of(world: World) -> dict[int, str]:
    return {id(thing): name for thing, name in _things(world)}


class _Pickler(pickle.Pickler):
    """Tensors as arrays, whose memory then travels beside the pickle; what the worker knows by its name."""

    def __init__(self, *args: Any, names: dict[int, str], **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._names = names

    def persistent_id(self, thing: Any) -> str | None:
        return self._names.get(id(thing))

    def reducer_override(self, thing: Any) -> Any:
        if type(thing) is torch.Tensor and thing.device.type == "cpu":
            return torch.from_numpy, (thing.detach().numpy(),)
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def __init__(self, *args: Any, known: dict[str, object], **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._known = known

    def persistent_load(self, name: str) -> object:
        return self._known[name]


def _packed(message: object) -> bytes:
    text = io.BytesIO()
    _Pickler(text, protocol=5, names={}).dump(message)
    return text.getvalue()


def _ship(thing: object, path: Path, names: dict[int, str]) -> None:
    """Write ``thing`` so that processes can map the memory of its arrays: lengths, the pickle, the arrays."""
    arrays: list[pickle.PickleBuffer] = []
    text = io.BytesIO()
    _Pickler(text, protocol=5, names=names, buffer_callback=arrays.append).dump(thing)
    parts = [text.getbuffer(), *(array.raw() for array in arrays)]
    with path.open("wb") as file:
        pickle.dump([part.nbytes for part in parts], file)
        for part in parts:
            file.seek(_aligned(file.tell()))
            file.write(part)


def _unship(path: Path, known: dict[str, object]) -> Any:
    """What :func:`_ship` wrote; arrays are private pages of the file, read when they are touched."""
    with path.open("rb") as file:
        lengths = pickle.load(file)
        position = file.tell()
        pages = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    parts = []
    for length in lengths:
        first = _aligned(position)
        parts.append(pages[first : first + length])
        position = first + length
    return _Unpickler(io.BytesIO(parts[0]), known=known, buffers=parts[1:]).load()


def _aligned(position: int) -> int:
    return -(-position // 64) * 64
