"""The sequential test keeps its level however often one looks; a t-test or a broken bet, does not."""

import numpy as np
import pytest
from fedrec.simulation.compare import sequential
from fedrec.simulation.compare.sequential import bets, log_wealth, p_process
from scipy import stats

ALPHA = 0.05
RUNS, USERS = 2000, 600


def null(shape, seed=0):
    """Differences of mean 0, ``[runs, users]``, in [-1, 1]: those of users who rarely click, and harder ones."""
    draw = np.random.default_rng(seed)
    size = (RUNS, USERS)
    if shape == "users":
        return (draw.binomial(20, 0.1, size) - draw.binomial(20, 0.1, size)) / 20
    if shape == "coin":
        return np.where(draw.random(size) < 0.5, 1.0, -1.0)
    rare = np.where(draw.random(size) < 0.02, 0.98, -0.02)
    return rare if shape == "rarely far above" else -rare


SHAPES = ("users", "coin", "rarely far above", "rarely far below")


def ever(p_values):
    """Share of the runs that would have stopped at some time, and its standard error at the level."""
    return float((p_values <= ALPHA).any(axis=-1).mean())


ERROR = 3 * np.sqrt(ALPHA * (1 - ALPHA) / RUNS)


@pytest.mark.parametrize("shape", SHAPES)
def test_nobody_who_looks_after_every_user_is_fooled_more_often_than_said(shape):
    assert ever(p_process(null(shape), ALPHA)) <= ALPHA + ERROR


@pytest.mark.parametrize("level", [0.01, 0.2])
def test_p_values_hold_at_levels_that_the_bets_were_not_made_for(level):
    met = (p_process(null("coin"), ALPHA)[:, -1] <= level).mean()
    assert met <= level + 3 * np.sqrt(level * (1 - level) / RUNS)


def test_the_level_is_used():
    """A test that never stops keeps any level."""
    assert ever(p_process(null("coin"), ALPHA)) > ALPHA / 4


def t_test_after_every_user(differences):
    number = np.arange(1, differences.shape[1] + 1)
    mean = np.cumsum(differences, axis=1) / number
    square = np.cumsum(differences**2, axis=1) / number - mean**2
    after = slice(30, None)  # nobody would look earlier
    error = np.sqrt(square[:, after] / (number[after] - 1))
    return 2 * stats.t.sf(np.abs(mean[:, after] / error), number[after] - 1)


def test_a_t_test_that_is_looked_at_all_the_time_is_fooled_four_times_as_often():
    found = null("users")
    assert ever(t_test_after_every_user(found)) > 4 * ALPHA
    assert ever(t_test_after_every_user(found)[:, -1:]) <= ALPHA + ERROR


def peeking(scaled, alpha):
    """Planted: the stake on a difference follows its own sign."""
    return bets(scaled, alpha) * (1 + 0.3 * np.sign(scaled))


def undecided(scaled, alpha):
    """Planted: both gamblers bet with the whole stake, and the better one counts."""
    best = np.maximum(*(log_wealth(side, bets(scaled, alpha), 0.0) for side in (scaled, -scaled)))
    return np.exp(-np.maximum(np.maximum.accumulate(best, axis=-1), 0.0))


def test_a_stake_that_knows_its_difference_is_found(monkeypatch):
    monkeypatch.setattr(sequential, "bets", peeking)
    assert ever(p_process(null("coin"), ALPHA)) > ALPHA + ERROR


def test_two_sides_for_the_price_of_one_are_found():
    assert ever(undecided(null("coin"), ALPHA)) > ALPHA + ERROR


@pytest.mark.parametrize("mean", [-0.9, -0.2, 0.05])
def test_no_gambler_grows_rich_against_the_mean_itself(mean):
    """So the confidence sequence, which leaves out what a gambler grew rich against, covers it at all times at once."""
    found = mean + (1 - abs(mean)) * null("coin", seed=4)
    up, down = (
        log_wealth(side * found, bets(side * found, ALPHA), side * mean).max(axis=-1) >= np.log(2 / ALPHA)
        for side in (1, -1)
    )
    assert (up | down).mean() <= ALPHA + ERROR


def test_a_known_effect_is_found_within_three_times_the_users_of_a_planned_test():
    """A t-test planned for this effect needs ``((1.96 + 0.84) sd / effect)^2 = 196`` users for a power of 80 %."""
    draw = np.random.default_rng(5)
    differences = np.clip(draw.normal(0.06, 0.3, (300, 588)), -1, 1)
    stopped = (p_process(differences, ALPHA) <= ALPHA).argmax(axis=1)
    assert (p_process(differences, ALPHA)[:, -1] <= ALPHA).mean() > 0.9
    assert np.median(stopped) < 1.6 * 196


def test_small_differences_cost_more_because_the_bound_is_far_away():
    """A planned test needs ``((1.96 + 0.84) 0.05 / 0.02)^2 = 49`` users."""
    draw = np.random.default_rng(6)
    differences = np.clip(draw.normal(0.02, 0.05, (200, 600)), -1, 1)
    stopped = (p_process(differences, ALPHA) <= ALPHA).argmax(axis=1) + 1
    assert np.median(stopped) == pytest.approx(270, abs=20)
