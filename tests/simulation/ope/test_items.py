"""Estimators for items in worlds where every outcome can be listed: expectations are sums, not samples."""

from __future__ import annotations

import numpy as np
import pytest
from fedrec.errors import DataError
from fedrec.simulation.ope.items import (
    dm,
    dr,
    importance_weights,
    ips,
    snips,
    switch_dr,
    switch_threshold,
)
from ope_worlds import draw_items, item_outcomes, item_world


def parts(world, x, a, model, propensities=None):
    """Weights, predictions of the logged items and under the judged policy."""
    logging = world["logging"] if propensities is None else propensities
    weights = importance_weights(world["judged"][x, a], logging[x, a])
    return weights, model[x, a], (world["judged"] * model).sum(axis=1)[x]


def expectation(terms, probability):
    return float((terms.numerators * probability).sum())


@pytest.mark.parametrize("seed", range(5))
def test_ips_is_unbiased_to_the_last_digit(seed):
    world = item_world(seed)
    x, a, r, probability = item_outcomes(world)
    weights, _, _ = parts(world, x, a, world["clicks"])
    assert expectation(ips(weights, r), probability) == pytest.approx(world["value"], abs=1e-14)
    assert expectation(ips(weights, np.ones_like(r)), probability) == pytest.approx(1.0, abs=1e-14)
    assert expectation(ips(1 / np.maximum(weights, 1e-9), r), probability) != pytest.approx(world["value"], abs=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_dr_is_right_where_either_the_propensities_or_the_model_are(seed):
    world = item_world(seed)
    x, a, r, probability = item_outcomes(world)
    draw = np.random.default_rng(seed)
    wrong_model = draw.random(world["clicks"].shape)
    wrong_propensities = draw.dirichlet(np.ones(world["logging"].shape[1]), size=len(world["logging"]))

    def value(model, propensities):
        weights, predicted, expected = parts(world, x, a, model, propensities)
        return expectation(dr(weights, r, predicted, expected), probability)

    assert value(wrong_model, world["logging"]) == pytest.approx(world["value"], abs=1e-13)
    assert value(world["clicks"], wrong_propensities) == pytest.approx(world["value"], abs=1e-13)
    assert abs(value(wrong_model, wrong_propensities) - world["value"]) > 1e-3


def test_dm_is_as_good_as_its_model():
    world = item_world(1)
    x, a, _, probability = item_outcomes(world)
    assert expectation(dm(parts(world, x, a, world["clicks"])[2]), probability) == pytest.approx(world["value"])
    assert expectation(dm(parts(world, x, a, world["clicks"] / 2)[2]), probability) == pytest.approx(world["value"] / 2)


def test_a_good_model_lowers_the_variance_of_dr_below_that_of_ips():
    world = item_world(2)
    x, a, r, probability = item_outcomes(world)
    weights, predicted, expected = parts(world, x, a, world["clicks"])

    def variance(terms):
        return float((terms.numerators**2 * probability).sum()) - world["value"] ** 2

    assert variance(dr(weights, r, predicted, expected)) < 0.8 * variance(ips(weights, r))


def test_samples_come_within_four_standard_errors():
    """20,000 rows, five estimators with fixed seeds; by chance one of them would fail once in 3,000 seeds."""
    world = item_world(3)
    x, a, r = draw_items(world, 20_000, seed=5)
    weights, predicted, expected = parts(world, x, a, np.clip(world["clicks"] + 0.2, 0, 1))
    for terms in (
        ips(weights, r),
        dr(weights, r, predicted, expected),
        switch_dr(weights, r, predicted, expected, 1e9),
    ):
        error = terms.numerators.std() / np.sqrt(len(x))
        assert abs(terms.value - world["value"]) < 4 * error
        assert error < 0.02
    normalised = snips(weights, r)
    error = (weights * (r - normalised.value)).std() / np.sqrt(len(x))
    assert abs(normalised.value - world["value"]) < 4 * error


def test_snips_moves_with_the_rewards_and_stays_within_them():
    world = item_world(4)
    x, a, r = draw_items(world, 50, seed=1)
    weights, _, _ = parts(world, x, a, world["clicks"])
    assert snips(weights, r + 3).value == pytest.approx(snips(weights, r).value + 3)
    assert 0 <= snips(10 * weights, r).value <= 1
    assert snips(np.zeros(50), r).value != snips(np.zeros(50), r).value  # NaN: nothing is known


def test_switch_dr_lies_between_dm_and_dr():
    world = item_world(5)
    x, a, r = draw_items(world, 300, seed=2)
    all_parts = parts(world, x, a, np.full_like(world["clicks"], 0.3))
    weights, predicted, expected = all_parts
    assert switch_dr(weights, r, predicted, expected, 0.0).value == dm(expected).value
    assert switch_dr(weights, r, predicted, expected, np.inf).value == dr(weights, r, predicted, expected).value
    by_hand = np.mean([q + (w * (y - p) if w <= 1.5 else 0) for w, p, q, y in zip(*all_parts, r, strict=True)])
    assert switch_dr(weights, r, predicted, expected, 1.5).value == pytest.approx(by_hand)


def test_the_threshold_goes_down_as_long_as_the_estimates_agree():
    """Weights are spread evenly; rewards are 1 where the weight is in the upper fifth of all weight, else 0."""
    weights = np.linspace(0, 2, 20_000)
    share = np.cumsum(weights) / weights.sum()
    rewards = (share > 0.8).astype(float)
    tenth = weights[np.searchsorted(share, 0.9)]
    assert switch_threshold(weights, rewards, rewards, np.full(20_000, rewards @ weights / 20_000)) == tenth
    nothing = np.zeros(20_000)  # a model that knows of no reward: what it is left with is lost
    found = switch_threshold(weights, rewards, nothing, nothing)
    assert tenth < found
    lost = ips(weights, rewards).value - switch_dr(weights, rewards, nothing, nothing, found).value
    error = (weights * rewards).std() / np.sqrt(20_000)
    assert 0 <= lost < 2 * 2 * 1.96 * error
    assert switch_threshold(nothing, rewards, nothing, nothing) == np.inf


@pytest.mark.parametrize(
    ("target", "propensities", "sentence"),
    [
        ([0.1], [0.0], r"expected propensities in \(0, 1\]"),
        ([0.1], [1.5], r"expected propensities in \(0, 1\]"),
        ([0.1], [np.nan], r"expected propensities in \(0, 1\]"),
        ([1.2], [0.5], "expected probabilities of the judged policy"),
        ([0.1, 0.2], [0.5], "expected a probability and a propensity for each row"),
    ],
)
def test_numbers_that_are_no_probabilities_are_refused(target, propensities, sentence):
    with pytest.raises(DataError, match=sentence):
        importance_weights(np.array(target), np.array(propensities))


@pytest.mark.parametrize("threshold", [-1.0, np.nan])
def test_a_wrong_threshold_is_refused(threshold):
    with pytest.raises(ValueError, match="expected a switch threshold >= 0"):
        switch_dr(np.ones(1), np.ones(1), np.ones(1), np.ones(1), threshold)
