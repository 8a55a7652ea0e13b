"""The Bayesian last layer: posterior in closed form, tastes drawn from it, propensities by Monte Carlo."""

import numpy as np
import pytest
import torch
from fedrec._streams import torch_stream
from fedrec.meta.regression import draw, leverage, posterior
from fedrec.meta.thompson import taste_posterior, thompson
from scipy import stats

LEVEL = 1e-6


def world(seed=0, users=3, seen=6, width=4):
    rng = np.random.default_rng(seed)
    rows = torch.from_numpy(rng.normal(size=(users, seen, width)))
    values = torch.from_numpy(rng.normal(size=(users, seen)))
    counted = torch.from_numpy((rng.random((users, seen)) < 0.7).astype(float))
    return rows, values, counted, torch.from_numpy(rng.normal(size=width))


def test_the_posterior_is_the_closed_form():
    rows, values, counted, mean = world()
    found = posterior(rows, values, counted, mean=mean, prior_variance=0.5, noise_variance=2.0)
    for user in range(3):
        kept = counted[user] > 0
        x, y = rows[user][kept].numpy(), values[user][kept].numpy()
        precision = np.eye(4) / 0.5 + x.T @ x / 2.0
        wanted = np.linalg.solve(precision, mean.numpy() / 0.5 + x.T @ y / 2.0)
        np.testing.assert_allclose(found.mean[user], wanted, rtol=1e-9)
        np.testing.assert_allclose(found.factor[user] @ found.factor[user].T, precision, rtol=1e-9)
        np.testing.assert_allclose(
            leverage(found, rows)[user],
            np.einsum("ni,ij,nj->n", rows[user], np.linalg.inv(precision), rows[user]),
            rtol=1e-9,
        )


def test_who_has_seen_nothing_has_the_meta_learned_taste():
    taste = torch.tensor([0.5, -1.0])
    found = taste_posterior(torch.eye(2), torch.full((1, 3), -1), torch.zeros(1, 3), taste, prior_variance=4.0)
    assert found.mean.tolist() == [[0.5, -1.0]]
    assert found.factor.tolist() == [[[0.5, 0], [0, 0.5]]]


def test_draws_have_the_posteriors_mean_and_covariance():
    """Every entry of mean and covariance within 5.5 standard errors (two-sided level 4e-8 each, 60 of them)."""
    rows, values, counted, mean = world()
    model = posterior(rows, values, counted, mean=mean, prior_variance=0.5, noise_variance=2.0)
    count = 40_000
    tastes = draw(model, count, torch_stream(0, "draws"))
    for user in range(3):
        covariance = torch.linalg.inv(model.factor[user] @ model.factor[user].T)
        spread = covariance.diagonal().sqrt()
        assert bool(((tastes[user].mean(0) - model.mean[user]).abs() < 5.5 * spread / count**0.5).all())
        error = (spread[:, None] ** 2 * spread**2 + covariance**2).sqrt() / count**0.5
        assert bool(((torch.cov(tastes[user].T) - covariance).abs() < 5.5 * error).all())


def two_items(users):
    """Scores of two items differ by 0.4 + N(0, 1 / 2): P(first) = Phi(0.4 sqrt 2)."""
    features = torch.tensor([[1.0], [0.0]])
    model = taste_posterior(
        features, torch.full((users, 1), -1), torch.zeros(users, 1), torch.tensor([0.1]), prior_variance=0.5
    )
    return torch.tensor([0.3, 0.0]).expand(users, -1), features, model, torch.ones(users, 2, dtype=torch.bool)


def test_items_are_shown_as_often_as_they_are_believed_to_be_best():
    """Binomial at level 1e-6 on 2e4 users."""
    count = 20_000
    slate = thompson(*two_items(count), size=1, draws=1, generator=torch_stream(0, "thompson"))
    first = int((slate.items == 0).sum())
    assert stats.binomtest(first, count, stats.norm.cdf(0.4 * 2**0.5)).pvalue > LEVEL
    assert stats.binomtest(first, count, stats.norm.cdf(0.4)).pvalue < LEVEL


def test_inverse_propensities_are_unbiased():
    """E[1 / p] over what is shown is 2 - the two factors (1 - p)^(draws + 1), here within 5 standard errors."""
    count, draws = 20_000, 9
    slate = thompson(*two_items(count), size=1, draws=draws, generator=torch_stream(1, "thompson"))
    inverse = 1 / slate.propensities[:, 0]
    chance = stats.norm.cdf(0.4 * 2**0.5)
    wanted = 2 - (1 - chance) ** (draws + 1) - chance ** (draws + 1)
    assert abs(float(inverse.mean()) - wanted) < 5 * float(inverse.std()) / count**0.5
    assert wanted > 1.9


def test_slates_respect_filters_and_end_where_nothing_is_left():
    features = torch.eye(4)
    model = taste_posterior(features, torch.tensor([[0], [1]]), torch.ones(2, 1), torch.zeros(4))
    allowed = torch.tensor([[False, True, True, False], [True, True, True, True]])
    slate = thompson(torch.zeros(2, 4), features, model, allowed, size=3, draws=20, generator=torch_stream(0))
    assert sorted(slate.items[0].tolist()) == [-1, 1, 2]
    assert len(set(slate.items[1].tolist())) == 3
    assert slate.propensities[0, 1:].tolist() == [1, 1]  # one item left, then none
    assert bool(((slate.propensities > 0) & (slate.propensities <= 1)).all())


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="expected draws to be an integer >= 1, got 0"):
        thompson(*two_items(1), size=1, draws=0, generator=torch_stream(0))
    with pytest.raises(ValueError, match="expected prior_variance > 0"):
        taste_posterior(torch.eye(2), torch.zeros(1, 1).long(), torch.zeros(1, 1), torch.zeros(2), prior_variance=0)
