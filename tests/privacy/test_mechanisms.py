"""Clipping and noise: off equals plain, closed form while clipping is active, the noise law, edge cases, properties."""

import math

import numpy as np
import pytest
import torch
from fedrec._streams import torch_stream
from fedrec.errors import PrivacyError
from fedrec.privacy.entropy import SeededNoise, SystemNoise
from fedrec.privacy.mechanisms import Sensitivity, clip_update, clip_updates, gaussian_sum_noise
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp


def norm(value, scales=None):
    scales = scales or {}
    return math.sqrt(sum(float(((t.double() / scales.get(n, 1.0)) ** 2).sum()) for n, t in value.items()))


def test_below_the_clip_nothing_changes():
    update = {"a": torch.tensor([0.3, -0.4]), "b": torch.tensor(0.5)}
    clipped = clip_update(update, 10.0)
    assert all(torch.equal(clipped.value[name], update[name]) for name in update)
    assert not clipped.was_clipped
    assert clipped.norm_before == pytest.approx(math.sqrt(0.5), rel=1e-6)


def test_active_clipping_in_closed_form():
    # Joint norm of (3, 0) and (0, 4) is 5: clip 1 divides everything by 5.
    clipped = clip_update({"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[0.0], [4.0]])}, 1.0)
    torch.testing.assert_close(clipped.value["a"], torch.tensor([0.6, 0.0]), rtol=1e-6, atol=0)
    torch.testing.assert_close(clipped.value["b"], torch.tensor([[0.0], [0.8]]), rtol=1e-6, atol=0)
    assert clipped.was_clipped
    assert clipped.norm_before == 5.0
    assert clipped.sensitivity.value == 1.0


def test_scales_precondition_the_norm():
    # In the space a / 3, b / 0.5 the update is (1, 8): norm sqrt(65).
    scales = {"a": 3.0, "b": 0.5}
    clipped = clip_update({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}, 2.0, scales)
    assert clipped.norm_before == pytest.approx(math.sqrt(65))
    torch.testing.assert_close(clipped.value["b"], torch.tensor([8 / math.sqrt(65)]), rtol=1e-6, atol=0)
    assert norm(clipped.value, scales) == pytest.approx(2.0, rel=1e-6)


floats = st.floats(width=32, allow_nan=True, allow_infinity=True)
arrays = hnp.arrays(np.float32, hnp.array_shapes(max_dims=2, max_side=4), elements=floats)


@given(a=arrays, b=arrays, clip=st.floats(1e-3, 1e3), scale=st.floats(1e-3, 1e3))
def test_what_leaves_is_within_the_clip_whatever_comes(a, b, clip, scale):
    clipped = clip_update({"a": torch.from_numpy(a), "b": torch.from_numpy(b)}, clip, {"b": scale})
    assert norm(clipped.value, {"b": scale}) <= clip
    finite = np.isfinite(a).all() and np.isfinite(b).all()
    assert clipped.nonfinite == (not finite)
    if not finite:
        assert norm(clipped.value) == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e39])
def test_nonfinite_updates_become_zero(bad):
    clipped = clip_update({"a": torch.tensor([1.0, bad], dtype=torch.float64), "b": torch.ones(2)}, 1.0)
    assert clipped.nonfinite
    assert not clipped.was_clipped
    assert math.isnan(clipped.norm_before)
    assert all(torch.equal(t, torch.zeros(2)) for t in clipped.value.values())


def test_zero_update_stays_zero():
    clipped = clip_update({"a": torch.zeros(3)}, 1.0)
    assert torch.equal(clipped.value["a"], torch.zeros(3))
    assert (clipped.norm_before, clipped.was_clipped, clipped.nonfinite) == (0.0, False, False)


def test_batched_equals_the_loop():
    generator = torch_stream(3, "batched")
    stacked = {
        "a": torch.randn(7, 4, 2, generator=generator),
        "b": torch.randn(7, generator=generator),
        "c": 5 * torch.randn(7, 3, generator=generator),
    }
    stacked["a"][2] = 0.0
    stacked["c"][4, 1] = math.nan
    stacked["b"][5] = math.inf
    scales = {"c": 2.0}
    together = clip_updates(stacked, 1.5, scales)
    singles = [clip_update({n: t[d] for n, t in stacked.items()}, 1.5, scales) for d in range(7)]
    for name, tensor in together.value.items():
        assert tensor.dtype == torch.float64
        expected = sum(s.value[name].double() for s in singles)
        torch.testing.assert_close(tensor, expected, rtol=1e-12, atol=1e-12)
    assert together.was_clipped.tolist() == [s.was_clipped for s in singles]
    assert together.nonfinite.tolist() == [s.nonfinite for s in singles]
    assert together.sensitivity == singles[0].sensitivity
    assert any(s.was_clipped for s in singles)


def test_no_devices_sum_to_zero():
    empty = clip_updates({"a": torch.zeros(0, 3)}, 1.0)
    assert torch.equal(empty.value["a"], torch.zeros(3, dtype=torch.float64))


def test_one_unit_moves_the_sum_by_the_sensitivity_at_most():
    generator = torch_stream(4, "sensitivity")
    stacked = {"a": 9 * torch.randn(12, 5, generator=generator), "b": torch.randn(12, 2, generator=generator)}
    scales = {"b": 0.1}
    total = clip_updates(stacked, 0.7, scales)
    for left_out in range(12):
        rest = [d for d in range(12) if d != left_out]
        without = clip_updates({n: t[rest] for n, t in stacked.items()}, 0.7, scales)
        moved = {n: total.value[n] - without.value[n] for n in total.value}
        assert norm(moved, scales) <= total.sensitivity.value * (1 + 1e-9)


def test_without_noise_the_sum_is_released_as_it_is():
    total = {"a": torch.tensor([1.0, 2.0], dtype=torch.float64)}
    released = gaussian_sum_noise(total, Sensitivity(1.0), 0.0, SystemNoise())
    assert torch.equal(released["a"], total["a"])


def fits(sample, std):
    """Whether a sample's standard deviation is within 4.5 standard errors of ``std``."""
    error = std / math.sqrt(2 * len(sample))
    return abs(float(np.sqrt((sample**2).mean())) - std) < 4.5 * error


@pytest.mark.statistical
@pytest.mark.parametrize("devices", [1, 50])
@pytest.mark.parametrize("noise", [SeededNoise(torch_stream(11, "law")), SystemNoise()])
def test_noise_law_of_the_sum(devices, noise):
    # sigma * S * scale, once, however many devices contributed.
    clipped = clip_updates({"a": torch.ones(devices, 20_000), "b": torch.ones(devices, 20_000)}, 0.5, {"b": 3.0})
    released = gaussian_sum_noise(clipped.value, clipped.sensitivity, 1.7, noise)
    for name, std in (("a", 1.7 * 0.5), ("b", 1.7 * 0.5 * 3.0)):
        sample = (released[name] - clipped.value[name]).numpy()
        assert fits(sample, std)
        assert not fits(sample, std * 2 / 3)
        assert not fits(sample, std * 3 / 2)
        assert abs(sample.mean()) < 4.5 * std / math.sqrt(len(sample))


def test_noise_is_drawn_in_sorted_order_and_reproducible():
    total = {"b": torch.zeros(3, dtype=torch.float64), "a": torch.zeros(2, dtype=torch.float64)}
    once = gaussian_sum_noise(total, Sensitivity(1.0), 1.0, SeededNoise(torch_stream(1, "n")))
    again = gaussian_sum_noise(dict(sorted(total.items())), Sensitivity(1.0), 1.0, SeededNoise(torch_stream(1, "n")))
    assert all(torch.equal(once[name], again[name]) for name in total)


def test_noise_refuses_a_sum_that_is_not_finite():
    with pytest.raises(PrivacyError, match="holds NaN or inf in 'a'; clip every update"):
        gaussian_sum_noise({"a": torch.tensor([math.inf])}, Sensitivity(1.0), 1.0, SystemNoise())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: clip_update({"a": torch.ones(2)}, 0.0), "expected clip > 0"),
        (lambda: clip_update({"a": torch.ones(2)}, math.inf), "expected clip > 0 and finite"),
        (lambda: clip_update({"a": torch.ones(2)}, 1.0, {"a": -1.0}), "the scale of 'a' > 0"),
        (lambda: clip_update({"a": torch.ones(2)}, 1.0, {"z": 1.0}), r"scales for tensors among \['a'\], got \['z'\]"),
        (lambda: clip_update({}, 1.0), "expected scales for tensors among"),
        (lambda: gaussian_sum_noise({"a": torch.ones(1)}, Sensitivity(1.0), -1.0, SystemNoise()), "noise_multiplier"),
    ],
)
def test_wrong_input_raises(call, message):
    with pytest.raises(ValueError, match=message):
        call()
