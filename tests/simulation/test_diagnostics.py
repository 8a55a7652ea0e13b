"""Aggregates of a summary: groups by activity, shares by popularity decile, paired differences."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from fedrec.meta.interactions import Catalogue
from fedrec.simulation.baselines import FixedScores, RandomScores, popularity
from fedrec.simulation.cold_start import cold_start, evaluate_cold_start
from fedrec.simulation.data.dataset import Dataset
from fedrec.simulation.data.split import leave_two_out
from fedrec.simulation.diagnostics import device_distribution, paired_differences, popularity_bias
from fedrec.simulation.evaluation import Evaluation, evaluate_scores
from fedrec.simulation.report import render
from fedrec.simulation.seen import training_counts

ITEMS = 40


@pytest.fixture(scope="module")
def world() -> tuple[Dataset, dict[str, Evaluation]]:
    generator = np.random.default_rng(0)
    logs = [generator.permutation(ITEMS)[: 3 + device % 10] for device in range(50)]
    data = Dataset(
        name="hand",
        items=np.concatenate(logs).astype(np.int32),
        rewards=np.ones(sum(map(len, logs)), dtype=np.float32),
        offsets=np.cumsum([0, *map(len, logs)]).astype(np.int64),
        catalogue=Catalogue(
            features=np.zeros((ITEMS, 0), np.float32), feature_names=(), item_ids=tuple(map(str, range(ITEMS)))
        ),
        device_features=np.zeros((50, 0), np.float32),
        device_feature_names=(),
        device_ids=tuple(f"u{device}" for device in range(50)),
    )
    split = leave_two_out(data)
    scorers = {"popularity": popularity(data, split), "random": RandomScores(ITEMS, 0)}
    return data, {label: evaluate_scores(scorer, data, split) for label, scorer in scorers.items()}


def test_distribution_keeps_aggregates_only(world: tuple[Dataset, dict[str, Evaluation]]):
    data, evaluations = world
    found = device_distribution(evaluations, data.lengths - 2, groups=5)
    assert json.loads(json.dumps(found)) == found
    assert sum(found["activity"]["devices"]) == 50
    assert found["activity"]["groups"][0].startswith("1-")
    assert found["activity"]["groups"][-1].endswith("-10")
    values = evaluations["random"].per_device["ndcg@10"]
    weighted = np.dot(
        [point["mean"] for point in found["activity"]["curves"]["random"]], found["activity"]["devices"]
    ) / sum(found["activity"]["devices"])
    assert weighted == pytest.approx(values.mean())


def test_found_within_is_the_hit_rate_at_every_length(world: tuple[Dataset, dict[str, Evaluation]]):
    data, evaluations = world
    found = device_distribution(evaluations, data.lengths)["found_within"]
    assert (found["k"][0], found["k"][-1], found["curves"]["random"][-1]) == (1, ITEMS, 1.0)
    at_ten = found["curves"]["random"][found["k"].index(10)]
    assert at_ten == pytest.approx(evaluations["random"].aggregate["hr@10"].mean, abs=1e-6)


def test_devices_without_a_test_item_are_in_no_group(world: tuple[Dataset, dict[str, Evaluation]]):
    data, _ = world
    short = leave_two_out(data, min_interactions=8)
    evaluations = {"random": evaluate_scores(RandomScores(ITEMS, 0), data, short)}
    found = device_distribution(evaluations, data.lengths)
    assert sum(found["activity"]["devices"]) == evaluations["random"].counted == 25
    assert not any(np.isnan(point["mean"]) for point in found["activity"]["curves"]["random"])


def test_equally_active_devices_are_one_group(world: tuple[Dataset, dict[str, Evaluation]]):
    _, evaluations = world
    found = device_distribution(evaluations, np.full(50, 7))
    assert (found["activity"]["groups"], found["activity"]["devices"]) == (["7"], [50])


def test_popularity_recommends_from_the_top(world: tuple[Dataset, dict[str, Evaluation]]):
    data, evaluations = world
    counts = training_counts(data, leave_two_out(data))
    found = popularity_bias({label: each.exposures[5] for label, each in evaluations.items()}, counts, k=5)
    for shares in (found["train"], *found["recommended"].values()):
        assert len(shares) == 10
        assert sum(shares) == pytest.approx(1.0)
    assert sorted(found["train"]) == found["train"]
    assert sum(found["recommended"]["popularity"][-3:]) > 0.9
    assert max(found["recommended"]["random"]) < 0.25


def test_nothing_recommended_is_zero_not_nan():
    assert popularity_bias({"none": np.zeros(20)}, np.zeros(20))["recommended"]["none"] == [0.0] * 10


def test_differences_are_paired_and_signed(world: tuple[Dataset, dict[str, Evaluation]]):
    data, evaluations = world
    split = leave_two_out(data)
    better = np.zeros(ITEMS)
    evaluations = {**evaluations, "constant": evaluate_scores(FixedScores(better), data, split)}
    found = paired_differences(evaluations, "popularity")
    assert set(found) == {"random", "constant"}
    means = {label: each.aggregate["mrr"].mean for label, each in evaluations.items()}
    assert found["random"]["mrr"]["mean"] == pytest.approx(means["popularity"] - means["random"])
    assert found["random"]["mrr"]["low"] < found["random"]["mrr"]["mean"] < found["random"]["mrr"]["high"]


def test_what_the_helpers_return_renders(world: tuple[Dataset, dict[str, Evaluation]]):
    """The sections as they are computed, through JSON, into a report: the schema is one and the same."""
    data, evaluations = world
    split = leave_two_out(data)
    tasks = cold_start(data, np.arange(10), points=(0, 1, 2))
    scorers = {"popularity": popularity(data, split), "random": RandomScores(ITEMS, 0)}
    summary = {
        "name": "hand",
        "dataset": {"name": "hand", "devices": 50, "items": ITEMS, "interactions": data.interactions},
        "config": {"seed": 0},
        "unit": "none",
        "privacy": [],
        "rounds": 0,
        "chosen_round": 0,
        "seconds": 0.1,
        "served": "random",
        "results": {label: {"kind": "baseline", "full": each.to_dict()} for label, each in evaluations.items()},
        "differences": paired_differences(evaluations, "random"),
        "cold_start": evaluate_cold_start(scorers, tasks, data, reference="random"),
        "distribution": device_distribution(evaluations, data.lengths - 2),
        "popularity_bias": popularity_bias(
            {label: each.exposures[10] for label, each in evaluations.items()}, training_counts(data, split)
        ),
    }
    html = render(json.loads(json.dumps(summary)), [])
    assert html.count('<svg role="img"') == 5
    assert not re.search(r"\bnan\b", html)
