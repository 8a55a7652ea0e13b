"""Chronology, no leaks, and negatives that are what they say."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from fedrec.simulation.data import (
    filter_positive,
    held_out_devices,
    leave_two_out,
    sample_negatives,
    synthetic_world,
)
from fedrec.simulation.data.build import build_dataset
from fedrec.simulation.data.split import device_blocks, met_before
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def world():
    return synthetic_world(devices=60, items=120, interactions=10, least_interactions=1, seed=3).dataset


def test_leave_two_out(small):
    split = leave_two_out(small)
    assert split.train_end.tolist() == [2, 5, 6]
    assert split.valid.tolist() == [2, -1, 6]
    assert split.test.tolist() == [3, -1, 7]
    assert [split.train(d) for d in range(3)] == [slice(0, 2), slice(4, 5), slice(5, 6)]
    assert [split.seen_before_test(d) for d in range(3)] == [slice(0, 3), slice(4, 5), slice(5, 7)]


def test_more_interactions_can_be_asked_for(small):
    split = leave_two_out(small, min_interactions=4)
    assert split.test.tolist() == [3, -1, -1]
    assert split.train_end.tolist() == [2, 5, 8]
    with pytest.raises(ValueError, match="expected min_interactions to be an integer >= 3, got 2"):
        leave_two_out(small, min_interactions=2)


def test_chronology(world):
    split = leave_two_out(world)
    for device in range(world.devices):
        times = world.timestamps
        if split.valid[device] >= 0:
            assert times[split.train(device)].max() <= times[split.valid[device]] <= times[split.test[device]]
            assert split.seen_before_test(device).stop == split.test[device]


def test_devices_without_interactions_do_not_crash(small):
    positive = filter_positive(small, 4)
    assert positive.offsets.tolist() == [0, 2, 2, 5]
    assert positive.rewards.tolist() == [4, 5, 4, 4, 4]
    split = leave_two_out(positive)
    assert split.test.tolist() == [-1, -1, 4]
    assert split.train(1) == slice(2, 2)
    nobody = filter_positive(small, 99)
    assert leave_two_out(nobody).test.tolist() == [-1, -1, -1]
    assert (sample_negatives(nobody, leave_two_out(nobody), 3, seed=0).test == -1).all()


def test_a_target_that_was_met_before_is_not_asked_for(make_log):
    rows = [("u", i, 1, t) for t, i in enumerate("abcab")] + [("v", i, 1, t) for t, i in enumerate("abcdd")]
    dataset = build_dataset("again", make_log(rows), repeats="keep")
    split = leave_two_out(dataset)
    assert split.train_end.tolist() == [3, 8]
    assert split.valid.tolist() == [-1, 8]
    assert split.test.tolist() == [-1, -1]


def test_held_out_devices(world):
    mask = held_out_devices(world, 0.1, seed=5)
    assert mask.sum() == 6
    assert (mask == held_out_devices(world, 0.1, seed=5)).all()
    assert (mask != held_out_devices(world, 0.1, seed=6)).any()
    assert not held_out_devices(world, 0.0, seed=5).any()
    with pytest.raises(ValueError, match="expected 0 <= fraction < 1, got 1"):
        held_out_devices(world, 1, seed=5)


def test_one_device_always_trains(small):
    assert held_out_devices(small, 0.99, seed=0).sum() == 2


def _check(dataset, split, negatives, count):
    """The slow, obvious statement of what negatives are."""
    for device in range(dataset.devices):
        train = set(dataset.items[split.train(device)].tolist())
        valid = set(dataset.items[[split.valid[device]]].tolist()) if split.valid[device] >= 0 else set()
        test = set(dataset.items[[split.test[device]]].tolist()) if split.test[device] >= 0 else set()
        lists = [[n for n in part[device].tolist() if n >= 0] for part in negatives]
        for part in lists:
            assert len(set(part)) == len(part)
            assert not set(part) & (train | valid)
        assert not set(lists[1]) & test
        assert not set(lists[0]) & set(lists[1])
        assert not lists[0] if not valid else True
        assert not lists[1] if not test else True
        pool = dataset.items_count - len(train | valid)
        if valid and test:
            assert len(lists[0]) == min(count, pool // 2)
            assert len(lists[1]) in (min(count, pool - len(lists[0])), min(count, pool - len(lists[0]) - 1))
        for part, found in zip(negatives, lists, strict=True):
            assert part[device, : len(found)].tolist() == found


@pytest.mark.parametrize("count", [1, 5, 20, 99])
def test_negatives_never_leak(world, count):
    split = leave_two_out(world)
    _check(world, split, sample_negatives(world, split, count, seed=1), count)


@settings(deadline=None, max_examples=25)
@given(items=st.integers(1, 60), devices=st.integers(1, 20), count=st.integers(1, 12), seed=st.integers(0, 50))
def test_negatives_in_any_catalogue(items, devices, count, seed):
    options = {"interactions": 4, "least_interactions": 0, "genres": 2, "latent": 2}
    dataset = synthetic_world(items=items, devices=devices, seed=seed, **options).dataset
    split = leave_two_out(dataset)
    _check(dataset, split, sample_negatives(dataset, split, count, seed=seed), count)


def test_a_small_catalogue_pads_and_says_so(small, caplog):
    with caplog.at_level(logging.WARNING):
        negatives = sample_negatives(small, leave_two_out(small), 4, seed=0)
    assert "2 of 3 devices" in caplog.text
    assert negatives.valid[0].tolist()[1:] == [-1, -1, -1]
    assert (negatives.valid[1] == -1).all()


def test_negatives_depend_on_the_seed_only(world):
    split = leave_two_out(world)
    first, same, other = (sample_negatives(world, split, 9, seed=seed) for seed in (4, 4, 5))
    assert (first.valid == same.valid).all()
    assert (first.test == same.test).all()
    assert (first.test != other.test).any()


@pytest.mark.statistical
def test_negatives_are_uniform(make_log):
    """Item 0 is known, 1 and 2 are the targets: the test target is a validation negative as often as any other."""
    rows = [(f"u{d}", str(i), 1, i) for d in range(4000) for i in range(3)] + [("z", str(i), 1, i) for i in range(60)]
    dataset = build_dataset("uniform", make_log(rows))
    split = leave_two_out(dataset)
    valid, test = sample_negatives(dataset, split, 6, seed=8)
    for part, allowed in ((valid, range(2, 60)), (test, range(3, 60))):
        counts = np.bincount(part[:4000].ravel(), minlength=60)
        assert counts.sum() == counts[list(allowed)].sum() == 4000 * 6
        expected = 4000 * 6 / len(allowed)
        tolerance = 4.5 * np.sqrt(expected)
        assert np.abs(counts[list(allowed)] - expected).max() < tolerance


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(1, 40), seed=st.integers(0, 20))
def test_blocks_of_devices_cover_all_and_change_nothing(rows, seed):
    dataset = synthetic_world(devices=15, items=9, interactions=3, least_interactions=0, seed=seed).dataset
    dataset = dataset.replace(items=(dataset.items // 3).astype(np.int32))
    blocks = list(device_blocks(dataset, rows))
    assert [first for first, _ in blocks] == [0, *[last for _, last in blocks[:-1]]]
    assert blocks[-1][1] == 15
    for first, last in blocks:
        assert last == first + 1 or dataset.offsets[last] - dataset.offsets[first] <= rows
    expected = [i in before for d in range(15) for before, i in _with_past(dataset.items[dataset.rows(d)].tolist())]
    assert met_before(dataset).tolist() == expected


def _with_past(items):
    return [(items[:position], item) for position, item in enumerate(items)]
