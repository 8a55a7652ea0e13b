"""One process at a time in a run directory."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from ..errors import RunError


def _reason(directory: Path, error: OSError) -> str:
    return "it is a file" if directory.is_file() else error.strerror or str(error)


class RunLock:
    """An advisory lock (``flock``) on ``RUN/run.lock``; the operating system releases it when its process ends or dies.

    Raises:
        RunError: on entering, if another holder is at work.
    """

    def __init__(self, run_dir: Path | str) -> None:
        """Name the directory; it is created on entering."""
        self._path = Path(run_dir) / "run.lock"
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise RunError(
                f"can't use {self._path.parent} as a run directory: {_reason(self._path.parent, error)}; choose another"
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise RunError(
                f"another process (pid {holder}) is at work in {self._path.parent}; "
                "wait for it or choose another directory"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
