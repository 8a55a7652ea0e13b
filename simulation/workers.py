"""Worker processes for the cohort engine: Python's lock holds threads up, and not processes.

A worker is this package started anew on pipes, so that a caller's script is never imported a second time and no thread
of the caller's is forked. It gets the world once and a round's task once, through a private temporary file that all of
them map; then parts of the round, one after the other. It ends when its pipe closes, whatever became of the caller.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import mmap
import os
import pickle
import queue
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ..config import Config
from ..errors import RunError
from .cohort import CohortResult, Task
from .memory import keep_freed_memory
from .placement import compute_device
from .schedule import Ints, in_order
from .world import World

_WORTH = 5_000_000_000
"""Floats of all rounds from which the start of processes (some seconds) is worth it: about a minute of one core."""
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
        _ship(task, path, _names_of(self._world))
        idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        for process in self.processes:
            idle.put(process)

        def ask(part: Sequence[Ints]) -> CohortResult:
            process = idle.get()
            try:
                return process.ask(path, part)
            finally:
                idle.put(process)

        try:
            yield from in_order(ask, parts, threads=len(self.processes))
        finally:
            path.unlink()

    def _confirm(self) -> None:
        """Wait until all of them have the world, and remove its file: whatever becomes of the caller, none is left."""
        world = self.folder / "world"
        if world.exists():
            for process in self.processes:
                process.answer()
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
        here = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self._popen = subprocess.Popen(
            [sys.executable, "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=here,
            process_group=0 if os.name == "posix" else None,
        )
        self._send(world)

    def ask(self, task: Path, part: Sequence[Ints]) -> CohortResult:
        """Adapt a part of the task in a file."""
        self._send((task, part))
        answer = self.answer()
        if not isinstance(answer, CohortResult):
            raise TypeError(f"expected a CohortResult, got {type(answer).__name__}")
        return answer

    def answer(self) -> object:
        """The next answer of the process; raises what went wrong there.

        Raises:
            RunError: it has ended.
        """
        try:
            answer = _load(self._popen.stdout, {})
        except (EOFError, pickle.UnpicklingError):
            code = self._popen.wait()
            raise RunError(
                f"expected an answer of a worker process, got its end with code {code}; resume the run, with fewer "
                "engine.workers if memory was short"
            ) from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def id(self) -> int:
        """The system's number of the process."""
        return self._popen.pid

    def _send(self, message: object) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has ended: asking for its answer says so
            _dump(message, self._popen.stdin, {})

    def close(self) -> None:
        """Close the pipe, which ends it, and wait."""
        for pipe in (self._popen.stdin, self._popen.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        try:
            self._popen.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()


def serve() -> None:
    """A worker's life: the world, then parts of tasks until the pipe closes."""
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what anything prints must not end up among the answers
    torch.set_num_threads(1)
    keep_freed_memory()
    path: Path | None = None
    task: Task | None = None
    try:
        known = {name: thing for thing, name in _things(_unship(_load(source, {}), {}))}
        _dump("ready", sink, {})
        while True:
            asked, part = _load(source, {})
            if asked != path:
                path, task = asked, _unship(asked, known)
            _dump(_answer(task, part), sink, {})
    except (EOFError, BrokenPipeError):
        return


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


def _dump(message: object, stream: Any, names: dict[int, str]) -> None:
    _Pickler(stream, protocol=5, names=names).dump(message)
    stream.flush()


def _load(stream: Any, known: dict[str, object]) -> Any:
    return _Unpickler(stream, known=known).load()


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
