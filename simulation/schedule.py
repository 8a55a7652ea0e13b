"""How a round's devices are divided into chunks, and how chunks are computed on several threads.

Neither the number of threads nor that of processes changes a bit: the division does not depend on them, random streams
derive from (seed, round, device, purpose), and sums are taken in the order of the chunks.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ..config import Config, LocalConfig
from ..meta.policy import Policy
from ..meta.state import SCALES
from .memory import keep_freed_memory

Ints = NDArray[np.int64]
Item = TypeVar("Item")
Answer = TypeVar("Answer")

_LEAST, _MOST = 1_500_000, 4_000_000
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
DEVICE_FLOATS = 64_000_000
"""Floats of a chunk where a device with memory of its own computes: 256 MB, and a few times that while it does."""
_BLOCKS = 256


@functools.cache
def chunk_floats() -> int:
    """Floats that one chunk works on: two for every byte of a core's second-level cache, within bounds.

    Smaller chunks are slowed by the number of their operations, larger ones by the memory they pass through. With 2 MB
    of that cache 4 million floats take a tenth less time than 1.5 million under unit ``user`` and a quarter less with
    noise for every device; with less cache, or where the system does not tell, 1.5 million are best.
    """
    return min(max(_LEAST, 2 * _second_level_cache()), _MOST)


def _second_level_cache() -> int:
    """Bytes of the first core's; 0 where the system does not tell."""
    for entry in sorted(_CACHES.glob("index*")):
        try:
            level, size = ((entry / name).read_text().strip() for name in ("level", "size"))
        except OSError:
            continue
        if level == "2" and size.endswith("K") and size[:-1].isdecimal():
            return int(size[:-1]) * 1024
    return 0


class _OneThread(threading.local):
    """Torch computes on one thread for as long as the caller's thread is in here, and then on as many as before.

    Torch counts for every thread of Python; one that comes while others are in here gets what they had before.
    """

    lock = threading.Lock()
    inside, common = 0, 1  # of all threads

    def __init__(self) -> None:
        self._depth, self._before = 0, 1

    def __enter__(self) -> int:
        """How many it computed on before."""
        with _OneThread.lock:
            if not self._depth:
                self._before = _OneThread.common if _OneThread.inside else torch.get_num_threads()
            if not _OneThread.inside:
                _OneThread.common = self._before
            _OneThread.inside += 1
        self._depth += 1
        torch.set_num_threads(1)
        return self._before

    def __exit__(self, *error: object) -> None:
        with _OneThread.lock:
            _OneThread.inside -= 1
        self._depth -= 1
        if not self._depth:
            torch.set_num_threads(self._before)


_one_thread = _OneThread()


def in_order(
    function: Callable[[Item], Answer], items: Sequence[Item], *, threads: int | None = None
) -> Iterator[Answer]:
    """``map`` on several threads, torch's number of them by default, each of which computes alone; answers in order.

    Several may be under way at a time, and end in any order.
    """
    keep_freed_memory()
    with _one_thread as before:
        threads = threads or before
        if threads == 1 or len(items) < 2:
            yield from map(function, items)
            return
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            ahead: deque[Future[Answer]] = deque()
            for item in items:
                ahead.append(pool.submit(function, item))
                if len(ahead) > 2 * threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()


def chunks(policy: Policy, devices: Ints, sizes: Ints, config: Config, *, private: bool, room: int) -> Iterator[Ints]:
    """Places of devices of like size: ``engine.chunk`` of them, or chunks of like work, of ``room`` floats at most.

    A chunk is padded to its longest log, so every device in it counts as that one. The number of chunks is even, so
    that two threads end together; it does not depend on the number of threads.
    """
    order = np.lexsort((devices, -sizes))  # what takes longest first, so that threads end together
    if config.engine.chunk:
        yield from np.split(order, np.arange(config.engine.chunk, len(order), config.engine.chunk))
        return
    floats = device_floats(policy, sizes[order], config, private=private).tolist()
    count = len(_starts(floats, room))
    count += count % 2
    most = bisect.bisect_left(range(room), True, key=lambda most: len(_starts(floats, most)) <= count)
    starts = _starts(floats, most)
    yield from (places for places in np.split(order, starts[1:]) if len(places))


def _starts(floats: Sequence[int], most: int) -> list[int]:
    """Where chunks begin that are padded to their first device and hold ``most`` floats, one device at least."""
    starts, following = [], 0
    while following < len(floats):
        starts.append(following)
        following += max(1, most // floats[following])
    return starts


def device_floats(policy: Policy, sizes: Ints, config: Config, *, private: bool) -> Ints:
    """About how many floats adapting a device with a log of each size touches, int64 ``[sizes]``."""
    settings = policy.settings
    examples = np.ones_like(sizes)
    inner = np.zeros_like(sizes)
    if policy.sees_history:
        examples = np.clip(sizes, 1, config.local.windows)
        length = np.minimum(sizes, settings.history_length)
        distinct = np.minimum(sizes, examples * settings.history_length)
        by_scale = settings.state == "history"  # weights of every entry, in both forms that ``meta.recency`` keeps
        inner = examples * (len(SCALES) * (length + distinct) if by_scale else length * settings.dim)
    elif private:
        inner = sizes * (policy.features.shape[1] + settings.dim)
        examples = np.maximum(sizes, 1) if config.local.trust_region > 0 else examples  # no common row of slopes
    floats = examples * policy.items + inner
    if private:
        floats = floats + 2 * sum(torch.Size(policy.specs[name].shape).numel() for name in policy.trained)
    return np.asarray(floats, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class _Division:
    """How some devices were divided."""

    policy: Policy
    local: LocalConfig
    devices: Ints
    sizes: Ints
    rest: tuple[int, bool, int]
    parts: list[Sequence[Ints]]

    def of(self, policy: Policy, local: LocalConfig, devices: Ints, sizes: Ints, rest: tuple[int, bool, int]) -> bool:
        """Whether it is how these are divided."""
        same = policy is self.policy and local == self.local and rest == self.rest
        return same and np.array_equal(sizes, self.sizes) and np.array_equal(devices, self.devices)


_last: list[_Division] = []


def divided(
    policy: Policy, devices: Ints, sizes: Ints, config: Config, *, private: bool, room: int
) -> list[Sequence[Ints]]:
    """Chunks (:func:`chunks`) in blocks (:func:`blocks`); the same list as the last time where the same are divided.

    Where everybody takes part in every round, this is done once.
    """
    rest = (config.engine.chunk, private, room)
    last = _last[-1] if _last else None
    if last is None or not last.of(policy, config.local, devices, sizes, rest):
        parts = blocks(list(chunks(policy, devices, sizes, config, private=private, room=room)))
        last = _Division(policy, config.local, devices.copy(), sizes.copy(), rest, parts)
        _last[:] = [last]
    return last.parts


def blocks(items: Sequence[Item]) -> list[Sequence[Item]]:
    """Neighbours together, at most ``_BLOCKS`` of them: what is summed on the spot and sent as one sum.

    How sums are grouped decides their rounding, so it depends on the number of items only.
    """
    bounds = np.linspace(0, len(items), min(len(items), _BLOCKS) + 1).astype(int)
    return [items[first:last] for first, last in itertools.pairwise(bounds.tolist())]
