"""``metrics.jsonl``: one row a round, appended before the round's checkpoint: no checkpointed round lacks its row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from . import _durable


class MetricsLog:
    """The rows of a run, on disk and in memory."""

    def __init__(self, path: Path) -> None:
        """Read what is there; a torn last line (the process died while writing it) is left out."""
        self._path = path
        self.rows = _read(path)

    def keep_until(self, last_round: int) -> None:
        """Drop the rows after ``last_round``, which will be written again, and whatever can't be read."""
        self.rows = [row for row in self.rows if row["round"] <= last_round]
        if self._path.exists():
            with _durable.storage_errors(self._path, "the old rows are intact"):
                _durable.replace_file(self._path, b"".join(_line(row) for row in self.rows))

    def append(self, row: dict[str, Any]) -> None:
        """Add a row, durably.

        Raises:
            RunError: the disk is full.
        """
        with _durable.storage_errors(self._path, f"rounds before {row['round']} are intact"):
            _durable.append_line(self._path, _line(row))
        self.rows.append(json.loads(_line(row)))


def _line(row: dict[str, Any]) -> bytes:
    return (json.dumps(row, sort_keys=False, allow_nan=False) + "\n").encode()


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    rows = []
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not isinstance(row, dict) or not isinstance(row.get("round"), int):
            break
        rows.append(row)
    return rows
