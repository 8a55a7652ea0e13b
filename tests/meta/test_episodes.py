"""Episodes: what comes before a cut adapts the fast weights, what comes after it moves the slow ones."""

import numpy as np
import policy_world as world
import pytest
import torch
from fedrec.client.adaptation import select
from fedrec.config import Config, LocalConfig
from fedrec.errors import ConfigError
from fedrec.meta.adapt import adapt, descend, loss_gradient
from fedrec.meta.examples import build_examples, episode_cuts
from fedrec.meta.interactions import Interactions

ITEMS = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]


def build(policy, items=ITEMS, stream=(0, 1, 2), **settings):
    log = Interactions(items=torch.tensor(items), rewards=torch.ones(len(items)), propensities=None)
    local = LocalConfig(episodes=True, **settings)
    return build_examples(policy, log, torch.zeros(0), settings=local, unit="user", reward_range=(0, 1), stream=stream)


@pytest.mark.parametrize("state", ["none", "history", "gru"])
def test_the_support_precedes_the_cut_and_the_query_follows_it(state):
    policy = world.policy(state=state, user_width=0, history_length=20)
    cuts = set()
    for device in range(60):
        built = build(policy, stream=(0, 1, device), windows=4, horizon=20)
        assert built.query.tolist() == [0.0] * (len(built.query) - 1) + [1.0]
        asked = [item for item in built.targets[-1].tolist() if item >= 0]
        cut = len(ITEMS) - len(asked)
        assert asked == ITEMS[cut:]
        met = {item for row in built.targets[:-1].tolist() for item in row if item >= 0}
        assert met <= set(ITEMS[:cut])
        if policy.sees_history:
            assert [item for item in built.history[-1].tolist() if item >= 0] == ITEMS[:cut]
        cuts.add(cut)
    assert cuts >= {0, 1, 2, 4}
    assert max(cuts) <= 9


def test_cuts_are_log_uniform():
    """P(cut < c) = log(1 + c) / log(1 + count): little is as likely seen as much."""
    cuts = episode_cuts((3, 1), np.arange(20000), np.full(20000, 99))
    for below in (1, 3, 10, 30):
        share, expected = float((cuts < below).mean()), np.log1p(below) / np.log(100)
        assert abs(share - expected) < 5 * (expected * (1 - expected) / 20000) ** 0.5
    assert (cuts >= 0).all()
    assert (cuts < 99).all()
    assert episode_cuts((3, 1), np.array([5]), np.array([0])).tolist() == [0]


@pytest.mark.parametrize("state", ["none", "history", "personal"])
def test_the_last_step_is_taken_on_the_query_and_those_before_on_the_support(state):
    policy = world.policy(state=state, user_width=0, fast=("taste", "latent"))
    device = int(np.flatnonzero(episode_cuts((0, 1), np.arange(20), np.full(20, len(ITEMS))) >= 3)[0])
    built = build(policy, stream=(0, 1, device), windows=4, horizon=3)
    settings = LocalConfig(steps=4, lr=0.7, slow_lr=0.3, episodes=True)
    start = world.parameters(policy)
    support, query = (select(built, torch.nonzero(built.query == part).flatten()) for part in (0, 1))
    assert len(support.present) >= 1
    fast = descend(policy, start, support, settings, steps=3)
    slopes = loss_gradient(policy, {**start, **fast}, policy.trained, query, settings)
    update = adapt(policy, start, built, settings).update
    for name in policy.released:
        rate = 0.7 if policy.specs[name].speed == "fast" else 0.3
        expected = fast.get(name, start[name]) - start[name] - rate * slopes[name]
        torch.testing.assert_close(update[name], expected, rtol=1e-4, atol=1e-6)


def test_one_entry_is_a_query_without_support():
    policy = world.policy(user_width=0)
    built = build(policy, items=[4])
    assert built.query.tolist() == [1.0]
    assert built.targets.tolist() == [[4]]


@pytest.mark.parametrize("unit", ["interaction", "both"])
def test_an_entry_may_not_stand_in_several_examples_under_unit_interaction(unit):
    with pytest.raises(ConfigError, match=rf"expected local.episodes = false under unit {unit}, .* got true"):
        Config.from_mapping({"local": {"episodes": True}, "privacy": {"unit": unit}})


def test_with_targets_summed_every_logged_interaction_weighs_alike():
    """Gradient of the bias at uniform scores, summed over devices: counts minus what chance gives, over the horizon."""
    policy = world.policy(state="none", user_width=0, ids=False, content=False, content_embedding=False, fast=())
    start = policy.initial(torch.Generator())
    logs, horizon = ([0, 1, 2, 3, 4, 5, 6, 7], [0], [1]), 4
    total = torch.zeros(world.ITEMS)
    for items in logs:
        log = Interactions(items=torch.tensor(items), rewards=torch.ones(len(items)), propensities=None)
        local = LocalConfig(targets="sum", horizon=horizon, slow_lr=1.0)
        built = build_examples(policy, log, torch.zeros(0), settings=local, unit="user", reward_range=(0, 1))
        total += adapt(policy, start, built, local).update["bias"]
    counts = np.bincount(np.concatenate(logs), minlength=world.ITEMS)
    np.testing.assert_allclose(total, (counts - counts.sum() / world.ITEMS) / horizon, atol=1e-6)
