"""Bootstrap intervals: coverage on seeded data, pairs, devices without a value."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fedrec.simulation.intervals import (
    bootstrap_interval,
    bootstrap_intervals,
    bootstrap_means,
    paired_interval,
    rating_intervals,
)


@pytest.mark.statistical
def test_interval_covers_the_mean_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    trials, inside = 300, 0
    for trial in range(trials):
        found = bootstrap_interval(generator.exponential(size=80), seed=trial, resamples=400, level=0.9)
        inside += found.low <= 1.0 <= found.high
    # The percentile bootstrap of a skewed mean at n = 80 undercovers by 1-2 points; 4 standard errors around 0.885.
    assert abs(inside / trials - 0.885) < 4 * math.sqrt(0.885 * 0.115 / trials)


def test_interval_matches_the_normal_one_where_that_is_right():
    values = np.random.default_rng(1).normal(3.0, 2.0, size=4000)
    found = bootstrap_interval(values, seed=0)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert found.mean == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * half, rel=0.08)


def test_devices_without_a_value_are_left_out_and_counted():
    found = bootstrap_interval(np.array([1.0, np.nan, 3.0, np.nan]), seed=0)
    assert (found.mean, found.devices, found.left_out) == (2.0, 2, 2)
    assert 1.0 <= found.low <= found.high <= 3.0


def test_no_values_at_all_gives_nan_not_zero():
    for values in (np.array([]), np.array([np.nan, np.nan])):
        found = bootstrap_interval(values, seed=0)
        assert math.isnan(found.mean)
        assert math.isnan(found.low)
        assert found.devices == 0


def test_same_seed_same_bits_and_another_seed_other_resamples():
    values = np.random.default_rng(2).random(50)
    assert bootstrap_interval(values, seed=5) == bootstrap_interval(values, seed=5)
    assert bootstrap_interval(values, seed=5).low != bootstrap_interval(values, seed=6).low


def test_metrics_share_resamples_whatever_stands_beside_them():
    first, second = np.random.default_rng(3).random((2, 40))
    assert bootstrap_intervals({"a": first, "b": second}, 1)["b"].low == pytest.approx(
        bootstrap_interval(second, 1).low, abs=1e-12
    )


def test_blocks_of_resamples_do_not_change_the_law():
    """So many devices that a block holds few resamples: the spread of the means is still std / sqrt(n)."""
    values = np.random.default_rng(4).random((30_000, 1))
    means = bootstrap_means(values, seed=0, resamples=150)
    assert means.std() == pytest.approx(values.std() / math.sqrt(len(values)), rel=0.25)


def test_paired_difference_is_tighter_than_two_intervals():
    generator = np.random.default_rng(5)
    base = generator.random(200)
    better = base + 0.01 + 0.001 * generator.random(200)
    found = paired_interval(better, base, seed=0)
    assert 0.01 < found.low < found.high < 0.011
    with pytest.raises(ValueError, match="same devices"):
        paired_interval(base, base[:5], seed=0)


def test_rmse_is_the_root_of_the_mean_square_not_the_mean_of_roots():
    found = rating_intervals({"squared_error": np.array([1.0, 9.0]), "absolute_error": np.array([1.0, 3.0])}, seed=0)
    assert found["rmse"].mean == pytest.approx(math.sqrt(5.0))
    assert found["mae"].mean == pytest.approx(2.0)
    assert (found["rmse"].low, found["rmse"].high) == (1.0, 3.0)
