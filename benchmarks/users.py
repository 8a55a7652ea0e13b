"""How fast are simulated users alone: 10,000 users x 100 slates, with each switch on?

    python benchmarks/users.py

Random slates are shown to users fitted on ml-100k (943 of them, taken in turn, 1,682 items) and to those of a domain.
Seconds are wall time, and processor time where the machine is shared. Results go to benchmarks/results/users.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fedrec.simulation.data import load
from fedrec.simulation.domains import DOMAINS, domain_world
from fedrec.simulation.users import Population, TasteOptions, UserOptions, UsersVectorEnv, fit_users
from rich.console import Console
from rich.table import Table
from speed import machine

HERE = Path(__file__).parent
FIGURE = 20.0
"""Seconds in which 10,000 users x 100 interactions have to be done."""
CASES: dict[str, dict[str, Any]] = {
    "logit, no regret": {"track_regret": False},
    "logit": {},
    "position": {"choice": "position"},
    "cascade": {"choice": "cascade"},
    "logit, noise and outliers": {"noise": 0.05, "outliers": 0.05},
    "logit, fatigue": {"fatigue": 2.0},
    "logit, drift, no regret": {"drift": 0.05, "track_regret": False},
    "logit, drift": {"drift": 0.05},
    "logit, everything": {
        **{"drift": 0.05, "fatigue": 2.0, "familiarity": 1.0, "satiation": 0.2},
        **{"noise": 0.05, "outliers": 0.05},
    },
}
HEAD = ("users", "behaviour", "wall, s", "processor, s", f"under {FIGURE:g} s")


def measure(population: Population, options: UserOptions, users: int, steps: int) -> dict[str, float]:
    """Seconds of one episode of everybody."""
    many = UsersVectorEnv(population, options, num_envs=users)
    many.reset(seed=0)
    random = np.random.default_rng(0)
    slates = [random.integers(0, population.items, (users, options.slate)) for _ in range(8)]
    wall, processor = time.perf_counter(), time.process_time()
    for step in range(steps):
        many.step(slates[step % len(slates)])
    return {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}


def markdown(results: dict[str, Any]) -> str:
    """The kept page."""
    where = ", ".join(f"{key} {value}" for key, value in results["machine"].items())
    text = f"# Simulated users\n\n`python benchmarks/users.py`: {results['users']:,} users x {results['steps']} slates "
    text += f"of 5; {where}.\n\n"
    for line in (list(HEAD), ["---"] * len(HEAD), *rows(results)):
        text += "| " + " | ".join(line) + " |\n"
    return text


def rows(results: dict[str, Any]) -> list[list[str]]:
    """A line for each case."""
    return [
        [one["world"], one["case"], f"{one['wall']:.1f}", f"{one['processor']:.1f}", "yes" if one["met"] else "no"]
        for one in results["cases"]
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--only", nargs="*", help="worlds to measure again; the others keep what was measured")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    asked = parser.parse_args(arguments)
    fitted = fit_users(load("ml-100k"), TasteOptions()).population
    cases = [("ml-100k", name, fitted, UserOptions(horizon=1000, **switches)) for name, switches in CASES.items()]
    for name, domain in DOMAINS.items():
        world = domain_world(name, users=asked.users)
        cases.append((name, "its own", world.population, domain.behaviour))
    results: dict[str, Any] = {"machine": machine(), "users": asked.users, "steps": asked.steps, "cases": []}
    path = asked.results / "users.json"
    before = {(one["world"], one["case"]): one for one in json.loads(path.read_text())["cases"]} if asked.only else {}
    for world_name, case, population, options in cases:
        if asked.only and world_name not in asked.only:
            results["cases"].append(before[world_name, case])
            continue
        found = measure(population, options, asked.users, asked.steps)
        met = found["wall"] < FIGURE
        results["cases"].append({"world": world_name, "case": case, "met": met} | found)
        Console().print(f"{world_name}, {case}: {found['wall']:.1f} s", style="dim")
    asked.results.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    (asked.results / "users.md").write_text(markdown(results))
    table = Table(*HEAD)
    for line in rows(results):
        table.add_row(*line)
    Console().print(table)


if __name__ == "__main__":
    main()
