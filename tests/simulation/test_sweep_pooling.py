"""Pooled means: seeds are not independent samples of the devices, differences are paired, other data are others."""

import numpy as np
import pytest
from fedrec.simulation.sweep.pooling import columns_of, pooled, spread

DEVICES = 400


def values(seed=0, rows=1):
    return np.random.default_rng(seed).gamma(0.5, 0.2, size=(rows, DEVICES))


def width(interval):
    return interval["high"] - interval["low"]


def test_one_seed_gives_the_interval_of_the_mean_over_devices():
    one = values()
    found = pooled({"a": one}, 4000, {})["a"]
    assert found["mean"] == pytest.approx(one.mean())
    # 3.92 standard errors; 4000 resamples give the width to about 3 %, asked for within 8 %
    assert width(found) == pytest.approx(3.92 * one.std() / np.sqrt(DEVICES), rel=0.08)


def test_three_equal_seeds_tell_no_more_than_one():
    one = values()
    three = pooled({"a": np.repeat(one, 3, axis=0)}, 4000, {})["a"]
    assert width(three) == pytest.approx(width(pooled({"a": one}, 4000, {})["a"]), rel=0.1)


def test_what_differs_between_seeds_only_shows_in_the_interval():
    """Seeds at 0, 1 and 2 for every device: the mean of three draws has standard deviation sqrt(2 / 3) / sqrt(3)."""
    levels = np.repeat([[0.0], [1.0], [2.0]], DEVICES, axis=1)
    found = pooled({"a": levels}, 4000, {})["a"]
    assert found["mean"] == pytest.approx(1.0)
    assert (found["low"], found["high"]) == pytest.approx((0.0, 2.0), abs=0.35)


def test_differences_and_ratios_are_paired():
    first, noise = values(rows=3), 1e-3 * values(1, rows=3)
    tables = {"a": first, "b": first / 2, "a-b": first / 2 + noise}
    found = pooled(tables, 500, {"a/b": ("a", "b")})
    assert width(found["a/b"]) == pytest.approx(0.0, abs=1e-9)
    assert found["a/b"]["mean"] == pytest.approx(2.0)


def test_devices_without_a_value_are_left_out():
    some = values(rows=2)
    some[0, :100] = np.nan
    some[:, 100:120] = np.nan
    assert pooled({"a": some}, 200, {})["a"]["mean"] == pytest.approx(np.nanmean(some))
    nothing = pooled({"a": np.full((2, 5), np.nan)}, 200, {})["a"]
    assert all(np.isnan(end) for end in nothing.values())


def test_a_device_has_one_column_in_all_seeds_of_the_same_data():
    own = [np.array([3, 5]), np.array([5, 9])]
    shared, wide = columns_of(["x", "x"], own)
    assert (wide, shared[0][1]) == (3, shared[1][0])
    apart, wide = columns_of(["x", "y"], own)
    assert wide == 4
    table = spread(apart, wide, [np.array([1.0, 2.0]), None])
    assert np.isnan(table[1]).all()
    assert np.nansum(table[0]) == 3.0
