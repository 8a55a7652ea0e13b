"""Adaptive clipping: the right sign, the split of the noise, convergence to the quantile."""

import math

import numpy as np
import pytest
import torch
from fedrec._streams import torch_stream
from fedrec.errors import PrivacyError
from fedrec.privacy.accounting import Charge, epsilon
from fedrec.privacy.adaptive import (
    describe_adaptive,
    joint_release,
    next_clip,
    noisy_unclipped_fraction,
    split_noise,
)
from fedrec.privacy.entropy import SeededNoise, SystemNoise
from fedrec.privacy.mechanisms import clip_updates, gaussian_sum_noise

NONE = SystemNoise()
STACK = {"w": torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])}


def released(seed=0, *, noise_multiplier=1.2, bit_noise=5.0, clip=1.0, scales=None):
    held = clip_updates(STACK, clip, scales)
    return joint_release(
        held.value,
        held.sensitivity,
        unclipped=int((~held.was_clipped).sum()),
        participants=3,
        expected_devices=4.0,
        noise_multiplier=noise_multiplier,
        bit_noise=bit_noise,
        noise=SeededNoise(torch_stream(seed, "updates")),
        bits=SeededNoise(torch_stream(seed, "bits")),
    )


def test_the_joint_release_in_closed_form():
    """(0.6, 0.8) + (0.3, 0.4) + 0, two of three unclipped, and the split noise on both."""
    drawn = torch.randn(2, generator=torch_stream(0, "updates"), dtype=torch.float64)
    bit = float(torch.randn((), generator=torch_stream(0, "bits"), dtype=torch.float64))
    expected = torch.tensor([0.9, 1.2], dtype=torch.float64) + drawn * (1.2**-2 - 10.0**-2) ** -0.5
    torch.testing.assert_close(released().update["w"], expected, rtol=1e-6, atol=1e-6)
    assert released().fraction == pytest.approx(0.5 + (2 - 1.5 + 5.0 * bit) / 4.0)


def test_bits_that_cost_nothing_leave_the_updates_to_the_plain_release():
    held = clip_updates(STACK, 1.0, {"w": 2.0})
    plain = gaussian_sum_noise(held.value, held.sensitivity, 1.2, SeededNoise(torch_stream(0, "updates")))["w"]
    torch.testing.assert_close(released(bit_noise=1e9, scales={"w": 2.0}).update["w"], plain, rtol=1e-12, atol=1e-12)


@pytest.mark.statistical
def test_the_noise_law_of_both_parts():
    """2,000 releases; tolerance 4.5 standard errors, a chance of 7e-6 each to fail when all is well."""
    draws = [released(seed) for seed in range(2000)]
    updates = np.concatenate([draw.update["w"].numpy() - [0.9, 1.2] for draw in draws])
    bits = np.array([(draw.fraction - 0.5) * 4.0 - 0.5 for draw in draws])
    for values, wanted in ((updates, split_noise(1.2, 5.0)), (bits, 5.0)):
        measured, tolerance = math.sqrt((values**2).mean()), 4.5 * wanted / math.sqrt(2 * values.size)
        assert abs(measured - wanted) < tolerance < min(abs(measured - 2 / 3 * wanted), abs(measured - 3 / 2 * wanted))
    assert abs(np.corrcoef(updates[::2], bits)[0, 1]) < 4.5 / math.sqrt(2000)


def test_the_clip_stays_a_number_whatever_the_devices_do():
    clip = 1.0
    for _ in range(20000):
        clip = next_clip(clip, 1.0, 0.5, 0.2)
    assert clip == 1e-12
    for _ in range(20000):
        clip = next_clip(clip, 0.0, 0.5, 0.2)
    assert clip == 1e12


def test_the_words_name_quantile_and_noise():
    assert describe_adaptive(0.5, 42.5) == "adaptive clip (quantile 0.5), its own noise sigma_b = 42.5 accounted"
    assert "sigma_b = a twentieth of the expected cohort" in describe_adaptive(0.5, None)


def test_the_clip_shrinks_when_too_few_updates_are_clipped_and_grows_when_too_many():
    assert next_clip(1.0, 0.9, 0.5, 0.2) == pytest.approx(math.exp(-0.2 * 0.4))
    assert next_clip(1.0, 0.1, 0.5, 0.2) == pytest.approx(math.exp(0.2 * 0.4))
    assert next_clip(1.0, 0.5, 0.5, 0.2) == 1.0
    assert next_clip(1.0, 0.9, 0.5, 0.0) == 1.0
    assert next_clip(1.0, 57.0, 0.5, 0.2) == next_clip(1.0, 1.0, 0.5, 0.2)


@pytest.mark.parametrize("start", [0.01, 100.0])
def test_the_clip_converges_to_the_quantile(start):
    # Norms uniform on [0, 2]: the median is 1 (a wrong sign runs away in both directions).
    norms = np.linspace(0, 2, 400)
    noise = SeededNoise(torch_stream(5, "bits"))
    clip = start
    for _ in range(150):
        fraction = noisy_unclipped_fraction(int((norms <= clip).sum()), 400, 400, 10.0, noise)
        clip = next_clip(clip, fraction, 0.5, 0.2)
    assert clip == pytest.approx(1.0, rel=0.1)


def test_split_costs_together_what_the_whole_costs():
    # Two Gaussians with mu_i = 1 / z_i compose to mu = sqrt(mu_1^2 + mu_2^2): exactly that of z.
    z, bits = 1.2, 5.0
    updates = split_noise(z, bits)
    assert updates > z
    assert math.hypot(1 / updates, 1 / (2 * bits)) == pytest.approx(1 / z)
    parts = [Charge(updates, 1.0, 1), Charge(2 * bits, 1.0, 1)]
    assert epsilon(parts, 1e-5, "gaussian") == pytest.approx(epsilon([Charge(z, 1.0, 1)], 1e-5, "gaussian"))


def test_a_device_moves_the_centred_sum_by_a_half():
    # Add or remove one device, clipped or not: the released numerator moves by 1/2.
    base = noisy_unclipped_fraction(30, 50, 100, 0.0, NONE)
    for unclipped in (31, 30):
        assert abs(noisy_unclipped_fraction(unclipped, 51, 100, 0.0, NONE) - base) * 100 == pytest.approx(0.5)
    assert noisy_unclipped_fraction(50, 50, 50, 0.0, NONE) == 1.0
    assert noisy_unclipped_fraction(0, 0, 50, 0.0, NONE) == 0.5


@pytest.mark.statistical
def test_noise_law_of_the_fraction():
    noise = SeededNoise(torch_stream(6, "bits"))
    sample = np.array([noisy_unclipped_fraction(30, 60, 60, 4.0, noise) - 0.5 for _ in range(4000)])
    std, error = float(np.sqrt((sample**2).mean())), 4 / 60 / math.sqrt(8000)
    assert abs(std - 4 / 60) < 4.5 * error
    assert abs(std - 4 / 60 * 1.5) > 4.5 * error * 1.5
    assert abs(std - 4 / 60 / 1.5) > 4.5 * error / 1.5


def test_wrong_input_raises():
    with pytest.raises(PrivacyError, match=r"expected bit_noise > noise_multiplier / 2 = 0\.5, got 0\.5"):
        split_noise(1.0, 0.5)
    with pytest.raises(PrivacyError, match=r"expected bit_noise > noise_multiplier / 2 = 0\.6, got 0\.6; set privacy"):
        released(bit_noise=0.6)
    with pytest.raises(ValueError, match="0 <= unclipped <= participants = 3, got 4"):
        noisy_unclipped_fraction(4, 3, 10, 1.0, NONE)
    with pytest.raises(ValueError, match="expected a finite fraction"):
        next_clip(1.0, math.nan, 0.5, 0.2)
    with pytest.raises(ValueError, match="target_quantile"):
        next_clip(1.0, 0.5, 0.0, 0.2)
