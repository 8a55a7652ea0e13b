"""The evaluation protocol: what is excluded, what is counted, and that a memoriser gains nothing from it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fedrec.errors import DataError, PolicyError
from fedrec.meta.interactions import Catalogue
from fedrec.simulation.baselines import BiasRatings, FixedScores, RandomScores, popularity
from fedrec.simulation.cold_start import cold_start, evaluate_cold_start
from fedrec.simulation.data.dataset import Dataset
from fedrec.simulation.data.split import Split, leave_two_out, sample_negatives
from fedrec.simulation.evaluation import evaluate_ratings, evaluate_scores
from torch import Tensor


def _dataset(logs: list[list[int]], items: int) -> Dataset:
    flat = np.array([item for log in logs for item in log], dtype=np.int32)
    return Dataset(
        name="hand",
        items=flat,
        rewards=np.ones(len(flat), dtype=np.float32),
        offsets=np.cumsum([0, *map(len, logs)]).astype(np.int64),
        catalogue=Catalogue(
            features=np.zeros((items, 0), np.float32), feature_names=(), item_ids=tuple(map(str, range(items)))
        ),
        device_features=np.zeros((len(logs), 0), np.float32),
        device_feature_names=(),
        device_ids=tuple(f"u{device}" for device in range(len(logs))),
    )


def _random_world(devices: int, items: int, length: int, seed: int = 0) -> Dataset:
    generator = np.random.default_rng(seed)
    return _dataset([list(generator.permutation(items)[:length]) for _ in range(devices)], items)


def test_seen_items_are_no_rivals_and_validation_counts_as_seen_for_test():
    data = _dataset([[0, 1, 2, 3]], items=6)
    split = leave_two_out(data)
    scorer = FixedScores(np.array([9.0, 8.0, 5.0, 4.0, 6.0, 1.0]))
    # valid target 2: rivals 3, 4, 5 (0 and 1 seen), only 4 is above; test target 3: rivals 4, 5 (2 is seen now)
    assert evaluate_scores(scorer, data, split, "valid").per_device["mrr"][0] == pytest.approx(1 / 2)
    assert evaluate_scores(scorer, data, split, "test").per_device["mrr"][0] == pytest.approx(1 / 2)
    flipped = FixedScores(np.array([0.0, 0.0, 5.0, 4.0, 3.0, 2.0]))
    assert evaluate_scores(flipped, data, split, "test").per_device["mrr"][0] == 1.0


def test_blocks_change_nothing_and_devices_come_in_any_order():
    data = _random_world(37, 50, 8)
    split = leave_two_out(data)
    scorer = RandomScores(50, seed=1)
    whole = evaluate_scores(scorer, data, split)
    blocks = evaluate_scores(scorer, data, split, block=5)
    assert whole.to_dict() == blocks.to_dict()
    picked = np.array([30, 2, 17])
    some = evaluate_scores(scorer, data, split, devices=picked)
    np.testing.assert_array_equal(some.per_device["mrr"], whole.per_device["mrr"][picked])
    mask = np.zeros(37, dtype=bool)
    mask[picked] = True
    assert evaluate_scores(scorer, data, split, devices=mask).counted == 3


def test_devices_without_a_target_are_left_out_and_counted():
    data = _dataset([[0, 1, 2, 3], [4], [], [0, 1, 2, 0]], items=6)
    found = evaluate_scores(FixedScores(np.arange(6.0)), data, leave_two_out(data))
    assert (found.counted, found.left_out) == (1, 3)
    assert found.to_dict()["left_out"] == 3
    # only the one device that is asked gets a list: 4 and 5 are all it may be shown besides its target 3
    np.testing.assert_array_equal(found.exposures[5], [0, 0, 0, 1, 1, 1])


def test_protocol_is_named_and_sampled_lists_are_not_reported():
    data = _random_world(12, 150, 6)
    split = leave_two_out(data)
    full = evaluate_scores(popularity(data, split), data, split)
    assert full.protocol == "full ranking over 150 items minus the device's training and validation items"
    assert set(full.lists) == {f"{name}@{k}" for name in ("coverage", "mean_popularity", "gini") for k in (5, 10, 20)}
    negatives = sample_negatives(data, split, 99, seed=0)
    sampled = evaluate_scores(popularity(data, split), data, split, negatives=negatives.test)
    assert sampled.protocol.startswith("99 sampled negatives (not comparable with full ranking)")
    assert not sampled.lists
    assert len(sampled.row()) == 3


def test_nan_and_wrong_shapes_fail_loudly():
    data = _random_world(6, 20, 5)
    split = leave_two_out(data)
    with pytest.raises(PolicyError, match="got NaN"):
        evaluate_scores(FixedScores(np.full(20, np.nan)), data, split)
    with pytest.raises(PolicyError, match=r"shape \(6, 20\), got \(6, 19\)"):
        evaluate_scores(FixedScores(np.zeros(19)), data, split)
    with pytest.raises(ValueError, match="'valid' or 'test', got 'train'"):
        evaluate_scores(FixedScores(np.zeros(20)), data, split, "train")


class _Memoriser:
    """A local-only policy that only remembers which items it was trained on, as positive (+1) or negative (-1)."""

    def __init__(self, data: Dataset, split: Split, never_negative: np.ndarray) -> None:
        self.table = torch.zeros(data.devices, data.items_count)
        for device in range(data.devices):
            positive = data.items[split.train(device)].astype(np.int64)
            allowed = np.setdiff1d(np.arange(data.items_count), positive)
            self.table[device, allowed] = -1.0
            self.table[device, never_negative[device]] = 0.0
            self.table[device, positive] = 1.0

    def score(self, devices: np.ndarray) -> Tensor:
        return self.table[torch.from_numpy(devices)]


def test_a_memoriser_scores_at_chance_with_our_negatives_and_perfectly_with_the_leaky_ones():
    """Negatives from ``items - train`` cover the held-out item too; from ``items - (train + val + test)`` they point at
    it, because it is the only candidate that was never a negative. With federation switched off that scores 1.0."""
    data = _random_world(60, 300, 12)
    split = leave_two_out(data)
    negatives = sample_negatives(data, split, 99, seed=0).test
    nothing = np.empty((data.devices, 0), dtype=np.int64)
    held_out = np.stack([data.items[split.valid], data.items[split.test]], axis=1).astype(np.int64)
    honest = evaluate_scores(_Memoriser(data, split, nothing), data, split, negatives=negatives)
    leaky = evaluate_scores(_Memoriser(data, split, held_out), data, split, negatives=negatives)
    assert honest.aggregate["hr@10"].mean == pytest.approx(0.10)
    assert leaky.aggregate["hr@10"].mean == 1.0


def test_our_negatives_never_tell_the_target_from_its_rivals():
    """Whatever the training part says about the target it says about every rival: none of them is in it."""
    data = _random_world(40, 300, 12)
    split = leave_two_out(data)
    negatives = sample_negatives(data, split, 99, seed=1)
    for device in range(data.devices):
        train = set(data.items[split.train(device)])
        assert not train & set(negatives.valid[device])
        assert not train & set(negatives.test[device])


def test_ratings_are_asked_for_held_out_rows_only():
    data = _random_world(10, 30, 6)
    split = leave_two_out(data)
    found = evaluate_ratings(BiasRatings(data, split), data, split)
    assert found["rmse"].mean == pytest.approx(0.0)
    assert found["rmse"].devices == 10


class _Recorder:
    """Knows exactly what it may have seen: scores the seen items highest, then the item after each of them."""

    def __init__(self, data: Dataset) -> None:
        self.data, self.asked = data, []

    def score_after(self, devices: np.ndarray, seen: int) -> Tensor:
        self.asked.append((tuple(devices), seen))
        scores = torch.zeros(len(devices), self.data.items_count)
        for row, device in enumerate(devices):
            start = self.data.offsets[device]
            for item in self.data.items[start : start + seen]:
                scores[row, item] = 5.0
                scores[row, (item + 1) % self.data.items_count] = 1.0
        return scores


def test_cold_start_asks_the_same_query_at_every_point():
    data = _dataset([[0, 2, 1, 3, 9], [5, 6, 7], [8, 9, 0, 5, 6]], items=12)
    tasks = cold_start(data, np.array([0, 1, 2]), points=(0, 1, 2), min_query=2)
    assert (list(tasks.devices), tasks.left_out) == ([0, 2], 1)
    recorder = _Recorder(data)
    popular = FixedScores(np.arange(12.0))
    found = evaluate_cold_start({"meta": recorder, "popularity": popular}, tasks, data, k=2, reference="meta")
    assert recorder.asked == [((0, 2), 0), ((0, 2), 1), ((0, 2), 2)]
    assert found["points"] == [0, 1, 2]
    # popularity does not learn: a flat curve, although a device has seen more at every point
    flat = [point["mean"] for point in found["curves"]["popularity"]]
    assert flat[0] == flat[1] == flat[2]
    # after 0 and 2: device 0 has 1 and 3 marked; its candidates are 1, 3, 4, ..: both query items 1, 3 come first
    assert found["curves"]["meta"][2]["high"] == 1.0
    gain = found["differences"]["popularity"][2]
    assert gain["mean"] == pytest.approx(found["curves"]["meta"][2]["mean"] - flat[2])


def test_cold_start_says_when_nobody_has_enough():
    data = _dataset([[0, 1, 2]] * 3, items=5)
    with pytest.raises(DataError, match="at least 21 interactions"):
        cold_start(data, np.array([True, True, False]))
    tasks = cold_start(data, np.arange(3), points=(0, 1))
    with pytest.raises(PolicyError, match="got NaN"):
        evaluate_cold_start({"broken": FixedScores(np.full(5, np.nan))}, tasks, data)
