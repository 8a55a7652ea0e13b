"""Runs the tiny federation in forked children, kills them with SIGKILL, resumes; prints what every run ended with.

Forking from one process that has imported everything makes a killed and resumed run cost half a second.
"""

import json
import os
import random
import signal
import sys
import time
from functools import partial
from pathlib import Path

import federation_world as world
import torch
from fedrec.server.loop import run_federation

ROUNDS = 3
BEGINNING = 20  # calls until the ledger and the first checkpoint are there
DURABLE_CALLS = ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir", "ftruncate")


def federate(run_dir):
    adaptive = {"privacy__clipping": "adaptive", "privacy__bit_noise": 1.0, "server__min_separation": 2}
    config = world.config(server__rounds=ROUNDS, **adaptive)
    result = run_federation(world.grid(), world.plan(run_dir, resume=True), config)
    run_dir.with_suffix(".json").write_text(json.dumps(world.outcome(run_dir, result)))


def kill_at(call):
    """Die just before the ``call``-th system call that makes something durable or visible."""
    count = [0]

    def wrap(function):
        def counted(*args, **kwargs):
            count[0] += 1
            if count[0] == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return counted

    for name in DURABLE_CALLS:
        setattr(os, name, wrap(getattr(os, name)))


def forked(run_dir, before=None, kill_after=None):
    """Run in a child; returns whether it was killed."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if before is not None:
                before()
            federate(run_dir)
            status = 0
        finally:
            os._exit(status)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status) != 0:
        raise RuntimeError(f"a run in {run_dir} failed")
    return os.WIFSIGNALED(status)


def every_call(root, stride):
    """Kill at each durable call of a run's beginning and at every ``stride``-th after that, then resume."""
    runs, call = [], 1
    while forked(run := root / f"call-{call}", partial(kill_at, call)):
        forked(run)
        runs.append(run)
        call += 1 if call < BEGINNING else stride
    return runs


def random_moments(root, runs, kills, seed):
    """Kill one run several times at random moments, then let it end."""
    chance = random.Random(seed)
    started = time.monotonic()
    forked(root / "timed")
    seconds = time.monotonic() - started
    names = [root / f"random-{index}" for index in range(runs)]
    for run in names:
        for _ in range(kills):
            forked(run, kill_after=chance.uniform(0, seconds))
        forked(run)
    return names


def main():
    root, mode = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    federate(root / "plain")  # in this process: it fills the caches that the children inherit
    if mode == "calls":
        runs = every_call(root, int(sys.argv[3]))
    else:
        runs = random_moments(root, runs=2, kills=4, seed=int(sys.argv[3]))
    outcomes = {run.name: json.loads(run.with_suffix(".json").read_text()) for run in [root / "plain", *runs]}
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main()
