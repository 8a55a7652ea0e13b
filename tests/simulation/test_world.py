import numpy as np
import pytest
import small_world as small
import torch
from fedrec.errors import DataError, PolicyError
from fedrec.simulation.data.synthetic import SyntheticOptions
from fedrec.simulation.world import World, load_dataset


@pytest.mark.parametrize("devices", [1, 2])
def test_a_federation_needs_two_training_devices(devices):
    config = small.config(data__devices=devices, data__holdout=0.5)
    with pytest.raises(DataError, match=f"at least 2 training devices, got 1 of {devices} in synthetic"):
        World.build(config)


def test_no_device_at_all_is_refused():
    nobody = small.with_logs(small.dataset(), {}).replace(
        items=np.zeros(0, np.int32),
        rewards=np.zeros(0, np.float32),
        offsets=np.zeros(1, np.int64),
        device_features=np.zeros((0, small.dataset().device_features.shape[1]), np.float32),
        device_ids=(),
    )
    with pytest.raises(DataError, match="got 0 of 0"):
        small.world(nobody)


def test_a_policy_that_the_data_can_not_feed_is_refused():
    with pytest.raises(PolicyError, match=r"policy\.content"):
        small.world(policy__content=False, policy__content_embedding=False)


def test_sizes_of_the_synthetic_world_come_from_the_configuration():
    data = load_dataset(small.config(data__devices=9, data__items=13))
    assert (data.devices, data.items_count) == (9, 13)
    assert SyntheticOptions(devices=9).devices == 9


def test_roster_and_held_out_divide_the_devices():
    world = small.world()
    assert sorted([*world.roster, *np.flatnonzero(world.held_out)]) == list(range(14))
    assert world.held_out.sum() == 3


def test_positives_only_where_a_threshold_is_set():
    world = small.world(data__positive_threshold=4.0)
    assert world.dataset.rewards.min() >= 4
    assert world.dataset.interactions < small.dataset().interactions


def test_the_initialization_is_shared_seeded_and_finite():
    world = small.world(policy__state="personal")
    phi = world.initialization()
    assert "personal" not in phi
    assert small.same(phi, small.world(policy__state="personal").initialization())
    assert not small.same(phi, small.world(policy__state="personal", seed=1).initialization())
    assert world.personal_start(5)["personal"].shape == (5, 3)


def test_states_of_many_devices_are_those_of_the_examples():
    """The state that serving sees is the history that a position of the log sees."""
    logs = {0: ([], []), 1: ([3], [5.0]), 2: (list(range(12)), [1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2])}
    world = small.world(small.with_logs(small.dataset(), logs))
    devices = np.arange(4)
    stops = world.dataset.offsets[1:][devices]
    state = world.states(devices, stops)
    assert state.history.shape == (4, 1, 6)
    assert state.history[0, 0].tolist() == [-1] * 6
    assert state.history[1, 0].tolist() == [-1] * 5 + [3]
    assert state.history[2, 0].tolist() == list(range(6, 12))
    assert state.levels[2, 0].tolist() == [1, 2, 3, 4, 0, 1]  # rewards 2 3 4 5 1 2 of 1..5
    assert state.levels[1, 0].tolist() == [0] * 5 + [4]
    for device in devices:
        log = world.log(int(device), int(stops[device]))
        assert log.items.tolist() == world.dataset.items[world.dataset.rows(int(device))].tolist()
        assert torch.equal(state.user[device], world.user(int(device)))


def test_examples_see_nothing_after_their_stop():
    world = small.world()
    stop = int(world.split.train_end[3])
    built = world.examples(3, stop, unit="user", stream=(0, 1, 3))
    seen = set(built.targets.flatten().tolist()) | set(built.history.flatten().tolist())
    assert seen - {-1} <= set(world.dataset.items[int(world.dataset.offsets[3]) : stop].tolist())
