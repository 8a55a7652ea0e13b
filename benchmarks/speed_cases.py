"""One measurement in a process of its own, printed as one line of JSON: what benchmarks/speed.py times.

python benchmarks/speed_cases.py cohort table --devices 943 --repeats 3
python benchmarks/speed_cases.py scaling data.devices=100000 policy.history_length=50
python benchmarks/speed_cases.py evaluation data.name=ml-1m
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fedrec.client.adaptation import LocalMechanism
from fedrec.config import Config, load_config
from fedrec.simulation.cohort import Work, adapt_cohort
from fedrec.simulation.data.dataset import Dataset
from fedrec.simulation.data.registry import load
from fedrec.simulation.evaluation import evaluate_scores
from fedrec.simulation.schedule import device_floats, in_order
from fedrec.simulation.serving import Served
from fedrec.simulation.workers import Workers, worker_count
from fedrec.simulation.world import Logs, World

HERE = Path(__file__).parent
NOISE_MULTIPLIER = 1.0
FLOOR_FLOATS = (1_000_000, 1_500_000, 2_000_000, 3_000_000, 4_000_000)
"""Floats of a chunk of the floor, of which the fastest is taken."""
ROUND = 2
ENGINES = {
    "cohort": ("engine.workers=1",),
    "workers": (f"engine.workers={os.cpu_count()}",),
    "reference": ("engine.kind=reference",),
}
WORK = {"table": HERE / "configs" / "speed-table.toml", "default": None}
"""The same adaptation of every contender: DP-SGD on a table of 54k parameters, and the default policy."""


def configuration(work: str, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a piece of work, all devices training."""
    return load_config(WORK[work], ["data.holdout=0", *overrides])


def adaptation(config: Config, count: int | None, dataset: Dataset | None = None) -> tuple[Callable[[], object], int]:
    """A round of the cohort (``engine.kind``) over the first ``count`` devices of the configuration's world."""
    world = World.build(config, dataset)
    devices = world.roster[:count]
    logs = Logs(
        world=world,
        devices=devices,
        stops=world.split.train_end[devices],
        unit=config.privacy.unit,
        stream=(config.seed, ROUND),
    )
    work = Work(devices=devices, sizes=logs.sizes, examples=logs, personal=world.personal_start(len(devices)))
    mechanism = None
    if config.privacy.unit == "interaction":
        mechanism = LocalMechanism.of(world.policy, config, NOISE_MULTIPLIER)
    phi, policy = world.initialization(), world.policy
    floats = device_floats(policy, logs.sizes, config, private=mechanism is not None)
    processes = worker_count(config, int(floats.sum()))
    workers = Workers(world, processes) if processes > 1 else None
    return lambda: adapt_cohort(policy, phi, work, config, mechanism, round_number=ROUND, workers=workers), len(devices)


def equal_logs(config: Config) -> Dataset:
    """The synthetic world of the configuration in which every device has as many interactions."""
    data = config.data
    sizes = {"devices": data.devices, "items": data.items, "interactions": data.interactions}
    return load("synthetic", **sizes, seed=config.seed, length_spread=0.0)


def evaluation(config: Config) -> tuple[Callable[[], object], int]:
    """A full ranking of every device's test item by what it serves after its own adaptation."""
    world = World.build(config)
    served = Served(world=world, phi=world.initialization(), personal=world.personal_start(world.dataset.devices))

    def run() -> object:
        return evaluate_scores(served, world.dataset, world.split, "test", devices=world.roster)

    return run, len(world.roster)


def fastest(
    floor: Callable[[Config, int, int], Callable[[], object]], config: Config, count: int
) -> Callable[[], object]:
    """The floor in chunks of the size that suits it best here, whatever suits the engine."""
    runs = [floor(config, count, floats) for floats in FLOOR_FLOATS]
    return min(runs, key=lambda run: min(timed(run, 4)))


def table_floor(config: Config, count: int, floats: int) -> Callable[[], object]:
    """Noise for every step and device, and the products with each device's own table: logits, pullback, update."""
    items, dim, steps = 1682, config.policy.dim, config.local.steps
    size = max(1, floats // (2 * items * dim))

    def chunk(number: int) -> None:
        rows = min(size, count - number * size)
        tables, noise = torch.zeros(rows, items, dim), torch.empty(rows, items * dim)
        states = torch.full((rows, 1, dim), 0.1)
        generators = [torch.Generator().manual_seed(number * size + row) for row in range(rows)]
        for _ in range(steps):
            slopes = states @ tables.mT
            back = slopes @ tables
            for row, generator in zip(noise, generators, strict=True):
                torch.randn(row.shape, generator=generator, out=row)
            tables.addcmul_(slopes.mT, states + back, value=-0.01)

    return lambda: list(in_order(chunk, list(range(-(-count // size)))))


def default_floor(config: Config, count: int, floats: int) -> Callable[[], object]:
    """The products with the shared item encoder: scores, K - 1 taste steps, pullback, Gram matrix, sum of tables."""
    items, dim, windows, width = 1682, config.policy.dim, config.local.windows, 35
    size = max(1, floats // (windows * items))
    table, features = torch.randn(items, dim), torch.rand(items, width)

    def chunk(number: int) -> torch.Tensor:
        rows = min(size, count - number * size)
        states, taste = torch.randn(rows * windows, dim), torch.randn(rows, width)
        scores = (states @ table.T).view(rows, windows, items)
        for _ in range(config.local.steps - 1):
            offset = taste @ features.T
            mass = (offset[:, None] @ scores.mT)[:, 0]
            taste = (mass[:, None] @ scores)[:, 0] @ features
        flat = scores.flatten(0, 1)
        _ = flat @ features, flat @ table, scores @ scores.mT
        return flat.T @ states

    return lambda: list(in_order(chunk, list(range(-(-count // size)))))


def timed(run: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each of ``repeats`` runs."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return seconds


def on_demand(run: Callable[[], object]) -> list[float]:
    """Seconds of runs, for as long as every line on standard input asks for; they are printed when they are over."""
    seconds = []
    print("ready", flush=True)
    for line in sys.stdin:
        found: list[float] = []
        while not found or sum(found) < float(line):
            found += timed(run, 1)
        print(json.dumps(found), flush=True)
        seconds += found
    return seconds


def peak_megabytes() -> int:
    """The most memory this process has held, and its living worker processes; what they share counts for each."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    for child in children.read_text().split() if children.exists() else []:
        status = Path(f"/proc/{child}/status").read_text()
        own += int(status.partition("VmHWM:")[2].split()[0])
    return round(own / 1024)


def measured(seconds: list[float], devices: int) -> dict[str, Any]:
    """The line to print."""
    return {
        "devices": devices,
        "seconds": [round(one, 4) for one in seconds],
        "devices_per_second": round(devices / float(np.median(seconds)), 2),
        "peak_rss_mb": peak_megabytes(),
    }


def main() -> None:
    """Measure what the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=("cohort", "workers", "reference", "floor", "scaling", "evaluation"))
    parser.add_argument("settings", nargs="*", help="table or default; for scaling and evaluation, configuration keys")
    parser.add_argument("--devices", type=int, default=943)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--on-demand", action="store_true", help="for as many seconds as lines on standard input say")
    parser.add_argument("--equal-logs", action="store_true", help="synthetic devices have the same number of entries")
    asked = parser.parse_args()
    if asked.case in ("scaling", "evaluation"):
        config = load_config(None, ["data.name=synthetic", "data.holdout=0", *asked.settings])
        if asked.case == "scaling":
            run, count = adaptation(config, None, equal_logs(config) if asked.equal_logs else None)
        else:
            run, count = evaluation(config)
    else:
        work = asked.settings[0]
        config = configuration(work, ENGINES.get(asked.case, ()))
        if asked.case == "floor":
            count = asked.devices
            run = fastest(table_floor if work == "table" else default_floor, config, count)
        else:
            run, count = adaptation(config, asked.devices)
    run()  # a warm-up
    print(json.dumps(measured(on_demand(run) if asked.on_demand else timed(run, asked.repeats), count)))


if __name__ == "__main__":
    main()
