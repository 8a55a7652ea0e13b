"""Users fitted on ml-100k: probabilities that hold on cells nobody fitted, and better ones than popularity gives."""

from __future__ import annotations

import numpy as np
import pytest
from fedrec.errors import DataError
from fedrec.simulation.data import load
from fedrec.simulation.users import TasteOptions, UserOptions, UserSimulator, fit_users


@pytest.fixture(scope="module")
def log():
    return load("ml-100k")


@pytest.fixture(scope="module")
def fitted(log):
    return fit_users(log, TasteOptions(sweeps=4))


@pytest.mark.data
def test_probabilities_are_calibrated_where_they_were_not_fitted(fitted):
    """Ten groups of about 500 met cells each: 1 standard error is about 4.5 % of a rate, 25 % is beyond chance."""
    assert len(fitted.reliability) == 10
    for group in fitted.reliability:
        assert group.predicted == pytest.approx(group.observed, rel=0.25)
    cells = np.array([group.cells for group in fitted.reliability])
    rates = np.array([(group.predicted, group.observed) for group in fitted.reliability])
    mean = (cells[:, None] * rates).sum(axis=0) / cells.sum()
    assert mean[0] == pytest.approx(mean[1], rel=0.05)


@pytest.mark.data
def test_personal_taste_tells_more_than_popularity(fitted):
    assert fitted.log_loss < 0.85 * fitted.log_loss_popularity


@pytest.mark.data
def test_the_level_is_that_of_the_log_or_the_one_asked_for(log, fitted):
    density = log.interactions / (log.devices * log.items_count)
    assert fitted.population.mean_probability() == pytest.approx(density, rel=0.1)
    assert fitted.population.with_base_rate(0.02).mean_probability() == pytest.approx(0.02, rel=1e-6)


@pytest.mark.data
def test_a_fitted_user_likes_what_the_device_met(log, fitted):
    population = fitted.population
    assert (population.users, population.items) == (943, 1682)
    above = []
    for user in range(0, 943, 50):
        utilities = population.utilities(user)
        above.append((utilities[log.items[log.rows(user)]].mean() - utilities.mean()) / utilities.std())
    assert min(above) > 0.5
    simulator = UserSimulator(population, UserOptions(slate=5))
    assert simulator.oracle()[1].mean() > 0.5


@pytest.mark.data
def test_tastes_have_no_correlation_and_fits_repeat(log, fitted):
    covariance = np.cov(fitted.population.tastes.T)
    off = covariance - np.diag(np.diag(covariance))
    assert np.abs(off).max() < 1e-8 * np.diag(covariance).max()
    again = fit_users(log, TasteOptions(sweeps=4)).population
    assert (again.tastes == fitted.population.tastes).all()


def test_too_short_a_log():
    with pytest.raises(DataError, match="expected 100 or more met cells to calibrate on, got"):
        fit_users(load("synthetic", devices=20, items=30))


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_impossible_levels(make_population, rate):
    with pytest.raises(ValueError, match="expected 0 < base_rate < 1"):
        make_population().with_base_rate(rate)
