"""Estimators for slates on a cascade that can be summed over, and against the numbers of obp."""

from __future__ import annotations

import numpy as np
import pytest
from fedrec.simulation.ope.slates import (
    cascade_dr,
    independent_ips,
    reward_interaction_ips,
    reward_interaction_snips,
    slate_ips,
)
from ope_worlds import conditionals, place_table, slate_probabilities, slates_of

ITEMS, SLOTS = 4, 3


def world(kind, seed=0):
    """All slates, mean rewards by slot, both policies' probabilities and the true value.

    ``cascade``: a slot's reward depends on the items above it, as where people stop looking; ``alone``: on its own
    item and place; ``anything``: on the items below it, too.
    """
    draw = np.random.default_rng(seed)
    logging, judged = (draw.dirichlet(np.full(ITEMS, 2.0)) for _ in range(2))
    slates = slates_of(ITEMS, SLOTS)
    appeal = draw.uniform(0.1, 0.9, ITEMS)
    own = appeal[slates]
    if kind == "cascade":
        before = np.cumprod(1 - own, axis=1)
        rewards = own * np.concatenate([np.ones((len(own), 1)), before[:, :-1]], axis=1)
    elif kind == "alone":
        rewards = own * np.array([1.0, 0.6, 0.3])
    else:
        rewards = own * own[:, ::-1]
    weight, target = slate_probabilities(logging, slates), slate_probabilities(judged, slates)
    return {
        "slates": slates,
        "rewards": rewards,
        "ratios": conditionals(judged, slates) / conditionals(logging, slates),
        "marginals": (place_table(judged, SLOTS) / place_table(logging, SLOTS))[np.arange(SLOTS), slates],
        "probability": weight,
        "judged": judged,
        "value": float((target * rewards.sum(axis=1)).sum()),
    }


def expectation(terms, found):
    return float((terms.numerators * found["probability"]).sum())


def future(found):
    """The true ``Q_l`` and its mean over what the judged policy would show, from a listing of all slates."""
    slates, rewards = found["slates"], found["rewards"]
    weights = slate_probabilities(found["judged"], slates)
    predicted, expected = np.zeros_like(rewards), np.zeros_like(rewards)
    for row, slate in enumerate(slates):
        for slot in range(SLOTS):
            for table, length in ((predicted, slot + 1), (expected, slot)):
                same = (slates[:, :length] == slate[:length]).all(axis=1)
                table[row, slot] = np.average(rewards[same, slot:].sum(axis=1), weights=weights[same])
    return predicted, expected


@pytest.mark.parametrize("seed", range(3))
def test_who_is_unbiased_on_a_cascade(seed):
    found = world("cascade", seed)
    ratios, rewards = found["ratios"], found["rewards"]
    assert expectation(slate_ips(ratios, rewards), found) == pytest.approx(found["value"], abs=1e-13)
    assert expectation(reward_interaction_ips(ratios, rewards), found) == pytest.approx(found["value"], abs=1e-13)
    assert abs(expectation(independent_ips(found["marginals"], rewards), found) - found["value"]) > 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_who_is_unbiased_where_items_are_judged_alone(seed):
    found = world("alone", seed)
    ratios, rewards = found["ratios"], found["rewards"]
    for terms in (slate_ips(ratios, rewards), reward_interaction_ips(ratios, rewards)):
        assert expectation(terms, found) == pytest.approx(found["value"], abs=1e-13)
    assert expectation(independent_ips(found["marginals"], rewards), found) == pytest.approx(found["value"], abs=1e-13)


def test_only_the_whole_slate_will_do_where_later_items_matter():
    found = world("anything")
    ratios, rewards = found["ratios"], found["rewards"]
    assert expectation(slate_ips(ratios, rewards), found) == pytest.approx(found["value"], abs=1e-13)
    assert abs(expectation(reward_interaction_ips(ratios, rewards), found) - found["value"]) > 1e-3


def test_cascade_dr_is_unbiased_with_any_model_that_keeps_to_the_prefix():
    found = world("cascade")
    predicted, expected = future(found)
    for scale, shift in ((1, 0), (0.3, 0), (1, 5.0), (-2, 1)):
        terms = cascade_dr(found["ratios"], found["rewards"], scale * predicted + shift, scale * expected + shift)
        assert expectation(terms, found) == pytest.approx(found["value"], abs=1e-12)
    without = cascade_dr(found["ratios"], found["rewards"], predicted, 0 * expected)
    assert abs(expectation(without, found) - found["value"]) > 1e-3


def test_each_assumption_lowers_the_variance():
    found = world("cascade", 1)
    predicted, expected = future(found)

    def variance(terms):
        return float((terms.numerators**2 * found["probability"]).sum()) - expectation(terms, found) ** 2

    whole = variance(slate_ips(found["ratios"], found["rewards"]))
    rips = variance(reward_interaction_ips(found["ratios"], found["rewards"]))
    doubly = variance(cascade_dr(found["ratios"], found["rewards"], predicted, expected))
    assert doubly < 0.5 * rips < 0.5 * whole


def test_without_a_difference_between_the_policies_every_estimate_is_the_mean():
    rewards = np.random.default_rng(0).random((20, SLOTS))
    ones = np.ones_like(rewards)
    mean = rewards.sum(axis=1).mean()
    for terms in (
        slate_ips(ones, rewards),
        independent_ips(ones, rewards),
        reward_interaction_ips(ones, rewards),
        reward_interaction_snips(ones, rewards),
    ):
        assert terms.value == pytest.approx(mean)
    assert reward_interaction_snips(7 * ones, rewards).value == pytest.approx(mean)


def test_the_numbers_of_obp(obp):
    """A table of six slates, kept beside obp's own estimates on it (benchmarks/peers/obp/reference.py)."""
    table = {name: np.array(values) for name, values in obp["slates"]["table"].items()}
    expected = obp["slates"]["values"]
    ratios = table["target"] / table["behaviour"]
    marginals = table["target_marginal"] / table["behaviour_marginal"]
    rewards = table["reward"]
    logged = np.take_along_axis(table["predicted"], table["action"][..., None], axis=2)[..., 0]
    mean = (table["distribution"] * table["predicted"]).sum(axis=2)
    assert slate_ips(ratios, rewards).value == pytest.approx(expected["ips"], abs=1e-12)
    assert independent_ips(marginals, rewards).value == pytest.approx(expected["iips"], abs=1e-12)
    assert reward_interaction_ips(ratios, rewards).value == pytest.approx(expected["rips"], abs=1e-12)
    assert reward_interaction_snips(ratios, rewards).value == pytest.approx(expected["snrips"], abs=1e-12)
    assert cascade_dr(ratios, rewards, logged, mean).value == pytest.approx(expected["cascade_dr"], abs=1e-12)
