"""After the last round: judge what is served, against baselines, on training and on held-out devices; write it down."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from .. import __version__
from .._durable import replace_file
from ..config import Config
from ..errors import DataError, RunError
from ..privacy.statement import NO_PRIVACY
from ..server.plan import FederationResult
from .baselines import BiasRatings, NoisyHistogram, RandomScores, dp_popularity, popularity
from .cold_start import ColdScorer, cold_start, evaluate_cold_start
from .data.registry import describe
from .data.split import sample_negatives
from .diagnostics import device_distribution, paired_differences, popularity_bias
from .evaluation import Evaluation, Scorer, evaluate_ratings, evaluate_scores
from .federation import NODES, budget_of
from .participant import personal_of
from .ratings import ServedRatings
from .report import write_report
from .seen import training_counts
from .serving import Served
from .summary import (
    DP_POPULARITY,
    JOINT,
    LOCAL_ONLY,
    POPULARITY,
    RANDOM,
    SERVED,
    UNADAPTED,
    ColdStartCurves,
    OutliersDict,
    Result,
    Summary,
)
from .world import World

SUMMARY = "summary.json"
REPORT = "report.html"
LOCAL_STEPS = 20
"""Local steps of the local-only baseline, which has nothing to start from."""

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A row of the table: how to score, and what kind of row it is."""

    scorer: Scorer
    kind: str
    note: str = ""


def conclude(
    world: World,
    run_dir: Path,
    result: FederationResult,
    *,
    joint: FederationResult | None = None,
    clock: Callable[[], float] | None = None,
    say: Say = lambda text: None,
) -> Summary:
    """Evaluate a finished run and write ``summary.json`` and ``report.html``.

    Args:
        world: data and policy.
        run_dir: where the run's files lie.
        result: how the federation ended.
        joint: the federation of the jointly trained initialization (K = 1), where there was one.
        clock: seconds that the run has taken, asked when everything is judged; none counts the rounds alone.
        say: is told what is being done.
    """
    summary = summarise(world, run_dir, result, joint=joint, clock=clock, say=say)
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    try:
        write_report(run_dir / REPORT, summary, rows)
        replace_file(run_dir / SUMMARY, (json.dumps(summary, indent=1) + "\n").encode())
    except OSError as error:
        raise RunError(
            f"can't write {run_dir}: {error.strerror or error}; the federation is safe, free some space and resume it"
        ) from None
    return summary


def summarise(
    world: World,
    run_dir: Path,
    result: FederationResult,
    *,
    joint: FederationResult | None = None,
    clock: Callable[[], float] | None = None,
    say: Say = lambda text: None,
) -> Summary:
    """Evaluate a finished run: see :func:`conclude`."""
    config = world.config
    own = Served(world=world, phi=result.best, personal=personal_of(world, run_dir / NODES, result.best_round))
    contenders = _contenders(world, own, joint, run_dir)
    scorers = {label: contender.scorer for label, contender in contenders.items()}
    full, sampled = evaluations(world, scorers, say)
    results = {
        label: _result(world, label, contender, full[label], sampled[label]) for label, contender in contenders.items()
    }
    counts = training_counts(world.dataset, world.split, world.roster)
    k = _headline_k(config)
    summary: Summary = {
        "name": f"{world.dataset.name}, unit {config.privacy.unit}",
        "dataset": describe(world.dataset),
        "config": config.model_dump(mode="json"),
        "unit": config.privacy.unit,
        "privacy": [statement.to_dict() for statement in budget_of(world).statements],
        "rounds": result.rounds,
        "chosen_round": result.best_round,
        "seconds": sum(float(row["seconds"]) for row in result.rows),
        "served": SERVED,
        "metric": f"ndcg@{k}",
        "results": results,
        "differences": paired_differences(full, SERVED, config.seed, config.evaluation.resamples),
        "distribution": device_distribution(
            {label: full[label] for label in (SERVED, POPULARITY) if label in full},
            world.split.train_end - world.split.start,
            metric=f"ndcg@{k}",
            seed=config.seed,
            resamples=config.evaluation.resamples,
        ),
        "popularity_bias": popularity_bias(
            {label: full[label].exposures[k] for label in full if label in (SERVED, POPULARITY, JOINT)},
            counts,
            k,
        ),
        "refused": {"budget": sum(int(row["refused"]) for row in result.rows)},
        "quarantined": _counted(result),
        "traffic": {way: sum(int(row.get(f"bytes_{way}", 0)) for row in result.rows) for way in ("down", "up")},
        "environment": _environment(),
    }
    curves = _cold_start(world, own, joint, say)
    if curves is not None:
        summary["cold_start"] = curves
    clips = {str(row["round"]): float(row["clip"]) for row in result.rows if "clip" in row}
    if clips:
        summary["clip_by_round"] = clips
    if world.start is not None:
        summary["start"] = world.start.origin
    if len(world.outliers):
        summary["outliers"] = _outliers(world, full, k)
    if clock is not None:
        summary["seconds"] = clock()
    return summary


def _outliers(world: World, full: Mapping[str, Evaluation], k: int) -> OutliersDict:
    """Who they were and, where they promoted an item, how often honest devices are shown it."""
    kind = world.config.data.outlier_kind
    found: OutliersDict = {"kind": kind, "devices": len(world.outliers)}
    if world.promoted is None:
        return found
    shares = {label: float(one.exposures[k][world.promoted] / max(1, one.counted)) for label, one in full.items()}
    return found | {"promoted": world.dataset.catalogue.title(world.promoted), "exposure": shares, "k": k}


def _contenders(world: World, own: Served, joint: FederationResult | None, run_dir: Path) -> dict[str, Contender]:
    config = world.config
    rows = {
        SERVED: Contender(scorer=own, kind="ours"),
        UNADAPTED: Contender(scorer=replace(own, steps=0), kind="ours", note="the initialization as it is"),
    }
    if not config.evaluation.baselines:
        return rows
    if joint is not None:
        scorer = _joint_scorer(world, joint, run_dir)
        rows[JOINT] = Contender(scorer=scorer, kind="baseline", note="K = 1, the same budget and rounds")
    rows[LOCAL_ONLY] = Contender(scorer=_local_only(world), kind="baseline", note="never leaves the device")
    rows[POPULARITY] = Contender(
        scorer=popularity(world.dataset, world.split, world.roster), kind="baseline", note="not private"
    )
    private = private_popularity(world)
    if private is not None:
        rows[DP_POPULARITY] = Contender(scorer=private.scores, kind="baseline", note=private.statement.sentence())
    rows[RANDOM] = Contender(scorer=RandomScores(world.policy.items, config.seed), kind="baseline")
    return rows


def _joint_scorer(world: World, joint: FederationResult, run_dir: Path) -> Served:
    personal = personal_of(world, run_dir / "joint" / NODES, joint.best_round)
    return Served(world=world, phi=joint.best, personal=personal)


def _local_only(world: World) -> Served:
    return Served(world=world, phi=world.fresh(), steps=LOCAL_STEPS, everything=True)


def private_popularity(world: World) -> NoisyHistogram | None:
    """One noised histogram at the run's own epsilon; none where nothing is claimed."""
    statements = budget_of(world).statements
    if not statements:
        return None
    return dp_popularity(
        world.dataset,
        world.split,
        epsilon=statements[0].epsilon,
        delta=statements[0].delta,
        unit=statements[0].unit,
        seed=world.config.seed,
        devices=world.roster,
    )


def evaluations(
    world: World, scorers: Mapping[str, Scorer], say: Say = lambda text: None
) -> tuple[dict[str, Evaluation], dict[str, Evaluation]]:
    """Full ranking and sampled negatives of every scorer, on the training devices' test items."""
    config = world.config
    negatives = sample_negatives(world.dataset, world.split, config.evaluation.negatives, seed=config.seed)
    counts = training_counts(world.dataset, world.split, world.roster)
    full: dict[str, Evaluation] = {}
    sampled: dict[str, Evaluation] = {}
    for label, scorer in scorers.items():
        say(f"evaluating: {label}")
        kept = FixedBlocks(scorer)
        for table, rivals in ((full, None), (sampled, negatives.test)):
            table[label] = evaluate_scores(
                kept,
                world.dataset,
                world.split,
                "test",
                negatives=rivals,
                devices=world.roster,
                ks=config.evaluation.ks,
                seed=config.seed,
                resamples=config.evaluation.resamples,
                popularity=counts,
            )
    return full, sampled


class FixedBlocks:
    """Scores each block of devices once for both protocols, while a block of scores is small enough to keep."""

    _LARGEST = 50_000_000  # scores kept, 200 MB

    def __init__(self, scorer: Scorer) -> None:
        """Wrap ``scorer``."""
        self._scorer = scorer
        self._kept: dict[bytes, torch.Tensor] = {}
        self._size = 0

    def score(self, devices: NDArray[np.int64]) -> torch.Tensor:
        """The wrapped scorer's scores."""
        key = devices.tobytes()
        if key in self._kept:
            return self._kept[key]
        scores = self._scorer.score(devices)
        if self._size + scores.numel() <= self._LARGEST:
            self._kept[key] = scores
            self._size += scores.numel()
        return scores


def _result(world: World, label: str, contender: Contender, full: Evaluation, sampled: Evaluation) -> Result:
    result: Result = {
        "kind": cast(Any, contender.kind),
        "full": full.to_dict(),
        "sampled": sampled.to_dict(),
    }
    if contender.note:
        result["note"] = contender.note
    predictor = _ratings(world, label, contender.scorer)
    if predictor is not None:
        errors = evaluate_ratings(
            predictor,
            world.dataset,
            world.split,
            "test",
            devices=world.roster,
            seed=world.config.seed,
            resamples=world.config.evaluation.resamples,
        )
        result["ratings"] = {name: cast(Any, interval.to_dict()) for name, interval in errors.items()}
    return result


def _ratings(world: World, label: str, scorer: Scorer) -> ServedRatings | BiasRatings | None:
    """Who predicts ratings: the served policies; the offsets of items and devices stand beside popularity."""
    if world.dataset.reward_kind != "rating" or world.config.data.positive_threshold is not None:
        return None
    if isinstance(scorer, Served):
        return ServedRatings(scorer)
    if label == POPULARITY:
        return BiasRatings(world.dataset, world.split, world.roster)
    return None


def _cold_start(world: World, own: Served, joint: FederationResult | None, say: Say) -> ColdStartCurves | None:
    """The cold-start curve on held-out devices; none where there are too few."""
    config = world.config
    if not config.evaluation.cold_start:
        return None
    try:
        tasks = cold_start(world.dataset, world.held_out, config.evaluation.cold_start)
    except DataError:
        return None
    say("cold-start curve on held-out devices")
    fresh = replace(own, personal=None)
    scorers: dict[str, ColdScorer] = {SERVED: fresh}
    if config.evaluation.baselines:
        if joint is not None:
            scorers[JOINT] = Served(world=world, phi=joint.best)
        scorers[LOCAL_ONLY] = _local_only(world)
        scorers[POPULARITY] = popularity(world.dataset, world.split, world.roster)
    k = _headline_k(config)
    return evaluate_cold_start(
        scorers,
        tasks,
        world.dataset,
        k=k,
        reference=SERVED,
        seed=config.seed,
        resamples=config.evaluation.resamples,
    )


def _headline_k(config: Config) -> int:
    return 10 if 10 in config.evaluation.ks else config.evaluation.ks[0]


def _counted(result: FederationResult) -> dict[str, int]:
    reasons: dict[str, int] = {}
    for row in result.rows:
        for reason, count in row["quarantined"].items():
            reasons[reason] = reasons.get(reason, 0) + int(count)
    return reasons


def _environment() -> dict[str, Any]:
    return {
        "fedrec": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def privacy_lines(summary: Summary) -> list[str]:
    """The sentences that belong to a run's epsilon."""
    return [str(statement["sentence"]) for statement in summary["privacy"]] or [NO_PRIVACY]
