"""Runs the command line in forked children of one warm process, kills them with SIGKILL and resumes them.

A child is the real command line without the seconds that its imports take (this process must not compute anything:
torch's threads do not survive a fork). It dies at a moment that can be named: just before a certain file would be
renamed into place, or when a stage begins. Each chain is one run that dies several times.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import fedrec.simulation.run  # noqa: F401  the children inherit it
import torch
from fedrec._cli.progress import Progress
from fedrec.cli import invoke

SETTINGS = {
    "data.name": "synthetic",
    "data.devices": 24,
    "data.items": 40,
    "data.interactions": 10,
    "data.holdout": 0.3,
    "policy.state": "personal",
    "policy.dim": 4,
    "local.steps": 2,
    "privacy.unit": "both",
    "privacy.epsilon": "none",
    "privacy.noise_multiplier": 2,
    "server.rounds": 4,
    "evaluation.every": 2,
    "evaluation.resamples": 100,
    "evaluation.cold_start": [0, 2],
    "evaluation.serve_steps": 2,
    "engine.threads": 1,
}
CHAINS = {
    "rounds": (
        "config.toml",
        "checkpoints/round-000000",
        "nodes/node-0-of-1/personal-000002.safetensors",
        "checkpoints/round-000002",
        "checkpoints/round-000004",
    ),
    "baseline": (
        "joint/checkpoints/round-000000",
        "joint/nodes/node-0-of-1/personal-000002.safetensors",
        "joint/checkpoints/round-000002",
    ),
    "judgement": ("stage: evaluating", "stage: cold-start", "report.html", "summary.json"),
}
"""Name -> what each life of the run dies before: a file of the run directory, or a stage."""


def arguments(out: Path) -> list[str]:
    settings = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
    return ["simulate", *settings, "--out", str(out), "--quiet"]


def going_on(run: Path) -> list[str]:
    """What somebody types after a crash: the same again where nothing was begun."""
    return ["simulate", "--resume", str(run), "--quiet"] if (run / "config.toml").exists() else arguments(run)


def die_before(run: Path, moment: str) -> None:
    """Let this process die at ``moment``."""
    kind, _, stage = moment.partition(": ")
    if stage:
        _watch(Progress, "stage", lambda _, text: text.startswith(stage))
    else:
        for name in ("rename", "replace"):
            _watch(os, name, lambda _, target: os.fspath(target) == str(run / kind))


def _watch(owner: object, name: str, is_time: Callable[..., bool]) -> None:
    working = getattr(owner, name)

    def watched(*args: object, **rest: object) -> object:
        if is_time(*args):
            os.kill(os.getpid(), signal.SIGKILL)
        return working(*args, **rest)

    setattr(owner, name, watched)


def forked(run: Path, moment: str | None = None) -> int:
    """Begin or go on with a run in a child; its exit code, or minus the signal that ended it."""
    command = going_on(run)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            log = os.open(run.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            if moment is not None:
                die_before(run, moment)
            code = invoke(command)
            sys.stdout.flush()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    root = Path(sys.argv[1])
    torch.set_num_threads(1)
    os.chdir(root)
    codes = {"plain": [forked(root / "plain")]}
    for name, chain in CHAINS.items():
        run = root / name
        codes[name] = [forked(run, moment) for moment in chain] + [forked(run)]
    print(json.dumps(codes))


if __name__ == "__main__":
    main()
