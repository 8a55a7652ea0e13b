import numpy as np
import policy_world as world
import pytest
import torch
from fedrec.config import LocalConfig
from fedrec.meta.adapt import adapt, descend, loss_gradient, step_size
from fedrec.meta.examples import stack_examples
from fedrec.meta.objective import device_loss

KINDS = [*world.ENCODERS, "affinity"]


def of(kind, **settings):
    extra = (
        {"state": "none", "affinity": True, "fast": ("affinity", "taste")} if kind == "affinity" else {"state": kind}
    )
    return world.policy(**(extra | settings))


def slopes(policy, point, built, settings):
    """Gradient by reverse mode on plain leaves, apart from the code under test."""
    leaves = {name: value.clone().requires_grad_() for name, value in point.items()}
    loss = device_loss(policy, leaves, built, settings)
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()), allow_unused=True), strict=True))


def close(first, second, rtol=1e-5, atol=1e-6):
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(
            first[name], second[name], rtol=rtol, atol=atol, msg=lambda text, name=name: name + text
        )


def referee(policy, start, built, settings):
    """K - 1 steps of the fast weights, then one of everything from there: written out."""
    here = {name: value.clone() for name, value in start.items()}
    for step in range(settings.steps):
        slope = slopes(policy, here, built, settings)
        last = step == settings.steps - 1
        for name, spec in policy.specs.items():
            if spec.speed == "fast":
                pull = settings.weight_decay * (here[name] - start[name])
                rate = settings.lr * settings.rates.get(name, 1.0)
                here[name] = here[name] - rate * (slope[name] + pull)
            elif spec.speed == "slow" and last:
                here[name] = here[name] - settings.slow_lr * settings.rates.get(name, 1.0) * slope[name]
    return here


@pytest.mark.parametrize("kind", KINDS)
def test_one_local_step_is_federated_sgd_on_all_parameters(kind):
    policy = of(kind)
    start, built = world.parameters(policy), world.examples(policy, 6)
    settings = LocalConfig(steps=1, lr=0.3, slow_lr=0.3)
    adaptation = adapt(policy, start, built, settings)
    slope = slopes(policy, start, built, settings)
    close(adaptation.update, {name: -0.3 * slope[name] for name in policy.names(scope="shared")})
    close(adaptation.personal, {name: start[name] - 0.3 * slope[name] for name in policy.names(scope="personal")})


@pytest.mark.parametrize("kind", KINDS)
def test_local_steps_are_those_of_the_referee(kind):
    """Every option of the steps at a setting that matters."""
    policy = of(kind, frozen=("bias",))
    start, built = world.parameters(policy), world.examples(policy, 6, propensities=True)
    settings = LocalConfig(steps=4, lr=0.4, slow_lr=0.7, weight_decay=0.3, rates={"taste": 2.0, "ids": 0.5})
    adaptation = adapt(policy, start, built, settings)
    end = referee(policy, start, built, settings)
    assert set(adaptation.update) == set(policy.names(scope="shared")) - {"bias"}
    close(adaptation.update, {name: end[name] - start[name] for name in adaptation.update}, rtol=1e-4, atol=1e-5)
    close(adaptation.personal, {name: end[name] for name in policy.names(scope="personal")}, rtol=1e-4, atol=1e-5)


def test_slow_weights_take_their_gradient_where_the_fast_ones_arrived():
    policy = of("personal")
    start, built = world.parameters(policy), world.examples(policy, 6)
    settings = LocalConfig(steps=5, lr=0.8, slow_lr=1.0)
    update = adapt(policy, start, built, settings).update
    fast = descend(policy, start, built, settings, steps=4)
    arrived = slopes(policy, {**start, **fast}, built, settings)
    begun = slopes(policy, start, built, settings)
    torch.testing.assert_close(update["ids"], -arrived["ids"], rtol=1e-5, atol=1e-6)
    assert float((update["ids"] + begun["ids"]).abs().max()) > 1e-3


def test_k_steps_on_the_taste_alone_in_numpy():
    """theta <- theta - lr (E_pi[x] - mean of x over the targets), the gradient of a softmax regression."""
    policy = of("none", ids=False, bias=False, content_embedding=False)
    start = {"taste": torch.zeros(policy.features.shape[1])}
    built = world.examples(policy, 9)
    adaptation = adapt(policy, start, built, LocalConfig(steps=6, lr=0.5))
    features, targets = policy.features.double().numpy(), built.targets[0].numpy()
    taste = np.zeros(features.shape[1])
    for _ in range(6):
        odds = np.exp(features @ taste)
        taste -= 0.5 * (odds / odds.sum() @ features - features[targets].mean(0))
    np.testing.assert_allclose(adaptation.update["taste"], taste, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 3])
def test_a_device_without_examples_moves_nothing(kind, steps):
    policy = of(kind)
    start = world.parameters(policy)
    nobody = type(built := world.examples(policy, 3))(
        *(value[0] for value in stack_examples([world.examples(policy, 0), built]))
    )
    adaptation = adapt(policy, start, nobody, LocalConfig(steps=steps))
    assert all(float(value.abs().max()) == 0 for value in adaptation.update.values())
    close(adaptation.personal, {name: start[name] for name in policy.names(scope="personal")}, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_only_fill_a_stack_change_nothing(kind):
    policy = of(kind)
    start, settings = world.parameters(policy), LocalConfig(steps=3)
    devices = [world.examples(policy, length, seed=length) for length in (1, 4, 9)]
    stack = stack_examples(devices)
    for row, device in enumerate(devices):
        alone = adapt(policy, start, device, settings)
        padded = adapt(policy, start, type(stack)(*(value[row] for value in stack)), settings)
        close(padded.update, alone.update, rtol=1e-4, atol=1e-5)
        close(padded.personal, alone.personal, rtol=1e-4, atol=1e-5)


def test_adaptation_lowers_the_loss_of_the_device():
    policy = of("history")
    start, built = policy.initial(torch.Generator().manual_seed(0)), world.examples(policy, 8)
    settings = LocalConfig(lr=0.3)
    before = float(device_loss(policy, start, built, settings))
    after = {**start, **descend(policy, start, built, settings, steps=10)}
    assert float(device_loss(policy, after, built, settings)) < before - 0.05


def test_descend_moves_what_it_is_told_to():
    policy = of("history")
    start, built = world.parameters(policy), world.examples(policy, 5)
    moved = descend(policy, start, built, LocalConfig(lr=0.3, slow_lr=0.2), steps=1, names=("ids", "taste"))
    slope = loss_gradient(policy, start, ("ids", "taste"), built, LocalConfig())
    close(moved, {"ids": start["ids"] - 0.2 * slope["ids"], "taste": start["taste"] - 0.3 * slope["taste"]})
    assert descend(policy, start, built, LocalConfig(), steps=3, names=()) == {}


def test_the_start_is_not_touched():
    policy = of("personal")
    start = world.parameters(policy)
    copies = {name: value.clone() for name, value in start.items()}
    adapt(policy, start, world.examples(policy, 5), LocalConfig(steps=3))
    close(start, copies, rtol=0, atol=0)


def test_step_sizes_follow_role_and_rate():
    policy, settings = of("none"), LocalConfig(lr=0.5, slow_lr=2.0, rates={"bias": 0.1})
    assert [step_size(policy, settings, name) for name in ("taste", "bias", "gain")] == [0.5, 0.2, 2.0]
