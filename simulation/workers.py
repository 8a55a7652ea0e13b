"""Worker processes for the cohort engine: Python's lock holds threads up, and not processes.

A worker is this package started anew on two pipes, so that a caller's script is never imported a second time and no
thread of the caller's is forked. It gets the world once and a round's task once, through a private temporary file that
all of them map unless it is small, and gets ready for it while the caller divides it; then the parts, and the number of
one after the other, the next one while it is at one, so that it never waits for the caller. It ends when they close,
whatever became of the caller.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import math
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
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..config import Config
from ..errors import RunError
from .cohort import PartResult, Task
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
_NOTHING = np.zeros(16, dtype=np.float32)
"""What fills the room behind parameters, so that all begin at a multiple of 64 bytes, where an allocator puts them."""
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
        self._round = 0
        self._written: list[Path] = []
        self._divided: Sequence[Sequence[Ints]] | None = None
        self._confirmed = False
        path = _written(_dumped(world, {}), self.folder / "world")  # who is only starting reads no long message yet
        self.processes = [_Process(path) for _ in range(count)]
        self._finalizer = weakref.finalize(self, _end, self.processes, self._folder)

    @property
    def folder(self) -> Path:
        """Where the files lie that the processes map."""
        return Path(self._folder.name)

    def adapt(self, task: Task) -> Iterator[PartResult]:
        """``task.adapt`` of every part of it, in order; processes get ready for it while the caller divides it.

        Raises:
            RunError: a worker process ended or failed.
        """
        self._confirm()
        self._finish()  # a round that was left
        self._round += 1
        self._give(_FlatTask.of(task), f"task-{self._round}")
        if task.parts is not self._divided:  # a message that they had is theirs still
            stays = self._give(task.parts, f"parts-{self._round}")
            self._divided = task.parts if stays else None
        return self._answers(len(task.parts), self._round)

    def _give(self, thing: object, name: str) -> bool:
        """Send it to all processes; whether as a message, and not as a file that somebody may come too late for."""
        self._written.append(self.folder / name)  # if it is; before, because writing may fail half way
        parcel = _ship(thing, self._written[-1], _names_of(self._world))
        message = _packed(parcel)
        for process in self.processes:
            process.give(message)
        return not isinstance(parcel, Path)

    def _finish(self) -> None:
        """Take what is owed still, and remove what was written."""
        for process in self.processes:
            process.finish()
        while self._written:
            self._written.pop().unlink(missing_ok=True)

    def _answers(self, count: int, number: int) -> Iterator[PartResult]:
        """Answers to the parts of a task, in their order; few more are asked for than are taken."""
        found: dict[int, PartResult] = {}
        try:
            asked = self._ask(0, min(count, self._most), count)
            for taken in range(count):
                while taken not in found:
                    for process in self._ready():
                        part, answer = process.take()
                        asked = self._ask(asked, min(count, taken + self._most), count)  # before it is unpacked
                        found[part] = process.unpacked(answer)
                asked = self._ask(asked, min(count, taken + 1 + self._most), count)
                yield found.pop(taken)
        finally:
            if number == self._round:  # what is owed is owed to the last round
                self._finish()

    def _ask(self, first: int, until: int, count: int) -> int:
        """Ask for parts from the ``first`` on, whoever owes the fewest first; the first that is not asked for yet."""
        for ahead in range(_AHEAD):
            for process in self.processes:
                last = len(self.processes) < first >= count - len(self.processes)  # the end: whoever is ready first
                if process.owes <= (0 if last else ahead) and first < until:
                    process.ask(first)
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

    def __init__(self, world: Path) -> None:
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
        self.give(_packed(world))

    @property
    def id(self) -> int:
        """The system's number of the process."""
        return self._popen.pid

    @property
    def owes(self) -> int:
        """How many answers it owes."""
        return len(self._asked)

    def give(self, message: bytes | memoryview) -> None:
        """Send it a packed parcel: the world first, then a task at a time."""
        with contextlib.suppress(ConnectionError):  # it has ended: asking for its answer says so
            self._questions.send_bytes(message)

    def ask(self, part: int) -> None:
        """Have it adapt a part of the task that it has."""
        self._asked.append(part)
        self.give(pickle.dumps(part))

    def take(self) -> tuple[int, bytes]:
        """The part that was asked for first of those it owes, and what it says of it.

        Raises:
            RunError: it has ended.
        """
        return self._asked.popleft(), self._received()

    def unpacked(self, answer: bytes) -> PartResult:
        """What came of a part; raises what went wrong there."""
        result = _opened(answer)
        if not isinstance(result, PartResult):
            raise TypeError(f"expected a PartResult, got {type(result).__name__}")
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
        _opened(self._received())

    def _received(self) -> bytes:
        try:
            return self.answers.recv_bytes()
        except (EOFError, OSError):
            code = self._popen.wait()
            raise RunError(
                f"expected an answer of a worker process, got its end with code {code}; resume the run, with fewer "
                "engine.workers if memory was short"
            ) from None

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
        answers.send_bytes(_told("ready"))
        while True:
            message = pickle.loads(questions.recv_bytes())
            if isinstance(message, int):
                answers.send_bytes(_told(_answer(task, parts, message)))
                continue
            try:
                given = _unship(message, known)
            except FileNotFoundError:  # the round is over: other processes have answered every part of it
                task = None
                continue
            if isinstance(given, _FlatTask):
                task = given.opened()
            else:
                parts = given


@dataclass(frozen=True, kw_only=True, eq=False)
class _FlatTask:
    """A task, its shared parameters apart and one behind the other: a dozen arrays take longer to pack than one."""

    task: Task
    shapes: dict[str, tuple[int, ...]]
    values: NDArray[np.float32]

    @classmethod
    def of(cls, task: Task) -> _FlatTask:
        """Lay them out."""
        flat = {name: value.detach().numpy().reshape(-1) for name, value in task.phi.items()}
        parts = [part for values in flat.values() for part in (values, _NOTHING[: -len(values) % len(_NOTHING)])]
        shapes = {name: tuple(value.shape) for name, value in task.phi.items()}
        return cls(task=replace(task, phi={}), shapes=shapes, values=np.concatenate(parts))

    def opened(self) -> Task:
        """The task, and computed ahead what all of its parts need."""
        values, phi, first = torch.from_numpy(self.values).clone().numpy(), {}, 0  # torch's memory begins at a line
        for name, shape in self.shapes.items():
            count = math.prod(shape)
            phi[name] = torch.from_numpy(values[first : first + count].reshape(shape))
            first += count + -count % len(_NOTHING)
        task = replace(self.task, phi=phi)
        if task.config.engine.kind == "cohort" and task.device.type == "cpu":  # elsewhere chunks compute it, there
            with contextlib.suppress(Exception):  # it goes wrong once more where it is needed, and is told there
                task.shared.prepare()
        return task


def _answer(task: Task | None, parts: Sequence[Sequence[Ints]], number: int) -> object:
    if task is None or not parts:
        return RunError("expected a worker process to find its task in the temporary folder, it was gone; run it again")
    try:
        return task.adapt(parts[number])
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


def _told(answer: object) -> bytes:
    """An answer for its way: sums and nothing else, as most of them are, as plain numbers; a pickle takes longer."""
    if isinstance(answer, PartResult) and not (answer.personal or answer.each):
        sums = answer.sums.numpy()
        return b"".join((_HEAD.pack(sums.dtype.char.encode(), answer.unclipped), sums.data))
    return b"".join((_HEAD.pack(_PICKLED, 0), _packed(answer)))


def _opened(message: bytes) -> object:
    """What :func:`_told` was given; raises it where it is what went wrong there."""
    kind, unclipped = _HEAD.unpack_from(message)
    if kind != _PICKLED:
        sums = np.frombuffer(bytearray(message), dtype=kind.decode(), offset=_HEAD.size)
        return PartResult(sums=torch.from_numpy(sums), unclipped=unclipped)
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
