"""Examples from the columns of a data set, many devices at once, against those of one device after the other."""

import numpy as np
import pytest
import torch
from fedrec.config import LocalConfig, PolicyConfig
from fedrec.meta.examples import build_examples, stack_examples
from fedrec.meta.policy import Policy
from fedrec.simulation.batches import batch_examples
from fedrec.simulation.data.registry import load
from hypothesis import given, settings
from hypothesis import strategies as st

WORLD = load("synthetic", devices=40, items=30, interactions=12, seed=3)
REPEATED = WORLD.replace(items=(WORLD.items % 5).astype(np.int32))
LOGGED = WORLD.replace(propensities=np.linspace(0.1, 1.0, WORLD.interactions, dtype=np.float32))


def same(first, second):
    """Equal but for padding: a batch may be wider than its devices need."""
    for name in first._fields:
        mine, other = getattr(first, name), getattr(second, name)
        if name != "user":
            most = min(mine.shape[1], other.shape[1])
            assert float(first.present[:, most:].abs().sum() + second.present[:, most:].abs().sum()) == 0
            mine, other = mine[:, :most], other[:, :most]
        assert mine.dtype == other.dtype, name
        if name in ("targets", "rewards", "propensities"):
            width = min(mine.shape[-1], other.shape[-1])
            padding = -1 if name == "targets" else 0
            assert bool((mine[..., width:] == padding).all())
            assert bool((other[..., width:] == padding).all())
            mine, other = mine[..., :width], other[..., :width]
        assert torch.equal(mine, other), name


@pytest.mark.parametrize("unit", ["none", "interaction", "user"])
@pytest.mark.parametrize("state", ["none", "history"])
@pytest.mark.parametrize("dataset", [WORLD, REPEATED, LOGGED], ids=["plain", "repeated", "logged"])
@settings(max_examples=15, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 30), min_size=1, max_size=8),
    windows=st.integers(1, 9),
    horizon=st.sampled_from([1, 2, 50]),
    positions=st.sampled_from(["uniform", "early"]),
    episodes=st.booleans(),
)
def test_a_batch_is_its_devices(dataset, state, unit, cuts, windows, horizon, positions, episodes):
    policy = Policy.for_catalogue(PolicyConfig(state=state, dim=4, history_length=5), dataset.catalogue)
    local = LocalConfig(windows=windows, horizon=horizon, positions=positions, episodes=episodes)
    devices = np.arange(len(cuts), dtype=np.int64) * 3
    starts = dataset.offsets[devices]
    stops = np.minimum(starts + cuts, dataset.offsets[devices + 1])
    batch = batch_examples(policy, dataset, devices, stops, settings=local, unit=unit, stream=(7, 2))
    alone = [
        build_examples(
            policy,
            dataset.slice_log(slice(int(start), int(stop))),
            torch.from_numpy(dataset.device_features[device]),
            settings=local,
            unit=unit,
            reward_range=dataset.reward_range,
            stream=(7, 2, int(device)),
        )
        for device, start, stop in zip(devices, starts, stops, strict=True)
    ]
    same(batch, stack_examples(alone))


@pytest.mark.parametrize("unit", ["interaction", "user"])
def test_histories_are_as_wide_as_the_longest(unit):
    policy = Policy.for_catalogue(PolicyConfig(state="history", dim=4, history_length=50), WORLD.catalogue)
    devices = np.array([0, 3, 6], dtype=np.int64)
    local = LocalConfig(windows=4, horizon=1)
    for most in (1, 2, 7):
        stops = np.minimum(WORLD.offsets[devices] + most, WORLD.offsets[devices + 1])
        history = batch_examples(policy, WORLD, devices, stops, settings=local, unit=unit, stream=(7, 2)).history
        assert history.shape[-1] == max(1, int((history >= 0).sum(-1).max()))
        assert history.shape[-1] < 50


def test_nobody_makes_an_empty_batch():
    policy = Policy.for_catalogue(PolicyConfig(), WORLD.catalogue)
    nobody = np.array([], dtype=np.int64)
    batch = batch_examples(policy, WORLD, nobody, nobody, settings=LocalConfig(), unit="user", stream=(0, 1))
    assert batch.present.shape[0] == 0
