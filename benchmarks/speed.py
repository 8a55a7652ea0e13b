"""How fast are devices adapted, beside what one would write today, beside a peer, and beside what the arithmetic costs?

    python benchmarks/speed.py

The same adaptations of ml-100k by (a) Flower on Ray with a virtual node for each user and Opacus on each device, (b)
the per-device path of fedrec in one process, (c) its cohort engine on threads and in worker processes, (d) the
simulator of pfl-research in an environment of its own, on the nearest equal work, and (e) the floor: the noise and the
matrix products alone. Each measurement is a process of its own; (b), (c) and (e) take turns, on the default policy (a)
as well, and ratios are medians of the turns' own: a machine whose speed drifts slows all that is compared. Then the
cohort engine alone: on synthetic worlds (devices with 20 interactions each and with log-normal numbers of them,
catalogue, history length, K), and on ml-1m (``fedrec data fetch ml-1m``) a round of all devices and a full ranking of
what they serve.

Results and a plot go to benchmarks/results/speed.{json,md,svg}, with the machine they were measured on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fedrec.simulation.data import registry
from fedrec.simulation.data.split import leave_two_out
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
CASES = HERE / "speed_cases.py"
FLOWER = HERE / "peers" / "flower_opacus" / "run.py"
PFL = HERE / "peers" / "pfl"
WORK = {"table": "DP-SGD, 54k-parameter table, K = 5", "default": "default policy, unit user, K = 5"}
TARGETS = {"table": 50.0, "default": 200.0}
CONTENDERS = {
    "flower": "(a) Flower on Ray, Opacus, as its example",
    "flower_lean": "(a) the same, epsilon worked out once",
    "reference": "(b) per-device path",
    "cohort": "(c) cohort engine, threads",
    "workers": "(c) cohort engine, worker processes",
    "pfl": "(d) pfl-research",
    "floor": "(e) floor",
}
REFERENCE_DEVICES = {"table": 40, "default": 200}
VISIT = 3.0
"""Seconds for which a process measures when it is its turn, or one run where that takes longer."""
PROCESSES = f"engine.workers={os.cpu_count()}"
EQUAL, VARIED = "devices, 20 interactions each", "devices, 20 interactions on average"
CURVES: dict[str, list[tuple[float, list[str]]]] = {
    EQUAL: [(10**power, [f"data.devices={10**power}", PROCESSES, "--equal-logs"]) for power in (2, 3, 4, 5, 6)],
    VARIED: [(10**power, [f"data.devices={10**power}", PROCESSES]) for power in (2, 3, 4, 5)],
    "catalogue": [
        (items, ["data.devices=500", f"data.items={items}", "policy.ids=false"]) for items in (1000, 10_000, 100_000)
    ],
    "history length": [
        (length, ["data.devices=2000", "data.interactions=200", f"policy.history_length={length}"])
        for length in (10, 50, 200)
    ],
    "K": [(steps, ["data.devices=5000", f"local.steps={steps}"]) for steps in (1, 5, 20)],
}

LARGE = {"adaptation of every device": "scaling", "full ranking of what every device serves, adapted": "evaluation"}
"""What is measured on ml-1m, with the default policy."""


def child(
    arguments: Sequence[str | Path], timeout: float = 1800, python: str | Path = sys.executable
) -> dict[str, Any]:
    """Run a measurement and read its line."""
    done = subprocess.run(
        [str(python), *map(str, arguments)], capture_output=True, text=True, timeout=timeout, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, arguments))} failed:\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


class Waiting:
    """A process that is ready to measure, and does for as long as it is asked to."""

    def __init__(self, arguments: Sequence[str | Path]) -> None:
        """Start it and wait until it is ready."""
        command = [sys.executable, str(CASES), *map(str, arguments), "--on-demand"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self._said()

    def measure(self, seconds: float) -> list[float]:
        """Seconds of every run, until so many have passed; of one run at least."""
        if self._process.stdin is None:
            raise TypeError("expected a process with pipes")
        self._process.stdin.write(f"{seconds}\n")
        return [float(one) for one in json.loads(self._said())]

    def close(self) -> dict[str, Any]:
        """Its line, all runs told, and its end."""
        return dict(json.loads(self._process.communicate()[0]))

    def _said(self) -> str:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise SystemExit(f"{self._process.args} failed; see above")
        return line


def side_by_side(work: str, turns: int, console: Console, *, flower: bool) -> dict[str, dict[str, Any]]:
    """(b), (c) and (e) in turn, and (a) where asked for: what is compared most closely stands on either side of it."""
    names = ("reference", "cohort", "workers", "floor")
    count = {name: REFERENCE_DEVICES[work] if name == "reference" else 943 for name in names}
    waiting = {name: Waiting([name, work, "--devices", str(count[name])]) for name in names}
    speeds: dict[str, list[float]] = {name: [] for name in names}
    peer: list[dict[str, Any]] = []
    for _ in range(turns):
        found: dict[str, list[float]] = {name: [] for name in names}
        for name in ("reference", "cohort", "floor", "workers"):
            found[name] += waiting[name].measure(VISIT)
        if flower:
            peer.append(child([FLOWER, "--work", work, "--rounds", "4"]))
        for name in ("workers", "floor", "cohort"):
            found[name] += waiting[name].measure(VISIT)
        for name, seconds in found.items():
            speeds[name].append(count[name] / float(np.mean(seconds)))
        told = [f"{name} {one[-1]:,.1f}" for name, one in speeds.items()]
        told += [f"flower {peer[-1]['devices_per_second']:,.1f}"] if peer else []
        console.print(f"{work}, devices a second: {', '.join(told)}", style="dim")
    result = {name: in_turns(speeds[name], one.close()) for name, one in waiting.items()}
    if peer:
        of_turns = [one["devices_per_round"] / float(np.mean(one["round_seconds"])) for one in peer]
        most = max(one["peak_rss_mb"] for one in peer)
        result["flower"] = in_turns(of_turns, peer[0] | {"devices": peer[0]["devices_per_round"], "peak_rss_mb": most})
    return result


def in_turns(speeds: Sequence[float], line: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a measurement that took turns with others; ``speeds`` are devices a second, turn by turn."""
    kept = {name: line[name] for name in ("devices", "peak_rss_mb", "differences") if name in line}
    return kept | {
        "turns": [round(one, 2) for one in speeds],
        "devices_per_second": round(float(np.median(speeds)), 2),
    }


def pfl_python(console: Console) -> Path:
    """An interpreter with pfl-research, in an environment that is made once."""
    home = Path(tempfile.gettempdir()) / "fedrec-speed-pfl"
    python = home / "bin" / "python"
    if not python.exists():
        console.print("installing pfl-research into an environment of its own", style="dim")
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        pip = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", str(PFL / "requirements.txt")], check=True)
    return python


def training_logs(path: Path) -> Path:
    """Write the training logs of ml-100k as pfl's environment, which has no fedrec, reads them."""
    dataset = registry.load("ml-100k")
    split = leave_two_out(dataset)
    logs = [dataset.items[split.train(user)] for user in range(dataset.devices)]
    offsets = np.cumsum([0, *map(len, logs)])
    np.savez(path, items=np.concatenate(logs), offsets=offsets, items_count=dataset.items_count)
    return path


def curves(turns: int, largest: int, console: Console) -> dict[str, list[dict[str, Any]]]:
    """The cohort engine on synthetic worlds of growing size."""
    found = {}
    for name, points in CURVES.items():
        if name in (EQUAL, VARIED):
            lines = cohorts([point for point in points if point[0] <= largest], turns, console)
        else:
            lines = [child([CASES, "scaling", *settings]) for _, settings in points]
        found[name] = [{"value": value} | line for (value, _), line in zip(points, lines, strict=False)]
        for line in found[name]:
            console.print(f"{name}: {line['value']:g}: {line['devices_per_second']:g} devices/s", style="dim")
    return found


def cohorts(points: Sequence[tuple[float, list[str]]], turns: int, console: Console) -> list[dict[str, Any]]:
    """Cohorts of every size in turn, up and down again around the largest: a machine drifts within seconds."""
    waiting = [Waiting(["scaling", *settings]) for _, settings in points]
    speeds: list[list[float]] = [[] for _ in points]
    order = [*range(len(points)), *reversed(range(len(points) - 1))]
    for turn in range(turns):
        found: list[list[float]] = [[] for _ in points]
        for place in order:
            found[place] += waiting[place].measure(VISIT)
        for place, seconds in enumerate(found):
            speeds[place].append(points[place][0] / float(np.mean(seconds)))
        times = ", ".join(f"{1000 / one[-1]:.4f}" for one in speeds)
        console.print(f"turn {turn + 1}, ms a device: {times}", style="dim")
    return [in_turns(speed, one.close()) for speed, one in zip(speeds, waiting, strict=True)]


def large(console: Console) -> dict[str, dict[str, Any]]:
    """The default policy on ml-1m."""
    found = {}
    for name, case in LARGE.items():
        found[name] = child([CASES, case, "data.name=ml-1m", "--repeats", "3"])
        console.print(f"ml-1m, {name}: {found[name]['devices_per_second']:g} devices/s", style="dim")
    return found


def machine() -> dict[str, Any]:
    """What it was measured on."""
    models = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "cores": os.cpu_count(),
        "processor": models[0].split(":")[1].strip() if models else platform.processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def rows(results: dict[str, Any]) -> list[list[str]]:
    """The table: a line for each piece of work and contender."""
    lines = []
    for work, title in WORK.items():
        found = results["work"][work]
        cohort = found.get("workers", found["cohort"])
        for name, label in CONTENDERS.items():
            one = results["work"][work].get(name)
            if one is None:
                continue
            speed = one["devices_per_second"]
            ratio = times_as_fast(cohort, one)
            lines.append([title, label, f"{speed:,.1f}", f"{ratio:.2f}", f"{one['peak_rss_mb']:,.0f}"])
    return lines


def times_as_fast(first: dict[str, Any], second: dict[str, Any]) -> float:
    """Ratio of speeds; the median of the turns' own ratios where both took turns."""
    if len(first.get("turns", ())) == len(second.get("turns", ())) > 0:
        return float(np.median(np.divide(first["turns"], second["turns"])))
    return float(first["devices_per_second"] / second["devices_per_second"])


def flatness(points: Sequence[dict[str, Any]]) -> str:
    """How far apart the times of a device are from 1,000 devices on, each beside the others of its turn."""
    times = 1 / np.array([point["turns"] for point in points if point["value"] >= 1000])
    times = np.median(times / times.mean(0), axis=1)
    return f"from 1,000 on the longest time of a device is {times.max() / times.min():.2f} times the shortest."


HEAD = ("work", "by", "devices/s", "cohort engine, processes / this", "peak memory, MB")


def markdown(results: dict[str, Any]) -> str:
    """The kept page."""
    where = ", ".join(f"{key} {value}" for key, value in results["machine"].items())
    text = f"# Speed\n\n`python benchmarks/speed.py`, medians of turns; {where}.\n\n"
    for line in (list(HEAD), ["---"] * len(HEAD), *rows(results)):
        text += "| " + " | ".join(line) + " |\n"
    text += "\nCohort engine on synthetic worlds, default policy, unit user:\n\n"
    text += "| varied | value | ms a device | peak memory, MB |\n| --- | --- | --- | --- |\n"
    for name, points in results["curves"].items():
        for point in points:
            each = 1000 / point["devices_per_second"]
            text += f"| {name} | {point['value']:,} | {each:.3f} | {point['peak_rss_mb']:,} |\n"
    text += "".join(
        f"\n{name}: {flatness(results['curves'][name])}\n" for name in (EQUAL, VARIED) if name in results["curves"]
    )
    text += "\nml-1m, 6,040 devices and 3,706 items, default policy:\n\n"
    text += "| what | seconds | devices a minute | peak memory, MB |\n| --- | --- | --- | --- |\n"
    for name, one in results["ml-1m"].items():
        seconds, speed = float(np.median(one["seconds"])), 60 * one["devices_per_second"]
        text += f"| {name} | {seconds:.1f} | {speed:,.0f} | {one['peak_rss_mb']:,} |\n"
    for work, contenders in results["work"].items():
        for name in ("flower", "pfl"):
            notes = contenders.get(name, {}).get("differences")
            if notes:
                text += f"\n{CONTENDERS[name]}, {work}: {notes}\n"
    return text + "\n![Speed of the contenders and scaling of the cohort engine](speed.svg)\n"


def draw(results: dict[str, Any], path: Path) -> None:
    """Bars of the contenders, and time a device along the curves."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(14, 7), layout="constrained")
    bars, lines = figure.subfigures(2, 1)
    for axis, (work, title) in zip(bars.subplots(1, len(WORK)), WORK.items(), strict=True):
        found = [
            (CONTENDERS[name], results["work"][work][name]) for name in CONTENDERS if name in results["work"][work]
        ]
        names, values = zip(*((label, one["devices_per_second"]) for label, one in found[::-1]), strict=True)
        axis.barh(names, values, color="#4878a8")
        axis.set(xscale="log", title=title, xlabel="devices a second, log scale")
        for place, value in enumerate(values):
            axis.text(value, place, f" {value:,.0f}", va="center", fontsize=8)
        axis.set_xlim(right=max(values) * 6)
    lines.suptitle("cohort engine on synthetic worlds")
    for axis, (name, points) in zip(lines.subplots(1, len(results["curves"])), results["curves"].items(), strict=True):
        axis.plot([one["value"] for one in points], [1000 / one["devices_per_second"] for one in points], "o-")
        axis.set(xscale="log", xlabel=name.replace(", ", ",\n"), ylabel="ms a device")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    figure.savefig(path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure everything, or what is asked for; write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5, help="turns of (b), (c), (e) and of cohorts of all sizes")
    parser.add_argument("--largest", type=int, default=10**6, help="most synthetic devices")
    parser.add_argument("--skip", action="append", default=[], choices=("flower", "pfl", "curves", "ml-1m"))
    parser.add_argument(
        "--only", choices=(*WORK, "curves", "ml-1m"), help="measure this, keep what else was found before"
    )
    parser.add_argument("--results", type=Path, default=HERE / "results")
    asked = parser.parse_args(arguments)
    console = Console()
    path = asked.results / "speed.json"
    before = json.loads(path.read_text()) if path.exists() else {"work": {}, "curves": {}, "ml-1m": {}}
    results: dict[str, Any] = {**before, "machine": machine(), "work": {}}
    for work in WORK:
        if asked.only not in (None, work):
            results["work"][work] = before["work"][work]
            continue
        in_turn = work == "default" and "flower" not in asked.skip
        measured = side_by_side(work, asked.turns, console, flower=in_turn)
        for name, measure in (("flower", _flower), ("flower_lean", _flower_lean), ("pfl", _pfl)):
            if name in measured:
                continue
            skipped = name.partition("_")[0] in asked.skip
            kept = before["work"].get(work, {}).get(name) if skipped else measure(work, console)
            if kept is not None:
                measured[name] = kept
        results["work"][work] = measured
    if "curves" not in asked.skip and asked.only in (None, "curves"):
        results["curves"] = curves(asked.turns, asked.largest, console)
    if "ml-1m" not in asked.skip and asked.only in (None, "ml-1m"):
        results["ml-1m"] = large(console)
    asked.results.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    (asked.results / "speed.md").write_text(markdown(results))
    draw(results, asked.results / "speed.svg")
    table = Table(*HEAD)
    for line in rows(results):
        table.add_row(*line)
    console.print(table)


def _flower(work: str, console: Console, account: str = "node") -> dict[str, Any]:
    found = child([FLOWER, "--work", work, "--rounds", "5", "--account", account])
    console.print(
        f"{work}, Flower on Ray, epsilon by {account}: {found['devices_per_second']:g} devices/s", style="dim"
    )
    return found


def _flower_lean(work: str, console: Console) -> dict[str, Any] | None:
    return _flower(work, console, "server") if work == "table" else None


def _pfl(work: str, console: Console) -> dict[str, Any] | None:
    if work != "table" or not PFL.exists():
        return None
    with tempfile.TemporaryDirectory() as folder:
        data = training_logs(Path(folder) / "logs.npz")
        found = child([PFL / "run.py", "--data", data], python=pfl_python(console))
    console.print(f"{work}, pfl-research: {found['devices_per_second']:g} devices/s", style="dim")
    return found


if __name__ == "__main__":
    main()
