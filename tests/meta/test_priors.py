"""Devices that have seen little: the prior of the local loss, of the history, and early positions."""

import numpy as np
import pytest
import torch
from fedrec.config import LocalConfig, PolicyConfig
from fedrec.meta.examples import build_examples
from fedrec.meta.interactions import Catalogue, Interactions
from fedrec.meta.objective import device_loss
from fedrec.meta.policy import Policy, State

SETTINGS = {"state": "history", "content": False, "ids": True, "content_embedding": False, "fast": ()}


def policy(**settings):
    catalogue = Catalogue(
        features=np.eye(12, 3, dtype=np.float32),
        feature_names=("a", "b", "c"),
        item_ids=tuple(str(item) for item in range(12)),
        groups=(),
    )
    return Policy.for_catalogue(PolicyConfig(**(SETTINGS | settings)), catalogue)


def examples(chosen, count, stream=(0, 1, 2), **local):
    log = Interactions(items=torch.arange(count), rewards=torch.ones(count), propensities=None)
    return build_examples(
        chosen,
        log,
        torch.zeros(0),
        settings=LocalConfig(**local),
        unit="user",
        reward_range=(0.0, 1.0),
        stream=stream,
    )


@pytest.mark.parametrize("count", [1, 4, 9])
def test_a_prior_of_p_weighs_n_interactions_n_over_n_plus_p(count):
    chosen = policy()
    phi = chosen.initial(torch.Generator().manual_seed(0))
    built = examples(chosen, count, windows=20)
    plain = device_loss(chosen, phi, built, LocalConfig())
    shrunk = device_loss(chosen, phi, built, LocalConfig(prior=6.0))
    torch.testing.assert_close(shrunk, plain * count / (count + 6.0))


@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_history_of_n_weighs_n_over_n_plus_its_prior(count):
    history = torch.full((1, 8), -1)
    history[0, 8 - count :] = torch.arange(count)
    state = State(history, torch.zeros_like(history), torch.zeros(0))
    plain, shrunk = policy(), policy(history_prior=3.0)
    phi = plain.initial(torch.Generator().manual_seed(0))
    expected = plain.encode_state(phi, state) * count / (count + 3.0)
    torch.testing.assert_close(shrunk.encode_state(phi, state), expected)


def test_early_positions_are_drawn_by_their_weights():
    chosen = policy()
    rows = [
        int((examples(chosen, 6, (seed, 0), windows=1, positions="early").history >= 0).sum()) for seed in range(3000)
    ]
    weights = 1 / (2.0 + np.arange(6))
    expected = 3000 * weights / weights.sum()
    found = np.bincount(rows, minlength=6)
    assert np.all(np.abs(found - expected) < 5 * np.sqrt(expected))


def test_early_positions_are_drawn_without_replacement():
    built = examples(policy(), 10, windows=4, positions="early")
    assert len({int(count) for count in (built.history >= 0).sum(1)}) == 4
