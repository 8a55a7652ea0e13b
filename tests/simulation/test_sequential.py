"""The sequential test in closed form, against a referee that keeps every gambler's purse, and what it refuses."""

import math

import numpy as np
import pytest
from fedrec.simulation.compare.sequential import LARGEST_STAKE, bets, log_wealth, p_process, sequential_test


def differences(users=80, mean=0.15, seed=1):
    draw = np.random.default_rng(seed)
    return np.clip(draw.normal(mean, 0.25, users), -1, 1)


def purse(found, alpha, mean, side):
    """Wealth after each difference, kept in a purse: nothing of the module is used."""
    money, total, squares, before, history = 1.0, 0.0, 0.0, 1.0, []
    for number, value in enumerate(found, start=1):
        stake = math.sqrt(2 * math.log(2 / alpha) / (before * number * math.log(1 + number)))
        room = 1 + side * mean
        stake = min(stake, 0.75 / room) if room > 0 else stake
        money *= 1 + stake * side * (value - mean)
        history.append(money)
        total += value
        squares += (value - total / (number + 1)) ** 2
        before = (1 + squares) / (number + 1)
    return np.array(history)


def test_wealth_is_that_of_a_purse():
    found, alpha = differences(), 0.05
    for mean in (-1.0, -0.4, 0.0, 0.3, 0.99):
        up, down = log_wealth(found, bets(found, alpha), mean), log_wealth(-found, bets(found, alpha), -mean)
        assert np.exp(up) == pytest.approx(purse(found, alpha, mean, 1), rel=1e-10)
        assert np.exp(down) == pytest.approx(purse(found, alpha, mean, -1), rel=1e-10)


def test_the_first_stakes_in_closed_form():
    """``v_0 = 1``; after a difference of 0.6, ``m_1 = 0.3`` and ``v_1 = (1 + 0.09) / 2``."""
    stakes = bets(np.array([0.6, -1.0]), 0.1)
    numerator = 2 * math.log(20)
    assert stakes == pytest.approx(
        [math.sqrt(numerator / math.log(2)), math.sqrt(numerator / (1.09 / 2 * 2 * math.log(3)))]
    )
    assert log_wealth(np.array([0.6]), stakes[:1], 0.0) == pytest.approx(math.log(1 + LARGEST_STAKE * 0.6))


def test_the_interval_holds_what_no_purse_refuted():
    found, alpha, grid = differences(), 0.1, np.linspace(-1, 1, 4001)
    test = sequential_test(found, alpha=alpha)
    assert list(test.looks) == list(range(1, 81))
    refuted = np.zeros((len(found), len(grid)), dtype=bool)
    for place, mean in enumerate(grid):
        rich = np.maximum(purse(found, alpha, mean, 1), purse(found, alpha, mean, -1)) >= 2 / alpha
        refuted[:, place] = np.maximum.accumulate(rich)
    for look in (4, 20, 40, 79):
        left = grid[~refuted[look]]
        assert test.low[look] == pytest.approx(left[0], abs=6e-4)
        assert test.high[look] == pytest.approx(left[-1], abs=6e-4)


def test_it_stops_with_the_first_interval_that_leaves_out_zero():
    found = differences()
    test = sequential_test(found)
    outside = (test.low > 0) | (test.high < 0)
    assert test.stopped == int(test.looks[outside.argmax()])
    assert test.p_values[test.stopped - 1] <= 0.05 < test.p_values[test.stopped - 2]


def test_the_stop_is_a_look_however_few_there_are():
    few, all_of_them = (sequential_test(differences(), looks=looks) for looks in (3, 1000))
    assert few.stopped == all_of_them.stopped
    assert few.stopped in few.looks
    mean, low, _ = few.at(few.stopped)
    assert low > 0
    assert mean == pytest.approx(differences()[: few.stopped].mean())


def test_swapping_the_runs_turns_every_sign():
    found = differences()
    test, mirrored = sequential_test(found), sequential_test(-found)
    assert (test.p_values == mirrored.p_values).all()
    assert test.stopped == mirrored.stopped
    assert (test.low == -mirrored.high).all()
    assert (test.means == -mirrored.means).all()


def test_a_bound_is_only_a_unit():
    found = differences()
    small, large = sequential_test(found), sequential_test(found * 8, bound=8.0)
    assert (small.p_values == large.p_values).all()
    assert large.low == pytest.approx(small.low * 8)


def test_equal_policies_never_stop():
    test = sequential_test(np.zeros(500))
    assert test.stopped is None
    assert (test.p_values == 1).all()
    assert test.interval[0] == -test.interval[1] < 0


def test_intervals_only_narrow_and_p_values_only_fall():
    test = sequential_test(differences(200, mean=0.0))
    assert (np.diff(test.low) >= 0).all()
    assert (np.diff(test.high) <= 0).all()
    assert (np.diff(p_process(differences(), 0.05)) <= 0).all()


@pytest.mark.parametrize(
    ("found", "settings", "said"),
    [
        ([0.1, np.nan], {}, r"expected differences in \[-1, 1\], got nan"),
        ([0.1, 1.5], {}, r"expected differences in \[-1, 1\], got 1.5"),
        ([], {}, "expected one difference or more in a row"),
        ([0.1], {"alpha": 1.0}, "expected 0 < alpha < 1, got 1.0"),
        ([0.1], {"bound": 0.0}, "expected bound > 0"),
    ],
)
def test_what_it_refuses(found, settings, said):
    with pytest.raises(ValueError, match=said):
        sequential_test(np.array(found), **settings)
