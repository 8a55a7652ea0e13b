"""What outliers do to a federation, and what the robust options do about it: attack x share x defence on ml-100k.

    python benchmarks/robustness.py            # three seeds; writes benchmarks/results/robustness.json, .md and .svg
    python benchmarks/robustness.py --table    # tables and plot anew from the kept results

One federation a cell, seed by seed; what is kept is not computed again. Figures are of honest devices: NDCG@10 on the
full catalogue (test split), and the share of them whose first ten hold the promoted item.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from contextlib import closing
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fedrec.client.app import make_client_app
from fedrec.config import Config
from fedrec.server.checkpoint import CheckpointStore
from fedrec.server.loop import run_federation
from fedrec.simulation.data.dataset import Dataset
from fedrec.simulation.data.registry import load
from fedrec.simulation.evaluation import evaluate_scores
from fedrec.simulation.federation import Cohorts, plan_of
from fedrec.simulation.grid import LocalGrid
from fedrec.simulation.outliers import promoted_item
from fedrec.simulation.serving import Served
from fedrec.simulation.world import World
from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results"
SEEDS = (0, 1, 2)
CLIP = 0.2
"""Half of the median norm of an update."""
POLICY = {
    "data__name": "ml-100k",
    "data__holdout": 0.0,
    "policy__state": "none",
    "policy__ids": False,
    "policy__fast": ("taste",),
    "policy__bias_scale": 3.0,
    "local__steps": 2,
    "local__lr": 0.1,
    "privacy__unit": "none",
    "server__warm_start": "none",
    "server__rounds": 10,
    "server__participation": 0.5,
    "server__byzantine": 0.25,
    "evaluation__serve_steps": 0,
    "evaluation__resamples": 100,
}
"""Popularity and taste, learned from updates alone: votes would be bounded already."""
PROMOTE = {"data__outlier_kind": "promote"}
ATTACKS: dict[str, dict[str, Any]] = {
    "none": {},
    "random, 5 %": {"data__outliers": 0.05},
    "random, 20 %": {"data__outliers": 0.2},
    "promote, 5 %": PROMOTE | {"data__outliers": 0.05},
    "promote, 20 %": PROMOTE | {"data__outliers": 0.2},
    "promote x 10, 5 %": PROMOTE | {"data__outliers": 0.05, "data__outlier_boost": 10.0},
    "promote x 10, 20 %": PROMOTE | {"data__outliers": 0.2, "data__outlier_boost": 10.0},
}
DEFENCES: dict[str, dict[str, Any]] = {
    "none": {},
    "clip": {"server__robust_clip": CLIP},
    "trimmed mean": {"server__aggregator": "trimmed"},
    "median": {"server__aggregator": "median"},
    "multi-Krum": {"server__aggregator": "multi_krum"},
    "anomaly: left out": {"server__anomaly": "exclude"},
    "unit user, epsilon 8": {"privacy__unit": "user", "privacy__epsilon": 8.0, "privacy__clip": CLIP},
}


def main() -> None:
    """Fill in what is missing, then write tables and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="compute nothing")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    options = parser.parse_args()
    kept = _kept()
    torch.set_num_threads(1)
    for seed in () if options.table else options.seeds:
        for attack in ATTACKS:
            for defence in DEFENCES:
                key = f"{seed} / {attack} / {defence}"
                if key not in kept:
                    kept[key] = measured(attack, defence, seed)
                    print(key, kept[key], flush=True)
                    (RESULTS / "robustness.json").write_text(json.dumps(kept, indent=0, sort_keys=True) + "\n")
    (RESULTS / "robustness.md").write_text(tables(kept))
    plot(kept, RESULTS / "robustness.svg")


def measured(attack: str, defence: str, seed: int) -> dict[str, float]:
    """One federation: NDCG@10 and exposure of the promoted item; of anomaly scores, who was above the threshold."""
    config = Config().updated(**{"seed": seed} | POLICY | ATTACKS[attack] | DEFENCES[defence])
    world = World.build(config, _dataset())
    with tempfile.TemporaryDirectory() as name, closing(Cohorts(world, Path(name))) as cohorts:
        plan = replace(plan_of(world, Path(name)), validate=None)
        result = run_federation(LocalGrid(make_client_app(cohorts), 1), plan, config)
        scores = _last_scores(Path(name))
    scorer = Served(world=world, phi=result.phi)
    found = evaluate_scores(
        scorer, world.dataset, world.split, devices=world.roster, ks=(10,), resamples=100, seed=seed
    )
    shown = found.exposures[10][promoted_item(config, _dataset())] / found.counted
    values = {"ndcg@10": round(found.aggregate["ndcg@10"].mean, 5), "exposure": round(float(shown), 4)}
    if scores is not None:
        bad, above = np.isin(world.roster, world.outliers), scores > config.server.anomaly_threshold
        values |= {"honest above": round(float(above[~bad].mean()), 4)}
        values |= {"outliers above": round(float(above[bad].mean()), 4)} if bad.any() else {}
    return values


@cache
def _dataset() -> Dataset:
    return load("ml-100k")


def _last_scores(run_dir: Path) -> np.ndarray[Any, Any] | None:
    checkpoint = CheckpointStore(run_dir).load()
    return None if checkpoint is None or checkpoint.scores is None else checkpoint.scores.mean.numpy()


def _kept() -> dict[str, dict[str, float]]:
    path = RESULTS / "robustness.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def mean_of(kept: dict[str, dict[str, float]], attack: str, defence: str, figure: str) -> float:
    """Mean over the seeds that are there; NaN where none is."""
    values = [
        cell[figure]
        for key, cell in kept.items()
        if key.split(" / ", 1)[1] == f"{attack} / {defence}" and figure in cell
    ]
    return float(np.mean(values)) if values else float("nan")


def tables(kept: dict[str, dict[str, float]]) -> str:
    """Markdown: one table of NDCG@10, one of exposure, one of who was above the threshold."""
    seeds = len({key.split(" / ")[0] for key in kept})
    head = "| attack | " + " | ".join(DEFENCES) + " |\n|---|" + "---|" * len(DEFENCES) + "\n"
    parts = [f"# Outliers: damage and defences\n\nml-100k, mean of {seeds} seeds; `python benchmarks/robustness.py`.\n"]
    for figure, title, form in (
        ("ndcg@10", "NDCG@10 of honest devices, full ranking, test split", "{:.3f}"),
        ("exposure", "Share of honest devices whose first ten hold the promoted item", "{:.2f}"),
    ):
        attacks = [name for name in ATTACKS if figure == "ndcg@10" or name.startswith("promote")]
        rows = [
            f"| {name} | " + " | ".join(form.format(mean_of(kept, name, one, figure)) for one in DEFENCES) + " |"
            for name in attacks
        ]
        parts.append(f"\n## {title}\n\n{head}" + "\n".join(rows) + "\n")
    found = [
        f"| {name} | {mean_of(kept, name, 'anomaly: left out', 'outliers above'):.2f} | "
        f"{mean_of(kept, name, 'anomaly: left out', 'honest above'):.3f} |"
        for name in ATTACKS
    ]
    parts.append(
        "\n## Share above the anomaly threshold (4), after the last round\n\n"
        "| attack | of outliers | of honest devices |\n|---|---|---|\n" + "\n".join(found).replace("nan", "-") + "\n"
    )
    return "".join(parts)


def plot(kept: dict[str, dict[str, float]], path: Path) -> None:
    """Two panels over the attacks, a mark a defence."""
    figure = Figure(figsize=(9.5, 5.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    marks = dict(zip(DEFENCES, "oDs^vPX", strict=True))
    for axis, name, title in (
        (axes[0], "ndcg@10", "NDCG@10 of honest devices"),
        (axes[1], "exposure", "shown the promoted item"),
    ):
        attacks = list(ATTACKS)
        for place, (defence, mark) in enumerate(marks.items()):
            values = [mean_of(kept, attack, defence, name) for attack in attacks]
            heights = np.arange(len(attacks)) + 0.09 * (place - 3)
            axis.plot(values, heights, mark, label=defence, markersize=5)
        axis.set_yticks(range(len(attacks)), attacks)
        axis.set_title(title, fontsize=10)
        axis.set_xlim(left=min(0, axis.get_xlim()[0]))
        axis.grid(axis="x", alpha=0.3)
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
