"""Adaptation of one device under its privacy unit: what DP-SGD clips, noises and divides by."""

import policy_world as world
import pytest
import torch
from fedrec._streams import torch_stream
from fedrec.client.adaptation import (
    LocalMechanism,
    adapt_device,
    adapt_privately,
    bound_update,
    per_example_gradients,
    private_step_sizes,
    select,
)
from fedrec.config import Config, LocalConfig
from fedrec.errors import PrivacyError
from fedrec.meta.adapt import Adaptation, adapt
from fedrec.meta.objective import example_losses
from fedrec.privacy.entropy import SeededNoise

HUGE = 1e6


def release(policy, built, *, noise=0.0, seed=0, settings=None, start=None, **mechanism):
    values = {"noise_multiplier": noise, "clip": 0.5, "expected_batch": 4.0} | mechanism
    return adapt_privately(
        policy,
        start or world.parameters(policy),
        built,
        settings or LocalConfig(steps=1, lr=0.3, slow_lr=0.2),
        LocalMechanism(**values),
        noise=SeededNoise(torch_stream(seed, "noise")),
        batches=torch_stream(seed, "batches"),
    )


def flat(adaptation):
    parts = {**adaptation.update, **adaptation.personal}
    return torch.cat([parts[name].flatten() for name in sorted(parts)])


def moved(policy, adaptation, start):
    """How far every trained parameter went, personal ones too."""
    return adaptation.update | {name: adaptation.personal[name] - start[name] for name in adaptation.personal}


@pytest.mark.parametrize("kind", world.ENCODERS)
def test_without_noise_and_clipping_it_is_the_plain_adaptation(kind):
    policy = world.policy(state=kind)
    built = world.examples(policy, 9, unit="interaction", windows=4)
    settings = LocalConfig(steps=1, lr=0.3, slow_lr=0.2)
    private = release(policy, built, clip=HUGE, expected_batch=len(built.present), settings=settings)
    plain = adapt(policy, world.parameters(policy), built, settings)
    torch.testing.assert_close(flat(private), flat(plain), rtol=1e-4, atol=1e-6)


def referee(policy, start, built, settings, clip, divisor, scales):
    """K steps by hand: a loop over examples, reverse mode on plain leaves, the clip joint over all that is trained."""
    here = dict(start)
    for _ in range(settings.steps):
        total = {name: torch.zeros_like(here[name]) for name in policy.trained}
        for row in range(len(built.present)):
            leaves = {name: here[name].clone().requires_grad_() for name in policy.trained}
            loss = example_losses(policy, {**here, **leaves}, select(built, torch.tensor([row])), settings).sum()
            slopes = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
            scaled = {name: slope / scales.get(name, 1.0) for name, slope in slopes.items()}
            norm = torch.sqrt(sum((slope**2).sum() for slope in scaled.values()))
            assert float(norm) > clip, "the clip is not active"
            for name in total:
                total[name] += scaled[name] * clip / norm * scales.get(name, 1.0)
        rates = {
            name: settings.lr if policy.specs[name].speed == "fast" else settings.slow_lr / settings.steps
            for name in total
        }
        here |= {name: here[name] - rates[name] * total[name] / divisor for name in total}
    return here


@pytest.mark.parametrize("kind", world.ENCODERS)
def test_clipped_steps_are_those_of_the_referee(kind):
    policy = world.policy(state=kind, frozen=("gain",))
    built = world.examples(policy, 6, unit="interaction", windows=4)
    settings, scales = LocalConfig(steps=3, lr=0.4, slow_lr=0.9), {"bias": 3.0, "taste": 0.5}
    start = world.parameters(policy)
    private = release(policy, built, clip=0.05, expected_batch=5.0, settings=settings, scales=scales)
    end = referee(policy, start, built, settings, 0.05, 5.0, scales)
    assert set(private.update) == set(policy.released)
    for name, value in moved(policy, private, start).items():
        torch.testing.assert_close(value, end[name] - start[name], rtol=1e-3, atol=1e-6)


def test_the_divisor_is_the_public_constant_whatever_the_device_holds():
    """Twice the same examples move twice as far: a divisor from their number would hide it."""
    policy = world.policy(state="none")
    once = world.examples(policy, 4, unit="interaction")
    twice = select(once, torch.tensor([0, 1, 2, 3, 0, 1, 2, 3]))
    torch.testing.assert_close(flat(release(policy, twice)), 2 * flat(release(policy, once)), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", world.ENCODERS)
def test_noise_is_the_same_for_any_number_of_interactions(kind):
    policy = world.policy(state=kind)
    noises = []
    for count in (0, 3, 4):
        built = world.examples(policy, count, unit="interaction", windows=4)
        noises.append(flat(release(policy, built, noise=2.0)) - flat(release(policy, built)))
    torch.testing.assert_close(noises[1], noises[2], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(noises[0], noises[1], rtol=1e-3, atol=1e-5)
    assert float(noises[0].abs().max()) > 0.01


def test_steps_do_not_depend_on_what_the_device_holds():
    """Three steps of noise, even from nothing: variance K (sigma C lr / B)^2 for a fast weight."""
    policy = world.policy(state="personal", dim=2000, ids=False, bias=False, fast=("taste",))
    nobody = world.examples(policy, 0, unit="interaction")
    settings = LocalConfig(steps=3, lr=0.3, slow_lr=0.0)
    private = release(policy, nobody, noise=2.0, clip=0.5, expected_batch=4.0, settings=settings)
    spread = float((private.personal["personal"] - world.parameters(policy)["personal"]).std())
    assert spread == pytest.approx(3**0.5 * 2.0 * 0.5 * 0.3 / 4.0, rel=0.08)  # five standard errors


def test_the_personal_vector_is_clipped_with_the_rest_and_noised():
    """Jointly: one example moves everything together, personal vector included, by the clip and no more."""
    policy = world.policy(state="personal")
    start, one = world.parameters(policy, scale=3.0), world.examples(policy, 1, unit="interaction")
    settings = LocalConfig(steps=1, lr=1.0, slow_lr=1.0)
    private = release(policy, one, clip=0.5, expected_batch=1.0, settings=settings, start=start)
    steps = moved(policy, private, start)
    assert float(torch.cat([step.flatten() for step in steps.values()]).norm()) == pytest.approx(0.5, rel=1e-4)
    assert float(steps["personal"].norm()) > 0.05
    nobody = world.examples(policy, 0, unit="interaction")
    noised = release(policy, nobody, noise=1.0, settings=settings, start=start)
    assert float((noised.personal["personal"] - start["personal"]).abs().min()) > 0


def test_blocks_of_the_log_take_twice_the_noise():
    policies = {"history": world.policy(state="history"), "none": world.policy(state="none")}
    config = Config().updated(privacy__unit="interaction", privacy__example_clip=0.5)
    changes = {name: LocalMechanism.of(policy, config, 1.5) for name, policy in policies.items()}
    assert {name: mechanism.noise_over_clip for name, mechanism in changes.items()} == {"history": 3.0, "none": 1.5}
    nobody = world.examples(policies["history"], 0, unit="interaction")
    single = flat(release(policies["history"], nobody, noise=1.5)) - flat(release(policies["history"], nobody))
    double = flat(release(policies["history"], nobody, noise=1.5, changes=2)) - flat(
        release(policies["history"], nobody)
    )
    torch.testing.assert_close(double, 2 * single, rtol=1e-3, atol=1e-5)


def test_poisson_batches_over_blocks_are_refused():
    with pytest.raises(PrivacyError, match=r"expected privacy.sample_rate = 1 .* got 0.5"):
        LocalMechanism(noise_multiplier=1.0, clip=1.0, changes=2, sample_rate=0.5)
    LocalMechanism(noise_multiplier=1.0, clip=1.0, changes=1, sample_rate=0.5)


def test_batches_are_poisson_samples_of_the_public_rate():
    policy = world.policy(state="none", ids=False, content=False, content_embedding=False, fast=())
    built = world.examples(policy, 1, unit="interaction")
    settings = LocalConfig(steps=1, slow_lr=1.0)
    hits = sum(
        bool(flat(release(policy, built, seed=seed, sample_rate=0.25, settings=settings)).abs().max() > 0)
        for seed in range(200)
    )
    assert abs(hits - 50) < 4 * (200 * 0.25 * 0.75) ** 0.5


def test_a_nan_example_harms_neither_the_others_nor_the_device():
    policy = world.policy(state="none", user_width=0)
    built = world.examples(policy, 3, unit="interaction")
    sick = built._replace(rewards=torch.tensor([[float("nan")], [2.0], [3.0]]))
    settings = LocalConfig(steps=1, reward="value")
    healthy = select(sick, torch.tensor([1, 2]))
    torch.testing.assert_close(
        flat(release(policy, sick, settings=settings)), flat(release(policy, healthy, settings=settings))
    )


def test_absent_examples_have_no_gradient():
    policy = world.policy(state="none")
    built = world.examples(policy, 3, unit="interaction")._replace(present=torch.tensor([1.0, 0.0, 1.0]))
    gradients = per_example_gradients(policy, world.parameters(policy), built, LocalConfig())
    assert all(float(gradient[1].abs().max()) == 0 for gradient in gradients.values())
    assert float(gradients["taste"][0].abs().max()) > 0


def test_slow_weights_share_their_step_among_the_steps():
    policy = world.policy(state="none")
    sizes = private_step_sizes(policy, LocalConfig(steps=4, lr=0.5, slow_lr=2.0, rates={"bias": 0.1}))
    assert (sizes["taste"], sizes["gain"], sizes["bias"]) == (0.5, 0.5, 0.05)


def test_units_without_a_local_mechanism_adapt_plainly():
    policy, settings = world.policy(state="personal"), LocalConfig(steps=3)
    start, built = world.parameters(policy), world.examples(policy, 5, unit="user")
    noise = SeededNoise(torch_stream(0, "noise"))
    mine = adapt_device(policy, start, built, settings, None, noise=noise, batches=None)
    assert torch.equal(flat(mine), flat(adapt(policy, start, built, settings)))


@pytest.mark.parametrize("unit", ["none", "interaction", "user", "both"])
def test_updates_are_clipped_under_user_and_both_and_under_no_other(unit):
    config = Config().updated(privacy__unit=unit, privacy__clip=0.5, privacy__scales={"ids": 10.0, "elsewhere": 2.0})
    update = {"ids": torch.full((2, 2), 20.0), "bias": torch.full((3,), 4.0)}
    clipped = bound_update(Adaptation(update=update, personal={"personal": torch.full((2,), 99.0)}), config)
    if unit in ("none", "interaction"):
        assert clipped is None
        return
    norm = torch.sqrt((clipped.value["ids"] / 10).square().sum() + clipped.value["bias"].square().sum())
    assert float(norm) == pytest.approx(0.5, rel=1e-5)
    assert set(clipped.value) == {"ids", "bias"}
