"""``fedrec online`` from end to end: a directory, its arms, curves, tables and a report."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.numpy import save

from ..._durable import replace_file, storage_errors
from ...config import Config, load_config
from ...errors import RunError
from ...server.lock import RunLock
from ..federation import budget_of
from ..run import Listener, Quiet, unused
from .arms import Arm, arms_of, check_arm, federate, measure
from .results import write_results
from .session import Trace
from .standing import read_arrays
from .users import Users

DEFAULT = Path(__file__).with_name("default.toml")
CONFIG, ARMS, SUMMARY = "online.toml", "arms", "online.json"


@dataclass(frozen=True, kw_only=True)
class OnlineRun:
    """A finished online run on disk.

    Attributes:
        directory: holds ``online.toml``, ``online.json``, ``curves.csv``, ``report.html`` and ``arms/``.
        config: its configuration.
        summary: the content of ``online.json``.
    """

    directory: Path
    config: Config
    summary: Mapping[str, Any]


def run_online(
    config: Config | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    listener: Listener | None = None,
) -> OnlineRun:
    """Let every arm recommend to the same simulated users, and judge what they earned.

    Args:
        config: the configuration; without one, that of ``simulation/online/default.toml``.
        out: directory; without one, a new one below ``runs/``.
        resume: go on in ``out`` where it stands, by its own configuration: arms that are over are not run again,
            federations go on from their last checkpoint.
        listener: follows the run.

    Raises:
        FedrecError: one of its subclasses; nothing on disk is corrupted.
        KeyboardInterrupt: Ctrl-C; the run can be resumed.
    """
    settings = _settings(config, None if out is None else Path(out), resume)
    run_dir = default_directory(settings) if out is None else Path(out)
    listener = listener or Quiet()
    if settings.engine.threads:
        torch.set_num_threads(settings.engine.threads)
    listener.stage(f"users of {settings.data.name}")
    arms, users = arms_of(settings), Users.of(settings)
    for arm in arms:
        check_arm(arm, users)
    with RunLock(run_dir):
        _claim(run_dir, settings, resume)
        done = {arm: _run_arm(arm, users, run_dir / ARMS / arm.name, listener) for arm in arms}
        listener.stage("tables and report")
        summary = write_results(run_dir, users, done)
    return OnlineRun(directory=run_dir, config=settings, summary=summary)


def open_online(directory: str | Path) -> OnlineRun:
    """Read a finished online run.

    Raises:
        RunError: there is none, or one that has not ended.
    """
    path = Path(directory)
    config = config_in(path)
    try:
        summary = json.loads((path / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise RunError(
            f"expected a finished online run in {path}, got one without a readable {SUMMARY}; finish it with: "
            f"fedrec online --resume {path}"
        ) from None
    return OnlineRun(directory=path, config=config, summary=summary)


def config_in(run_dir: Path) -> Config:
    """The configuration of an online run's directory.

    Raises:
        RunError: there is none.
    """
    if not (run_dir / CONFIG).exists():
        raise RunError(f"expected a directory with an {CONFIG}, got {run_dir} without one; check the path")
    return load_config(run_dir / CONFIG)


def default_directory(config: Config) -> Path:
    """``runs/online-<data>-<fingerprint>``, with a number behind it where that is taken."""
    return unused(Path("runs") / f"online-{config.data.name}-{config.fingerprint()[:8]}")


def _settings(config: Config | None, out: Path | None, resume: bool) -> Config:
    if not resume:
        return config or load_config(DEFAULT)
    if out is None:
        raise RunError("expected the directory of the online run to resume, got none; name it")
    return config_in(out)


def _claim(run_dir: Path, config: Config, resume: bool) -> None:
    """Write the configuration into a directory that holds nothing else.

    Raises:
        RunError: it holds something that is not to be resumed, or can't be written.
    """
    others = [path.name for path in run_dir.iterdir() if path.name != "run.lock"]
    if others and not resume:
        raise RunError(
            f"expected a new directory, got {run_dir} with {sorted(others)[0]} in it; resume it with fedrec online "
            f"--resume {run_dir} or choose another"
        )
    with storage_errors(run_dir / CONFIG, "nothing has run yet"):
        if not (run_dir / CONFIG).exists():
            replace_file(run_dir / CONFIG, config.to_toml().encode())


@dataclass(frozen=True, kw_only=True, eq=False)
class Done:
    """An arm that is over: what it brought, what it cost, how long it took."""

    trace: Trace
    seconds: float
    privacy: tuple[dict[str, Any], ...]


def _run_arm(arm: Arm, users: Users, directory: Path, listener: Listener) -> Done:
    """Run an arm, or read what it gave where it is over; its file is written whole or not at all."""
    path, privacy, judged = directory / "trace.safetensors", privacy_of(arm, users), _judged_by(users.config)
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        began = time.perf_counter()
        trace = _played(arm, users, directory, listener)
        about = {"seconds": f"{time.perf_counter() - began:.3f}", "config": judged}
        with storage_errors(path, "the rounds are safe"):
            replace_file(path, save(trace.values, metadata=about))
    trace = Trace(devices=users.population.users)
    trace.values, about = read_arrays(path), _about(path)
    if about.get("config", judged) != judged:
        raise RunError(
            f"expected the configuration that {path} was made by, got an {CONFIG} that was changed since; undo the "
            "change or start over in another directory"
        )
    return Done(trace=trace, seconds=float(about["seconds"]), privacy=privacy)


def _judged_by(config: Config) -> str:
    """Fingerprint of all that may change what an arm brings: which other arms there are does not."""
    return config.updated(online__arms=["meta"]).fingerprint()


def _played(arm: Arm, users: Users, directory: Path, listener: Listener) -> Trace:
    if not arm.federated:
        rounds = users.config.server.rounds
        return measure(arm, users, on_round=lambda number: listener.stage(f"{arm.name}: round {number} of {rounds}"))
    world = users.under(arm.config(users.config)).world
    listener.started(world, arm.name, world.config.server.rounds)
    return federate(arm, users, directory, on_round=listener.round)


def _about(path: Path) -> dict[str, str]:
    with safe_open(path, framework="numpy") as file:
        return dict(file.metadata())


def privacy_of(arm: Arm, users: Users) -> tuple[dict[str, Any], ...]:
    """What an arm's epsilon means, unit by unit: what ``fedrec simulate`` would state of the same federation."""
    if not arm.federated:
        return ()
    statements = budget_of(users.under(arm.config(users.config)).world).statements
    return tuple(statement.to_dict() for statement in statements)
