"""Choice models: closed forms against a user who scans the slate slot by slot, frequencies, and the best slate."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import exp

import numpy as np
import pytest
from fedrec.errors import DataError
from fedrec.simulation.behaviour.choice import click_probabilities, click_value, expected_reward
from fedrec.simulation.users import Stage, UserOptions, UserSimulator

FUNNEL = (
    Stage(name="view", reward=0.1),
    Stage(name="cart", reward=0.3, offset=-0.5),
    Stage(name="purchase", reward=1.0, offset=0.5),
)
CHOICES = ("logit", "position", "cascade")
SIGMAS = 4.5
"""Two-sided normal tail of 7e-6 for each comparison, of which there are about 60: 1 seed in 2,000 fails by chance."""


def sigma(u):
    return 1 / (1 + exp(-u))


def test_one_item_is_clicked_with_its_calibrated_probability_in_every_model():
    for choice, u in product(CHOICES, (-3.0, 0.0, 1.5)):
        found = click_probabilities(UserOptions(choice=choice), np.array([[u]]))
        assert found.item() == pytest.approx(sigma(u))


def test_two_slots_in_closed_form():
    a, b = 0.4, -0.7
    slate = np.array([[a, b]])
    total = 1 + exp(a) + exp(b)
    assert click_probabilities(UserOptions(), slate)[0] == pytest.approx([exp(a) / total, exp(b) / total])
    by_position = click_probabilities(UserOptions(choice="position", examination=2.0), slate)[0]
    assert by_position == pytest.approx([sigma(a), sigma(b) / 4])
    cascading = click_probabilities(UserOptions(choice="cascade", patience=0.6), slate)[0]
    assert cascading == pytest.approx([sigma(a), (1 - sigma(a)) * 0.6 * sigma(b)])


def test_extreme_utilities_neither_overflow_nor_vanish():
    slate = np.array([[800.0, -800.0, -np.inf], [-np.inf, -np.inf, -np.inf]])
    for choice in CHOICES:
        found = click_probabilities(UserOptions(choice=choice), slate)
        assert found[0] == pytest.approx([1.0, 0.0, 0.0])
        assert (found[1] == 0).all()


def test_the_value_of_a_click_is_the_mean_over_its_stages():
    u = 0.3
    cart, bought = sigma(u - 0.5), sigma(u - 0.5) * sigma(u + 0.5)
    by_hand = (1 - cart) * 0.1 + (cart - bought) * 0.3 + bought * 1.0
    assert click_value(FUNNEL, np.array([u])).item() == pytest.approx(by_hand)


@pytest.mark.statistical
@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_clicks_and_stages_come_as_often_as_they_should(make_population, choice, noise):
    copies = 40_000
    options = UserOptions(choice=choice, slate=3, stages=FUNNEL, noise=noise, track_regret=False, seed=3)
    simulator = UserSimulator(make_population(), options, np.zeros(copies, dtype=np.int64))
    slates = np.tile([4, 1, 6], (copies, 1))
    utilities = simulator.utilities(slates)[:1]
    expected = (1 - noise) * click_probabilities(options, utilities)[0] + noise / 3
    feedback = simulator.respond(slates)
    error = np.sqrt(expected * (1 - expected) / copies)
    assert (np.abs(feedback.clicks.mean(axis=0) - expected) < SIGMAS * error).all()
    reward = feedback.rewards.sum(axis=1)
    assert abs(reward.mean() - feedback.expected[0]) < SIGMAS * reward.std() / np.sqrt(copies)
    if choice != "position":
        assert feedback.clicks.sum(axis=1).max() == 1
    if not noise:
        further = feedback.stages[feedback.clicks[:, 0], 0]
        for stage in (1, 2):
            u = utilities[0, 0]
            rate = sigma(u - 0.5) * (sigma(u + 0.5) if stage == 2 else 1)
            error = np.sqrt(rate * (1 - rate) / len(further))
            assert abs((further >= stage).mean() - rate) < SIGMAS * error
            assert abs((further >= stage).mean() - 1.5 * rate) > SIGMAS * error


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("stages", [UserOptions().stages, FUNNEL])
@pytest.mark.parametrize("level", [-3.0, 0.0, 3.0])
def test_no_slate_beats_the_oracle(make_population, choice, stages, level):
    """Every action there is, repeated items (empty slots) and all: 6^3 slates of four users."""
    options = UserOptions(choice=choice, slate=3, stages=stages, patience=0.7, noise=0.1)
    simulator = UserSimulator(make_population(4, 6, level=level, strength=2.0), options)
    slates = np.array(list(product(range(6), repeat=3)))
    every = np.stack([simulator.expected_reward(np.tile(slate, (4, 1))) for slate in slates])
    best, values = simulator.oracle()
    assert values == pytest.approx(every.max(axis=0), abs=1e-12)
    assert simulator.expected_reward(best) == pytest.approx(values, abs=1e-12)
    shown = slates[[5, 50, 100, 200]]
    regret = simulator.respond(shown).regret
    rows = np.arange(4)
    assert regret == pytest.approx(every.max(axis=0) - every[[5, 50, 100, 200], rows], abs=1e-12)


def test_a_worthless_first_stage_makes_the_best_slate_shorter(make_population):
    """With logit choice a filler that is viewed and never bought keeps users from what they would buy."""
    stages = (Stage(name="view", reward=0.0), Stage(name="purchase", reward=1.0, offset=-2.0))
    options = UserOptions(slate=3, stages=stages)
    simulator = UserSimulator(make_population(20, 6, level=1.0, strength=3.0), options)
    best, values = simulator.oracle()
    distinct = np.array([len(set(slate)) for slate in best.tolist()])
    assert distinct.min() < 3
    order = np.argsort(-np.stack([simulator.population.utilities(user) for user in range(20)]), axis=1)[:, :3]
    full = simulator.expected_reward(order)
    assert (values >= full).all()
    assert (values > full + 1e-6).any()


def test_an_oracle_of_other_sizes(make_population):
    simulator = UserSimulator(make_population(3, 6), UserOptions(slate=2, choice="position"))
    for slots in (1, 4):
        slates, values = simulator.oracle(slots)
        assert slates.shape == (3, slots)
        every = np.array(list(product(range(6), repeat=slots)))
        brute = [simulator.expected_reward(np.tile(slate, (3, 1))) for slate in every]
        assert values == pytest.approx(np.max(brute, axis=0))


def test_a_repeated_item_is_an_empty_slot(make_population):
    simulator = UserSimulator(make_population(), UserOptions(choice="position", slate=3))
    both, once = np.tile([2, 2, 5], (6, 1)), np.tile([2, 5], (6, 1))
    options = replace(simulator.options, examination=0.0)
    assert (simulator.utilities(both)[:, 1] == -np.inf).all()
    nobody = np.zeros(6)
    with_hole = expected_reward(options, simulator.utilities(both), nobody)
    assert with_hole == pytest.approx(expected_reward(options, simulator.utilities(once), nobody))


@pytest.mark.parametrize(
    ("slates", "message"),
    [
        (
            np.zeros((2, 3), dtype=np.int64),
            r"expected slates as integers of shape \(6, slots\), got int64 of shape \(2, 3\)",
        ),
        (np.zeros((6, 3)), r"expected slates as integers of shape \(6, slots\), got float64"),
        (np.full((6, 3), 8), r"expected items in \[0, 8\), got 8"),
        (np.full((6, 3), -1), r"expected items in \[0, 8\), got -1"),
    ],
)
def test_impossible_slates(make_population, slates, message):
    with pytest.raises(DataError, match=message):
        UserSimulator(make_population()).respond(slates)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slate": 0}, "expected slate to be an integer >= 1, got 0"),
        ({"noise": 1.5}, "expected 0 <= noise <= 1, got 1.5"),
        ({"drift": float("nan")}, "expected 0 <= drift <= 1, got nan"),
        ({"fatigue": -1.0}, "expected fatigue >= 0 and finite, got -1.0"),
        ({"choice": "best"}, "expected choice to be one of logit, position, cascade, got 'best'"),
        ({"stages": ()}, "expected one stage or more, got none"),
        ({"stages": FUNNEL[::-1]}, "expected rewards of stages that do not fall"),
        ({"shift_at": 0}, "expected shift_at to be an integer >= 1, got 0"),
    ],
)
def test_impossible_users(changes, message):
    with pytest.raises(ValueError, match=message):
        UserOptions(**changes)


def test_a_slate_larger_than_the_catalogue_and_users_who_are_not_there(make_population):
    with pytest.raises(DataError, match="expected slate <= 4 and promoted < 4, got 5 and 0"):
        UserSimulator(make_population(items=4))
    with pytest.raises(DataError, match=r"expected users in \[0, 6\), got 6 to 6"):
        UserSimulator(make_population(), users=np.array([6]))
