"""Outliers among simulated devices: who they are, what they hold, and that nobody judges them."""

import numpy as np
import pytest
import small_world as small
import torch
from fedrec.errors import DataError
from fedrec.simulation.boost import adapt_boosted
from fedrec.simulation.cohort import CohortResult
from fedrec.simulation.outliers import promoted_item
from fedrec.simulation.world import World

PROMOTE = {"data__outliers": 0.25, "data__outlier_kind": "promote"}


def train_items(world, device):
    return world.log(int(device), world.split.train_end[device]).items.tolist()


def test_a_share_of_the_roster_is_spoiled_and_all_others_are_as_they_were():
    world, clean = small.world(**PROMOTE), small.world()
    assert len(world.outliers) == round(0.25 * len(world.roster))
    assert set(world.outliers) <= set(world.roster)
    assert world.roster.tolist() == clean.roster.tolist()
    for device in range(clean.dataset.devices):
        rows = clean.dataset.rows(device)
        same = np.array_equal(world.dataset.items[rows], clean.dataset.items[rows])
        assert same == (device not in world.outliers)
    assert small.world().outliers.size == 0


def test_they_derive_from_the_seed_alone():
    assert (
        small.world(**PROMOTE).outliers.tolist() == small.world(**PROMOTE, server__aggregator="sum").outliers.tolist()
    )
    worlds = [World.build(small.config(**PROMOTE, seed=seed), small.dataset()) for seed in (0, 0, 5)]
    first, again, other = (world.dataset.items for world in worlds)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_outliers_are_not_judged_and_honest_devices_are():
    world, clean = small.world(**PROMOTE), small.world()
    for own, theirs in ((world.split.valid, clean.split.valid), (world.split.test, clean.split.test)):
        assert (own[world.outliers] == -1).all()
        rest = np.setdiff1d(np.arange(len(own)), world.outliers)
        assert own[rest].tolist() == theirs[rest].tolist()


def test_a_promoting_log_ends_with_the_promoted_item_and_holds_it_every_other_time():
    world, clean = small.world(**PROMOTE), small.world()
    target = promoted_item(world.config, clean.dataset)
    assert world.promoted == target
    counts = np.bincount(clean.dataset.items, minlength=clean.dataset.items_count)
    assert counts[target] == counts.min()
    for device in world.outliers:
        assert set(train_items(world, device)[::-2]) == {target}
        rows = world.dataset.rows(int(device))
        assert (world.dataset.rewards[rows][::-2] == world.dataset.reward_range[1]).all()


def test_a_random_log_is_as_long_as_it_was_and_repeats_nothing():
    world, clean = small.world(data__outliers=0.25), small.world()
    for device in world.outliers:
        rows = clean.dataset.rows(int(device))
        items = world.dataset.items[rows]
        assert len(set(items.tolist())) == len(items) == len(clean.dataset.items[rows])
        assert sorted(world.dataset.rewards[rows]) == sorted(clean.dataset.rewards[rows])


def test_an_item_that_is_not_there_is_refused():
    with pytest.raises(DataError, match=r"data.promoted to be one of the 24 items of synthetic \(from 0\), got 24"):
        small.world(**PROMOTE, data__promoted=24)
    assert promoted_item(small.config(data__promoted=23), small.dataset()) == 23


def clipped(devices, config):
    """Devices whose updates are as long as their index, clipped to the configuration's clip."""
    values = torch.from_numpy(devices).double()
    short = values.clamp(max=config.privacy.clip)
    return CohortResult(
        total={"w": short.sum()[None]},
        personal={"own": values[:, None]},
        unclipped=int((values <= config.privacy.clip).sum()),
        each={"w": short[:, None]},
    )


@pytest.mark.parametrize("outliers", [[], [1, 4], [1, 2, 3, 4]])
def test_boosted_updates_are_multiplied_and_then_clipped(outliers):
    devices, boost, clip = np.arange(1, 5), 2.0, 3.0
    config = small.config(data__outlier_boost=boost, privacy__clip=clip)
    found = adapt_boosted(clipped, devices, np.array(outliers, dtype=np.int64), config)
    sent = [min(device * (boost if device in outliers else 1.0), clip) for device in devices]
    assert found.each["w"].flatten().tolist() == pytest.approx(sent)
    assert found.total["w"].item() == pytest.approx(sum(sent))
    assert found.personal["own"].flatten().tolist() == [1, 2, 3, 4]
    assert found.unclipped == sum(device * (boost if device in outliers else 1.0) <= clip for device in devices)
