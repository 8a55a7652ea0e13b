"""A federation that begins from what another one has released: kept in the run's directory, bound to its identity.

``start.safetensors`` holds the whole first initialization and says where it is from; ``server.start`` in the run's
configuration is its SHA-256, so a checkpoint knows the start that it came from, and a resumed run takes no other.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import safetensors
import safetensors.torch
from safetensors import SafetensorError

from .._durable import replace_file
from ..config import Config
from ..errors import ConfigError, RunError
from ..meta.policy import Named
from ..meta.transfer import Side, Transfer, transfer
from .summary import StartDict
from .world import World

if TYPE_CHECKING:
    from .run import Run

START = "start.safetensors"
_KEY = "fedrec-start"


@dataclass(frozen=True, kw_only=True, eq=False)
class Start:
    """A first initialization and where it is from.

    Attributes:
        phi: all shared parameters.
        origin: the ``start`` section of the summary.
    """

    phi: Named
    origin: StartDict

    def to_bytes(self) -> bytes:
        """The content of ``start.safetensors``; equal starts give equal bytes."""
        tensors = {name: value.contiguous() for name, value in sorted(self.phi.items())}
        return bytes(safetensors.torch.save(tensors, {_KEY: json.dumps(self.origin, sort_keys=True)}))

    def digest(self) -> str:
        """What ``server.start`` says."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


def start_from(run: Run, world: World) -> Start:
    """What the initialization that ``run`` serves brings to ``world``; see :func:`fedrec.meta.transfer.transfer`.

    Guarantee:
        post-processing of what the other federation has released: no new access to its devices. Its epsilon stays
        what it was, and adds up with this run's for whoever took part in both.

    Raises:
        PolicyError: no content feature in common.
        RunError: no whole checkpoint there, or one of another policy or other data.
    """
    served = run.served()
    moved = transfer(side_of(served.world, served.phi), side_of(world, world.fresh()))
    return Start(phi=moved.phi, origin=_origin(run, served.world, moved))


def side_of(world: World, phi: Named) -> Side:
    """``phi`` with the names that the world's tables give its rows."""
    data = world.dataset
    return Side(policy=world.policy, phi=phi, catalogue=data.catalogue, user_names=data.device_feature_names)


def _origin(run: Run, world: World, moved: Transfer) -> StartDict:
    before = run.summary.get("start")
    return {
        "data": world.dataset.name,
        "rounds": run.summary["chosen_round"],
        "taken": {name: f"{count} of {moved.of[name]}" for name, count in sorted(moved.taken.items())},
        "privacy": [*run.summary["privacy"], *(before["privacy"] if before else [])],
        "private": run.config.privacy.unit != "none" and (before is None or before["private"]),
    }


def write_start(run_dir: Path, start: Start) -> None:
    """Keep ``start`` in the directory of a run that has not begun."""
    replace_file(run_dir / START, start.to_bytes())


def read_start(run_dir: Path, config: Config) -> Start | None:
    """The start that the configuration names; none where it names none.

    Raises:
        ConfigError: the directory holds none.
        RunError: the file is another one than the run began with.
    """
    if not config.server.start:
        return None
    path = run_dir / START
    if not path.exists():
        raise ConfigError(
            f"expected the start that server.start names in {path}, got none; leave server.start to --start-from"
        )
    content = path.read_bytes()
    try:
        if hashlib.sha256(content).hexdigest() != config.server.start:
            raise ValueError("its hash is not that of server.start")
        with safetensors.safe_open(path, framework="pt") as file:
            origin = cast(StartDict, json.loads(file.metadata()[_KEY]))
        return Start(phi=safetensors.torch.load(content), origin=origin)
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise RunError(
            f"expected the start that this run began with in {path}, got another file ({error}); restore it or begin "
            "anew in another directory"
        ) from None


def start_sentence(start: StartDict) -> str:
    """Where a run began and what that means for privacy, for terminal and report."""
    cost = " and ".join(one["sentence"] for one in start["privacy"]) if start["private"] else "no privacy"
    parts = ", ".join(f"{name} ({count})" for name, count in start["taken"].items())
    return (
        f"at {parts} of a federation over {start['data']}, which had: {cost}; "
        "for whoever took part in both, the budgets add up."
    )
