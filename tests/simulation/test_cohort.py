"""The batched engine against the devices one by one on Opacus, for every encoder and privacy unit."""

import policy_world as policies
import pytest
import torch
from fedrec.client.adaptation import LocalMechanism
from fedrec.config import Config
from fedrec.simulation.cohort import DeviceTask, adapt_cohort
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

UNITS = ("none", "interaction", "user", "both")
LENGTHS = st.lists(st.sampled_from([0, 1, 2, 5, 13]), min_size=1, max_size=6)


def config(unit, **changes):
    defaults = {
        "local__steps": 3,
        "local__windows": 4,
        "local__horizon": 2,
        "local__lr": 0.6,
        "local__weight_decay": 0.1,
        "privacy__unit": unit,
        "privacy__clip": 0.05,
        "privacy__example_clip": 0.1,
        "privacy__expected_batch": 4.0,
        "privacy__scales": {"bias": 3.0},
    }
    return Config().updated(**(defaults | changes))


def tasks(policy, unit, lengths):
    own = policy.names(scope="personal")
    return [
        DeviceTask(
            device=100 + number,
            examples=policies.examples(policy, length, seed=number, unit=unit, windows=4, horizon=2, propensities=True),
            personal={name: torch.full(policy.specs[name].shape, 0.1 * number) for name in own},
        )
        for number, length in enumerate(lengths)
    ]


def run(policy, devices, settings, *, round_number=3):
    unit = settings.privacy.unit
    mechanism = LocalMechanism.of(policy, settings, 0.7) if unit in ("interaction", "both") else None
    point = policies.parameters(policy)
    phi = {name: point[name] for name in policy.names(scope="shared")}
    return adapt_cohort(policy, phi, devices, settings, mechanism, round_number=round_number)


def close(first, second, tolerance=1e-5):
    assert first.total.keys() == second.total.keys()
    for name, value in first.total.items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(value, second.total[name], rtol=1e-4, atol=tolerance)
    assert len(first.personal) == len(second.personal)
    for mine, other in zip(first.personal, second.personal, strict=True):
        assert mine.keys() == other.keys()
        for name, value in mine.items():
            torch.testing.assert_close(value, other[name], rtol=1e-4, atol=tolerance)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("kind", policies.ENCODERS)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(lengths=LENGTHS, rate=st.sampled_from([0.4, 1.0]))
def test_the_cohort_is_its_devices(kind, unit, lengths, rate):
    policy = policies.policy(state=kind, user_features=True)
    chosen = config(unit, privacy__sample_rate=1.0 if policy.sees_history else rate)
    devices = tasks(policy, unit, lengths)
    cohort = run(policy, devices, chosen)
    close(cohort, run(policy, devices, chosen.updated(engine__kind="reference")))
    assert any(float(value.abs().max()) > 0 for value in cohort.total.values()) or not any(lengths)


@pytest.mark.parametrize("unit", UNITS)
def test_frozen_parameters_are_left_out_by_both(unit):
    policy = policies.policy(state="personal", frozen=("bias", "gain"))
    devices = tasks(policy, unit, [3, 0, 7])
    cohort = run(policy, devices, config(unit, privacy__scales={}))
    close(cohort, run(policy, devices, config(unit, privacy__scales={}, engine__kind="reference")))
    assert set(cohort.total) == set(policy.released)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("kind", ["cohort", "reference"])
def test_chunks_and_order_change_nothing_but_rounding(unit, kind):
    policy = policies.policy(state="personal")
    devices = tasks(policy, unit, [5, 0, 13, 1, 2, 7])
    whole = run(policy, devices, config(unit, engine__kind=kind, engine__chunk=64))
    for chunk in (1, 4):
        close(whole, run(policy, devices, config(unit, engine__kind=kind, engine__chunk=chunk)), 1e-6)
    backwards = run(policy, devices[::-1], config(unit, engine__kind=kind, engine__chunk=2))
    backwards.personal.reverse()
    close(whole, backwards, 1e-6)


def test_nobody_adds_up_to_zero():
    policy = policies.policy()
    empty = run(policy, [], config("user"))
    assert set(empty.total) == set(policy.released)
    assert all(float(value.abs().max()) == 0 for value in empty.total.values())
    assert empty.personal == []


@pytest.mark.parametrize("kind", ["cohort", "reference"])
def test_streams_follow_round_and_device(kind):
    policy = policies.policy(state="none")
    chosen = config("interaction", engine__kind=kind)
    devices = tasks(policy, "interaction", [4])
    first = run(policy, devices, chosen).total["bias"]
    assert torch.equal(first, run(policy, devices, chosen).total["bias"])
    assert not torch.equal(first, run(policy, devices, chosen, round_number=4).total["bias"])
    renamed = [DeviceTask(device=7, examples=devices[0].examples, personal={})]
    assert not torch.equal(first, run(policy, renamed, chosen).total["bias"])


@pytest.mark.parametrize("kind", ["cohort", "reference"])
@pytest.mark.parametrize("unit", UNITS)
def test_a_device_that_diverges_harms_nobody_and_keeps_what_it_had(unit, kind):
    policy = policies.policy(state="personal", user_features=True)
    chosen = config(unit, engine__kind=kind)
    devices = tasks(policy, unit, [4, 6])
    sick = DeviceTask(
        device=99,
        examples=devices[0].examples._replace(user=torch.full((policies.USER,), float("nan"))),
        personal={"personal": torch.full((4,), 0.3)},
    )
    together = run(policy, [*devices, sick], chosen)
    assert all(bool(torch.isfinite(value).all()) for value in together.total.values())
    assert bool(torch.isfinite(together.personal[2]["personal"]).all())
    if unit in ("none", "user"):
        alone = run(policy, devices, chosen)
        close(together, type(alone)(total=alone.total, personal=[*alone.personal, sick.personal]), 1e-6)


def test_the_sum_holds_each_device_to_its_clip():
    policy = policies.policy(state="none")
    chosen = config("user", privacy__clip=0.01, privacy__scales={})
    total = run(policy, tasks(policy, "user", [5, 6, 7]), chosen).total
    norm = torch.cat([value.flatten() for value in total.values()]).norm()
    assert 0.01 < float(norm) <= 3 * 0.01 * (1 + 1e-6)
