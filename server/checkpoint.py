"""Checkpoints: one directory a round, renamed into place whole, verified on reading.

``checkpoints/round-000012/`` holds ``state.safetensors`` (initialization, outer optimizer, best served initialization,
anomaly scores) and ``manifest.json`` (round, configuration, policy, ledger position, hashes). The last two are kept;
the best served initialization is part of each.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from .. import _durable
from ..config import Config
from ..errors import RunError
from ..meta.policy import Named
from ..meta.reptile import OuterState
from .anomaly import Scores

logger = logging.getLogger(__name__)

FORMAT = 1
KEPT = 2
_STATE = "state.safetensors"
_MANIFEST = "manifest.json"
_GROUPS = ("phi", "outer", "best", "scores")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """All that a run needs to go on after a round."""

    round: int
    """Rounds done; 0 before the first."""
    phi: Named
    outer: OuterState
    schema: str
    """Fingerprint of the policy."""
    config: Mapping[str, Any]
    """The flat configuration, engine left out."""
    population: int
    best: Named = field(default_factory=dict)
    """What the best validated round serves; empty before the first validation."""
    best_round: int = 0
    best_metric: float | None = None
    stale: int = 0
    """Validations since the best one."""
    stopped: str | None = None
    """Why the run is over, or none."""
    ledger_count: int = 0
    """Rows of the federation's ledger (0: the run has none)."""
    ledger_head: str = ""
    """Its hash then."""
    clip: float | None = None
    """S of the next round of adaptation; none where it is fixed."""
    scores: Scores | None = None
    """Anomaly scores of the roster's devices; none where none are kept."""


class CheckpointStore:
    """The checkpoints of one run directory."""

    def __init__(self, run_dir: Path | str) -> None:
        """Name the place; it is created by the first :meth:`save`."""
        self._root = Path(run_dir) / "checkpoints"

    def rounds(self) -> list[int]:
        """Rounds with a checkpoint, whole or not, in order."""
        return sorted(int(path.name[6:]) for path in self._root.glob("round-*") if path.name[6:].isdigit())

    def save(self, checkpoint: Checkpoint) -> None:
        """Write atomically, then drop all but the last two.

        Raises:
            RunError: the disk is full or not writable. The checkpoints before this one are intact.
        """
        state = safetensors.torch.save(_pack(checkpoint))
        files = {_STATE: state, _MANIFEST: _manifest(checkpoint, state)}
        with _durable.storage_errors(self._root, f"the checkpoints before round {checkpoint.round} are intact"):
            self._root.mkdir(parents=True, exist_ok=True)
            _durable.sweep(self._root, "round-")
            _durable.replace_directory(self._path(checkpoint.round), files)
            kept = [number for number in self.rounds() if number <= checkpoint.round][-KEPT:]
            for number in set(self.rounds()) - set(kept):
                shutil.rmtree(self._path(number))

    def load(self) -> Checkpoint | None:
        """The newest whole checkpoint; ``None`` if there is none at all.

        A damaged one is passed over with a logged warning: its round will be done again.

        Raises:
            RunError: there are checkpoints, and every one is damaged.
        """
        damage = []
        for number in reversed(self.rounds()):
            try:
                return _read(self._path(number))
            except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
                damage.append(f"round {number}: {error}")
                logger.warning("checkpoint %s is damaged (%s); falling back to the one before", number, error)
        if damage:
            raise RunError(
                f"expected a whole checkpoint in {self._root}, got {'; '.join(damage)}; "
                "restore a copy or start over in another directory"
            )
        return None

    def _path(self, number: int) -> Path:
        return self._root / f"round-{number:06d}"


def settings_of(config: Config) -> dict[str, Any]:
    """The flat configuration that a checkpoint is bound to: everything that may change a result."""
    return {key: value for key, value in config.flat().items() if not key.startswith("engine.")}


def check_same_run(
    checkpoint: Checkpoint, config: Config, schema: str | None = None, population: int | None = None
) -> None:
    """Refuse to go on with other settings, another policy or another population than the checkpoint's.

    Without ``schema`` and ``population`` the settings alone are compared, before the data have to be loaded.

    Raises:
        RunError: naming up to three keys that differ.
    """
    now = settings_of(config)
    keys = sorted(key for key in now.keys() | checkpoint.config.keys() if now.get(key) != checkpoint.config.get(key))
    if keys:
        shown = ", ".join(f"{key} = {checkpoint.config.get(key)!r} (now {now.get(key)!r})" for key in keys[:3])
        more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
        raise RunError(
            f"expected the configuration that this run began with, got a difference in {shown}{more}; "
            "resume with the run's own configuration or choose another directory"
        )
    if schema is None or population is None:
        return
    if schema != checkpoint.schema or population != checkpoint.population:
        raise RunError(
            f"expected policy {checkpoint.schema:.12} over {checkpoint.population} devices, got {schema:.12} over "
            f"{population}; the data set or the code has changed since this run began"
        )


def _pack(checkpoint: Checkpoint) -> dict[str, Tensor]:
    scores = {} if checkpoint.scores is None else checkpoint.scores.to_tensors()
    groups = (checkpoint.phi, checkpoint.outer.to_tensors(), checkpoint.best, scores)
    return {
        f"{group}/{name}": tensor.clone().contiguous()
        for group, tensors in zip(_GROUPS, groups, strict=True)
        for name, tensor in sorted(tensors.items())
    }


def _manifest(checkpoint: Checkpoint, state: bytes) -> bytes:
    body = {
        "format": FORMAT,
        "round": checkpoint.round,
        "schema": checkpoint.schema,
        "population": checkpoint.population,
        "best_round": checkpoint.best_round,
        "best_metric": checkpoint.best_metric,
        "stale": checkpoint.stale,
        "stopped": checkpoint.stopped,
        "ledger_count": checkpoint.ledger_count,
        "ledger_head": checkpoint.ledger_head,
        "config": dict(checkpoint.config),
        "state_sha256": hashlib.sha256(state).hexdigest(),
    }
    if checkpoint.clip is not None:
        body["clip"] = checkpoint.clip
    return (json.dumps(body | {"sha256": _digest(body)}, indent=1, sort_keys=True) + "\n").encode()


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> Checkpoint:
    body = json.loads((path / _MANIFEST).read_bytes())
    if body.pop("sha256") != _digest(body):
        raise ValueError("the manifest was altered")
    if body.pop("format") != FORMAT:
        raise ValueError(f"the format is not {FORMAT}")
    state = (path / _STATE).read_bytes()
    if hashlib.sha256(state).hexdigest() != body.pop("state_sha256"):
        raise ValueError("the tensors were truncated or altered")
    groups: dict[str, Named] = {group: {} for group in _GROUPS}
    for key, tensor in safetensors.torch.load(state).items():
        group, _, name = key.partition("/")
        groups[group][name] = tensor
    return Checkpoint(
        phi=groups["phi"],
        outer=OuterState.from_tensors(groups["outer"]),
        best=groups["best"],
        scores=Scores(**groups["scores"]) if groups["scores"] else None,
        **body,
    )
