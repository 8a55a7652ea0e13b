import numpy as np
import policy_world as world
import pytest
import torch
from fedrec.config import LocalConfig, PolicyConfig
from fedrec.meta.examples import Examples, build_examples
from fedrec.meta.interactions import Catalogue, Interactions
from fedrec.meta.objective import device_loss, example_losses
from fedrec.meta.policy import Policy, State


def two_items():
    """pi = softmax(bias): the simplest policy there is."""
    bare = Catalogue(features=np.zeros((2, 0), np.float32), feature_names=(), item_ids=("a", "b"))
    settings = PolicyConfig(state="none", content=False, ids=False, content_embedding=False, fast=())
    return Policy.for_catalogue(settings, bare)


def logged(rewards, propensities=None, items=None):
    return Interactions(
        items=torch.tensor(items or [0] * len(rewards)),
        rewards=torch.tensor(rewards),
        propensities=None if propensities is None else torch.tensor(propensities),
    )


def gradient(log, **settings):
    policy, local = two_items(), LocalConfig(**settings)
    built = build_examples(policy, log, torch.zeros(0), settings=local, unit="none", reward_range=(0, 5))
    point = {"bias": torch.tensor([0.7, 0.0], requires_grad=True), "gain": torch.tensor([1.0, 0.0])}
    loss = device_loss(policy, point, built, local)
    return float(loss.detach()), torch.autograd.grad(loss, point["bias"])[0]


CHANCE = 1 / (1 + np.exp(-0.7))  # pi(first item)


def test_likelihood_of_positives_is_the_closed_form():
    """d/db0 of -log pi(0) = -(1 - pi(0)), d/db1 = pi(1)."""
    loss, slope = gradient(logged([5.0]))
    assert loss == pytest.approx(-np.log(CHANCE))
    np.testing.assert_allclose(slope, [CHANCE - 1, 1 - CHANCE], rtol=1e-5)


def test_importance_weights_are_the_closed_form_and_held_constant():
    """-w (r - b) d log pi with w = pi / p. If w were differentiated there would be another term of the same size."""
    loss, slope = gradient(logged([3.0], [0.5]), reward="value", baseline=1.0)
    weight = CHANCE / 0.5 * (3 - 1)
    assert loss == pytest.approx(-weight * np.log(CHANCE), rel=1e-5)
    np.testing.assert_allclose(slope, [-weight * (1 - CHANCE), weight * (1 - CHANCE)], rtol=1e-5)


def test_importance_weights_are_capped():
    capped = gradient(logged([3.0], [0.01]), reward="value", weight_cap=4.0)[1]
    plain = gradient(logged([3.0]), reward="value")[1]
    torch.testing.assert_close(capped, 4 * plain)


def test_a_reward_below_the_baseline_pushes_away():
    away = gradient(logged([1.0]), reward="value", baseline=2.0)[1]
    toward = gradient(logged([3.0]), reward="value", baseline=2.0)[1]
    torch.testing.assert_close(away, -toward)


def test_targets_of_an_example_count_alike():
    both = gradient(logged([1.0, 1.0], items=[0, 1]))[1]
    each = [gradient(logged([1.0], items=[item]))[1] for item in (0, 1)]
    torch.testing.assert_close(both, (each[0] + each[1]) / 2)


FREE = [
    {},
    {"reward_model": "device"},
    {"reward_model": "content", "reward_ridge": 2.0},
    {"reward_model": "content", "trust_region": 0.6},
    {"trust_region": 0.6, "targets": "sum"},
]
"""Settings whose loss holds nothing constant that moves, on a log without propensities."""


@pytest.mark.parametrize("more", FREE, ids=lambda more: "-".join(more) or "plain")
@pytest.mark.parametrize("kind", world.ENCODERS)
@pytest.mark.parametrize("exclude", [False, True])
def test_gradient_against_finite_differences(kind, exclude, more):
    policy = world.policy(state=kind, user_features=True, affinity=kind == "gru", fast=("taste",))
    policy = Policy(
        **{
            **{name: getattr(policy, name) for name in ("settings", "kernel_of", "kernel_names", "user_width")},
            "features": policy.features.double(),
            "kernels": policy.kernels.double(),
        }
    )
    settings = LocalConfig(exclude_history=exclude, reward="value", baseline=2.0, windows=3, horizon=2, **more)
    built = world.examples(policy, 6, windows=3, horizon=2)
    built = Examples(*(value.double() if value.is_floating_point() else value for value in built))
    point = {name: value.double().requires_grad_() for name, value in world.parameters(policy).items()}
    start = {name: value.double() for name, value in world.parameters(policy, seed=1).items()}
    loss = device_loss(policy, point, built, settings, start=start)
    gradients = torch.autograd.grad(loss, list(point.values()))
    generator = torch.Generator().manual_seed(0)
    for name, slope in zip(point, gradients, strict=True):
        direction = torch.randn(slope.shape, generator=generator, dtype=torch.float64)
        step = 1e-5
        moved = [{**point, name: point[name] + sign * step * direction} for sign in (1, -1)]
        ends = [device_loss(policy, end, built, settings, start=start).item() for end in moved]
        wanted = (ends[0] - ends[1]) / (2 * step)
        assert float((slope * direction).sum()) == pytest.approx(wanted, rel=1e-5, abs=1e-8), name


def test_the_loss_is_the_mean_over_examples_that_are_present():
    policy = world.policy()
    point = world.parameters(policy)
    built = world.examples(policy, 5)
    losses = example_losses(policy, point, built, LocalConfig())
    half = built._replace(present=torch.tensor([1.0, 0, 1, 0, 0]))
    assert float(device_loss(policy, point, half, LocalConfig())) == pytest.approx(float(losses[[0, 2]].mean()))
    nobody = built._replace(present=torch.zeros(5))
    assert float(device_loss(policy, point, nobody, LocalConfig())) == 0


def test_the_history_is_no_candidate_where_the_settings_say_so_but_a_repeated_target_is():
    policy = world.policy()
    point = world.parameters(policy)
    row = torch.tensor([[-1, -1, 2, 3, 5, 5]])
    built = Examples(
        row,
        torch.zeros_like(row),
        torch.tensor([[5, 7]]),
        torch.ones(1, 2),
        torch.zeros(1, 2),
        torch.ones(1),
        torch.zeros(1),
        torch.tensor([4]),
        world.user(),
    )
    scores = policy.scores(point, State(row, torch.zeros_like(row), world.user()))[0]
    left = [item for item in range(world.ITEMS) if item not in (2, 3)]
    wanted = torch.logsumexp(scores[left], 0) - scores[[5, 7]].mean()
    found = example_losses(policy, point, built, LocalConfig(exclude_history=True))
    assert float(found[0]) == pytest.approx(float(wanted), rel=1e-5)
    everything = example_losses(policy, point, built, LocalConfig())
    assert float(everything[0]) == pytest.approx(float(torch.logsumexp(scores, 0) - scores[[5, 7]].mean()), rel=1e-5)
