"""Read a logged-bandit file: what was shown to whom, where in a list, with which probability, and what it earned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from .columns import usual_column
from .logs import Piece, _as_numbers, _Codes, _timestamps, ids_of
from .tabular import Source, check_mapping, open_source

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

BANDIT_ROLES = ("user", "item", "rating", "propensity", "position", "timestamp", "slate", "marginal")
_NEEDED = {"item": "item", "rating": "reward", "propensity": "propensity"}


@dataclass(frozen=True, kw_only=True, eq=False)
class BanditLog:
    """Impressions in the order of the file.

    Attributes:
        name: name of the file.
        items: number of the item, an index of ``item_ids``, int64 ``[rows]``.
        item_ids: the file's own ids.
        rewards: finite, float64 ``[rows]``.
        propensities: probability in (0, 1] with which the logging policy showed the item, float64 ``[rows]``; in a
            slate given the items above it, in a log of single impressions with positions at this position.
        users: number of the user, an index of ``user_ids``, int64 ``[rows]``, where the file has users.
        user_ids: the file's own ids.
        positions: slot from 0, int64 ``[rows]``; zeros where the file has none.
        timestamps: seconds since 1970, int64 ``[rows]``, where the file has them.
        slates: number of the slate of each row, int64 ``[rows]``, where rows belong together.
        marginals: probability of the item at its position whatever stands above it, float64 ``[rows]``.
    """

    name: str
    items: Ints
    item_ids: Sequence[str]
    rewards: Floats
    propensities: Floats
    positions: Ints
    users: Ints | None = None
    user_ids: Sequence[str] = ()
    timestamps: Ints | None = None
    slates: Ints | None = None
    marginals: Floats | None = None

    def __len__(self) -> int:
        return len(self.items)


def read_bandit_log(path: str | Path, *, mapping: Mapping[str, str | None] | None = None) -> BanditLog:
    """Read a CSV, TSV or parquet file of impressions.

    Args:
        path: the file.
        mapping: the column of a role (``BANDIT_ROLES``), ``None`` for none; usual names are found without it.

    Rows with one number in the column ``slate`` are a slate. Without that column, rows of one user and one time are,
    if every user and time of the file has the positions 1, 2, .. each once; otherwise every row stands for itself.

    Raises:
        DataError: one sentence with file, line and column; nothing is guessed about a wrong value.
    """
    named = dict(mapping or {})
    check_mapping(named, roles=BANDIT_ROLES, tables=())
    source = open_source(Path(path))
    roles = _find_roles(source, named)
    columns, users, items = _read_columns(source, roles)
    positions = _from_zero(columns["position"], source.path.name) if "position" in roles else None
    log = BanditLog(
        name=source.path.name,
        items=columns["item"],
        item_ids=list(items.known),
        rewards=columns["rating"],
        propensities=columns["propensity"],
        positions=np.zeros(len(columns["item"]), dtype=np.int64) if positions is None else positions,
        users=columns.get("user"),
        user_ids=list(users.known),
        timestamps=columns.get("timestamp"),
        slates=_slates(columns, positions, source.path.name),
        marginals=columns.get("marginal"),
    )
    if log.slates is None and log.marginals is not None:
        raise DataError(
            f"{log.name}: expected slates beside the column {roles['marginal']}, got single impressions; name the "
            "column of the slate in the mapping as slate=COLUMN"
        )
    return log


def _find_roles(source: Source, mapping: Mapping[str, str | None]) -> dict[str, str]:
    listed = ", ".join(source.columns)
    roles: dict[str, str] = {}
    for role in BANDIT_ROLES:
        found = mapping[role] if role in mapping else usual_column(role, source.columns)
        if found is not None and found not in source.columns:
            raise DataError(
                f"{source.path.name} line 1: expected a column for the {_NEEDED.get(role, role)} among {listed}, got "
                f"{found!r}"
            )
        if found is not None:
            roles[role] = found
        elif role in _NEEDED:
            raise DataError(
                f"{source.path.name} line 1: expected a column for the {_NEEDED[role]} among {listed}, recognised "
                f"none; name it in the mapping as {_NEEDED[role]}=COLUMN"
            )
    return roles


def _read_columns(source: Source, roles: Mapping[str, str]) -> tuple[dict[str, NDArray[Any]], _Codes, _Codes]:
    codes = {"user": _Codes(), "item": _Codes(), "slate": _Codes()}
    parts = [{role: _column(piece, role, column, codes) for role, column in roles.items()} for piece in source.pieces()]
    if not parts:
        raise DataError(f"expected impressions in {source.path.name}, got none; check the file")
    joined = {role: np.concatenate([part[role] for part in parts]) for role in roles}
    return joined, codes["user"], codes["item"]


def _column(piece: Piece, role: str, column: str, codes: Mapping[str, _Codes]) -> NDArray[Any]:
    if role in codes:
        return codes[role].encode(ids_of(piece, column)).astype(np.int64)
    if role == "timestamp":
        return _timestamps(piece, column)
    numbers = _as_numbers(piece, column)
    if role in ("propensity", "marginal"):
        _refuse(piece, column, (numbers <= 0) | (numbers > 1), "a probability in (0, 1]")
    if role == "position":
        _refuse(piece, column, (numbers < 0) | (numbers != np.floor(numbers)), "a whole number of at least 0")
        return numbers.astype(np.int64)
    return numbers


def _refuse(piece: Piece, column: str, wrong: NDArray[np.bool_], expected: str) -> None:
    if wrong.any():
        piece.fail(int(np.flatnonzero(wrong)[0]), column, expected, "correct or remove the line")


def _from_zero(positions: Ints, name: str) -> Ints:
    """Positions that begin at 1 (unless a 0 occurs) as slots from 0."""
    slots = positions - (0 if (positions == 0).any() else 1)
    if int(slots.max()) >= 1000:
        raise DataError(f"{name}: expected positions below 1000, got {int(positions.max())}; map another column")
    return slots


def _slates(columns: Mapping[str, NDArray[Any]], positions: Ints | None, name: str) -> Ints | None:
    if positions is None:
        if "slate" in columns:
            raise DataError(f"{name}: expected positions in slates, got none; name the column as position=COLUMN")
        return None
    if "slate" in columns:
        wrong = _first_incomplete(columns["slate"], positions)
        if wrong is not None:
            raise DataError(
                f"{name}: expected every slate to have the positions 1, 2, .. once each, got others in the slate of "
                f"row {wrong + 1}; complete or remove it"
            )
        return columns["slate"]
    if "user" not in columns or "timestamp" not in columns:
        return None
    _, groups = np.unique(np.stack([columns["user"], columns["timestamp"]]), axis=1, return_inverse=True)
    groups = groups.reshape(-1).astype(np.int64)
    together = len(groups) > int(groups.max()) + 1
    return groups if together and _first_incomplete(groups, positions) is None else None


def _first_incomplete(groups: Ints, positions: Ints) -> int | None:
    """A row of a group whose positions are not 0, 1, .. once each; None where there is none."""
    order = np.lexsort((positions, groups))
    starts = np.concatenate([[True], np.diff(groups[order]) != 0])
    first = np.maximum.accumulate(np.where(starts, np.arange(len(order)), 0))
    wrong = positions[order] != np.arange(len(order)) - first
    return int(order[np.flatnonzero(wrong)[0]]) if wrong.any() else None
