"""What a sweep adds to a finished run: its floors, and each device's value, from which seeds are pooled.

Popularity and DP popularity at the cell's own epsilon cost two histograms, so that runs need not compute baselines.
Device values are a diagnostic of the simulation and are not private: they lie beside the run and leave no device.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..._durable import replace_file, storage_errors
from ...config import Config
from ...errors import DataError, RunError
from ..baselines import FixedScores, popularity
from ..cold_start import ColdScorer, cold_start, cold_values
from ..evaluation import evaluate_scores
from ..results import evaluations, private_popularity
from ..run import Run
from ..serving import Served
from ..summary import DP_POPULARITY, POPULARITY, SERVED, Summary
from ..world import World

RECORD, VALUES = "cell.json", "values.npz"
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """A finished cell as it lies on disk.

    Attributes:
        directory: of the run.
        config: its configuration.
        summary: of the run.
        data: fingerprint of the data set as it was loaded.
        population: devices that train.
        floors: label -> ``summary.Result`` of the floors, with ``statement`` where one is private.
        devices: the devices judged, int64 ``[devices]``.
        values: label -> headline metric on the test split, full ranking, ``[devices]``.
        cold_devices: held-out devices of the cold-start curve, int64 ``[held out]``.
        cold: label -> metric after each number of interactions, ``[points, held out]``.
        cold_points: those numbers.
        spent: unit -> epsilon that was spent when the run ended.
    """

    directory: Path
    config: Config
    summary: Summary
    data: str
    population: int
    floors: Mapping[str, Mapping[str, Any]]
    devices: NDArray[np.int64]
    values: Mapping[str, Floats]
    cold_devices: NDArray[np.int64]
    cold: Mapping[str, Floats]
    cold_points: tuple[int, ...]
    spent: Mapping[str, float]


def write_record(run: Run, world: World, data: str) -> None:
    """Judge the floors and keep every device's headline value; ``cell.json`` is written last and marks the end."""
    served = run.served(world.dataset)
    floors, scorers = _floors(world)
    metric = run.summary.get("metric", "ndcg@10")
    values = {SERVED: _per_device(served, world, metric)}
    results: dict[str, Any] = {}
    full, sampled = evaluations(world, scorers)
    for label, floor in floors.items():
        results[label] = {"full": full[label].to_dict(), "sampled": sampled[label].to_dict(), **floor}
        values[label] = np.asarray(full[label].per_device[metric])
    cold_devices, points, cold = _cold(Served(world=world, phi=run.policy()), scorers, world, int(metric.split("@")[1]))
    arrays: dict[str, NDArray[Any]] = {"devices": world.roster, "cold_devices": cold_devices}
    arrays |= {f"full/{label}": value for label, value in values.items()}
    arrays |= {f"cold/{label}": value for label, value in cold.items()}
    record = {
        "fingerprint": run.config.fingerprint(),
        "data": data,
        "metric": metric,
        "population": len(world.roster),
        "floors": results,
        "cold_points": list(points),
        "spent": _spent(run.directory),
    }
    with storage_errors(run.directory, "the run in it is safe"):
        replace_file(run.directory / VALUES, _packed(arrays))
        replace_file(run.directory / RECORD, (json.dumps(record, indent=1) + "\n").encode())


def read_record(directory: Path, config: Config, data: str) -> Record | None:
    """A finished cell; none where it is not there, unfinished, damaged, or of another configuration or other data."""
    try:
        record = json.loads((directory / RECORD).read_text(encoding="utf-8"))
        summary = Run.open(directory).summary
        with np.load(directory / VALUES, allow_pickle=False) as packed:
            arrays = {name: packed[name] for name in packed.files}
        if record["fingerprint"] != config.fingerprint() or record["data"] != data:
            return None
        return Record(
            directory=directory,
            config=config,
            summary=summary,
            data=data,
            population=record["population"],
            floors=record["floors"],
            devices=arrays["devices"],
            values=_below(arrays, "full/"),
            cold_devices=arrays["cold_devices"],
            cold=_below(arrays, "cold/"),
            cold_points=tuple(record["cold_points"]),
            spent=record["spent"],
        )
    except (OSError, ValueError, KeyError, TypeError, RunError):
        return None


def _floors(world: World) -> tuple[dict[str, dict[str, Any]], dict[str, FixedScores]]:
    """What each floor's row says besides its scores, and the scores."""
    facts: dict[str, dict[str, Any]] = {POPULARITY: {"kind": "baseline", "note": "not private"}}
    scores = {POPULARITY: popularity(world.dataset, world.split, world.roster)}
    private = private_popularity(world)
    if private is not None:
        scores[DP_POPULARITY], statement = private.scores, private.statement
        facts[DP_POPULARITY] = {"kind": "baseline", "statement": statement.to_dict(), "note": statement.sentence()}
    return facts, scores


def _per_device(scorer: Served, world: World, metric: str) -> Floats:
    """The headline of every device; no interval is asked for here."""
    k = int(metric.split("@")[1])
    judged = evaluate_scores(
        scorer, world.dataset, world.split, "test", devices=world.roster, ks=(k,), seed=0, resamples=1
    )
    return np.asarray(judged.per_device[metric])


def _cold(
    served: Served, floors: Mapping[str, FixedScores], world: World, k: int
) -> tuple[NDArray[np.int64], tuple[int, ...], dict[str, Floats]]:
    nobody: tuple[NDArray[np.int64], tuple[int, ...], dict[str, Floats]] = (np.empty(0, dtype=np.int64), (), {})
    if not world.config.evaluation.cold_start:
        return nobody
    try:
        tasks = cold_start(world.dataset, world.held_out, world.config.evaluation.cold_start)
    except DataError:
        return nobody
    scorers: dict[str, ColdScorer] = {SERVED: served, **floors}
    curves = {
        label: np.stack([cold_values(scorer, tasks, world.dataset, seen, k=k) for seen in tasks.points])
        for label, scorer in scorers.items()
    }
    return tasks.devices, tasks.points, curves


def _spent(directory: Path) -> dict[str, float]:
    """Unit -> epsilon in the ledger after the last round."""
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {unit: float(value) for unit, value in json.loads(lines[-1])["epsilon"].items()} if lines else {}


def _packed(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **cast(Any, arrays))
    return buffer.getvalue()


def _below(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, Floats]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
