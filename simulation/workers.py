"""Worker processes for the cohort engine: Python's lock holds threads up, and not processes.

A worker is this package started anew on two pipes, so that a caller's script is never imported a second time and no
thread of the caller's is forked. It gets the world once and a round's task once, through a private temporary file that
all of them map unless it is small; then numbers of parts of the round, the next one while it is at one, so that it
never waits for the caller. It ends when they close, whatever became of the caller.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import itertools
import mmap
import os
import pickle
import struct
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

import numpy as np
import torch

from ..config import Config
from ..errors import RunError
from ..meta.policy import Policy
from .cohort import CohortResult, Task, named_views
from .memory import keep_freed_memory, with_huge_pages
from .placement import compute_device
from .schedule import Ints
from .world import World

_WORTH = 5_000_000_000
"""Floats of all rounds from which the start of processes (some seconds) is worth it: about a minute of one core."""
_AHEAD = 2
"""Parts that a worker is given at once: one to do and one to go on with."""
_INLINE = 200_000
"""Bytes of a task that travel with the first question; a file takes longer to write and map, and is written once."""
_ROOM = 1 << 20
"""Bytes that a pipe holds: what Linux grants without asking for more."""
_HEAD, _PICKLED = struct.Struct("<cxxxxxxxq"), b"p"
"""What an answer begins with: the type of the numbers that follow, or that a pickle does; devices not clipped."""
Parcel = Path | Sequence[bytearray]
"""What is packed: where it lies, or itself."""
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
        self._confirmed = False
        path = _written(_dumped(world, {}), self.folder / "world")  # who is only starting reads no long message yet
        self.processes = [_Process(path, world.policy) for _ in range(count)]
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
        parcel = _ship((task, parts), path, _names_of(self._world))
        try:
            yield from self._answers(parcel, len(parts))
        finally:
            for process in self.processes:
                process.finish()
            path.unlink(missing_ok=True)

    def _answers(self, parcel: Parcel, count: int) -> Iterator[CohortResult]:
        """Answers to the parts of a task, in their order; few more are asked for than are taken."""
        found: dict[int, CohortResult] = {}
        asked = self._ask(parcel, 0, min(count, self._most), count)
        for taken in range(count):
            while taken not in found:
                for process in self._ready():
                    part, answer = process.take()
                    asked = self._ask(parcel, asked, min(count, taken + self._most), count)  # before it is unpacked
                    found[part] = process.unpacked(answer)
            asked = self._ask(parcel, asked, min(count, taken + 1 + self._most), count)
            yield found.pop(taken)

    def _ask(self, parcel: Parcel, first: int, until: int, count: int) -> int:
        """Ask for parts from the ``first`` on, whoever owes the fewest first; the first that is not asked for yet."""
        for ahead in range(_AHEAD):
            for process in self.processes:
                last = len(self.processes) < first >= count - len(self.processes)  # the end: whoever is ready first
                if process.owes <= (0 if last else ahead) and first < until:
                    process.ask(parcel, first)
                    first += 1
        return first

    @property
    def _most(self) -> int:
        return 2 * _AHEAD * len(self.processes)

    def _ready(self) -> list[_Process]:
        """Who has an answer, or has ended; waits until one has."""
        owing = {process.answers: process for process in self.processes if process.owes}
        return [owing[pipe] for pipe in wait(list(owing)) if isinstance(pipe, Connection)]

    def _confirm(self) -> None:
        """Wait until all of them have the world, and remove its file: whatever becomes of the caller, none is left."""
        if not self._confirmed:
            for process in self.processes:
                process.confirm()
            (self.folder / "world").unlink(missing_ok=True)
            self._confirmed = True

    def close(self) -> None:
        """End the processes and remove what they were given."""
        self._finalizer()


def _end(processes: Sequence[_Process], folder: tempfile.TemporaryDirectory[str]) -> None:
    for process in processes:
        process.close()
    folder.cleanup()


class _Process:
    """One worker, seen from the caller."""

    def __init__(self, world: Path, policy: Policy) -> None:
        here = {**with_huge_pages(os.environ), "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        questions, self._questions = Pipe(duplex=False)
        self.answers, answers = Pipe(duplex=False)
        for pipe in (questions, answers):
            _widen(pipe)
        with questions, answers:
            self._popen = subprocess.Popen(
                [sys.executable, "-c", _START],
                stdin=questions.fileno(),
                stdout=answers.fileno(),
                env=here,
                process_group=0 if os.name == "posix" else None,
            )
        self._asked: deque[int] = deque()
        self._has: Parcel | None = None
        self._policy = policy
        self._send(world)

    @property
    def id(self) -> int:
        """The system's number of the process."""
        return self._popen.pid

    @property
    def owes(self) -> int:
        """How many answers it owes."""
        return len(self._asked)

    def ask(self, task: Parcel, part: int) -> None:
        """Have it adapt a part of a task, which it gets with the first."""
        self._asked.append(part)
        self._send((None if task is self._has else task, part))
        self._has = task

    def take(self) -> tuple[int, bytes]:
        """The part that was asked for first of those it owes, and what it says of it.

        Raises:
            RunError: it has ended.
        """
        return self._asked.popleft(), self._received()

    def unpacked(self, answer: bytes) -> CohortResult:
        """What came of a part; raises what went wrong there."""
        result = _opened(answer, self._policy)
        if not isinstance(result, CohortResult):
            raise TypeError(f"expected a CohortResult, got {type(result).__name__}")
        return result

    def finish(self) -> None:
        """Take what it still owes, so that the next answer is to the next question."""
        while self._asked:
            with contextlib.suppress(RunError):  # the first thing that went wrong is on its way already
                self.take()

    def confirm(self) -> None:
        """Wait until it has the world; raises what went wrong there.

        Raises:
            RunError: it has ended.
        """
        _opened(self._received(), self._policy)

    def _received(self) -> bytes:
        try:
            return self.answers.recv_bytes()
        except (EOFError, OSError):
            code = self._popen.wait()
            raise RunError(
                f"expected an answer of a worker process, got its end with code {code}; resume the run, with fewer "
                "engine.workers if memory was short"
            ) from None

    def _send(self, message: object) -> None:
        with contextlib.suppress(ConnectionError):  # it has ended: asking for its answer says so
            self._questions.send_bytes(_packed(message))

    def close(self) -> None:
        """Close the pipes, which ends it, and wait."""
        self._questions.close()
        self.answers.close()
        try:
            self._popen.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()


def _widen(pipe: Connection) -> None:
    """Let a message lie in the pipe as a whole, where the system can: who writes it waits for nobody then."""
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, _ROOM)


def serve() -> None:
    """A worker's life: the world, then parts of tasks until the pipes close."""
    questions, answers = Connection(os.dup(0), writable=False), Connection(os.dup(1), readable=False)
    os.dup2(2, 1)  # what anything prints is for people
    torch.set_num_threads(1)
    keep_freed_memory()
    task: Task | None = None
    parts: Sequence[Sequence[Ints]] = ()
    with questions, answers, contextlib.suppress(EOFError, ConnectionError):
        world = _unship(pickle.loads(questions.recv_bytes()), {})
        known = {name: thing for thing, name in _things(world)}
        answers.send_bytes(_told("ready", world.policy))
        while True:
            parcel, number = pickle.loads(questions.recv_bytes())
            if parcel is not None:
                task, parts = _unship(parcel, known)
            answers.send_bytes(_told(_answer(task, parts[number]), world.policy))


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
    return [(world, "world"), (world.policy, "policy"), (world.config, "config")]


def _names_of(world: World) -> dict[int, str]:
    return {id(thing): name for thing, name in _things(world)}


class _Pickler(pickle.Pickler):
    """Tensors as arrays, whose memory may travel beside the pickle."""

    def reducer_override(self, thing: Any) -> Any:
        if type(thing) is torch.Tensor and thing.device.type == "cpu":
            return torch.from_numpy, (thing.detach().numpy(),)
        return NotImplemented


class _NamingPickler(_Pickler):
    """The same, and what the worker knows by its name."""

    def __init__(self, *args: Any, names: dict[int, str], **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._names = names

    def persistent_id(self, thing: Any) -> str | None:
        return self._names.get(id(thing))


class _Unpickler(pickle.Unpickler):
    def __init__(self, *args: Any, known: dict[str, object], **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._known = known

    def persistent_load(self, name: str) -> object:
        return self._known[name]


def _packed(message: object) -> memoryview:
    text = io.BytesIO()
    _Pickler(text, protocol=5).dump(message)
    return text.getbuffer()


def _told(answer: object, policy: Policy) -> bytes:
    """An answer for its way: sums and nothing else, as most of them are, as plain numbers; a pickle takes longer."""
    released = set(policy.released)
    if isinstance(answer, CohortResult) and answer.total.keys() == released and not (answer.personal or answer.each):
        sums = torch.cat([answer.total[name].flatten() for name in policy.released]).numpy()
        return b"".join((_HEAD.pack(sums.dtype.char.encode(), answer.unclipped), sums.data))
    return b"".join((_HEAD.pack(_PICKLED, 0), _packed(answer)))


def _opened(message: bytes, policy: Policy) -> object:
    """What :func:`_told` was given; raises it where it is what went wrong there."""
    kind, unclipped = _HEAD.unpack_from(message)
    if kind != _PICKLED:
        sums = torch.from_numpy(np.frombuffer(message, dtype=kind.decode(), offset=_HEAD.size).astype(np.float64))
        total = {name: rows[0] for name, rows in named_views(sums[None], policy, policy.released).items()}
        return CohortResult(total=total, personal={}, unclipped=unclipped)
    said = pickle.loads(memoryview(message)[_HEAD.size :])
    if isinstance(said, Exception):
        raise said
    return said


def _ship(thing: object, path: Path, names: dict[int, str]) -> Parcel:
    """Pack ``thing``; into a file where it is many bytes."""
    parts = _dumped(thing, names)
    small = sum(part.nbytes for part in parts) <= _INLINE
    return [bytearray(part) for part in parts] if small else _written(parts, path)


def _dumped(thing: object, names: dict[int, str]) -> list[memoryview]:
    """The pickle of ``thing``, and the memory of its arrays."""
    arrays: list[pickle.PickleBuffer] = []
    text = io.BytesIO()
    _NamingPickler(text, protocol=5, names=names, buffer_callback=arrays.append).dump(thing)
    return [text.getbuffer(), *(array.raw() for array in arrays)]


def _written(parts: Sequence[memoryview], path: Path) -> Path:
    """A file that processes can map: lengths, then the parts."""
    with path.open("wb") as file:
        pickle.dump([part.nbytes for part in parts], file)
        for part in parts:
            file.seek(_aligned(file.tell()))
            file.write(part)
    return path


def _unship(parcel: Parcel, known: dict[str, object]) -> Any:
    """What was packed; arrays in a file are private pages of it, read when they are touched."""
    parts = _mapped(parcel) if isinstance(parcel, Path) else parcel
    return _Unpickler(io.BytesIO(parts[0]), known=known, buffers=parts[1:]).load()


def _mapped(path: Path) -> Sequence[memoryview]:
    with path.open("rb") as file:
        lengths = pickle.load(file)
        position = file.tell()
        pages = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    parts = []
    for length in lengths:
        first = _aligned(position)
        parts.append(pages[first : first + length])
        position = first + length
    return parts


def _aligned(position: int) -> int:
    return -(-position // 64) * 64
