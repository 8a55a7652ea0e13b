"""One entry, one example: the rule on which unit ``interaction`` stands, tried on every entry of logs with repeats."""

from collections import Counter

import numpy as np
import policy_world as world
import pytest
import torch
from fedrec.config import LocalConfig
from fedrec.errors import DataError
from fedrec.meta.examples import (
    block_numbers,
    build_examples,
    changes_per_entry,
    reward_levels,
    stack_examples,
)
from fedrec.meta.interactions import Interactions
from hypothesis import given
from hypothesis import strategies as st

POLICIES = {
    kind: world.policy(state=kind, history_length=3 if kind == "gru" else world.LENGTH) for kind in world.ENCODERS
} | {"affinity": world.policy(state="none", ids=False, content_embedding=False, affinity=True)}


def build(policy, items, *, rewards=None, unit="interaction", stream=(0, 1, 2), **settings):
    rewards = [float(1 + place % 5) for place in range(len(items))] if rewards is None else rewards
    log = Interactions(items=torch.tensor(items, dtype=torch.int64), rewards=torch.tensor(rewards))
    chosen = LocalConfig(**({"windows": 3, "horizon": 2} | settings))
    return build_examples(
        policy, log, world.user(), settings=chosen, unit=unit, reward_range=world.RANGE, stream=stream
    )


def contents(examples):
    """The examples as a multiset of everything that the loss, or whoever computes it, can see of them."""
    return Counter(
        (
            tuple((int(item), int(level)) for item, level in zip(history, levels, strict=True) if item >= 0),
            tuple((int(item), float(reward)) for item, reward in zip(targets, rewards, strict=True) if item >= 0),
            int(position),
        )
        for history, levels, targets, rewards, position in zip(*examples[:4], examples.position, strict=True)
    )


def changed(before, after):
    """Examples that must be added, removed or exchanged to get from one to the other."""
    return max((before - after).total(), (after - before).total())


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("unit", ["interaction", "both"])
@given(
    items=st.lists(st.integers(0, world.ITEMS - 1), min_size=1, max_size=14),
    windows=st.integers(1, 5),
    horizon=st.integers(1, 3),
    data=st.data(),
)
def test_one_entry_influences_exactly_one_example(name, unit, items, windows, horizon, data):
    policy = POLICIES[name]
    rewards = data.draw(st.lists(st.sampled_from([1.0, 3.0, 5.0]), min_size=len(items), max_size=len(items)))
    whole = contents(build(policy, items, rewards=rewards, unit=unit, windows=windows, horizon=horizon))
    for gone in range(len(items)):
        left = [value for place, value in enumerate(items) if place != gone]
        rated = [value for place, value in enumerate(rewards) if place != gone]
        fewer = contents(build(policy, left, rewards=rated, unit=unit, windows=windows, horizon=horizon))
        # a history that is cut off may hide the entry; more than one example it never touches
        assert changed(whole, fewer) <= 1
        if len(items) <= 3:
            assert changed(whole, fewer) == 1
        exchanged = (whole - fewer).total() + (fewer - whole).total()
        assert exchanged <= changes_per_entry(policy, unit)


@pytest.mark.parametrize("unit", ["none", "user"])
def test_the_test_above_tells_positions_from_blocks(unit):
    """Positions of a log are no examples for unit interaction: one entry is the state of many."""
    policy = POLICIES["history"]
    whole = contents(build(policy, [1, 2, 3, 4, 5], unit=unit, windows=9))
    assert changed(whole, contents(build(policy, [2, 3, 4, 5], unit=unit, windows=9))) > 1


def test_an_entry_changes_a_block_but_adds_an_example_of_its_own():
    counts = {
        (name, unit): changes_per_entry(policy, unit)
        for name, policy in POLICIES.items()
        for unit in ("none", "user", "interaction", "both")
    }
    assert {key for key, count in counts.items() if count == 2} == {
        (name, unit) for name in ("history", "gru", "transformer", "affinity") for unit in ("interaction", "both")
    }
    assert set(counts.values()) == {1, 2}


@pytest.mark.parametrize("unit", ["none", "user"])
@pytest.mark.parametrize("kind", ["none", "personal"])
def test_without_history_a_device_is_one_example_of_all_it_did(unit, kind):
    built = build(POLICIES[kind], [4, 4, 2], unit=unit)
    assert built.targets.tolist() == [[4, 4, 2]]
    assert built.history.shape == (1, 0)
    assert built.rewards.tolist() == [[1, 2, 3]]
    assert len(build(POLICIES[kind], [], unit=unit).present) == 0


@pytest.mark.parametrize("unit", ["none", "user"])
def test_a_position_sees_what_precedes_it_and_aims_at_what_follows(unit):
    built = build(POLICIES["history"], [1, 2, 3], unit=unit, windows=8, horizon=2)
    assert built.history[:, -3:].tolist() == [[-1, -1, -1], [-1, -1, 1], [-1, 1, 2]]
    assert built.targets.tolist() == [[1, 2], [2, 3], [3, -1]]
    assert built.levels[:, -2:].tolist() == [[0, 0], [0, 0], [0, 1]]  # rewards 1 and 2 of 1..5


def test_a_long_history_is_cut_to_the_most_recent():
    built = build(POLICIES["gru"], list(range(10)), unit="user", windows=20, horizon=1)
    assert built.history.shape == (10, 3)
    assert built.history[-1].tolist() == [6, 7, 8]


def test_positions_are_drawn_without_replacement_from_their_own_stream():
    items = list(range(10))
    policy = POLICIES["history"]
    draws = [
        build(policy, items, unit="user", windows=8, stream=stream) for stream in ((0, 1, 2), (0, 1, 2), (0, 2, 2))
    ]
    assert torch.equal(draws[0].history, draws[1].history)
    assert not torch.equal(draws[0].history, draws[2].history)
    assert len(draws[0].present) == 8
    drawn = np.zeros(30)
    for seed in range(300):
        lengths = (build(policy, list(range(6)), unit="user", windows=2, stream=(seed, 0)).history >= 0).sum(1)
        drawn[lengths] += 1
    assert len(set(draws[0].targets[:, 0].tolist())) == 8
    # 600 draws over 6 positions: 100 each, standard deviation sqrt(300 * 1/3 * 2/3) = 8.2
    assert np.all(np.abs(drawn[:6] - 100) < 4 * 8.2)


def test_blocks_follow_the_item_alone():
    items = np.arange(2000)
    numbers = block_numbers(items, 8)
    assert np.array_equal(numbers[::-1], block_numbers(items[::-1].copy(), 8))
    assert set(numbers.tolist()) == set(range(8))
    # 250 a block, standard deviation sqrt(2000 * 1/8 * 7/8) = 14.8
    assert np.all(np.abs(np.bincount(numbers) - 250) < 5 * 14.8)


def test_a_block_aims_at_its_last_entries():
    policy = POLICIES["history"]
    items = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    built = build(policy, items, windows=1, horizon=3)
    assert built.history.tolist() == [[1, 2, 3, 4, 5, 6]]  # the last six of the seven before the targets
    assert built.targets.tolist() == [[7, 8, 9]]
    only = build(policy, [4, 5], windows=1, horizon=3)
    assert (only.history.max().item(), only.targets.tolist()) == (-1, [[4, 5]])


def test_levels_are_equal_parts_of_the_public_range():
    assert reward_levels(torch.tensor([1.0, 1.79, 1.81, 3.0, 4.99, 5.0]), (1, 5)).tolist() == [0, 0, 1, 2, 4, 4]
    assert reward_levels(torch.tensor([-7.0, 99.0]), (1, 5)).tolist() == [0, 4]
    assert reward_levels(torch.tensor([1.0]), (1, 1)).tolist() == [0]


def test_propensities_travel_with_their_targets():
    log = Interactions(items=torch.tensor([3, 5]), rewards=torch.ones(2), propensities=torch.tensor([0.25, 0.5]))
    built = build_examples(
        POLICIES["none"], log, world.user(), settings=LocalConfig(), unit="interaction", reward_range=(0, 1)
    )
    assert built.propensities.tolist() == [[0.25], [0.5]]
    assert build(POLICIES["none"], [3]).propensities.tolist() == [[0.0]]


def test_an_item_outside_the_catalogue_is_refused():
    with pytest.raises(DataError, match=r"item rows in \[0, 11\), got 11"):
        build(POLICIES["none"], [3, 11])


def test_stacking_pads_and_loses_nothing():
    policy = POLICIES["history"]
    devices = [build(policy, items, unit="user") for items in ([], [1], [1, 2, 3, 4])]
    stacked = stack_examples(devices)
    assert stacked.present.tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 1]]
    for row, device in enumerate(devices):
        one = type(stacked)(*(value[row] for value in stacked))
        kept = one.present > 0
        assert contents(type(one)(*(value[kept] for value in one[:-1]), one.user)) == contents(device)
        assert (one.targets[~kept] == -1).all()
        assert torch.equal(one.user, device.user)
