"""Who can be compared: a finished run of ``fedrec simulate``, or an arm that ``fedrec online`` trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ...config import Config
from ...errors import RunError
from ...server.checkpoint import CheckpointStore, check_same_run
from ..online import run as online
from ..online.arms import Arm
from ..online.users import Users
from ..run import Run
from ..serving import Served


class Contender(Protocol):
    """A policy, and the configuration that it was trained by."""

    @property
    def config(self) -> Config:
        """The configuration."""

    def served(self) -> Served:
        """What its devices serve."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OnlineArm:
    """A federated arm of a finished online run.

    Attributes:
        directory: ``arms/NAME`` of the online run.
        run_config: configuration of the online run.
        config: that of the arm.
    """

    directory: Path
    run_config: Config
    config: Config

    @classmethod
    def open(cls, directory: Path) -> OnlineArm:
        """Read an arm.

        Raises:
            RunError: the online run has not ended, or nothing was trained in this arm.
        """
        run = online.open_online(directory.parent.parent)
        arm = Arm.of(directory.name)
        if not arm.federated:
            raise RunError(
                f"expected an arm that a federation trained, got {directory}, a yardstick; take one such as "
                f"{directory.with_name('meta')}"
            )
        return cls(directory=directory, run_config=run.config, config=arm.config(run.config))

    def served(self) -> Served:
        """The initialization of the last round, on devices with empty logs.

        Raises:
            RunError: no whole checkpoint, or one of another configuration or policy.
        """
        checkpoint = CheckpointStore(self.directory).load()
        if checkpoint is None:
            raise RunError(f"expected a checkpoint in {self.directory}, got none; run it again")
        check_same_run(checkpoint, self.config)
        world = Users.of(self.run_config).under(self.config).world
        if checkpoint.schema != world.policy.schema():
            raise RunError(
                f"expected the data and the code that {self.directory} was trained with, got another policy; run it "
                "again"
            )
        return Served(world=world, phi=checkpoint.phi)


def open_contender(directory: str | Path) -> Contender:
    """Read what is to be compared.

    Raises:
        RunError: the directory holds neither a finished run nor a trained arm of one.
    """
    path = Path(directory)
    if (path / online.CONFIG).exists():
        arm = path / online.ARMS / "meta"
        raise RunError(f"expected a run or one arm of an online run, got all of {path}; name an arm such as {arm}")
    if path.parent.name == online.ARMS and (path.parent.parent / online.CONFIG).exists():
        return OnlineArm.open(path)
    return Run.open(path)
