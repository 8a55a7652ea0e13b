"""What does an initialization learned in one domain bring to people of another, interaction by interaction?

    python benchmarks/cross_domain.py

The federations are those of examples/domains, with three tenths of the people held out: the same people in every
domain of a seed, so nobody who is asked has trained anywhere. Every start is adapted by the same noise-free steps, in
the domain that is asked. Results go to benchmarks/results/cross_domain.{json,md,svg}.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from fedrec.config import Config, load_config
from fedrec.simulation.baselines import popularity
from fedrec.simulation.cold_start import POINTS, ColdScorer, cold_start, cold_values
from fedrec.simulation.intervals import bootstrap_interval, paired_interval
from fedrec.simulation.run import Run, simulate
from fedrec.simulation.serving import Served
from fedrec.simulation.start import start_from
from fedrec.simulation.world import World
from matplotlib.figure import Figure
from rich.console import Console

HERE = Path(__file__).parent
DOMAINS = HERE.parent / "examples" / "domains"
PAIRS = (("video", "social"), ("shop", "news"))
TRANSFERRED, FRESH = "learned in the other domain", "fresh"
TRANSFERRED_SOON, FRESH_SOON = f"{TRANSFERRED}, two rounds here", f"{FRESH}, two rounds here"
UPPER, POPULAR = "learned here", "popularity here"
LABELS = (TRANSFERRED, FRESH, TRANSFERRED_SOON, FRESH_SOON, UPPER, POPULAR)
GAINS = {"gain": (TRANSFERRED, FRESH), "gain, two rounds here": (TRANSFERRED_SOON, FRESH_SOON)}
Values = dict[str, np.ndarray]


def settings(domain: str, seed: int) -> Config:
    """The domain's configuration as it is delivered, with more people held out and longer logs."""
    config = load_config(DOMAINS / f"{domain}.toml")
    longer = {"data__holdout": 0.3, "data__interactions": 30, "evaluation__baselines": False}
    return config.updated(seed=seed, evaluation__cold_start=(), evaluation__resamples=100, **longer)


def two_rounds(source: Run | None, here: Run, scratch: Path) -> Served:
    """The shortest federation from that start: one round releases popularity (the warm start), one adapts."""
    config = here.config.updated(server__rounds=2)
    out = scratch / f"two-{here.directory.name}-{'fresh' if source is None else 'moved'}"
    return simulate(config, out=out, start=None if source is None else source.directory).served()


def curves(source: Run, here: Run, scratch: Path) -> Values:
    """NDCG@10 of held-out devices of ``here`` at every point, ``[points, devices]``, for each start."""
    world = World.build(here.config)
    tasks = cold_start(world.dataset, world.held_out)
    moved = start_from(source, world)
    scorers: dict[str, ColdScorer] = {
        TRANSFERRED: Served(world=world, phi=moved.phi),
        FRESH: Served(world=world, phi=world.fresh()),
        TRANSFERRED_SOON: two_rounds(source, here, scratch),
        FRESH_SOON: two_rounds(None, here, scratch),
        UPPER: here.served(),
        POPULAR: popularity(world.dataset, world.split, world.roster),
    }
    return {
        label: np.stack([cold_values(scorer, tasks, world.dataset, seen) for seen in POINTS])
        for label, scorer in scorers.items()
    }


def summarise(values: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Means over devices and seeds, and the paired gains over a fresh start, with intervals over devices."""
    gains = {
        name: [paired_interval(a, b, 0).to_dict() for a, b in zip(values[moved], values[fresh], strict=True)]
        for name, (moved, fresh) in GAINS.items()
    }
    means = {label: [bootstrap_interval(point, 0).to_dict() for point in values[label]] for label in LABELS}
    return {"devices": int(values[FRESH].shape[1]), "curves": means, "gains": gains}


def measure(seeds: Sequence[int], scratch: Path, console: Console) -> Iterator[dict[str, Any]]:
    """What is known after each seed, devices of all seeds so far together."""
    parts: dict[tuple[str, str], list[Values]] = {pair: [] for pair in PAIRS}
    for number, seed in enumerate(seeds):
        for pair, several in parts.items():
            console.print(f"seed {seed}: {pair[0]} to {pair[1]}", style="dim")
            there, here = (simulate(settings(domain, seed), out=scratch / f"{domain}-{seed}") for domain in pair)
            several.append(curves(there, here, scratch))
        cases = []
        for (source, target), several in parts.items():
            pooled = {label: np.concatenate([one[label] for one in several], axis=1) for label in LABELS}
            cases.append({"from": source, "to": target} | summarise(pooled))
        yield {"points": list(POINTS), "metric": "ndcg@10", "seeds": list(seeds[: number + 1]), "cases": cases}


def markdown(results: dict[str, Any]) -> str:
    """The kept page."""
    points = results["points"]
    seeds = ", ".join(map(str, results["seeds"]))
    text = "# Across domains\n\n`python benchmarks/cross_domain.py`: NDCG@10 of held-out people after so many "
    text += f"interactions; unit user, epsilon 8 in each federation; seeds {seeds} together. A gain is transferred "
    text += "minus fresh, paired, with its 95 % interval over devices.\n"
    for one in results["cases"]:
        text += f"\n## {one['from']} to {one['to']} ({one['devices']} devices)\n\n"
        text += "| start | " + " | ".join(map(str, points)) + " |\n" + "|---" * (1 + len(points)) + "|\n"
        for label in LABELS:
            text += f"| {label} | " + " | ".join(f"{point['mean']:.3f}" for point in one["curves"][label]) + " |\n"
        for name, several in one["gains"].items():
            gains = (f"{gain['mean']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]" for gain in several)
            text += f"| {name} | " + " | ".join(gains) + " |\n"
    return text


def plot(results: dict[str, Any], path: Path) -> None:
    """The curves, one panel a pair."""
    places = np.arange(len(results["points"]))
    with mpl.rc_context({"svg.hashsalt": "cross-domain", "svg.fonttype": "none"}):
        drawing = Figure(figsize=(9.6, 4.2), layout="constrained")
        for axes, one in zip(drawing.subplots(1, 2), results["cases"], strict=True):
            for number, label in enumerate(LABELS):
                curve = one["curves"][label]
                low, high = ([point[end] for point in curve] for end in ("low", "high"))
                axes.plot(places, [point["mean"] for point in curve], color=f"C{number}", label=label, marker="o")
                axes.fill_between(places, low, high, color=f"C{number}", alpha=0.12, linewidth=0)
            axes.set_xticks(places, [str(point) for point in results["points"]])
            axes.set(title=f"{one['from']} to {one['to']}", xlabel="interactions seen", ylabel="NDCG@10")
            axes.set_ylim(bottom=0)
        drawing.legend(*drawing.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        drawing.savefig(path, format="svg", metadata={"Date": None})


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=HERE / "results")
    asked = parser.parse_args(arguments)
    asked.results.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for results in measure(asked.seeds, Path(scratch), Console()):
            (asked.results / "cross_domain.json").write_text(json.dumps(results, indent=1) + "\n")
            (asked.results / "cross_domain.md").write_text(markdown(results))
            plot(results, asked.results / "cross_domain.svg")
    Console().print(markdown(results))


if __name__ == "__main__":
    main()
