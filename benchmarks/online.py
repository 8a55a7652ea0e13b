"""What the online loop earns: simulated users fitted on ml-100k, three seeds, the default of `fedrec online`.

    python benchmarks/online.py                            # every arm, seeds 3, 4, 5
    python benchmarks/online.py --arms meta meta@8 --seeds 1
    python benchmarks/online.py --table                    # the page again, from what was kept

Settings were chosen on seeds 0, 1 and 2, which are not reported. Each seed draws its own fit of the
users, held-out devices and streams. Results go to benchmarks/results/online.{json,md}; arms and seeds that are not
asked for keep what was measured.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from fedrec.config import load_config
from fedrec.simulation.online.run import DEFAULT, run_online
from rich.console import Console
from speed import machine

HERE = Path(__file__).parent
ORDER = ("oracle", "known-popularity", "meta", "joint", "meta@8", "meta@2", "local", "popularity", "random")
_POINT = 5
"""Interactions of a point of a curve, and half of the headline."""


def measured(seed: int, arms: Sequence[str], directory: Path, sets: Sequence[str]) -> dict[str, Any]:
    """One run: arm -> headlines and curves of CTR and regret."""
    config = load_config(DEFAULT, [*sets, f"seed={seed}", f"online.arms={json.dumps(list(arms))}"])
    summary = run_online(config, out=directory).summary
    found = {}
    for name, arm in summary["arms"].items():
        found[name] = {
            "seconds": round(arm["seconds"], 1),
            "privacy": [one["sentence"] for one in arm["privacy"]],
            "reached": arm["reached"],
            "curves": {group: [_short(point) for point in points] for group, points in arm["curves"].items()},
        }
    return found


def _short(point: dict[str, Any]) -> list[float]:
    """Last interaction, devices, CTR, regret."""
    return [point["last"], point["devices"], round(point["ctr"]["mean"], 5), round(point["regret"]["mean"], 5)]


def after(arm: dict[str, Any], group: str, column: int = 2, last: int = 50) -> float:
    """Mean over interactions 41 to 50 of the devices of a group: two points of a curve."""
    points = [point for point in arm["curves"][group] if last - 2 * _POINT < point[0] <= last]
    return mean(point[column] for point in points)


def throughout(arm: dict[str, Any], group: str = "training", last: int = 50) -> float:
    """Mean CTR over interactions 1 to 50 of the devices of a group."""
    return mean(point[2] for point in arm["curves"][group] if point[0] <= last)


def first(arm: dict[str, Any], group: str) -> float:
    """CTR over interactions 6 to 10."""
    return float(arm["curves"][group][1][2])


def ratios(seeds: dict[str, Any]) -> dict[str, list[float]]:
    """The figures of the loop by name, one value a seed; those whose arms were not measured are left out."""
    found: dict[str, list[float]] = {}
    for arms in seeds.values():
        for when, ctr in (
            ("", {name: after(arm, "training") for name, arm in arms.items()}),
            (", all 50 interactions", {name: throughout(arm) for name, arm in arms.items()}),
        ):
            for other in ("popularity", "known-popularity", "joint", "local"):
                if {"meta", other} <= ctr.keys():
                    found.setdefault(f"meta / {other}{when}", []).append(ctr["meta"] / ctr[other])
            for name in ("meta@8", "meta@2"):
                if {"meta", "popularity", name} <= ctr.keys():
                    gain = (ctr[name] - ctr["popularity"]) / (ctr["meta"] - ctr["popularity"])
                    found.setdefault(f"gain over popularity kept by {name}{when}", []).append(gain)
        if "meta" in arms:
            late = first(arms["meta"], "late") / after(arms["meta"], "late")
            found.setdefault("late device: CTR at interactions 6-10 / at 41-50", []).append(late)
    return found


def markdown(results: dict[str, Any]) -> str:
    """The kept page."""
    seeds = results["seeds"]
    where = ", ".join(f"{key} {value}" for key, value in results["machine"].items())
    text = f"# The online loop\n\n`python benchmarks/online.py`, seeds {', '.join(seeds)}; {where}; "
    text += "on a machine that others were using. CTR and regret at interactions 41-50 of a device, mean over seeds +- "
    text += "standard deviation.\n\n| arm | CTR, training devices | CTR, late devices | regret | seconds |\n"
    text += "| --- | --- | --- | --- | --- |\n"
    for name in ORDER:
        runs = [arms[name] for arms in seeds.values() if name in arms]
        if runs:
            cells = [_spread([after(one, group, column) for one in runs]) for group, column in _COLUMNS]
            text += f"| {name} | {' | '.join(cells)} | {mean(one['seconds'] for one in runs):.0f} |\n"
    text += "\n| figure | each seed |\n| --- | --- |\n"
    for name, values in ratios(seeds).items():
        text += f"| {name} | {', '.join(f'{value:.2f}' for value in values)} |\n"
    return text


_COLUMNS = (("training", 2), ("late", 2), ("training", 3))


def _spread(values: list[float]) -> str:
    return f"{mean(values):.3f}" + (f" +- {stdev(values):.3f}" if len(values) > 1 else "")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, keep and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--arms", nargs="+", default=list(ORDER))
    parser.add_argument("--set", dest="sets", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--table", action="store_true", help="write the page from what was kept, measure nothing")
    asked = parser.parse_args(arguments)
    path = asked.results / "online.json"
    results = json.loads(path.read_text()) if path.exists() else {"machine": machine(), "seeds": {}}
    for seed in [] if asked.table else asked.seeds:
        for arm in asked.arms:
            with tempfile.TemporaryDirectory() as directory:
                found = measured(seed, [arm], Path(directory) / "run", asked.sets)
            results["seeds"].setdefault(str(seed), {}).update(found)
            asked.results.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(results) + "\n")
            Console().print(f"seed {seed}, {arm}: CTR {after(found[arm], 'training'):.4f}", style="dim")
    text = markdown(results)
    (asked.results / "online.md").write_text(text)
    Console().print(text, markup=False)


if __name__ == "__main__":
    main()
