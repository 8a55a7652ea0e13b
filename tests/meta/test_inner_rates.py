"""Learned rates: the closed form, what they do to a step, and that nothing but released updates makes them."""

import math

import numpy as np
import policy_world as world
import pytest
import torch
from fedrec.config import Config, LocalConfig, ServerConfig
from fedrec.errors import ConfigError
from fedrec.meta.adapt import adapt, descend
from fedrec.meta.inner_rates import LARGEST, learn_rates, log_rates
from fedrec.meta.reptile import OuterState, reptile_step


def test_rates_are_the_closed_form():
    """Three rounds; the first coordinate travels, the second goes to and fro, the third stays."""
    means = np.array([[1.0, 1, 0], [1, -1, 0], [1, 1, 0]])
    phi, state = {"w": torch.zeros(3), "rate.w": torch.zeros(3)}, OuterState()
    for mean in means:
        rates, state = learn_rates(phi, {"w": torch.tensor(mean, dtype=torch.float32)}, state)
    smooth = 2.0  # (3 + 3 + 0) / 3
    wanted = 0.5 * np.log([(9 + smooth) / (3 + smooth), (1 + smooth) / (3 + smooth), 1.0])
    np.testing.assert_allclose(rates["rate.w"], wanted - wanted.mean(), rtol=1e-5)
    assert rates["rate.w"][0] > rates["rate.w"][2] > rates["rate.w"][1]


def test_rates_are_bounded_and_neutral_before_the_first_release():
    assert log_rates(torch.zeros(4), torch.zeros(4)).tolist() == [0.0] * 4
    far = log_rates(torch.tensor([1e4] + [0.0] * 99), torch.tensor([1.0] * 100))
    assert float(far.max()) == pytest.approx(LARGEST) == math.log(4)


def test_a_policy_without_learned_rates_learns_none():
    state = OuterState(step=3)
    assert learn_rates({"w": torch.zeros(2)}, {"w": torch.ones(2)}, state) == ({}, state)


def test_the_outer_step_keeps_what_rates_remember_and_so_does_a_checkpoint():
    phi, mean = {"w": torch.zeros(2)}, {"w": torch.tensor([1.0, 2.0])}
    _, state = learn_rates({**phi, "rate.w": torch.zeros(2)}, mean, OuterState())
    _, state = reptile_step(phi, mean, state, ServerConfig(), 1)
    again = OuterState.from_tensors(state.to_tensors())
    assert again.travel["w"].tolist() == [1.0, 2.0]
    assert again.energy["w"].tolist() == [1.0, 4.0]


def test_a_rate_multiplies_the_steps_of_its_coordinate():
    policy = world.policy(fast=("taste",), learned_rates=True)
    start = {**world.parameters(policy), "rate.taste": torch.zeros(7)}
    built, local = world.examples(policy), LocalConfig(lr=0.3)
    plain = adapt(policy, start, built, local).update["taste"]
    doubled = {**start, "rate.taste": torch.full((7,), math.log(2))}
    torch.testing.assert_close(
        adapt(policy, doubled, built, local).update["taste"],
        adapt(policy, start, built, LocalConfig(lr=0.6)).update["taste"],
    )
    still = {**start, "rate.taste": torch.tensor([-100.0] + [0.0] * 6)}
    moved = descend(policy, still, built, local, steps=3)["taste"] - start["taste"]
    assert moved[0] == 0 != plain[0]
    assert bool((moved[1:] != 0).all())


def test_rates_are_shared_and_frozen_and_none_is_made_of_personal_parameters():
    policy = world.policy(state="personal", fast=("taste", "latent"), learned_rates=True)
    rates = {"rate.latent", "rate.taste"}
    assert set(policy.names(speed="frozen", scope="shared")) == rates
    assert not rates & {*policy.trained, *policy.released}
    assert all(float(policy.initial(torch.Generator())[name].abs().max()) == 0 for name in rates)


def test_rates_are_refused_where_every_coordinate_is_noised_alike():
    for unit in ("interaction", "both"):
        with pytest.raises(ConfigError, match=f"expected policy.learned_rates = false under unit {unit}"):
            Config().updated(policy__learned_rates=True, privacy__unit=unit)
