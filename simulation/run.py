"""A run from end to end: a directory, a federation, its judgement. The public face of a simulation."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import torch

from .._durable import replace_file, storage_errors
from ..client.app import make_client_app
from ..config import Config, load_config
from ..errors import RunError
from ..meta.acting import Exploration
from ..meta.policy import Named
from ..server.checkpoint import Checkpoint, CheckpointStore, check_same_run
from ..server.lock import RunLock
from ..server.loop import run_federation
from ..server.plan import FederationResult, RoundReport
from .data.dataset import Dataset
from .federation import NODES, CohortFailed, Cohorts, check_plan, plan_of
from .grid import LocalGrid
from .memory import give_back
from .participant import personal_of
from .results import SUMMARY, conclude
from .serving import Served
from .start import Start, read_start, start_from, write_start
from .summary import Summary
from .world import World

if TYPE_CHECKING:
    from .recommend import Recommendation

CONFIG = "config.toml"
DATA = "data.sha256"
"""Fingerprint of the data set that a run began with."""
JOINT = "joint"
"""Subdirectory of the federation that trains the joint initialization (K = 1)."""


class Listener(Protocol):
    """Follows a run; see :class:`Quiet`."""

    def stage(self, text: str) -> None:
        """Something new begins."""

    def started(self, world: World, label: str, rounds: int) -> None:
        """A federation of ``rounds`` rounds begins (or goes on)."""

    def round(self, report: RoundReport) -> None:
        """A round is over and safe on disk."""


class Quiet:
    """Says nothing."""

    def stage(self, text: str) -> None:
        """Something new begins."""

    def started(self, world: World, label: str, rounds: int) -> None:
        """A federation begins."""

    def round(self, report: RoundReport) -> None:
        """A round is over."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run on disk.

    Attributes:
        directory: holds ``config.toml``, ``metrics.jsonl``, ``summary.json``, ``report.html``, checkpoints, ledgers.
        config: its configuration.
        summary: the content of ``summary.json``.
    """

    directory: Path
    config: Config
    summary: Summary

    @classmethod
    def open(cls, directory: str | Path) -> Run:
        """Read a finished run.

        Raises:
            RunError: the directory holds no run, one that has not ended, or checkpoints of another configuration.
        """
        path = Path(directory)
        config = config_in(path)
        try:
            summary = json.loads((path / SUMMARY).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            summary = None
        if not isinstance(summary, dict) or not isinstance(summary.get("chosen_round"), int):
            raise RunError(
                f"expected a finished run in {path}, got one without a readable {SUMMARY}; finish it first with: "
                f"fedrec simulate --resume {path}"
            )
        run = cls(directory=path, config=config, summary=cast(Summary, summary))
        check_same_run(run._checkpoint(), config)
        return run

    def policy(self) -> Named:
        """The chosen initialization, by parameter name.

        Raises:
            RunError: no whole checkpoint.
        """
        checkpoint = self._checkpoint()
        return checkpoint.best or checkpoint.phi

    def _checkpoint(self) -> Checkpoint:
        checkpoint = CheckpointStore(self.directory).load()
        if checkpoint is None:
            raise RunError(f"expected a checkpoint in {self.directory}, got none; run it again")
        return checkpoint

    def served(self, dataset: Dataset | None = None) -> Served:
        """What devices serve, given everything before their test interaction.

        Raises:
            RunError: no whole checkpoint, or one of another policy.
        """
        world = World.build(self.config, dataset)
        if dataset is None:
            check_same_data(self.directory, world.dataset)
        if self._checkpoint().schema != world.policy.schema():
            raise RunError(
                f"expected the data set and the code that {self.directory} was trained with, got another policy; "
                f"{world.dataset.name} or fedrec has changed since: simulate anew"
            )
        personal = personal_of(world, self.directory / NODES, int(self.summary["chosen_round"]))
        return Served(world=world, phi=self.policy(), personal=personal)

    def recommend(
        self,
        user: str,
        k: int = 10,
        *,
        explain: bool = False,
        how: Exploration | None = None,
        seed: int = 0,
        dataset: Dataset | None = None,
    ) -> list[Recommendation]:
        """What the device of ``user`` would show now, and why; see :func:`fedrec.simulation.recommend.recommend`."""
        from .recommend import recommend

        return recommend(self, user, k, explain=explain, how=how, seed=seed, dataset=dataset)


def simulate(
    config: Config | str | Path | Mapping[str, Any] | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    start: str | Path | None = None,
    dataset: Dataset | None = None,
    listener: Listener | None = None,
) -> Run:
    """Simulate a federation on this machine and judge it.

    Args:
        config: a configuration, the path of a TOML file, nested values, or nothing for the defaults.
        out: run directory; without one, a new one below ``runs/`` named by data, unit and configuration.
        resume: go on in ``out`` from its last checkpoint; its own configuration and start are used.
        start: directory of a finished run over another catalogue; what its initialization says about the content
            features of both is where this federation begins (:mod:`fedrec.meta.transfer`).
        dataset: data to use in place of the one that the configuration names.
        listener: follows the run.

    Returns:
        The finished run.

    Raises:
        FedrecError: one of its subclasses; nothing on disk is corrupted.
        KeyboardInterrupt: Ctrl-C; the run can be resumed.
    """
    if resume and start is not None:
        raise RunError(f"expected a resumed run to keep its own start, got {start}; leave it out")
    settings = _settings(config, Path(out) if out is not None else None, resume)
    listener = listener or Quiet()
    run_dir = Path(out) if out is not None else default_directory(settings)
    started = time.perf_counter()
    if settings.engine.threads:
        torch.set_num_threads(settings.engine.threads)
    listener.stage(f"loading {settings.data.name}")
    world = _started(World.build(settings, dataset), run_dir, start)
    settings = world.config
    check_plan(world)
    with RunLock(run_dir):
        claim(run_dir, settings, resume, world.dataset, world.start)
        prepared = time.perf_counter()
        result = _federate(world, run_dir, "meta-learned", listener, resume)
        joint = _joint(world, run_dir, listener, resume)
        held = time.perf_counter()
        summary = conclude(
            world,
            run_dir,
            result,
            joint=joint,
            clock=lambda: prepared - started + _seconds(result) + _seconds(joint) + time.perf_counter() - held,
            say=listener.stage,
        )
    give_back()
    return Run(directory=run_dir, config=settings, summary=summary)


def evaluate(directory: str | Path, *, listener: Listener | None = None) -> Run:
    """Judge a finished run anew from its checkpoints and write summary and report again.

    Raises:
        RunError: the directory holds no run, or one that has not ended: nothing is trained here.
    """
    run = Run.open(directory)
    for part in [run.directory] + [run.directory / JOINT] * _has_joint(run.config):
        checkpoint = CheckpointStore(part).load()
        if checkpoint is None or checkpoint.stopped is None:
            done = "none" if checkpoint is None else f"that of round {checkpoint.round}"
            raise RunError(
                f"expected the checkpoint of the last round in {part}, got {done}; finish the run first with: "
                f"fedrec simulate --resume {run.directory}"
            )
    return simulate(out=run.directory, resume=True, listener=listener)


def default_directory(config: Config) -> Path:
    """``runs/<data>-<unit>-<fingerprint>``, with a number behind it where that is taken."""
    return unused(Path("runs") / f"{config.data.name}-{config.privacy.unit}-{config.fingerprint()[:8]}")


def unused(base: Path) -> Path:
    """``base``, or the first of ``base-2``, ``base-3`` and so on that is not there."""
    path, number = base, 1
    while path.exists():
        number += 1
        path = base.with_name(f"{base.name}-{number}")
    return path


def config_in(run_dir: Path) -> Config:
    """The configuration of a run directory.

    Raises:
        RunError: there is none.
    """
    if not run_dir.is_dir():
        raise RunError(f"expected a run directory, got {run_dir}, which is no directory; check the path")
    if not (run_dir / CONFIG).exists():
        raise RunError(
            f"expected a run directory with a {CONFIG}, got {run_dir} without one; check the path, or begin anew: "
            "nothing has run here"
        )
    return load_config(run_dir / CONFIG)


def _settings(config: Config | str | Path | Mapping[str, Any] | None, out: Path | None, resume: bool) -> Config:
    if resume:
        if out is None:
            raise RunError("expected the directory of the run to resume, got none; name it")
        return config_in(out)
    if isinstance(config, Config):
        return config
    if isinstance(config, Mapping):
        return Config.from_mapping(config)
    return load_config(config)


def _started(world: World, run_dir: Path, start: str | Path | None) -> World:
    """The world with the start that was asked for, or that the run began with."""
    if start is None:
        return replace(world, start=read_start(run_dir, world.config))
    begin = start_from(Run.open(start), world)
    return replace(world, start=begin, config=world.config.updated(server__start=begin.digest()))


def claim(run_dir: Path, config: Config, resume: bool, dataset: Dataset, start: Start | None = None) -> None:
    """Write the configuration, the start and the fingerprint of the data into a new run directory.

    Raises:
        RunError: it holds a run that is not to be resumed, or one over other data, or can't be written.
    """
    path = run_dir / CONFIG
    if path.exists() and not resume:
        raise RunError(f"expected a new run directory, got {run_dir} with a run in it; resume it or choose another")
    checkpoint = CheckpointStore(run_dir).load() if path.exists() else None
    if checkpoint is not None:
        check_same_run(checkpoint, config)  # another configuration may well mean other data: say the first thing first
    check_same_data(run_dir, dataset)
    with storage_errors(path, "nothing has run yet"):
        if not (run_dir / DATA).exists():
            replace_file(run_dir / DATA, f"{dataset.fingerprint()}\n".encode())
        if start is not None and not path.exists():
            write_start(run_dir, start)
        if not path.exists():
            replace_file(path, config.to_toml().encode())


def check_same_data(run_dir: Path, dataset: Dataset) -> None:
    """Refuse data that the run did not begin with: devices are known by their place in it, accounts included.

    Raises:
        RunError: the fingerprint in the run directory is another.
    """
    path = run_dir / DATA
    if path.exists() and path.read_text(encoding="utf-8").strip() != dataset.fingerprint():
        raise RunError(
            f"expected the data that {run_dir} began with, got another {dataset.name}; import it again as it was, or "
            "start over in a new directory"
        )


def _federate(world: World, run_dir: Path, label: str, listener: Listener, resume: bool) -> FederationResult:
    listener.started(world, label, world.config.server.rounds)
    run_dir.mkdir(parents=True, exist_ok=True)
    plan = plan_of(world, run_dir, resume=resume, locked=True, on_round=listener.round)
    with closing(Cohorts(world, run_dir)) as cohorts:
        grid = LocalGrid(make_client_app(cohorts), world.config.server.nodes)
        try:
            return run_federation(grid, plan, world.config)
        except CohortFailed as failed:
            raise failed.error from failed.__cause__


def _seconds(result: FederationResult | None) -> float:
    """What all rounds took, those of earlier processes of the run included."""
    return 0.0 if result is None else sum(float(row["seconds"]) for row in result.rows)


def _joint(world: World, run_dir: Path, listener: Listener, resume: bool) -> FederationResult | None:
    """The baseline of a jointly trained initialization: the same federation with K = 1."""
    if not _has_joint(world.config):
        return None
    twin = replace(world, config=world.config.updated(local__steps=1))
    return _federate(twin, run_dir / JOINT, "jointly trained (baseline)", listener, resume)


def _has_joint(config: Config) -> bool:
    return config.evaluation.baselines and config.local.steps > 1


def device_index(dataset: Dataset, user: str) -> int:
    """The device of a data set's own user id.

    Raises:
        RunError: nobody has that id.
    """
    found = np.flatnonzero(np.asarray(dataset.device_ids, dtype=str) == str(user))
    if not len(found):
        raise RunError(f"expected a user of {dataset.name}, got {user!r}; `fedrec data describe` shows some ids")
    return int(found[0])
