"""The world is what its options say, and its truth is true."""

from __future__ import annotations

import numpy as np
import pytest
from fedrec.simulation.data import load, synthetic_world
from fedrec.simulation.data.split import met_before


@pytest.fixture(scope="module")
def world():
    return synthetic_world(devices=400, items=150, interactions=20, seed=1)


def test_equal_options_give_equal_worlds():
    first, same, other = (synthetic_world(devices=30, items=40, seed=seed) for seed in (7, 7, 8))
    assert first.dataset.fingerprint() == same.dataset.fingerprint()
    assert (first.tastes == same.tastes).all()
    assert first.dataset.fingerprint() != other.dataset.fingerprint()
    assert load("synthetic", devices=30, items=40, seed=7).fingerprint() == first.dataset.fingerprint()


def test_shapes_and_ranges(world):
    dataset = world.dataset
    assert (dataset.devices, dataset.items_count) == (400, 150)
    assert 16 < dataset.lengths.mean() < 24
    assert dataset.lengths.min() >= 3
    assert set(np.unique(dataset.rewards)) <= {1, 2, 3, 4, 5}
    assert world.popularity.sum() == pytest.approx(1)
    assert world.utility(0).shape == (150,)
    for device in range(dataset.devices):
        rows = dataset.rows(device)
        assert len(np.unique(dataset.items[rows])) == rows.stop - rows.start
        assert (np.diff(dataset.timestamps[rows]) > 0).all()


def test_ratings_follow_the_truth(world):
    dataset = world.dataset
    truth = np.concatenate([world.expected_rating(d)[dataset.items[dataset.rows(d)]] for d in range(dataset.devices)])
    assert np.corrcoef(truth, dataset.rewards)[0, 1] > 0.8
    assert np.abs(truth - dataset.rewards).mean() < 0.55


def test_what_devices_meet_follows_taste_and_popularity(world):
    dataset = world.dataset
    met = np.mean([world.utility(d)[dataset.items[dataset.rows(d)]].mean() for d in range(dataset.devices)])
    assert met > 0.4
    counts = np.bincount(dataset.items, minlength=150)
    top = np.argsort(-world.popularity)[:15]
    assert counts[top].mean() > 2 * counts.mean()


def test_content_carries_part_of_the_taste():
    """Genres explain the share of an item's qualities that the options ask for."""
    for share, least, most in ((0.0, 0.0, 0.06), (0.7, 0.55, 0.85), (1.0, 0.999, 1.001)):
        world = synthetic_world(devices=2, items=4000, content_share=share, genres=8, latent=6, seed=2)
        groups = {g.name: slice(g.start, g.stop) for g in world.dataset.catalogue.groups}
        genres = world.dataset.catalogue.features[:, groups["genre"]]
        fitted = genres @ np.linalg.lstsq(genres, world.qualities, rcond=None)[0]
        explained = 1 - ((world.qualities - fitted) ** 2).sum() / (world.qualities**2).sum()
        assert least <= explained <= most, share


def test_segments_carry_part_of_the_taste():
    world = synthetic_world(devices=6000, items=5, segments=60, segment_share=0.3, seed=4)
    segments = world.dataset.device_features.argmax(axis=1)
    means = np.stack([world.tastes[segments == s].mean(axis=0) for s in range(60)])
    within = ((world.tastes - means[segments]) ** 2).mean()
    assert within == pytest.approx(0.7, abs=0.05)
    assert (means**2).mean() == pytest.approx(0.3, abs=0.06)


def test_in_a_large_catalogue_nothing_is_met_twice():
    dataset = synthetic_world(devices=100, items=3000, interactions=15, popularity_skew=1.5, seed=6).dataset
    assert not met_before(dataset).any()
    assert dataset.lengths.mean() > 10


@pytest.mark.parametrize(("devices", "items"), [(1, 1), (5, 2), (3, 1000), (5000, 12)])
def test_any_size(devices, items):
    dataset = synthetic_world(devices=devices, items=items).dataset
    assert (dataset.devices, dataset.items_count) == (devices, items)
    assert (dataset.lengths >= min(3, items)).all()


def test_all_devices_may_have_as_many():
    assert set(synthetic_world(devices=50, items=90, interactions=12, length_spread=0.0).dataset.lengths) == {12}


def test_devices_may_have_nothing():
    assert synthetic_world(devices=50, items=30, interactions=0.5, least_interactions=0).dataset.lengths.min() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": 0}, "expected devices to be an integer >= 1, got 0"),
        ({"genres": 21}, "expected genres <= 20, got 21"),
        ({"interactions": 0}, "expected interactions > 0 and finite, got 0"),
        ({"content_share": 1.5}, "expected 0 < content_share <= 1, got 1.5"),
        ({"length_spread": -0.1}, "expected length_spread >= 0 and finite, got -0.1"),
        ({"noise": -1}, "expected noise >= 0 and finite, got -1"),
    ],
)
def test_impossible_worlds(options, message):
    with pytest.raises(ValueError, match=message):
        synthetic_world(**options)


def test_a_large_population_meets_items_by_the_law_of_a_small_one():
    """Logs are drawn in blocks of devices with like lengths; which block a device is in must not matter."""
    small, large = (synthetic_world(devices=n, items=500, interactions=20, seed=3).dataset for n in (4000, 9000))
    shares = []
    for dataset in (small, large):
        short = dataset.lengths[dataset.device_of_rows()] <= 12
        shares.append(np.bincount(dataset.items[short], minlength=500) / short.sum())
    top = np.argsort(-shares[0])[:10]
    # about 14,000 and 32,000 draws: the standard error of a share of 0.3 is 0.005, asked for within 4 of them
    assert shares[1][top].sum() == pytest.approx(shares[0][top].sum(), abs=0.02)
