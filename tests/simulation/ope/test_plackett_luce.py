"""Probabilities of slates and places, against a listing of every slate."""

from __future__ import annotations

import numpy as np
import pytest
from fedrec.simulation.ope.plackett_luce import conditional_probabilities, place_probabilities
from hypothesis import given, settings
from hypothesis import strategies as st
from ope_worlds import conditionals, place_table, slates_of

HARD = [
    [0.25, 0.25, 0.25, 0.25],
    [0.5, 0.2, 0.15, 0.1, 0.05],
    [0.999, 0.0009, 0.00009, 0.000005, 0.000005],
    [1 - 3e-9, 1e-9, 1e-9, 1e-9],
    [0.5, 0.5 - 2e-12, 1e-12, 1e-12],
]


@pytest.mark.parametrize("chances", HARD)
def test_places_are_those_of_the_listing(chances):
    chances = np.array(chances)
    assert place_probabilities(chances[None], 3)[0] == pytest.approx(place_table(chances, 3), abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(1e-6, 1.0), min_size=3, max_size=5), st.integers(1, 3))
def test_places_of_any_policy(weights, slots):
    chances = np.array(weights) / sum(weights)
    found = place_probabilities(chances[None], slots)[0]
    assert found == pytest.approx(place_table(chances, slots), abs=1e-10)
    assert found.sum(axis=1) == pytest.approx(np.ones(slots), abs=1e-10)


def test_an_item_that_is_never_shown_has_no_place_and_few_items_fill_few_slots():
    found = place_probabilities(np.array([[0.7, 0.0, 0.3]]), 3)[0]
    assert found[:, 1].tolist() == [0, 0, 0]
    assert found.sum(axis=1) == pytest.approx([1, 1, 0], abs=1e-12)


def test_conditionals_go_down_the_slate():
    chances = np.array([0.5, 0.2, 0.2, 0.1])
    slates = slates_of(4, 3)
    repeated = np.broadcast_to(chances, (len(slates), 4))
    assert conditional_probabilities(repeated, slates) == pytest.approx(conditionals(chances, slates))
    assert conditional_probabilities(chances[None], np.array([[0, -1, 3]]))[0] == pytest.approx([0.5, 0.0, 0.2])
