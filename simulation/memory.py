"""Freed memory kept for the next chunk: asking the system for it again costs more than some of the arithmetic."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Mapping

_MMAP_THRESHOLD, _TRIM_THRESHOLD, _TOP_PAD = -3, -1, -2  # mallopt(3), glibc
_TUNABLES, _HUGE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
_LARGEST, _KEPT, _STEP = 32 << 20, 1 << 30, 64 << 20  # bytes; glibc takes no larger threshold


@functools.cache
def keep_freed_memory() -> bool:
    """Let this process keep what it frees, instead of giving back and faulting in every tensor of every chunk.

    On glibc only (``mallopt``), once a process; nothing computed changes. The most memory a process holds at a time is
    what it was; :func:`give_back` returns it.

    Returns:
        Whether the allocator took the settings.
    """
    library = _glibc()
    if library is None:
        return False
    settings = ((_MMAP_THRESHOLD, _LARGEST), (_TRIM_THRESHOLD, _KEPT), (_TOP_PAD, _STEP))
    taken = [library.mallopt(parameter, value) for parameter, value in settings]
    return taken == [1, 1, 1]


def with_huge_pages(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process to start whose allocator asks for huge pages, unless it says what it wants itself.

    Tensors of some megabytes are then a few pages instead of thousands, whose addresses the processor knows by heart:
    on two cores a chunk takes about an eighth less. From glibc 2.35, where the kernel grants them (``madvise``); what
    knows nothing of it ignores it. A process that runs can't be told any more, so the threads of the caller go without.
    """
    asked = environment.get(_TUNABLES, "")
    if _HUGE in asked:
        return dict(environment)
    return {**environment, _TUNABLES: ":".join([*filter(None, [asked]), f"{_HUGE}=1"])}


def give_back() -> None:
    """Return freed memory to the system: a simulation is over, its process goes on."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
