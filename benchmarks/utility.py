"""How good is what is served, and what does privacy cost? Every figure of docs/evaluation.md, with one command.

    python benchmarks/utility.py

Each row is a configuration of benchmarks/configs, run with three seeds (on ml-100k unless it says otherwise): every
random stream, the held-out devices, the negatives and the noise change with the seed. The round that is served is
chosen on validation, the figures are of the test split. Results go to benchmarks/results/utility.json and utility.md;
runs are kept below --out, so that a second call goes on where the first one stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fedrec
import numpy as np
from fedrec.config import Config, load_config
from fedrec.server.checkpoint import CheckpointStore
from fedrec.simulation.baselines import popularity
from fedrec.simulation.cold_start import cold_start, cold_values
from fedrec.simulation.intervals import bootstrap_interval, paired_interval
from fedrec.simulation.run import JOINT as JOINT_DIR
from fedrec.simulation.run import Run
from fedrec.simulation.serving import Served
from fedrec.simulation.summary import POPULARITY, SERVED
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
COLD_POINTS = (0, 1, 2, 5, 10, 20)


@dataclass(frozen=True)
class Row:
    """A configuration and the figures it is asked for: (protocol, metric, figure to reach)."""

    name: str
    config: str
    figures: tuple[tuple[str, str, float], ...]
    overrides: tuple[str, ...] = ()
    cold: bool = False
    most: int = 10
    """Seeds at most: the larger worlds take minutes each."""


def user(epsilon: int, popular: int, gain: float, ndcg: float) -> Row:
    """The fewer pairs, the less the noise spreads; the noisier the votes, the flatter their logarithm."""
    overrides = (f"privacy.epsilon={epsilon}", f"server.warm_pairs={popular}", f"policy.gain_start={gain}")
    return Row(f"user, epsilon {epsilon}", "user-pairs.toml", (("full", "ndcg@10", ndcg),), overrides)


def gradients(epsilon: int, clip: float, share: float) -> Row:
    """What the same budget buys without pairs, popularity and place: gradients of few, structured dimensions."""
    overrides = (f"privacy.epsilon={epsilon}", f"privacy.clip={clip}", f"privacy.warm_share={share}")
    return Row(f"user, epsilon {epsilon}, gradients", "user.toml", (("full", "ndcg@10", 0.0),), overrides)


def interaction(epsilon: int, gain: float, ndcg: float) -> Row:
    overrides = (f"privacy.epsilon={epsilon}", f"policy.gain_start={gain}")
    return Row(f"interaction, epsilon {epsilon}", "interaction-likes.toml", (("full", "ndcg@10", ndcg),), overrides)


FULL = (("full", "ndcg@10", 0.0),)
MORE_PAIRS = ("server.warm_pairs=600", "policy.pairs=64")
SYNTHETIC = (
    "data.name=synthetic",
    "data.devices=100000",
    "data.positive_threshold=none",
    "policy.affinity_start={}",
    "policy.affinity_init=0.3",
    "policy.affinity_place=0",
    "local.windows=4",
    "server.warm_pairs=200",
    "server.rounds=10",
    "evaluation.every=10",
)
ROWS = (
    Row("none", "none.toml", (("sampled", "hr@10", 0.66), ("sampled", "ndcg@10", 0.39), ("full", "ndcg@10", 0.075))),
    Row("none, rating >= 4", "none.toml", (("full", "ndcg@10", 0.0),), ("data.positive_threshold=4.0",)),
    user(8, 100, 1.1, 0.065),
    user(4, 80, 1.2, 0.060),
    user(2, 60, 1.4, 0.055),
    user(1, 50, 1.5, 0.052),
    gradients(8, 0.5, 0.4),
    gradients(4, 0.3, 0.5),
    gradients(2, 0.2, 0.5),
    gradients(1, 0.15, 0.6),
    interaction(8, 2.0, 0.0585),
    interaction(4, 2.2, 0.054),
    Row("interaction, epsilon 8, all ratings", "interaction.toml", (("full", "ndcg@10", 0.0),)),
    Row("ml-1m, none", "none.toml", FULL, ("data.name=ml-1m", "data.positive_threshold=4.0"), most=1),
    Row("ml-1m, user, epsilon 8", "user-pairs.toml", FULL, ("data.name=ml-1m", *MORE_PAIRS), most=1),
    Row("synthetic, none", "user-pairs.toml", FULL, (*SYNTHETIC, "privacy.unit=none"), most=1),
    Row(
        "synthetic, user, epsilon 2",
        "user-pairs.toml",
        FULL,
        (*SYNTHETIC, "privacy.epsilon=2"),
        most=1,
    ),
    Row("cold start, none", "cold-none.toml", (), cold=True),
    Row("cold start, user, epsilon 8", "cold-user.toml", (), cold=True),
)


@dataclass
class Outcome:
    """What the seeds of a row gave."""

    row: Row
    config: dict[str, Any]
    seeds: list[dict[str, Any]] = field(default_factory=list)
    cold: dict[str, Any] = field(default_factory=dict)

    def values(self, label: str, protocol: str, metric: str) -> list[float]:
        """One mean over devices for each seed."""
        return [seed["results"][label][protocol][metric]["mean"] for seed in self.seeds]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, judge everything, write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/utility"), help="where runs are kept")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="where the table goes")
    parser.add_argument("--seeds", type=int, default=3, help="seeds a row: 0, 1, ...")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        help="rows whose name begins with this text (repeatable); others stay as kept",
    )
    asked = parser.parse_args(arguments)
    console = Console()
    kept = _kept_outcomes(asked.results / "utility.json")
    outcomes = []
    for row in ROWS:
        if not asked.only or any(row.name.startswith(text) for text in asked.only):
            outcomes.append(judge(row, range(min(asked.seeds, row.most)), asked.out, console))
        elif row.name in kept:
            outcomes.append(kept[row.name])
    asked.results.mkdir(parents=True, exist_ok=True)
    (asked.results / "utility.json").write_text(json.dumps([_record(one) for one in outcomes], indent=1) + "\n")
    (asked.results / "utility.md").write_text(_markdown(outcomes))
    console.print(_table(outcomes))
    for outcome in outcomes:
        if outcome.cold:
            console.print(_cold_table(outcome))


def _kept_outcomes(path: Path) -> dict[str, Outcome]:
    """What an earlier call found, by the name of its row."""
    if not path.exists():
        return {}
    rows = {row.name: row for row in ROWS}
    records = [record for record in json.loads(path.read_text()) if record["name"] in rows]
    return {
        record["name"]: Outcome(rows[record["name"]], record["config"], record["seeds"], record["cold_start"])
        for record in records
    }


def judge(row: Row, seeds: Sequence[int], out: Path, console: Console) -> Outcome:
    """Run the row's seeds, or read those that have been run."""
    base = load_config(HERE / "configs" / row.config, row.overrides)
    outcome = Outcome(row, base.model_dump(mode="json", exclude={"engine"}))
    runs = []
    for seed in seeds:
        started = time.perf_counter()
        run = _run(base.updated(seed=seed), out / row.name.replace(", ", "-").replace(" ", "-") / f"seed-{seed}")
        runs.append(run)
        outcome.seeds.append(_kept(run))
        console.print(f"{row.name}, seed {seed}: {time.perf_counter() - started:.0f} s", style="dim")
    if row.cold:
        outcome.cold = _cold(runs)
    return outcome


def _run(config: Config, directory: Path) -> Run:
    if (directory / "summary.json").exists():
        run = Run.open(directory)
        if run.config.fingerprint() == config.fingerprint():
            return run
        raise SystemExit(f"{directory} holds a run of another configuration; delete it or choose another --out")
    started = (directory / "config.toml").exists()
    return fedrec.simulate(None if started else config, out=directory, resume=started)


def _kept(run: Run) -> dict[str, Any]:
    """The part of a summary that is kept."""
    summary = run.summary
    results: dict[str, Any] = {
        label: {protocol: _headline(result[protocol]["metrics"]) for protocol in ("full", "sampled")}
        for label, result in summary["results"].items()
    }
    kept = {key: summary[key] for key in ("rounds", "chosen_round", "seconds")}
    statements = [statement["sentence"] for statement in summary["privacy"]]
    return {"seed": run.config.seed, **kept, "privacy": statements, "results": _rounded(results)}


def _headline(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: metrics[name] for name in ("hr@10", "ndcg@10")}


def _cold(runs: Sequence[Run]) -> dict[str, Any]:
    """The cold-start curve over the held-out devices of all seeds together."""
    curves: dict[str, list[list[np.ndarray]]] = {}
    for run in runs:
        served = run.served()
        world = served.world
        joint = CheckpointStore(run.directory / JOINT_DIR).load()
        assert joint is not None
        meta = Served(world=world, phi=run.policy())
        twin = Served(world=world, phi=joint.best or joint.phi)
        scorers = {
            "meta-learned, served": meta,
            "meta-learned, unadapted": Served(world=world, phi=run.policy(), steps=0),
            "jointly trained, served": twin,
            "jointly trained, unadapted": Served(world=world, phi=twin.phi, steps=0),
            "popularity": popularity(world.dataset, world.split, world.roster),
        }
        tasks = cold_start(world.dataset, world.held_out, COLD_POINTS)
        for label, scorer in scorers.items():
            points = curves.setdefault(label, [[] for _ in COLD_POINTS])
            for place, seen in enumerate(COLD_POINTS):
                points[place].append(cold_values(scorer, tasks, world.dataset, seen))
    joined = {label: [np.concatenate(parts) for parts in points] for label, points in curves.items()}
    reference = joined["meta-learned, served"]
    return {
        "metric": "ndcg@10",
        "points": list(COLD_POINTS),
        "devices": len(reference[0]),
        "curves": _rounded({k: [bootstrap_interval(one, 0).to_dict() for one in v] for k, v in joined.items()}),
        "differences": _rounded(
            {
                label: [paired_interval(a, b, 0).to_dict() for a, b in zip(reference, points, strict=True)]
                for label, points in joined.items()
                if label != "meta-learned, served"
            }
        ),
    }


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 5) if isinstance(value, float) else value


def _record(outcome: Outcome) -> dict[str, Any]:
    return {
        "name": outcome.row.name,
        "config": outcome.config,
        "figures_to_reach": [list(figure) for figure in outcome.row.figures],
        "seeds": outcome.seeds,
        "cold_start": outcome.cold,
    }


def _lines(outcomes: Sequence[Outcome]) -> list[list[str]]:
    lines = []
    for outcome in outcomes:
        for protocol, metric, wanted in outcome.row.figures:
            values = outcome.values(SERVED, protocol, metric)
            floor = float(np.mean(outcome.values(POPULARITY, protocol, metric)))
            mean, to_reach = float(np.mean(values)), wanted or floor
            lines.append(
                [
                    outcome.row.name,
                    f"{metric.upper()}, {'full ranking' if protocol == 'full' else '99 negatives'}",
                    f"{mean:.4f}",
                    " ".join(f"{value:.4f}" for value in values),
                    f"{floor:.4f}",
                    f"{to_reach:.4f}",
                    "yes" if mean >= to_reach else "no",
                ]
            )
    return lines


HEAD = ("privacy", "metric", "served, mean", "seeds", "popularity, not private", "to reach", "reached")


def _table(outcomes: Sequence[Outcome]) -> Table:
    table = Table(*HEAD, title="ml-100k, test split, round chosen on validation")
    for line in _lines(outcomes):
        table.add_row(*line)
    return table


def _cold_lines(outcome: Outcome) -> list[list[str]]:
    lines = []
    for label, points in outcome.cold["curves"].items():
        line = [label] + [f"{point['mean']:.3f}" for point in points]
        gap = outcome.cold["differences"].get(label)
        at = outcome.cold["points"].index(5)
        line.append("" if gap is None else "{mean:+.3f} [{low:+.3f}, {high:+.3f}]".format(**gap[at]))
        lines.append(line)
    return lines


def _cold_head(outcome: Outcome) -> list[str]:
    return ["policy", *(f"{point} seen" for point in outcome.cold["points"]), "served minus this at 5"]


def _cold_title(outcome: Outcome) -> str:
    return f"{outcome.row.name}: NDCG@10 on {outcome.cold['devices']} held-out devices"


def _cold_table(outcome: Outcome) -> Table:
    table = Table(*_cold_head(outcome), title=_cold_title(outcome))
    for line in _cold_lines(outcome):
        table.add_row(*line)
    return table


def _markdown(outcomes: Sequence[Outcome]) -> str:
    seeds = max((len(outcome.seeds) for outcome in outcomes), default=0)
    text = "# Utility on ml-100k\n\n"
    text += f"`python benchmarks/utility.py`, {seeds} seeds; test split, round chosen on validation.\n\n"
    text += _rows(list(HEAD), _lines(outcomes))
    for outcome in outcomes:
        if outcome.cold:
            text += f"\n{_cold_title(outcome)}; differences paired by device, 95 % intervals.\n\n"
            text += _rows(_cold_head(outcome), _cold_lines(outcome))
    return text


def _rows(head: list[str], lines: list[list[str]]) -> str:
    every = [head, ["---"] * len(head), *lines]
    return "".join("| " + " | ".join(line) + " |\n" for line in every)


if __name__ == "__main__":
    main()
