"""The ledgers of a run directory: the federation's, those of its devices, and those of its baseline."""

from __future__ import annotations

from pathlib import Path

from ..errors import LedgerError
from ..server.account import LEDGER
from .federation import NODES
from .participant import DEVICE_LEDGER, STARTED
from .run import JOINT, config_in


def ledgers_of(path: Path) -> dict[str, Path]:
    """Ledger files by what they are: that of a file itself, or all of a run directory.

    Raises:
        LedgerError: there is none, or one is missing that the run's privacy unit calls for.
        RunError: a directory that holds no run.
    """
    if not path.is_dir():
        return {"ledger": path}
    unit = config_in(path).privacy.unit
    found: dict[str, Path] = {}
    for directory, prefix in ((path, ""), (path / JOINT, "baseline (K = 1), ")):
        if unit in ("user", "both") and (directory == path or (directory / LEDGER).exists()):
            found[f"{prefix}federation"] = directory / LEDGER
        for begun in sorted(directory.glob(f"{NODES}/node-*/{STARTED}")):
            found[f"{prefix}devices of {begun.parent.name}"] = begun.with_name(DEVICE_LEDGER)
    if not found:
        raise LedgerError(f"expected a ledger in {path}, got none: a run of unit {unit} has none, or has not begun")
    return found
