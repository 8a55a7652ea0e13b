"""What is gathered row by row, against loops that take every state, item and slate one after the other."""

from __future__ import annotations

import numpy as np
import pytest
from fedrec.simulation.ope.measured import measure_impressions, measure_slates
from fedrec.simulation.ope.reward_model import RewardModel
from ope_worlds import place_table

ITEMS, SLOTS, FOLDS, CONTEXTS = 5, 3, 3, 4


@pytest.fixture
def draw():
    return np.random.default_rng(11)


@pytest.fixture
def chances(draw):
    return draw.dirichlet(np.ones(ITEMS), size=CONTEXTS)


def model_of(draw, rows, slots=SLOTS):
    table = draw.random((FOLDS, slots, ITEMS))
    return RewardModel(table=table, folds=draw.integers(0, FOLDS, rows), outside=draw.random((FOLDS, slots)))


def in_parts(chances):
    """The states in two portions, as they come from a run."""
    return [(np.arange(3), chances[:3]), (np.arange(3, CONTEXTS), chances[3:])]


def test_single_impressions(draw, chances):
    rows = 40
    of_row, items = draw.integers(0, CONTEXTS, rows), draw.integers(-1, ITEMS - 1, rows)  # the last item never shows
    places, model = draw.integers(0, SLOTS, rows), model_of(draw, rows)
    found = measure_impressions(in_parts(chances), of_row, items, places, model)
    shown = set(zip(places.tolist(), items.tolist(), strict=True))
    for row in range(rows):
        at, place, fold = place_table(chances[of_row[row]], SLOTS)[places[row]], int(places[row]), model.folds[row]
        known = items[row] >= 0
        assert found.target[row] == pytest.approx(at[items[row]] if known else 0.0)
        own = model.table[fold, place, items[row]] if known else model.outside[fold, place]
        assert found.predicted[row] == own
        assert found.expected[row] == pytest.approx(at @ model.table[fold, place])
        assert found.missing[row] == pytest.approx(sum(at[a] for a in range(ITEMS) if (place, a) not in shown))


def test_slates_of_different_lengths(draw, chances):
    lengths = [3, 3, 1, 2, 3, 2]
    rows = sum(lengths)
    items = np.concatenate([draw.permutation(ITEMS)[:length] for length in lengths])
    items[4] = -1  # an item that the catalogue lacks
    grid = np.full((len(lengths), SLOTS), -1)
    for slate, length in enumerate(lengths):
        grid[slate, :length] = np.arange(length) + sum(lengths[:slate])
    of_slate = draw.integers(0, CONTEXTS, len(lengths))
    model = model_of(draw, rows)
    model = RewardModel(table=model.table, folds=np.repeat(model.folds[: len(lengths)], lengths), outside=model.outside)
    found = measure_slates(in_parts(chances), np.repeat(of_slate, lengths), items, grid, model, marginals=True)
    for slate, length in enumerate(lengths):
        rest = dict(enumerate(chances[of_slate[slate]]))
        table, fold = place_table(chances[of_slate[slate]], SLOTS), model.folds[grid[slate, 0]]
        for slot in range(SLOTS):
            if slot >= length:
                assert (found.target[slate, slot], found.marginal[slate, slot]) == (1.0, 1.0)
                assert (found.predicted[slate, slot], found.expected[slate, slot]) == (0.0, 0.0)
                continue
            item, total = int(items[grid[slate, slot]]), sum(rest.values())
            assert found.target[slate, slot] == pytest.approx(rest.get(item, 0.0) / total)
            assert found.marginal[slate, slot] == pytest.approx(table[slot, item] if item >= 0 else 0.0)
            means = [
                sum(chance / total * model.table[fold, place, a] for a, chance in rest.items())
                for place in range(length)
            ]
            own = model.table[fold, slot, item] if item >= 0 else model.outside[fold, slot]
            assert found.predicted[slate, slot] == pytest.approx(own + sum(means[slot + 1 :]))
            assert found.expected[slate, slot] == pytest.approx(sum(means[slot:]))
            rest.pop(item, None)


def test_what_the_log_never_shows_first_is_missing(draw, chances):
    items, grid = np.array([0, 1, 2, 0]), np.array([[0, 1], [2, 3]])
    model, of_row = model_of(draw, 4, slots=2), np.array([0, 0, 3, 3])
    found = measure_slates(in_parts(chances), of_row, items, grid, model, marginals=False)
    assert found.missing == pytest.approx(chances[[0, 3]][:, [1, 3, 4]].sum(axis=1))
    assert found.marginal is None
