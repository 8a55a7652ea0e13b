"""Adaptive clipping: the right sign, the split of the noise, convergence to the quantile."""

import math

import numpy as np
import pytest
from fedrec._streams import torch_stream
from fedrec.errors import PrivacyError
from fedrec.privacy.accounting import Charge, epsilon
from fedrec.privacy.adaptive import next_clip, noisy_unclipped_fraction, split_noise
from fedrec.privacy.entropy import SeededNoise, SystemNoise

NONE = SystemNoise()


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
    with pytest.raises(ValueError, match="0 <= unclipped <= participants = 3, got 4"):
        noisy_unclipped_fraction(4, 3, 10, 1.0, NONE)
    with pytest.raises(ValueError, match="expected a finite fraction"):
        next_clip(1.0, math.nan, 0.5, 0.2)
    with pytest.raises(ValueError, match="target_quantile"):
        next_clip(1.0, 0.5, 0.0, 0.2)
