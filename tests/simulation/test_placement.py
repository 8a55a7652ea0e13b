"""Chunks on another device: the same numbers, nothing left behind on the processor, and none that is not there."""

import far_device
import policy_world as policies
import pytest
import torch
from fedrec.config import Config
from fedrec.errors import ConfigError
from fedrec.simulation import cohort
from fedrec.simulation.placement import compute_device
from fedrec.simulation.run import simulate
from test_cohort import UNITS, close, config, run, tasks


def engine(**changes):
    return Config().updated(**{f"engine__{name}": value for name, value in changes.items()}).engine


@pytest.fixture
def far(monkeypatch):
    """A device with memory of its own, taken for what ``auto`` finds."""
    monkeypatch.setattr(cohort, "compute_device", lambda engine: far_device.DEVICE)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the mode that plays the device holds for one thread
    yield far_device.FarDevice()
    torch.set_num_threads(threads)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("kind", policies.ENCODERS)
def test_another_device_computes_the_same(kind, unit, far):
    policy = policies.policy(state=kind, affinity=True, fast=("taste", "latent"))
    devices = tasks(policy, unit, [5, 0, 13, 1])
    with far:
        there = run(policy, devices, config(unit))
    assert far.operations > 50
    assert not any(isinstance(value, far_device.Far) for value in (*there.total.values(), *there.personal.values()))
    close(run(policy, devices, config(unit, engine__kind="reference")), there)


@pytest.mark.parametrize("unit", ["interaction", "user"])
@pytest.mark.parametrize("kind", ["none", "history"])
def test_another_device_computes_every_term_of_the_objective(kind, unit, far):
    policy = policies.policy(state=kind, learned_rates=unit == "user")
    loss = {"local__top_k": 3, "local__trust_region": 0.5, "local__reward": "value"}
    if unit == "user":
        loss |= {"local__reward_model": "content", "local__self_normalised": True}
    devices = tasks(policy, unit, [5, 0, 13, 1])
    with far:
        there = run(policy, devices, config(unit, **loss))
    close(run(policy, devices, config(unit, engine__kind="reference", **loss)), there)


def test_a_mixture_of_devices_would_be_seen(far, monkeypatch):
    policy = policies.policy(state="history")
    monkeypatch.setattr(type(policy), "to", lambda self, device: self)
    with far, pytest.raises(RuntimeError, match="tensors on two devices"):
        run(policy, tasks(policy, "user", [5, 2]), config("user"))


def test_auto_takes_a_cuda_device_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert compute_device(engine()) == torch.device("cuda", 0)
    assert compute_device(engine(device="cuda:1")) == torch.device("cuda", 1)
    assert compute_device(engine(device="cpu")) == torch.device("cpu")


def test_without_one_it_is_the_processor_and_asking_for_one_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert compute_device(engine()) == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"^expected engine.device .* got cuda:3 and 0 CUDA devices; set it to"):
        compute_device(engine(device="cuda:3"))
    with pytest.raises(ConfigError, match=r"engine.device"):
        simulate(Config().updated(data__name="synthetic", engine__device="cuda"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["gpu", "cuda:", "CPU", "cuda:x"])
def test_a_device_that_is_no_name_of_one_is_refused(name):
    with pytest.raises(ConfigError, match=r"engine\.device"):
        engine(device=name)
