"""Write a directory all or nothing: a reader never meets half a data set, whatever happens to the writer."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...errors import DataError


@contextmanager
def atomic_directory(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling of ``target`` that becomes ``target`` when the block ends without an error.

    Args:
        target: the directory to create.
        overwrite: replace an existing ``target``; it stays untouched until the new one is complete.

    Raises:
        DataError: ``target`` exists, or the disk is full or not writable. Nothing half-written stays behind.
    """
    if target.exists() and not overwrite:
        raise DataError(f"expected no data set at {target}, found one; choose another place or ask to replace it")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise _write_error(target, error) from error
    try:
        yield temporary
        _sync_directory(temporary)
        _swap(temporary, target)
    except OSError as error:
        raise _write_error(target, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_error(target: Path, error: OSError) -> DataError:
    reason = error.strerror or str(error)
    return DataError(f"could not write {target}: {reason}; nothing was kept, free some space or choose another place")


def _sync_directory(path: Path) -> None:
    """Flush every file of ``path`` to the disk, so that the rename never overtakes the content."""
    for file in [entry for entry in path.rglob("*") if entry.is_file()]:
        with file.open("rb") as handle:
            os.fsync(handle.fileno())


def _swap(temporary: Path, target: Path) -> None:
    """Move ``temporary`` to ``target``; an older ``target`` is put back if that fails."""
    try:
        temporary.rename(target)
        return
    except OSError:
        if not target.exists():
            raise
    retired = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent)) / target.name
    target.rename(retired)
    try:
        temporary.rename(target)
    except OSError:
        retired.rename(target)
        raise
    finally:
        shutil.rmtree(retired.parent, ignore_errors=True)
