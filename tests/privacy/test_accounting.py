"""Epsilon against referees: dp-accounting's PLD, the analytic Gaussian, Opacus' own accountant classes."""

import math
import warnings

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant
from fedrec.errors import PrivacyError
from fedrec.privacy import _prv, accounting
from fedrec.privacy._rdp import fractional_rdp
from fedrec.privacy.accounting import Charge, epsilon, find_noise_multiplier, normalise
from opacus.accountants import PRVAccountant, RDPAccountant
from opacus.accountants.analysis import rdp

DELTA = 1e-5
# Sigma for (rounds, epsilon) by PLD: N = 20, q = 0.25, 8 steps a round, delta 1e-5.
PLANNED = {(1, 1): 3.11, (1, 3): 1.44, (1, 8): 0.80, (20, 1): 11.9, (20, 3): 4.54, (20, 8): 2.07, (100, 8): 4.33}
HISTORIES = [
    [Charge(2.07, 0.25, 160)],
    [Charge(1.0, 0.02, 500)],
    [Charge(5.0, 1.0, 40)],
    [Charge(4.0, 0.25, 80), Charge(6.0, 0.5, 20), Charge(10.0, 1.0, 3)],
]


def referee(charges: list[Charge], delta: float) -> float:
    accountant = PLDAccountant(
        neighboring_relation=dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=1e-3
    )
    for charge in charges:
        event = dp_accounting.GaussianDpEvent(charge.noise_multiplier)
        if charge.sample_rate < 1:
            event = dp_accounting.PoissonSampledDpEvent(charge.sample_rate, event)
        accountant.compose(event, charge.steps)
    return float(accountant.get_epsilon(delta))


@pytest.mark.parametrize("charges", HISTORIES)
def test_prv_agrees_with_pld_and_rdp_bounds_it(charges):
    exact = referee(charges, DELTA)
    tight, loose = epsilon(charges, DELTA, "prv"), epsilon(charges, DELTA, "rdp")
    assert exact * 0.999 - 0.002 <= tight <= exact * 1.01 + 0.003
    assert tight <= loose <= exact * 1.2 + 0.05


@pytest.mark.parametrize(("rounds", "target"), PLANNED)
def test_prv_reproduces_the_planning_table(rounds, target):
    cost = epsilon([(Charge(PLANNED[rounds, target], 0.25, 8), rounds)], DELTA, "prv")
    assert cost == pytest.approx(target, rel=0.012)


def test_rdp_is_opacus_own_at_its_best_order():
    charges = [Charge(2.07, 0.25, 160), Charge(3.0, 0.1, 7)]
    accountant = RDPAccountant()
    accountant.history = [(c.noise_multiplier, c.sample_rate, c.steps) for c in charges]
    dense = accountant.get_epsilon(DELTA, alphas=[1 + k / 50 for k in range(50, 300)])
    assert dense * (1 - 1e-9) <= epsilon(charges, DELTA) * (1 + 1e-5)
    assert epsilon(charges, DELTA) <= min(dense * 1.001, accountant.get_epsilon(DELTA) * 1.0001)


@pytest.mark.parametrize("rate", [1e-6, 0.01, 0.25, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("noise", [0.01, 0.5, 1.0, 2.07, 20.0, 1e4])
def test_a_fractional_order_is_opacus_own(rate, noise):
    """Up to what float64 loses: rounding of log A, some 1e-13, over order - 1."""
    for order in (1.02, 1.3, 2.5, 6.4, 11.9):
        exact = rdp.compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=order)
        assert fractional_rdp(rate, noise, order) == pytest.approx(exact, rel=1e-11, abs=1e-12 / (order - 1))


def test_an_order_whose_series_can_not_be_summed_is_left_out():
    assert fractional_rdp(0.5, 1e-200, 2.5) == math.inf
    assert math.isfinite(epsilon([Charge(1e5, 0.5, 1)], 1e-5))


@pytest.mark.parametrize("charges", [HISTORIES[0], HISTORIES[3], [Charge(0.8, 0.25, 8)]])
def test_prv_is_opacus_own(charges):
    accountant = PRVAccountant()
    accountant.history = [(charge.noise_multiplier, charge.sample_rate, charge.steps) for charge in charges]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the order that bounds the mesh is the largest
        theirs = accountant.get_epsilon(DELTA, eps_error=0.002)
    assert _prv.prv_epsilon(tuple(charges), DELTA) == pytest.approx(theirs, rel=1e-9)


def test_rdp_orders_reach_far_enough_at_full_participation():
    # Plain Gaussian: RDP is alpha / (2 sigma^2), so the best possible conversion is found on a dense grid of orders.
    for noise, steps in ((40.0, 1), (5.0, 40), (0.5, 1), (0.1, 1)):
        rate = steps / (2 * noise**2)
        dense = (1 + 10 ** (k / 1000 - 3) for k in range(7000))
        best = min(a * rate - (math.log(DELTA) + math.log(a)) / (a - 1) + math.log((a - 1) / a) for a in dense)
        assert best <= epsilon([Charge(noise, 1.0, steps)], DELTA) + 1e-9 <= best * 1.004 + 2e-9


@pytest.mark.parametrize(("noise", "steps"), [(1.0, 1), (5.0, 40), (3.0, 60), (200.0, 1)])
def test_gaussian_is_exact(noise, steps):
    cost = epsilon([Charge(noise, 1.0, steps)], DELTA, "gaussian")
    mu = math.sqrt(steps) / noise
    delta = 0.5 * math.erfc((cost / mu - mu / 2) / math.sqrt(2)) - math.exp(cost) * 0.5 * math.erfc(
        (cost / mu + mu / 2) / math.sqrt(2)
    )
    assert delta == pytest.approx(DELTA, rel=1e-6) if cost > 0 else delta <= DELTA
    assert epsilon([Charge(noise, 1.0, steps)], DELTA, "prv") == cost


def test_gaussian_refuses_sampled_releases():
    with pytest.raises(PrivacyError, match="sample_rate = 1 only: use accountant 'prv' or 'rdp'"):
        epsilon([Charge(1.0, 0.5, 1)], DELTA, "gaussian")


def test_gdp_is_an_approximation_of_the_right_size_and_composes_different_noises():
    charges = [Charge(4.0, 0.05, 500), Charge(6.0, 0.05, 500)]
    assert epsilon(charges, DELTA, "gdp") == pytest.approx(referee(charges, DELTA), rel=0.05)


def test_prv_falls_back_to_rdp_beyond_its_bounds(monkeypatch):
    charges = [Charge(2.0, 0.25, 100)]
    expected = epsilon(charges, DELTA, "rdp")
    assert epsilon(charges, DELTA, "prv") < expected
    for bound in ("_MAX_MESH", "_MAX_STEPS"):
        monkeypatch.setattr(_prv, bound, 10)
        accounting._epsilon.cache_clear()
        assert epsilon(charges, DELTA, "prv") == expected
        monkeypatch.undo()
    accounting._epsilon.cache_clear()


def test_long_histories_do_not_exhaust_memory():
    assert epsilon([Charge(1.0, 0.001, 5_000_000)], 1e-6, "prv") == epsilon([Charge(1.0, 0.001, 5_000_000)], 1e-6)


@pytest.mark.parametrize("accountant", ["rdp", "prv", "gdp", "gaussian"])
def test_nothing_spent_costs_nothing(accountant):
    assert epsilon([], DELTA, accountant) == 0.0


@pytest.mark.parametrize("accountant", ["rdp", "prv", "gdp"])
def test_extreme_noise_gives_a_number(accountant):
    assert epsilon([Charge(1e5, 0.01, 1)], DELTA, accountant) < 0.01
    assert epsilon([Charge(0.01, 0.5, 1)], DELTA, accountant) > 1000


def test_composition_ignores_order_and_grouping():
    first, second = Charge(4.0, 0.25, 8), Charge(6.0, 0.25, 8)
    merged = normalise([first, second, (first, 2)])
    assert merged == (Charge(4.0, 0.25, 24), Charge(6.0, 0.25, 8)) == normalise([second, (first, 3)])
    assert epsilon([first, second, (first, 2)], DELTA) == epsilon(merged, DELTA) > epsilon([first, second], DELTA)


@pytest.mark.parametrize("accountant", ["rdp", "prv", "gdp"])
@pytest.mark.parametrize(("target", "rate", "steps"), [(8.0, 0.25, 160), (1.0, 0.1, 20), (0.1, 1.0, 5)])
def test_found_noise_meets_the_target_and_is_tight(accountant, target, rate, steps):
    noise = find_noise_multiplier(target, DELTA, rate, steps, accountant)
    assert epsilon([Charge(noise, rate, steps)], DELTA, accountant) <= target
    assert epsilon([Charge(noise / 1.002, rate, steps)], DELTA, accountant) > target


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, DELTA, 0.5, 1), "expected privacy.epsilon > 0"),
        ((math.nan, DELTA, 0.5, 1), "expected privacy.epsilon > 0"),
        ((1.0, 1.0, 0.5, 1), "expected 0 < privacy.delta < 1, got 1.0"),
        ((1.0, 0.0, 0.5, 1), "expected 0 < privacy.delta < 1"),
        ((1.0, DELTA, 0.0, 1), "privacy.sample_rate"),
        ((1.0, DELTA, 0.5, 0), "privacy.steps to be an integer >= 1, got 0"),
        ((1.0, DELTA, 0.5, 1, "moments"), "one of rdp, prv, gdp, gaussian, got 'moments'"),
    ],
)
def test_wrong_planning_input_raises(arguments, message):
    with pytest.raises(ValueError, match=message):
        find_noise_multiplier(*arguments)


def test_unreachable_target_raises():
    with pytest.raises(PrivacyError, match="no noise multiplier below 1e6"):
        find_noise_multiplier(1e-9, 1e-300, 1.0, 10**9)


@pytest.mark.parametrize(
    ("noise", "rate", "steps"),
    [(0.0, 0.5, 1), (-1.0, 0.5, 1), (math.inf, 0.5, 1), (math.nan, 0.5, 1), (1.0, 0.0, 1), (1.0, 1.1, 1),
     (1.0, math.nan, 1), (1.0, 0.5, 0), (1.0, 0.5, -3), (1.0, 0.5, True), (1.0, 0.5, 2.5)],
)  # fmt: skip
def test_a_charge_that_is_none_is_refused(noise, rate, steps):
    with pytest.raises(ValueError, match="charge"):
        Charge(noise, rate, steps)


def test_charge_round_trip_and_unknown_keys():
    charge = Charge(1.5, 0.25, 8)
    assert Charge.from_dict(charge.to_dict()) == charge
    with pytest.raises(ValueError, match="expected a charge with the keys"):
        Charge.from_dict({"noise_multiplier": 1.0})
