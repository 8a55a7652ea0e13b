"""Where an online run stands after a round, on disk: users, logs, how often everybody acted, and what it brought."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from ... import _durable
from ...errors import RunError
from ..behaviour.dynamics import UserState
from .agents import LoggingAgent
from .session import Session

_KEPT = 4
"""Latest rounds that are kept: more than a checkpoint can go back."""
_NAME = "standing-"
Arrays = dict[str, NDArray[Any]]


class StandingStore:
    """One file a round, written whole or not at all; no pickle."""

    def __init__(self, directory: Path) -> None:
        """Keep them in ``directory``."""
        self._directory = directory

    def path(self, round_number: int) -> Path:
        """The file after ``round_number``."""
        return self._directory / f"{_NAME}{round_number:06d}.safetensors"

    def save(self, round_number: int, session: Session, agent: LoggingAgent) -> None:
        """Write where everything stands after ``round_number``, and drop what no checkpoint can ask for."""
        self._directory.mkdir(parents=True, exist_ok=True)
        _durable.replace_file(self.path(round_number), save(_taken(session, agent)))
        for number in self._rounds()[:-_KEPT]:
            self.path(number).unlink(missing_ok=True)

    def load(self, round_number: int, session: Session, agent: LoggingAgent, *, acted: int = 0) -> None:
        """Put everything where it stood after ``round_number``; a round that reached nobody wrote nothing.

        Args:
            round_number: the last round that is over.
            session: the users.
            agent: who acts for them.
            acted: the last of those rounds in which devices took part: they have written since.

        Raises:
            RunError: what stood then is not there, or damaged.
        """
        found = [number for number in self._rounds() if number <= round_number]
        if not found and not acted and not (round_number > 0 and self._rounds()):
            return
        if not found or found[-1] < acted:
            raise RunError(
                f"expected where users stood after round {acted or round_number} in {self._directory}, got none; "
                "restore the whole run directory or start over"
            )
        _put(read_arrays(self.path(found[-1])), session, agent)

    def _rounds(self) -> list[int]:
        paths = self._directory.glob(f"{_NAME}*.safetensors")
        return sorted(int(path.stem.removeprefix(_NAME)) for path in paths)


def read_arrays(path: Path) -> Arrays:
    """The arrays of a file that an online run wrote.

    Raises:
        RunError: it can't be read.
    """
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"expected {path} as fedrec wrote it, got a damaged file ({error}); restore the whole run directory or "
            "start over"
        ) from None


def _taken(session: Session, agent: LoggingAgent) -> Arrays:
    state = session.simulator.state
    arrays: Arrays = {f"users.{one.name}": getattr(state, one.name) for one in fields(state)}
    arrays |= {f"journal.{name}": value for name, value in agent.journal.columns.items()}
    arrays |= {f"trace.{name}": value for name, value in session.trace.values.items()}
    arrays |= {"counts": agent.journal.counts, "ticks": agent.ticks}
    return {name: np.ascontiguousarray(value) for name, value in arrays.items()}


def _put(arrays: Arrays, session: Session, agent: LoggingAgent) -> None:
    def section(name: str) -> Arrays:
        return {key.removeprefix(name): value for key, value in arrays.items() if key.startswith(name)}

    session.simulator.resume(UserState(**section("users.")))
    agent.journal.columns = section("journal.")
    agent.journal.counts, agent.ticks = arrays["counts"], arrays["ticks"]
    session.trace.values = section("trace.")
