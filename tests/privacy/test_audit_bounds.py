"""The auditor's statistics against closed forms, published figures and worlds whose epsilon is known.

Set FEDREC_TEST_SEED to run the suite with other seeds.
"""

import math
import os
from functools import cache

import numpy as np
import pytest
from fedrec.privacy.accounting import Charge, epsilon
from fedrec.privacy.audit import binomial_lower, binomial_upper
from fedrec.privacy.one_run import called, one_run_epsilon, one_run_p_value, planned_guesses
from fedrec.privacy.profile import distinguish, release_epsilon

SEED = int(os.environ.get("FEDREC_TEST_SEED", "0"))


# --- one run: Steinke, Nasr and Jagielski 2023, arXiv:2305.08846 ---------------------------------------------------


@pytest.mark.parametrize(
    ("canaries", "guesses", "correct", "delta", "published"),
    [
        (100, 100, 75, 0.0, 0.702),  # appendix D
        (100, 100, 75, 1e-4, 0.699),  # appendix D
        (1000, 100, 75, 1e-4, 0.673),  # appendix D: abstentions and the term in delta
        (100_000, 1510, 1439, 1e-5, 2.675),  # section 7, figure 11
    ],
)
def test_published_bounds_are_met(canaries, guesses, correct, delta, published):
    # Printed with three decimals, some rounded, some cut off: one unit of the last.
    assert one_run_epsilon(canaries, guesses, correct, delta, 0.95) == pytest.approx(published, abs=1e-3)


def test_published_p_value_is_met():
    assert one_run_p_value(100, 100, 75, math.log(3), 0.0) == pytest.approx(0.553, abs=1e-3)  # appendix D


def test_all_guesses_right_has_a_closed_form():
    # q^r = error with q = e^eps / (1 + e^eps).
    for guesses in (16, 200):
        expected = -math.log(0.05 ** (-1 / guesses) - 1)
        assert one_run_epsilon(guesses, guesses, guesses, 0.0, 0.95) == pytest.approx(expected, abs=1e-9)
    assert one_run_epsilon(100, 100, 50, 0.0, 0.95) == 0.0


def test_the_p_value_is_the_sum_of_the_corollary():
    canaries, guesses, correct, cost, delta = 40, 12, 9, 0.7, 0.003
    chance = math.exp(cost) / (1 + math.exp(cost))

    def tail(least):
        counts = range(max(0, least), guesses + 1)
        return sum(math.comb(guesses, k) * chance**k * (1 - chance) ** (guesses - k) for k in counts)

    extra = max((tail(correct - i) - tail(correct)) / i for i in range(1, canaries + 1))
    expected = tail(correct) + 2 * canaries * delta * extra
    assert one_run_p_value(canaries, guesses, correct, cost, delta) == pytest.approx(expected, rel=1e-9)


@pytest.mark.statistical
@pytest.mark.parametrize(("true", "delta", "canaries"), [(0.5, 0.0, 300), (2.0, 0.0, 1000), (1.0, 0.002, 1000)])
def test_randomized_response_is_not_overestimated(true, delta, canaries):
    """Every coin answers truly with probability e^eps / (1 + e^eps), and is shown with probability delta.

    The bound fails in 5 % of runs at most; 400 runs show more than 35 failures of a good one with probability 0.0005.
    """
    generator = np.random.default_rng([SEED, int(10 * true), canaries])
    bound = cache(lambda correct: one_run_epsilon(canaries, canaries, correct, delta, 0.95))
    failures = 0
    for _ in range(400):
        included = generator.random(canaries) < 0.5
        truthful = generator.random(canaries) < 1 / (1 + math.exp(-true))
        scores = np.where(included == truthful, 1.0, -1.0) + 0.1 * generator.random(canaries)
        scores = np.where(generator.random(canaries) < delta, np.where(included, 3.0, -3.0), scores)
        failures += bound(called(scores, included, canaries)) > true
    assert failures <= 35


@pytest.mark.statistical
@pytest.mark.parametrize("true", [0.5, 2.0, 4.0])
def test_many_canaries_come_close_to_randomized_response(true):
    generator = np.random.default_rng([SEED, int(true)])
    correct = int((generator.random(100_000) < 1 / (1 + math.exp(-true))).sum())
    assert 0.95 * true < one_run_epsilon(100_000, 100_000, correct, 0.0, 0.95)
    assert 0.85 * true < one_run_epsilon(100_000, 100_000, correct, 1e-7, 0.95)


def test_guesses_are_planned_and_called_from_both_ends():
    scores = np.array([0.1, 5.0, 2.0, -1.0, 0.3, -4.0])
    included = np.array([True, True, False, False, True, True])
    assert called(scores, included, 2) == 1  # 5.0 is in, -4.0 is not out
    assert called(scores, included, 5) == 2  # two from each end: 5.0 and -1.0
    assert planned_guesses(1000, 8.0, 1e-5, 0.95) >= 700  # they lie apart: nobody need abstain
    assert planned_guesses(1000, 0.0, 1e-5, 0.95) == 250  # nothing will show: a quarter
    assert 2 <= planned_guesses(1000, 1.5, 1e-5, 0.95) < 400


@pytest.mark.parametrize("numbers", [(10, 11, 5), (10, 8, 9), (10, 8, -1)])
def test_impossible_counts_are_refused(numbers):
    with pytest.raises(ValueError, match="expected 0 <= correct <= guesses <= canaries"):
        one_run_p_value(*numbers, 1.0, 0.0)


# --- a profile ----------------------------------------------------------------------------------------------------


def test_binomial_bounds_mirror_each_other():
    assert binomial_upper(0, 20, 0.05) == pytest.approx(1 - 0.05 ** (1 / 20))
    assert binomial_upper(20, 20, 0.05) == 1.0
    assert binomial_upper(3, 50, 0.01) == pytest.approx(1 - binomial_lower(47, 50, 0.01))


def gaussian_profile(shift):
    return {delta: epsilon([Charge(1 / shift, 1.0, 1)], delta, "gaussian") for delta in (1e-5, 0.01, 0.1, 0.3)}


def gaussian_pair(shift, runs, *seed):
    noise = np.random.default_rng([SEED, *seed]).normal(size=(2, runs, 2))
    noise[0, :, 1] += shift
    return noise


@pytest.mark.parametrize(("noise", "rate"), [(1.2, 0.5), (0.6, 0.05), (3.0, 1.0)])
@pytest.mark.parametrize("delta", [1e-5, 0.03])
def test_the_epsilon_of_one_release_is_exact(noise, rate, delta):
    charge = Charge(noise, rate, 1)
    upper = epsilon([charge], delta, "prv")  # PRV reports its estimate plus its own error, 0.002
    assert release_epsilon(charge, delta) == pytest.approx(upper, abs=0.004)
    if rate == 1:
        assert release_epsilon(charge, delta) == pytest.approx(epsilon([charge], delta, "gaussian"), rel=1e-6)


@pytest.mark.statistical
def test_an_exact_profile_is_rarely_exceeded():
    """With confidence 0.8 in 20 % of pairs at most; 100 pairs show more than 33 with probability 0.001."""
    profile = gaussian_profile(1.0)
    pairs = [gaussian_pair(1.0, 300, number) for number in range(100)]
    assert sum(any(bound.refuted for bound in distinguish(*pair, profile, 0.8)) for pair in pairs) <= 33


@pytest.mark.statistical
@pytest.mark.parametrize(("claimed", "factor", "runs"), [(1.6, 1.3, 8000), (0.5, 1.5, 8000), (1.6, 3.0, 600)])
def test_less_noise_than_claimed_is_refuted_where_delta_is_large(claimed, factor, runs):
    for seed in range(3):
        bounds = distinguish(*gaussian_pair(claimed * factor, runs, seed), gaussian_profile(claimed), 0.99)
        assert any(bound.refuted for bound in bounds)
        assert all(bound.measured <= bound.ceiling for bound in bounds)


def test_a_point_is_its_closed_form():
    # Told apart without error: all 50 of one half hit, none of the other: (error^(1/50) - delta) / (1 - error^(1/50)).
    (bound,) = distinguish(np.ones((100, 1)), np.zeros((100, 1)), {0.01: 1.0}, 0.9)
    low = 0.05 ** (1 / 50)
    assert bound.measured == pytest.approx(math.log((low - 0.01) / (1 - low)))
    assert bound.measured == pytest.approx(bound.ceiling)
    assert bound.refuted
    (mirrored,) = distinguish(np.zeros((100, 1)), np.ones((100, 1)), {0.01: 1.0}, 0.9)
    assert mirrored.measured == pytest.approx(bound.measured)


def test_too_few_or_broken_runs_are_refused():
    with pytest.raises(ValueError, match="at least 20 runs of finite statistics each, got 5 and 40"):
        distinguish(np.zeros((5, 1)), np.zeros((40, 1)), {0.1: 1.0})
    with pytest.raises(ValueError, match="finite"):
        distinguish(np.full((40, 1), math.nan), np.zeros((40, 1)), {0.1: 1.0})
