"""The creation of a ledger that a crash leaves whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from .. import _durable
from .ledger import Ledger, LedgerSettings


def create_ledger(path: Path, settings: LedgerSettings) -> None:
    """Create a ledger that is either there whole or not at all: the database is moved into place last.

    Raises:
        RunError: the disk is full or not writable.
    """
    with _durable.storage_errors(path, "nothing was released"):
        _durable.sweep(path.parent, path.name)
        nursery = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            young = nursery / path.name
            Ledger.create(
                young,
                unit=settings.unit,
                delta=settings.delta,
                budget_epsilon=settings.budget_epsilon,
                accountant=settings.accountant,
                mechanism=settings.mechanism,
            ).close()
            for file in sorted(nursery.iterdir(), key=lambda file: file.name == path.name):
                os.replace(file, path.parent / file.name)
            _durable.sync_directory(path.parent)
        finally:
            shutil.rmtree(nursery, ignore_errors=True)
