import numpy as np
import pytest
import torch
from fedrec._streams import torch_stream
from fedrec.config import ServerConfig
from fedrec.meta.reptile import (
    ADAM_EPSILON,
    ADAM_SECOND_DECAY,
    OuterState,
    mean_update,
    outer_learning_rate,
    reptile_step,
    served,
)
from hypothesis import given, settings
from hypothesis import strategies as st


def draws(rounds, seed=0):
    generator = torch_stream(seed, "reptile")
    shapes = {"items": (4, 3), "bias": (4,), "temperature": ()}
    return [{name: torch.randn(shape, generator=generator) for name, shape in shapes.items()} for _ in range(rounds)]


def run(config, means, phi):
    state = OuterState()
    path = []
    for number, mean in enumerate(means, start=1):
        phi, state = reptile_step(phi, mean, state, config, number)
        path.append(phi)
    return path, state


def test_linear_decay_runs_from_the_full_rate_to_one_last_small_step():
    config = ServerConfig(rounds=4, outer_lr=2.0)
    assert [outer_learning_rate(config, number) for number in (1, 2, 3, 4)] == [2.0, 1.5, 1.0, 0.5]
    assert outer_learning_rate(config.model_copy(update={"decay": "none"}), 4) == 2.0


def test_sgd_moves_by_the_rate_times_the_mean():
    config = ServerConfig(outer_optimizer="sgd", outer_lr=0.5, decay="none")
    phi, state = reptile_step(
        {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([4.0, -2.0])}, OuterState(), config, 1
    )
    assert phi["w"].tolist() == [3.0, 1.0]
    assert state == OuterState(step=1)


def test_momentum_under_a_constant_mean_is_a_geometric_sum():
    config = ServerConfig(outer_optimizer="momentum", momentum=0.5, outer_lr=1.0, decay="none")
    path, _ = run(config, [{"w": torch.ones(1)}] * 3, {"w": torch.zeros(1)})
    # velocities 1, 1.5, 1.75; their running sums
    assert [float(phi["w"]) for phi in path] == [1.0, 2.5, 4.25]


def test_adam_under_a_constant_mean_takes_unit_steps():
    config = ServerConfig(outer_optimizer="adam", momentum=0.9, outer_lr=0.1, decay="none")
    path, _ = run(config, [{"w": torch.full((1,), -7.0)}] * 3, {"w": torch.zeros(1)})
    # with bias correction m / sqrt(v) = -1 in every step
    np.testing.assert_allclose([float(phi["w"]) for phi in path], [-0.1, -0.2, -0.3], rtol=1e-6)


def numpy_referee(config, means, phi):
    m = v = np.zeros_like(phi)
    for t, g in enumerate(means, start=1):
        m = {"sgd": 0, "momentum": config.momentum, "adam": config.momentum}[config.outer_optimizer] * m + g * (
            1 - config.momentum if config.outer_optimizer == "adam" else 1
        )
        v = ADAM_SECOND_DECAY * v + (1 - ADAM_SECOND_DECAY) * g**2
        root = np.sqrt(v / (1 - ADAM_SECOND_DECAY**t)) + ADAM_EPSILON
        d = m / (1 - config.momentum**t) / root if config.outer_optimizer == "adam" else m
        phi = phi + config.outer_lr * (1 - (t - 1) / config.rounds) * d
    return phi


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_every_optimizer_equals_the_numpy_referee(optimizer):
    config = ServerConfig(outer_optimizer=optimizer, rounds=6, outer_lr=0.3, momentum=0.8)
    start, *means = draws(7)
    path, _ = run(config, means, start)
    for name in start:
        expected = numpy_referee(config, [mean[name].double().numpy() for mean in means], start[name].double().numpy())
        np.testing.assert_allclose(path[-1][name].numpy(), expected, rtol=2e-5, atol=2e-6)


def test_adam_equals_torch():
    config = ServerConfig(outer_optimizer="adam", outer_lr=0.05, momentum=0.9, decay="none")
    start, *means = draws(6)
    path, _ = run(config, means, start)
    weight = torch.nn.Parameter(start["items"].clone())
    optimizer = torch.optim.Adam([weight], lr=0.05, betas=(0.9, ADAM_SECOND_DECAY), eps=ADAM_EPSILON)
    for mean in means:
        weight.grad = -mean["items"]
        optimizer.step()
    torch.testing.assert_close(path[-1]["items"], weight.detach(), rtol=1e-5, atol=1e-6)


def test_the_average_is_the_normalised_exponential_one_and_is_served():
    config = ServerConfig(outer_optimizer="sgd", average=0.75, decay="none")
    start, *means = draws(5)
    assert served(start, OuterState(), config) is start
    path, state = run(config, means, start)
    weights = np.array([0.75 ** (4 - step) for step in (1, 2, 3, 4)])
    expected = sum(w * phi["items"].double().numpy() for w, phi in zip(weights / weights.sum(), path, strict=True))
    np.testing.assert_allclose(served(path[-1], state, config)["items"].numpy(), expected, rtol=1e-5, atol=1e-6)
    plain = config.model_copy(update={"average": 0.0})
    assert served(path[-1], state, plain) is path[-1]


def test_the_input_is_left_alone():
    phi, mean = {"w": torch.ones(2)}, {"w": torch.ones(2)}
    reptile_step(phi, mean, OuterState(), ServerConfig(average=0.5), 1)
    assert phi["w"].tolist() == mean["w"].tolist() == [1.0, 1.0]


def test_the_mean_divides_in_double_precision_by_a_public_number():
    total = {"w": torch.tensor([1.0, 2.0], dtype=torch.float64)}
    mean = mean_update(total, 4.0)
    assert mean["w"].dtype == torch.float32
    assert mean["w"].tolist() == [0.25, 0.5]
    with pytest.raises(ValueError, match=r"expected divisor > 0 and finite, got 0"):
        mean_update(total, 0)


def test_a_mean_of_other_names_or_shapes_is_refused():
    with pytest.raises(ValueError, match=r"difference at \['w'\]"):
        reptile_step({"w": torch.ones(2)}, {"w": torch.ones(3)}, OuterState(), ServerConfig(), 1)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_state_survives_the_round_trip_and_goes_on_to_the_same_bits(optimizer):
    config = ServerConfig(outer_optimizer=optimizer, average=0.9, rounds=10)
    start, *means = draws(6)
    path, _ = run(config, means, start)
    half, state = run(config, means[:2], start)
    phi, state = half[-1], OuterState.from_tensors(state.to_tensors())
    for number, mean in enumerate(means[2:], start=3):
        phi, state = reptile_step(phi, mean, state, config, number)
    assert all(torch.equal(phi[name], path[-1][name]) for name in phi)


def test_a_foreign_or_incomplete_state_is_refused():
    with pytest.raises(ValueError, match="got 'velocity/w'"):
        OuterState.from_tensors({"velocity/w": torch.ones(1), "step": torch.tensor(1)})
    with pytest.raises(ValueError, match="hold its step"):
        OuterState.from_tensors({})


@settings(max_examples=40, deadline=None)
@given(devices=st.integers(1, 8), seed=st.integers(0, 10_000), lr=st.floats(0.01, 1.0), rounds=st.integers(1, 4))
def test_one_local_step_with_equal_weights_is_federated_sgd(devices, seed, lr, rounds):
    """K = 1, outer_lr = 1, sgd: phi - lr * mean of the devices' gradients, here of least squares."""
    generator = torch_stream(seed, "fedsgd")
    inputs = torch.randn(devices, 5, 3, generator=generator)
    targets = torch.randn(devices, 5, generator=generator)

    def gradient(weights, device):
        return inputs[device].T @ (inputs[device] @ weights - targets[device]) / 5

    config = ServerConfig(outer_optimizer="sgd", outer_lr=1.0, decay="none", rounds=rounds)
    phi, state, reference = {"w": torch.zeros(3)}, OuterState(), torch.zeros(3)
    for number in range(1, rounds + 1):
        updates = [(phi["w"] - lr * gradient(phi["w"], device)) - phi["w"] for device in range(devices)]
        mean = mean_update({"w": torch.stack(updates).double().sum(dim=0)}, devices)
        phi, state = reptile_step(phi, mean, state, config, number)
        reference = reference - lr * torch.stack([gradient(reference, device) for device in range(devices)]).mean(dim=0)
    torch.testing.assert_close(phi["w"], reference, rtol=1e-4, atol=1e-5)
