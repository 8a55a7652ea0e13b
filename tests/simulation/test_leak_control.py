"""A negative control for policies with a history: where nothing can be learned, the whole pipeline scores at chance.

Every device's validation and test item is replaced by items drawn uniformly from those it has not met. Given all that a
run may look at, the test item and its 99 negatives are then drawn alike, so each of the 100 is as likely as the others
to be among the first ten, whatever policy ranks them: HR@10 is 0.10. Uniformly is what matters; items that others hold
would let popularity find them. Every item has a content feature of its own, so that a device's taste vector can
remember single items: a policy with a memory is the one that a leak would show in. Planted leaks fail the control.

Set FEDREC_TEST_SEED for other seeds.
"""

from __future__ import annotations

import functools
import os

import numpy as np
import pytest
import torch
from fedrec.config import Config
from fedrec.meta import stacked
from fedrec.meta.interactions import Catalogue
from fedrec.simulation import serving
from fedrec.simulation.baselines import popularity
from fedrec.simulation.data.dataset import Dataset
from fedrec.simulation.data.registry import load
from fedrec.simulation.data.split import leave_two_out, sample_negatives
from fedrec.simulation.evaluation import evaluate_scores
from fedrec.simulation.run import simulate
from fedrec.simulation.summary import POPULARITY, SERVED, UNADAPTED
from fedrec.simulation.world import World

pytestmark = pytest.mark.statistical
SEED = int(os.environ.get("FEDREC_TEST_SEED", "0"))
DEVICES, NEGATIVES, K = 250, 99, 10
ITEMS = 400  # a log holds at most half of them, so nobody runs short of negatives
CHANCE = K / (NEGATIVES + 1)
TOLERANCE = 4.0  # standard errors of the share of hits among independent devices

LOCAL_MEMORY = {
    "policy": {"state": "history", "dim": 8, "bias": False},
    "local": {"exclude_history": True, "slow_lr": 0.1},
    "server": {"rounds": 4, "warm_start": "none", "outer_optimizer": "sgd"},
}
"""Learns little together; what a device serves is what its own log says about single items."""
SHARED_MEMORY = {
    "policy": {"state": "history", "dim": 8},
    "local": {"exclude_history": True},
    "server": {"rounds": 4, "outer_optimizer": "adam", "outer_lr": 0.1},
}
"""Popularity first, then large steps of the shared weights: the initialization remembers what the devices hold."""


@functools.cache
def world_of_chance() -> Dataset:
    """A world in which training parts are as ever and nothing tells which two items a device meets after them."""
    data = load("synthetic", devices=DEVICES, items=ITEMS, interactions=8, seed=SEED)
    draw, items = np.random.default_rng(SEED), data.items.copy()
    for device in range(DEVICES):
        log = items[data.rows(device)]
        log[-2:] = draw.choice(np.setdiff1d(np.arange(ITEMS), log[:-2]), size=2, replace=False)
    itself = Catalogue(
        features=np.eye(ITEMS, dtype=np.float32),
        feature_names=tuple(f"item={item}" for item in range(ITEMS)),
        item_ids=data.catalogue.item_ids,
    )
    return data.replace(items=items, catalogue=itself)


def trained(settings, run_dir) -> dict[str, float]:
    """Train and judge as a user would: HR@10 of the test items among 99 negatives."""
    common = {
        "seed": SEED,
        "data": {"name": "synthetic", "holdout": 0.0},
        "privacy": {"unit": "none"},
        "evaluation": {"negatives": NEGATIVES, "serve_lr": 10.0, "baselines": False, "cold_start": ()},
    }
    run = simulate(Config.from_mapping(common | settings), out=run_dir, dataset=world_of_chance())
    results = run.summary["results"]
    assert {result["sampled"]["devices"] for result in results.values()} == {DEVICES}
    return {label: results[label]["sampled"]["metrics"][f"hr@{K}"]["mean"] for label in (SERVED, UNADAPTED)}


def ranked_by_popularity(data: Dataset) -> dict[str, float]:
    split = leave_two_out(data)
    negatives = sample_negatives(data, split, NEGATIVES, seed=SEED).test
    assert (negatives[split.test >= 0] >= 0).all()
    found = evaluate_scores(popularity(data, split), data, split, negatives=negatives, ks=(K,), resamples=100)
    return {POPULARITY: found.aggregate[f"hr@{K}"].mean}


def off_chance(hits: dict[str, float]) -> set[str]:
    error = np.sqrt(CHANCE * (1 - CHANCE) / DEVICES)
    return {label for label, share in hits.items() if abs(share - CHANCE) > TOLERANCE * error}


@pytest.mark.parametrize("settings", [LOCAL_MEMORY, SHARED_MEMORY], ids=["local-memory", "shared-memory"])
def test_a_history_policy_scores_at_chance_where_nothing_can_be_learned(settings, tmp_path):
    hits = trained(settings, tmp_path / "run") | ranked_by_popularity(world_of_chance())
    assert off_chance(hits) == set(), hits


def test_items_that_other_devices_hold_would_be_no_control():
    """Dealt anew among the devices, the held-out items of a log are random too, but popularity finds them."""
    data = load("synthetic", devices=DEVICES, items=ITEMS, interactions=8, seed=SEED)
    held_out = np.concatenate([data.offsets[1:] - 2, data.offsets[1:] - 1])
    items = data.items.copy()
    items[held_out] = np.random.default_rng(SEED).permutation(items[held_out])
    assert off_chance(ranked_by_popularity(data.replace(items=items))) == {POPULARITY}


def _leave_the_test_row_in_the_history(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = serving.seen_range

    def leaky(dataset, split, which, devices):
        start, stop = honest(dataset, split, which, devices)
        return start, stop + 1

    monkeypatch.setattr(serving, "seen_range", leaky)


def _leave_the_test_row_in_the_training_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = World.batch

    def leaky(self, devices, stops, *, unit, stream):
        return honest(self, devices, self.dataset.offsets[devices + 1], unit=unit, stream=stream)

    monkeypatch.setattr(World, "batch", leaky)


def _never_take_a_held_out_item_for_a_negative(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rivals of a training target come from ``items - (train + val + test)``: much published code does so."""
    honest_batch, honest_blocked = World.batch, stacked.blocked_history

    def with_held_out_items(self, devices, stops, *, unit, stream):
        held_out = self.dataset.items[self.dataset.offsets[devices + 1][:, None] - [2, 1]]
        built = honest_batch(self, devices, stops, unit=unit, stream=stream)
        return built._replace(user=torch.from_numpy(held_out.astype(np.float32)))

    def leaky(examples, items):
        blocked = honest_blocked(examples, items)
        held_out = examples.user.long()[:, None].expand(-1, blocked.shape[1], -1)
        return blocked.scatter(-1, held_out, -1e9)

    monkeypatch.setattr(World, "batch", with_held_out_items)  # this policy reads no user features
    monkeypatch.setattr(stacked, "blocked_history", leaky)


@pytest.mark.parametrize(
    ("leak", "settings", "convicted"),
    [
        (_leave_the_test_row_in_the_history, LOCAL_MEMORY, {SERVED, UNADAPTED}),
        (_leave_the_test_row_in_the_training_rows, SHARED_MEMORY, {SERVED, UNADAPTED}),
        (_never_take_a_held_out_item_for_a_negative, LOCAL_MEMORY, {SERVED}),
    ],
)
def test_planted_leaks_fail_the_control(leak, settings, convicted, tmp_path, monkeypatch):
    leak(monkeypatch)
    assert off_chance(trained(settings, tmp_path / "run")) >= convicted
