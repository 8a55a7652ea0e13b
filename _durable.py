"""Writing so that a crash at any moment leaves either the old or the new, never half of one."""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from .errors import RunError


def replace_file(target: Path, content: bytes) -> None:
    """Write ``content`` next to ``target``, flush it to the disk and rename it over ``target``.

    Drafts of ``target`` that a killed process left go first: there is one writer at a time.
    """
    sweep(target.parent, f"{target.name}.")
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    draft = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            _flush(file.fileno(), content)
        draft.replace(target)
        sync_directory(target.parent)
    finally:
        draft.unlink(missing_ok=True)


def replace_directory(target: Path, files: Mapping[str, bytes]) -> None:
    """Write a directory of files next to ``target``, flush it and rename it to ``target``; an older one goes first."""
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        for name, content in files.items():
            with (draft / name).open("wb") as file:
                _flush(file.fileno(), content)
        sync_directory(draft)
        if target.exists():
            shutil.rmtree(target)
        draft.rename(target)
        sync_directory(target.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def sweep(parent: Path, prefix: str) -> None:
    """Remove drafts that a killed process left in ``parent``."""
    for draft in parent.glob(f".{glob.escape(prefix)}*"):
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            draft.unlink(missing_ok=True)


def append_line(path: Path, line: bytes) -> None:
    """Append one line and flush it to the disk."""
    with path.open("ab") as file:
        _flush(file.fileno(), line)


@contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """While this lasts, no other process is in here for the same directory."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Flush a directory's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def storage_errors(path: Path, kept: str) -> Iterator[None]:
    """Turn an ``OSError`` (full disk, no permission) into a :class:`RunError` that says what is kept."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"can't write {path}: {error.strerror or error}; {kept}, so free some space and resume the run"
        ) from error


def _umask() -> int:
    """What the user keeps from others; a draft of ``tempfile`` would keep everything from everybody."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _flush(descriptor: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    os.fsync(descriptor)
