"""What changes in users, one switch at a time: off equals plain, on does what its formula says."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from fedrec.simulation.users import UserOptions, UserSimulator

SIGMAS = 4.5
"""Two-sided normal tail of 7e-6 a comparison; a dozen comparisons here."""


def walk(simulator, steps, slate=(0, 1, 2)):
    slates = np.tile(slate, (len(simulator.users), 1))
    return [simulator.respond(slates) for _ in range(steps)]


def test_without_switches_nothing_changes(make_population):
    simulator = UserSimulator(make_population(), UserOptions(slate=3))
    before = simulator.utilities(np.tile(np.arange(8), (6, 1)))
    values = [feedback.best for feedback in walk(simulator, 5)]
    assert (simulator.utilities(np.tile(np.arange(8), (6, 1))) == before).all()
    assert (np.array(values) == values[0]).all()
    assert before == pytest.approx(np.stack([simulator.population.utilities(user) for user in range(6)]))


@pytest.mark.statistical
def test_drift_is_stationary_and_forgets_at_its_rate(make_population):
    """Over 6,000 users: mean and deviation stay, and the correlation with the start falls as (1 - d^2)^(n/2)."""
    population, steps, drift = make_population(6000, 4, latent=2, strength=2.0, seed=5), 12, 0.3
    simulator = UserSimulator(population, UserOptions(slate=1, drift=drift, track_regret=False))
    walk(simulator, steps, slate=(0,))
    start, now = population.tastes, simulator.state.taste
    error = 1 / np.sqrt(6000)
    assert (np.abs(now.mean(axis=0) - start.mean(axis=0)) < SIGMAS * start.std(axis=0) * error * np.sqrt(2)).all()
    assert now.std(axis=0) == pytest.approx(start.std(axis=0), rel=SIGMAS * error)
    kept = (1 - drift**2) ** (steps / 2)
    for coordinate in range(2):
        found = np.corrcoef(start[:, coordinate], now[:, coordinate])[0, 1]
        assert abs(found - kept) < SIGMAS * error
        assert abs(found - kept**2) > SIGMAS * error


def test_tastes_jump_once_and_only_for_a_share(make_population):
    population = make_population(2000, 4, seed=2)
    simulator = UserSimulator(population, UserOptions(slate=1, shift_at=3, shift_share=0.4))
    first = walk(simulator, 2, slate=(0,))
    assert (simulator.state.taste == population.tastes).all()
    walk(simulator, 1, slate=(0,))
    moved = (simulator.state.taste != population.tastes).any(axis=1)
    assert abs(moved.mean() - 0.4) < SIGMAS * np.sqrt(0.24 / 2000)
    known = {tuple(taste) for taste in population.tastes.tolist()}
    assert {tuple(taste) for taste in simulator.state.taste.tolist()} <= known
    after = walk(simulator, 2, slate=(0,))
    assert (simulator.state.taste != population.tastes).any(axis=1).sum() == moved.sum()
    assert ((after[0].best != first[0].best) == moved).all()


def test_after_the_jump_tastes_drift_on(make_population):
    simulator = UserSimulator(make_population(), UserOptions(slate=1, shift_at=2, drift=0.1))
    tastes = []
    for _ in range(4):
        walk(simulator, 1, slate=(0,))
        tastes.append(simulator.state.taste)
    assert all((before != after).all() for before, after in pairwise(tastes))


def always_clicks(make_population, **switches):
    """Users who surely click the one item that is shown."""
    population = make_population(3, 6, level=40.0)
    return UserSimulator(population, UserOptions(slate=1, **switches))


def test_fatigue_adds_up_and_wears_off(make_population):
    simulator = always_clicks(make_population, fatigue=2.0, recovery=0.5)
    every = np.tile(np.arange(6), (3, 1))
    rested = simulator.utilities(every)
    walk(simulator, 2, slate=(4,))
    tired = simulator.utilities(every)
    assert tired[:, 4] - rested[:, 4] == pytest.approx(-2.0 - 2.0 * 0.5)
    assert np.delete(tired, 4, axis=1) == pytest.approx(np.delete(rested, 4, axis=1))
    walk(simulator, 1, slate=(1,))
    assert (simulator.utilities(every) - rested)[:, [1, 4]] == pytest.approx(np.tile([-2.0, -1.5], (3, 1)))


def test_familiarity_counts_an_item_once(make_population):
    simulator = always_clicks(make_population, familiarity=1.0, forgetting=0.9)
    every = np.tile(np.arange(6), (3, 1))
    new = simulator.utilities(every)
    walk(simulator, 3, slate=(4,))
    assert (simulator.utilities(every) - new)[:, 4] == pytest.approx(1.0)
    walk(simulator, 1, slate=(0,))
    assert (simulator.utilities(every) - new)[:, [4, 0]] == pytest.approx(np.tile([0.9, 1.0], (3, 1)))


def test_only_the_latest_clicks_are_remembered(make_population):
    simulator = always_clicks(make_population, fatigue=1.0, recovery=1.0, memory=2)
    every = np.tile(np.arange(6), (3, 1))
    rested = simulator.utilities(every)
    for item in (0, 1, 2):
        walk(simulator, 1, slate=(item,))
    assert (simulator.utilities(every) - rested)[0] == pytest.approx([0, -1, -1, 0, 0, 0])


def test_satiation_reaches_items_alike(make_population):
    simulator = always_clicks(make_population, satiation=0.5, recovery=0.5)
    every = np.tile(np.arange(6), (3, 1))
    rested = simulator.utilities(every)
    walk(simulator, 1, slate=(4,))
    quality = simulator.population.qualities
    squared = (quality**2).sum(axis=1)
    lost = 0.5 * (quality @ quality[4]) / ((squared[4] + squared.mean()) / 2)
    assert rested[0] - simulator.utilities(every)[0] == pytest.approx(lost)
    walk(simulator, 1, slate=(4,))
    assert rested[0] - simulator.utilities(every)[0] == pytest.approx(1.5 * lost)


def test_old_items_fade_and_unpublished_ones_can_not_be_clicked(make_population):
    population = make_population(2, 4, published=np.array([-3, 0, 1, 2]))
    simulator = UserSimulator(population, UserOptions(slate=2, freshness=0.25))
    every, plain = np.tile(np.arange(4), (2, 1)), np.stack([population.utilities(user) for user in range(2)])
    assert simulator.utilities(every) == pytest.approx(plain - [0.75, 0.0, np.inf, np.inf])
    assert not simulator.respond(np.tile([2, 3], (2, 1))).clicks.any()
    assert set(simulator.oracle()[0].ravel().tolist()) <= {0, 1, 2}
    assert simulator.utilities(every) == pytest.approx(plain - [1.0, 0.25, 0.0, np.inf])


@pytest.mark.parametrize(
    "switches",
    [
        {"fatigue": 3.0},
        {"familiarity": 9.0, "fatigue": 1.0, "memory": 3},
        {"drift": 0.3, "satiation": 0.5},
        {"freshness": 0.2, "shift_at": 4},
    ],
)
def test_the_oracle_stays_exact_while_users_change(make_population, switches):
    """The short list of candidates against all items, at every step of an episode; good and bad slates are shown."""
    published = np.arange(60) % 7 - 3 if "freshness" in switches else None
    population = make_population(5, 60, level=1.0, published=published)
    simulator = UserSimulator(population, UserOptions(slate=2, horizon=12, **switches))
    for step in range(12):
        slates, values = simulator.oracle()
        utilities = simulator.utilities(np.tile(np.arange(60), (5, 1)))
        top = np.sort(np.exp(utilities), axis=1)[:, -2:].sum(axis=1)
        assert values == pytest.approx(top / (1 + top))
        if step % 2:
            assert simulator.respond(slates).regret == pytest.approx(0, abs=1e-12)
        else:
            assert (simulator.respond(np.argsort(utilities, axis=1)[:, 30:32]).regret > 0).all()


@pytest.mark.parametrize("kind", ["random", "promote"])
def test_outliers_are_as_many_as_asked_and_click_as_told(make_population, kind):
    population = make_population(4000, 30, level=-30.0)
    options = UserOptions(slate=2, outliers=0.2, outlier_kind=kind, promoted=3)
    simulator = UserSimulator(population, options)
    share = simulator.outlier.mean()
    assert abs(share - 0.2) < SIGMAS * np.sqrt(0.16 / 4000)
    feedback = simulator.respond(np.tile([5, 3], (4000, 1)))
    assert not feedback.clicks[~simulator.outlier].any()
    first, second = feedback.clicks[simulator.outlier].mean(axis=0)
    if kind == "promote":
        assert (first, second) == (0.0, 1.0)
        assert (simulator.oracle()[0][simulator.outlier] == 3).any(axis=1).all()
    else:
        assert first + second == 1
        assert abs(first - 0.5) < SIGMAS * 0.5 / np.sqrt(800)


def test_some_users_move_on_while_others_wait(make_population):
    """Asking a part of the users, in any order, gives each of them what it gets when all are asked."""
    population = make_population(6, 8)
    options = UserOptions(slate=2, drift=0.2, fatigue=1.0, noise=0.1)
    together, apart = UserSimulator(population, options), UserSimulator(population, options)
    slates = np.random.default_rng(1).integers(0, 8, (5, 6, 2))
    whole = [together.respond(slate) for slate in slates]
    for rows in (np.array([5, 0, 3]), np.array([1, 4, 2])):
        for slate, expected in zip(slates, whole, strict=True):
            part = apart.respond(slate[rows], rows)
            for name in ("clicks", "stages", "rewards", "expected", "best"):
                assert (getattr(part, name) == getattr(expected, name)[rows]).all(), name
    assert (together.state.taste == apart.state.taste).all()
