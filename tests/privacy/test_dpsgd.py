"""DP-SGD on Opacus with public constants; tests/simulation/test_cohort.py holds the cohort engine against it."""

import math

import numpy as np
import pytest
import torch
from fedrec._streams import torch_stream
from fedrec.errors import PrivacyError
from fedrec.privacy.accounting import Charge
from fedrec.privacy.dpsgd import DPSGD, draw_step_noise, example_clip_factors
from fedrec.privacy.entropy import SeededNoise, SystemNoise
from torch import nn

SHAPES = {"table": (7, 3), "bias": (5,), "temperature": ()}
RATES = {"table": 0.1, "bias": 1.0, "temperature": 2.0}


def optimizer(parameters, noise_multiplier=0.0, **changes):
    settings = {"learning_rates": {n: RATES.get(n, 1.0) for n in parameters}, "clip": 0.7, "expected_batch_size": 2.5}
    settings |= {"noise": SystemNoise()} | changes
    return DPSGD(parameters, noise_multiplier=noise_multiplier, **settings)


def zeros():
    return {name: nn.Parameter(torch.zeros(shape)) for name, shape in SHAPES.items()}


def test_off_equals_plain_sgd():
    generator = torch_stream(1, "plain")
    gradients = {name: torch.randn(4, *shape, generator=generator) for name, shape in SHAPES.items()}
    parameters = zeros()
    optimizer(parameters, clip=1e6, expected_batch_size=4).step(gradients)
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.detach(), -RATES[name] * gradients[name].mean(dim=0), rtol=1e-5, atol=1e-7)


def test_active_joint_clipping_in_closed_form():
    # Example 0 has joint norm 5 (3 in bias, 4 in temperature), example 1 has 0.5; clip 1, public divisor 2.
    bias, temperature = torch.zeros(2, 5), torch.tensor([4.0, 0.0])
    bias[0, 0], bias[1, 1] = 3.0, 0.5
    parameters = {n: nn.Parameter(torch.zeros(SHAPES[n])) for n in ("bias", "temperature")}
    optimizer(parameters, clip=1.0, expected_batch_size=2).step({"bias": bias, "temperature": temperature})
    expected = -torch.tensor([0.6, 0.5, 0.0, 0.0, 0.0]) / 2
    torch.testing.assert_close(parameters["bias"].detach(), expected, rtol=1e-5, atol=0)
    assert float(parameters["temperature"].detach()) == pytest.approx(-2.0 * 0.8 / 2, rel=1e-5)


def test_scales_precondition_the_gradient():
    # bias / 0.5 has norm 6 for a gradient of 3; clip 1 leaves 1 in scaled space, 0.5 back in the parameter's.
    parameters = {"bias": nn.Parameter(torch.zeros(5))}
    gradient = torch.tensor([[3.0, 0, 0, 0, 0]])
    optimizer(parameters, clip=1.0, expected_batch_size=1, scales={"bias": 0.5}).step({"bias": gradient})
    assert float(parameters["bias"][0].detach()) == pytest.approx(-0.5, rel=1e-5)


@pytest.mark.statistical
@pytest.mark.parametrize("examples", [0, 1, 3, 50])
@pytest.mark.parametrize("noise", [SeededNoise(torch_stream(8, "law")), SystemNoise()])
def test_noise_law_does_not_depend_on_the_number_of_examples(examples, noise):
    # The released step has noise sigma * C * scale / B whatever N is.
    parameters = {"w": nn.Parameter(torch.zeros(20_000))}
    settings = {"learning_rates": {"w": 1.0}, "expected_batch_size": 4, "scales": {"w": 0.5}, "noise": noise}
    optimizer(parameters, 1.3, **settings).step({"w": torch.zeros(examples, 20_000)})
    std = 1.3 * 0.7 * 0.5 / 4
    sample = float(parameters["w"].detach().double().pow(2).mean().sqrt())
    error = 4.5 / math.sqrt(2 * 20_000)
    assert abs(sample / std - 1) < error
    assert abs(sample / (std * 2 / 3) - 1) > error
    assert abs(sample / (std * 3 / 2) - 1) > error


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_example_that_is_not_finite_counts_as_zero_in_all_parameters(bad):
    bias, temperature = torch.zeros(2, 5), torch.tensor([0.1, 0.2])
    bias[0, 3] = bad
    parameters = {n: nn.Parameter(torch.zeros(SHAPES[n])) for n in ("bias", "temperature")}
    optimizer(parameters, expected_batch_size=1).step({"bias": bias, "temperature": temperature})
    assert torch.equal(parameters["bias"].detach(), torch.zeros(5))
    assert float(parameters["temperature"].detach()) == pytest.approx(-2.0 * 0.2)


def test_huge_gradients_stay_within_the_clip():
    for scales in (None, {"bias": 1e-6}):
        parameters = {"bias": nn.Parameter(torch.zeros(5))}
        optimizer(parameters, expected_batch_size=1, scales=scales).step({"bias": torch.full((1, 5), 3e38)})
        assert float(parameters["bias"].detach().norm()) <= 0.7


def test_empty_batch_is_a_step_of_pure_noise_and_is_counted():
    parameters = zeros()
    steps = optimizer(parameters, 1.0, noise=SeededNoise(torch_stream(2, "empty")))
    steps.step({name: torch.zeros(0, *shape) for name, shape in SHAPES.items()})
    noise = draw_step_noise(SeededNoise(torch_stream(2, "empty")), SHAPES, 0.7)
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.detach(), -RATES[name] * noise[name] / 2.5)
    assert steps.charge(0.25) == Charge(1.0, 0.25, 1)


def test_clip_factors_are_those_of_opacus():
    factors = example_clip_factors(torch.tensor([0.0, 0.1, 1.0, 10.0]), 0.5)
    np.testing.assert_allclose(factors, [1, 1, 0.5, 0.05], rtol=1e-5)


def test_charge_needs_steps_and_noise():
    steps = optimizer(zeros(), 1.0)
    with pytest.raises(PrivacyError, match="no charge for 0 steps at noise multiplier 1"):
        steps.charge(0.5)
    silent = optimizer(zeros(), 0.0)
    silent.step({name: torch.zeros(1, *shape) for name, shape in SHAPES.items()})
    with pytest.raises(PrivacyError, match="noise multiplier 0"):
        silent.charge(0.5)
    assert optimizer(zeros(), 1.0, noise=SeededNoise(torch.Generator())).seeded
    assert not steps.seeded


def test_wrong_input_raises():
    with pytest.raises(ValueError, match="expected_batch_size > 0"):
        optimizer(zeros(), expected_batch_size=0)
    with pytest.raises(ValueError, match="expected clip > 0"):
        optimizer(zeros(), clip=0.0)
    with pytest.raises(ValueError, match="expected learning rates for"):
        optimizer(zeros(), learning_rates={"bias": 1.0})
    with pytest.raises(ValueError, match="expected trainable parameters only"):
        optimizer({"bias": nn.Parameter(torch.zeros(5), requires_grad=False)})
    steps = optimizer(zeros())
    with pytest.raises(ValueError, match="expected gradients of"):
        steps.step({"bias": torch.zeros(1, 5)})
    gradients = {name: torch.zeros(1, *shape) for name, shape in SHAPES.items()}
    with pytest.raises(ValueError, match="per-example gradients of one batch"):
        steps.step(gradients | {"bias": torch.zeros(2, 5)})
    with pytest.raises(ValueError, match="with shapes"):
        steps.step(gradients | {"bias": torch.zeros(1, 4)})
    assert steps.steps == 0
