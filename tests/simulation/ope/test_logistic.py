"""The regression behind reward models, against a dense Newton's method in eight lines."""

from __future__ import annotations

import numpy as np
import pytest
from fedrec.errors import DataError
from fedrec.simulation.ope.logistic import Design, fit_logistic, predict_logistic, sigmoid
from fedrec.simulation.ope.reward_model import FOLDS, assign_folds, fit_reward_model


def newton(dense, targets, ridge):
    columns = np.c_[np.ones(len(dense)), dense]
    penalty = np.full(columns.shape[1], ridge)
    penalty[0] = 0
    found = np.zeros(columns.shape[1])
    for _ in range(30):
        means = 1 / (1 + np.exp(-columns @ found))
        hessian = (columns * (means * (1 - means))[:, None]).T @ columns + np.diag(penalty)
        found = found - np.linalg.solve(hessian, columns.T @ (means - targets) + penalty * found)
    return found


def clicks(rows=400, columns=6, seed=0):
    draw = np.random.default_rng(seed)
    dense = draw.normal(size=(rows, columns))
    return dense, (draw.random(rows) < sigmoid(dense[:, 0] - 2)).astype(float)


@pytest.mark.parametrize("ridge", [0.01, 1.0, 100.0])
def test_coefficients_are_those_of_the_plain_method(ridge):
    dense, targets = clicks()
    assert fit_logistic(Design(dense=dense), targets, ridge) == pytest.approx(newton(dense, targets, ridge), abs=1e-9)
    share = 0.5 * targets + 0.2  # fractions are fine, too
    assert fit_logistic(Design(dense=dense), share, ridge) == pytest.approx(newton(dense, share, ridge), abs=1e-9)


def test_codes_are_columns_that_are_not_written_out():
    dense, targets = clicks()
    draw = np.random.default_rng(1)
    first, second = draw.integers(0, 5, len(dense)), draw.integers(-1, 3, len(dense))
    written = np.c_[dense, np.eye(5)[first], np.where(second[:, None] >= 0, np.eye(3)[second], 0)]
    design = Design(dense=dense, codes=(first, second), levels=(5, 3))
    found = fit_logistic(design, targets)
    assert found == pytest.approx(newton(written, targets, 1.0), abs=1e-9)
    assert predict_logistic(design, found) == pytest.approx(sigmoid(np.c_[np.ones(len(dense)), written] @ found))


def test_the_intercept_is_free_and_the_rest_is_not():
    dense, targets = clicks()
    found = fit_logistic(Design(dense=dense), targets, 1e9)
    assert np.abs(found[1:]).max() < 1e-5
    assert sigmoid(found[0]) == pytest.approx(targets.mean(), abs=1e-6)


def test_separable_targets_and_huge_columns_end():
    dense = np.linspace(-1e3, 1e3, 50)[:, None]
    targets = (dense[:, 0] > 0).astype(float)
    assert fit_logistic(Design(dense=dense), targets) == pytest.approx(newton_damped(dense, targets), rel=1e-4)


def newton_damped(dense, targets):
    """Gradient of the strictly convex objective is zero there: solved by bisection on the one slope (by symmetry)."""
    low, high = 0.0, 10.0
    for _ in range(200):
        slope = (low + high) / 2
        gradient = float(dense[:, 0] @ (sigmoid(slope * dense[:, 0]) - targets)) + slope
        low, high = (slope, high) if gradient < 0 else (low, slope)
    return np.array([0.0, slope])


@pytest.mark.parametrize(
    ("targets", "sentence"),
    [
        ([0.0, 0.0], "expected targets between the ends"),
        ([1.0, 1.0], "expected targets between the ends"),
        ([0.5, 2.0], r"expected targets of a logistic regression in \[0, 1\]"),
        ([], r"expected targets of a logistic regression in \[0, 1\]"),
    ],
)
def test_targets_without_an_answer_are_refused(targets, sentence):
    with pytest.raises(DataError, match=sentence):
        fit_logistic(Design(dense=np.zeros((len(targets), 1))), np.array(targets))
    with pytest.raises(ValueError, match="expected ridge > 0"):
        fit_logistic(Design(dense=np.zeros((2, 1))), np.array([0.0, 1.0]), ridge=0.0)


def test_no_row_is_predicted_by_a_model_that_saw_its_cluster():
    """One cluster's rewards are turned over: predictions of its own rows must not move."""
    draw = np.random.default_rng(0)
    items, places, clusters = draw.integers(0, 8, 300), draw.integers(0, 2, 300), draw.integers(0, 30, 300)
    rewards = (draw.random(300) < 0.3).astype(float)
    features = draw.normal(size=(8, 2))
    own = clusters == 4
    turned = np.where(own, 1 - rewards, rewards)
    before = fit_reward_model(items, places, rewards, clusters, features, seed=3)
    after = fit_reward_model(items, places, turned, clusters, features, seed=3)
    assert before.of(items, places)[own].tolist() == after.of(items, places)[own].tolist()
    others = before.folds != before.folds[own][0]
    assert before.of(items, places)[others].tolist() != after.of(items, places)[others].tolist()


def test_folds_keep_clusters_whole_and_are_even():
    clusters = np.repeat(np.arange(31), 3)
    folds = assign_folds(clusters, seed=1)
    assert all(len(set(folds[clusters == one])) == 1 for one in range(31))
    assert sorted(np.bincount(folds[::3], minlength=FOLDS).tolist()) == [10, 10, 11]
    assert folds.tolist() == assign_folds(clusters, seed=1).tolist()
    assert folds.tolist() != assign_folds(clusters, seed=2).tolist()


def test_the_model_finds_the_rates_of_items_places_and_strangers():
    """50,000 rows; each rate is estimated to about +-0.01, so 0.04 is four standard errors."""
    draw = np.random.default_rng(2)
    items, places = draw.integers(-1, 5, 50_000), draw.integers(0, 2, 50_000)
    rate = sigmoid(np.array([-1.5, -1.0, -0.5, 0.0, 0.5, -0.8])[items] + np.array([0.3, -0.3])[places])
    rewards = 2.0 + 3.0 * (draw.random(50_000) < rate)
    model = fit_reward_model(items, places, rewards, np.arange(50_000), np.zeros((5, 0)), seed=0)
    assert model.of(items, places) == pytest.approx(2.0 + 3.0 * rate, abs=3 * 0.04)


def test_equal_rewards_are_predicted_as_they_are():
    ones = np.zeros(6, dtype=np.int64)
    model = fit_reward_model(ones, ones, np.full(6, 2.5), np.arange(6), np.zeros((3, 1)), seed=0)
    assert (model.table == 2.5).all()
