"""Baselines: counts by hand, the noise law of DP popularity, its sensitivity, and the ceilings' closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fedrec.meta.interactions import Catalogue
from fedrec.privacy.accounting import Charge, epsilon
from fedrec.simulation.baselines import (
    BiasRatings,
    RandomScores,
    clipped_counts,
    dp_popularity,
    popularity,
)
from fedrec.simulation.ceilings import ease, fold_in, history_matrix, ials
from fedrec.simulation.data.dataset import Dataset
from fedrec.simulation.data.split import leave_two_out
from fedrec.simulation.seen import training_counts

BUDGET = {"epsilon": 1.0, "delta": 1e-5}


def _dataset(logs: list[list[int]], items: int = 6, rewards: list[list[float]] | None = None) -> Dataset:
    flat = [item for log in logs for item in log]
    values = [1.0] * len(flat) if rewards is None else [reward for log in rewards for reward in log]
    return Dataset(
        name="hand",
        items=np.array(flat, dtype=np.int32),
        rewards=np.array(values, dtype=np.float32),
        offsets=np.cumsum([0, *map(len, logs)]).astype(np.int64),
        catalogue=Catalogue(
            features=np.zeros((items, 0), np.float32), feature_names=(), item_ids=tuple(map(str, range(items)))
        ),
        device_features=np.zeros((len(logs), 0), np.float32),
        device_feature_names=(),
        device_ids=tuple(f"u{device}" for device in range(len(logs))),
    )


# The last two of each log are held out, so the training parts are [0, 1], [0, 2, 0] and [0, 3, 4, 5].
LOGS = [[0, 1, 4, 5], [0, 2, 0, 4, 5], [0, 3, 4, 5, 1, 2]]


def test_popularity_counts_devices_of_training_rows_only():
    data = _dataset(LOGS)
    split = leave_two_out(data)
    scores = popularity(data, split).score(np.array([0, 1]))
    np.testing.assert_array_equal(scores, [[3, 1, 1, 1, 1, 1]] * 2)
    held_out = np.array([True, True, False])
    np.testing.assert_array_equal(popularity(data, split, held_out).scores, [2, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(training_counts(data, split, np.array([2])), [1, 0, 0, 1, 1, 1])


def test_clipped_counts_weigh_long_logs_down():
    data = _dataset(LOGS)
    found = clipped_counts(data, leave_two_out(data), np.arange(3), clip=math.sqrt(3))
    heavy = math.sqrt(3) / 2  # four distinct items, norm 2; the others stay below the clip
    np.testing.assert_allclose(found, [2 + heavy, 1, 1, heavy, heavy, heavy])


@pytest.mark.parametrize("device", [0, 1, 2])
def test_one_device_moves_the_clipped_histogram_by_at_most_the_clip(device: int):
    data = _dataset(LOGS)
    split = leave_two_out(data)
    clip = 0.5
    everyone = clipped_counts(data, split, np.arange(3), clip)
    without = clipped_counts(data, split, np.delete(np.arange(3), device), clip)
    assert np.linalg.norm(everyone - without) == pytest.approx(clip)


def _noise(unit: str, devices: int, draws: int) -> tuple[np.ndarray, float]:
    data = _dataset([[0, 1, 2]] * devices, items=400)
    split = leave_two_out(data)
    exact = training_counts(data, split)
    releases = [dp_popularity(data, split, **BUDGET, unit=unit, seed=seed, items_per_device=4) for seed in range(draws)]
    noise = np.concatenate([release.scores.scores.numpy() - exact for release in releases])
    return noise, releases[0].statement.noise_multiplier


@pytest.mark.statistical
@pytest.mark.parametrize(("unit", "sensitivity"), [("user", 2.0), ("interaction", math.sqrt(9))])
def test_noise_law(unit: str, sensitivity: float):
    """User: noise multiplier times the clip (sqrt 4). Interaction: times sqrt(9 devices). 2/3 and 3/2 of it fail."""
    noise, multiplier = _noise(unit, devices=9, draws=20)
    std = multiplier * sensitivity
    error = 1 / math.sqrt(2 * len(noise))
    assert abs(noise.std() / std - 1) < 4 * error
    for wrong in (2 / 3, 3 / 2):
        assert abs(noise.std() / (std * wrong) - 1) > 4 * error
    assert abs(noise.mean()) < 4 * std / math.sqrt(len(noise))


def test_noise_costs_what_was_asked_and_no_less():
    data = _dataset(LOGS)
    release = dp_popularity(data, leave_two_out(data), **BUDGET, unit="user", seed=0)
    cost = epsilon([Charge(release.statement.noise_multiplier, 1.0, 1)], BUDGET["delta"], "gaussian")
    assert 0.99 * BUDGET["epsilon"] < cost <= BUDGET["epsilon"]
    assert release.statement.clip == pytest.approx(math.sqrt(20))
    assert release.noise_std == pytest.approx(release.statement.noise_multiplier * release.statement.clip)
    assert "simulation only" in release.statement.sentence()


def test_dp_popularity_refuses_what_it_cannot_state():
    data = _dataset(LOGS)
    split = leave_two_out(data)
    with pytest.raises(ValueError, match="unit 'user' or 'interaction', got 'both'"):
        dp_popularity(data, split, **BUDGET, unit="both", seed=0)
    with pytest.raises(ValueError, match="items_per_device"):
        dp_popularity(data, split, **BUDGET, unit="user", seed=0, items_per_device=0)
    with pytest.raises(ValueError, match="epsilon > 0"):
        dp_popularity(data, split, epsilon=0.0, delta=1e-5, unit="user", seed=0)


def test_random_scores_do_not_depend_on_who_is_asked_together():
    scorer = RandomScores(items=5, seed=3)
    together = scorer.score(np.array([4, 9, 2]))
    np.testing.assert_array_equal(scorer.score(np.array([9]))[0], together[1])
    assert not torch.equal(together[0], together[1])
    assert scorer.score(np.array([], dtype=np.int64)).shape == (0, 5)


def test_bias_ratings_by_hand():
    data = _dataset([[0, 1, 2, 3], [0, 1, 2, 3]], rewards=[[5, 3, 1, 1], [3, 1, 1, 1]])
    model = BiasRatings(data, leave_two_out(data), shrinkage=1e-9)
    # mean 3; items 0 and 1 are +1 and -1; the devices then +1 and -1.
    np.testing.assert_allclose(model.rate(np.array([0, 1]), np.array([0, 1])), [5.0, 1.0], atol=1e-6)
    with pytest.raises(ValueError, match="shrinkage > 0"):
        BiasRatings(data, leave_two_out(data), shrinkage=0.0)


def test_ease_solves_the_constrained_least_squares():
    generator = torch.Generator().manual_seed(0)
    matrix = (torch.rand(30, 7, generator=generator) < 0.4).float()
    weights = ease(matrix, regularisation=2.0)
    assert torch.equal(weights.diagonal(), torch.zeros(7))
    for item in range(7):  # ridge regression of each column on the others
        others = [other for other in range(7) if other != item]
        x, y = matrix[:, others], matrix[:, item]
        expected = torch.linalg.solve(x.T @ x + 2.0 * torch.eye(6), x.T @ y)
        torch.testing.assert_close(weights[others, item], expected, atol=1e-5, rtol=1e-4)


def test_ials_step_minimises_its_loss_and_the_sweeps_reach_the_blocks():
    generator = torch.Generator().manual_seed(1)
    matrix = (torch.rand(20, 9, generator=generator) < 0.3).float()
    factors = torch.randn(9, 3, generator=generator)
    rows = fold_in(matrix, factors, unobserved_weight=0.2, regularisation=0.1).requires_grad_()
    scores = rows @ factors.T
    penalty = 0.1 * (matrix.sum(1) + 0.2 * 9)
    loss = (matrix * (scores - 1) ** 2).sum() + 0.2 * (scores**2).sum() + (penalty * (rows**2).sum(1)).sum()
    (gradient,) = torch.autograd.grad(loss, rows)
    assert gradient.abs().max() < 1e-4
    tastes = torch.zeros(20, 8)
    tastes[:10, :4] = 1.0
    tastes[10:, 4:] = 1.0
    tastes[0, 0] = 0.0
    devices, items = ials(tastes, dimensions=4, seed=0)
    scores = devices @ items.T
    assert scores[0, 0] > scores[0, 4:].max() + 0.2


def test_ceilings_refuse_a_matrix_that_would_not_fit(monkeypatch: pytest.MonkeyPatch):
    data = _dataset(LOGS)
    monkeypatch.setattr("fedrec.simulation.ceilings.MAX_ENTRIES", 10)
    with pytest.raises(ValueError, match="leave the ceilings out"):
        history_matrix(data, leave_two_out(data))


def test_history_matrix_holds_what_is_known_when_the_target_is_asked_for():
    data = _dataset(LOGS)
    split = leave_two_out(data)
    np.testing.assert_array_equal(history_matrix(data, split)[0], [1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(history_matrix(data, split, "test")[0], [1, 1, 0, 0, 1, 0])
