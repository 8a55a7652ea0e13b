"""``metrics.jsonl``: one row a round, appended before the round's checkpoint: no checkpointed round lacks its row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .. import _durable
from ..errors import RunError


class MetricsLog:
    """The rows of a run, on disk and in memory."""

    def __init__(self, path: Path) -> None:
        """Read what is there; a torn last line (the process died while writing it) is left out."""
        self._path = path
        self.rows = _read(path)

    def keep_until(self, last_round: int) -> None:
        """Drop the rows after ``last_round``, which will be written again, and a torn one.

        Raises:
            RunError: a row of a round before is missing or unreadable; the file stays as it is.
        """
        missing = sorted(set(range(1, last_round + 1)) - {row["round"] for row in self.rows})
        if missing:
            raise RunError(
                f"expected the rows of rounds 1 to {last_round} in {self._path}, got none of round {missing[0]}; "
                "restore a copy of the file or start over in another directory"
            )
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


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(f"expected a readable file {path}, got {error.strerror}; restore a copy of it") from None


def _read(path: Path) -> list[dict[str, Any]]:
    rows = []
    for line in _lines(path):
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not isinstance(row, dict) or not isinstance(row.get("round"), int):
            break
        rows.append(row)
    return rows
