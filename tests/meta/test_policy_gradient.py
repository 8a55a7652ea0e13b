"""The pieces of the policy gradient on a world of two items, where everything has a closed form.

``pi = softmax(bias)``, ``d log pi(0) / d bias0 = pi(1)``, ``d log pi(1) / d bias0 = -pi(0)``.
"""

import itertools

import numpy as np
import pytest
import torch
from fedrec.config import Config, LocalConfig, PolicyConfig
from fedrec.errors import ConfigError
from fedrec.meta.examples import build_examples
from fedrec.meta.interactions import Catalogue, Interactions
from fedrec.meta.objective import device_loss
from fedrec.meta.policy import Policy
from fedrec.meta.policy_gradient import leave_one_out_models, shown, top_k_factor

BIAS = 0.7
CHANCE = 1 / (1 + np.exp(-BIAS))  # pi(item 0)
BETA = (0.3, 0.7)  # who logged
REWARD = (2.0, -1.0)
FREE = {"reward": "value", "weight_cap": 1e9}


def two_items():
    catalogue = Catalogue(features=np.array([[1.0], [0.5]], np.float32), feature_names=("x",), item_ids=("a", "b"))
    settings = PolicyConfig(state="none", content=False, ids=False, content_embedding=False, fast=())
    return Policy.for_catalogue(settings, catalogue)


def slope(items, rewards, logged=True, start=0.0, **settings):
    """d loss / d bias0, in float64 but for the bias."""
    policy, local = two_items(), LocalConfig(**(FREE | settings))
    log = Interactions(
        items=torch.tensor(items),
        rewards=torch.tensor(rewards),
        propensities=torch.tensor([BETA[item] for item in items]) if logged else None,
    )
    built = build_examples(policy, log, torch.zeros(0), settings=local, unit="none", reward_range=(0, 5))
    point = {"bias": torch.tensor([BIAS, 0.0], requires_grad=True), "gain": torch.tensor([1.0, 0.0])}
    phi = {"bias": torch.tensor([start, 0.0]), "gain": point["gain"]}
    loss = device_loss(policy, point, built, local, start=phi)
    return float(torch.autograd.grad(loss, point["bias"])[0][0])


@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_top_k_correction_is_the_closed_form(k):
    """K (1 - pi)^(K - 1) on the weight: an item that nearly always is in the slate is pushed no further."""
    wanted = -k * (1 - CHANCE) ** (k - 1) * (1 - CHANCE)
    assert slope([0], [1.0], logged=False, top_k=k) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("k", [1, 3])
def test_the_top_k_factor_is_the_slope_of_being_shown(k):
    chances = torch.tensor([0.0, 0.2, 0.7, 1.0], dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(shown(chances, k).sum(), chances)
    torch.testing.assert_close(found, top_k_factor(chances.detach(), k))


def test_self_normalised_weights_are_the_closed_form():
    """- sum w r d log pi / sum w, with w = pi / p."""
    weights = np.array([CHANCE / BETA[0], (1 - CHANCE) / BETA[1]])
    slopes = np.array([1 - CHANCE, -CHANCE])
    wanted = -(weights * REWARD * slopes).sum() / weights.sum()
    assert slope([0, 1], REWARD, self_normalised=True) == pytest.approx(wanted, rel=1e-5)
    plain = -(weights * REWARD * slopes).sum() / 2
    assert slope([0, 1], REWARD) == pytest.approx(plain, rel=1e-5)


def test_self_normalisation_does_nothing_to_a_log_without_propensities_or_to_one_weight():
    assert slope([0, 1], REWARD, logged=False, self_normalised=True) == slope([0, 1], REWARD, logged=False)
    assert slope([0], [2.0], self_normalised=True) == pytest.approx(slope([0], [2.0], logged=False), rel=1e-6)


def test_the_devices_baseline_is_the_shrunk_mean_of_the_others():
    """b_0 = (b + r_1 + r_2) / 3 and so on, each reward's own left out."""
    rewards, constant = [3.0, 1.0, 5.0], 2.0
    others = [(constant + sum(rewards) - own) / 3 for own in rewards]
    slopes = [1 - CHANCE, -CHANCE, 1 - CHANCE]
    wanted = -np.mean([(r - b) * s for r, b, s in zip(rewards, others, slopes, strict=True)])
    found = slope([0, 1, 0], rewards, logged=False, reward_model="device", baseline=constant)
    assert found == pytest.approx(wanted, rel=1e-5)
    assert slope([0], [3.0], logged=False, reward_model="device", baseline=3.0) == 0


def test_the_trust_region_is_the_closed_form():
    """d KL(start || pi) / d bias0 = pi(0) - start(0)."""
    start = 1 / (1 + np.exp(0.4))
    plain = slope([0], [1.0], logged=False)
    found = slope([0], [1.0], logged=False, start=-0.4, trust_region=3.0)
    assert found - plain == pytest.approx(3 * (CHANCE - start), rel=1e-5)
    assert slope([0], [0.0], logged=False, start=BIAS, trust_region=3.0) == pytest.approx(0, abs=1e-6)


def test_a_trust_region_needs_the_initialization():
    policy, local = two_items(), LocalConfig(trust_region=1.0)
    log = Interactions(items=torch.tensor([0]), rewards=torch.ones(1))
    built = build_examples(policy, log, torch.zeros(0), settings=local, unit="none", reward_range=(0, 5))
    with pytest.raises(ValueError, match=r"expected the initialization for local.trust_region > 0"):
        device_loss(policy, {"bias": torch.zeros(2), "gain": torch.ones(2)}, built, local)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("model", ["constant", "device", "content"])
def test_the_expected_gradient_is_that_of_the_value(model, k):
    """Over every log that the logging policy may write: unbiased, whatever the reward model believes.

    The value is ``sum over a of alpha_K(a) r(a)``, its slope by bias0 ``pi(0) pi(1) (lambda_0 r_0 - lambda_1 r_1)``. A
    self-normalised gradient is not: it must differ.
    """
    factor = [float(top_k_factor(torch.tensor(chance), k)) for chance in (CHANCE, 1 - CHANCE)]
    wanted = -CHANCE * (1 - CHANCE) * (factor[0] * REWARD[0] - factor[1] * REWARD[1])
    logs = list(itertools.product((0, 1), repeat=3))
    settings = {"top_k": k, "reward_model": model, "baseline": 0.0 if model == "constant" else 0.4}

    def expected(**more):
        slopes = [slope(list(log), [REWARD[item] for item in log], **settings, **more) for log in logs]
        return np.dot(slopes, [np.prod([BETA[item] for item in log]) for log in logs])

    assert expected() == pytest.approx(wanted, rel=1e-5)
    assert abs(expected(self_normalised=True) / wanted - 1) > 5e-4


def test_the_reward_model_lowers_the_variance():
    """The same eight logs: a model that is nearly right leaves less to the weights than none."""
    logs = list(itertools.product((0, 1), repeat=3))
    chances = np.array([np.prod([BETA[item] for item in log]) for log in logs])

    def variance(**settings):
        found = np.array([slope(list(log), [REWARD[item] + 5 for item in log], **settings) for log in logs])
        return chances @ (found - chances @ found) ** 2

    plain = variance()
    assert variance(reward_model="device", baseline=5.0) < 0.5 * plain
    assert variance(reward_model="content", baseline=5.0, reward_ridge=0.1) < 0.5 * plain


def test_leave_one_out_models_are_ridge_regressions_without_the_entry():
    rng = np.random.default_rng(0)
    rows, values, fitted = rng.normal(size=(6, 3)), rng.normal(size=6), np.array([1.0, 1, 1, 0, 1, 1])
    found = leave_one_out_models(torch.tensor(rows), torch.tensor(values), torch.tensor(fitted), ridge=0.7)
    for entry in range(6):
        kept = (fitted > 0) & (np.arange(6) != entry)
        x, y = rows[kept], values[kept]
        np.testing.assert_allclose(found[entry], np.linalg.solve(x.T @ x + 0.7 * np.eye(3), x.T @ y), rtol=1e-9)


def test_an_episodes_query_is_expected_by_its_support_alone():
    policy = two_items()
    local = LocalConfig(reward="value", reward_model="device", episodes=True)
    slopes = []
    for last in (1.0, 9.0):
        log = Interactions(items=torch.tensor([0, 1, 0, 1]), rewards=torch.tensor([1.0, 2.0, 3.0, last]))
        built = build_examples(
            policy, log, torch.zeros(0), settings=local, unit="none", reward_range=(0, 9), stream=(0, 1, 4)
        )
        assert built.query.tolist() == [0, 1]
        assert int((built.targets[1] >= 0).sum()) < 4
        point = {"bias": torch.tensor([BIAS, 0.0], requires_grad=True), "gain": torch.tensor([1.0, 0.0])}
        loss = device_loss(policy, point, built, local, last=False)
        slopes.append(float(torch.autograd.grad(loss, point["bias"])[0][0]))
    assert slopes[0] == slopes[1] != 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"local__reward_model": "device"}, "expected local.reward = value for local.reward_model = device, got one"),
        ({"local__top_k": 0}, "expected local.top_k >= 1, got 0"),
        ({"local__trust_region": -1.0}, "expected local.trust_region >= 0, got -1"),
        ({"local__reward_ridge": 0.0}, "expected local.reward_ridge > 0, got 0"),
    ],
)
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        Config().updated(**changes)
