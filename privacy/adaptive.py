"""Adaptive clipping: the clip follows a quantile of the norms (Andrew et al. 2021), itself noised and accounted."""

from __future__ import annotations

import math

from .._validate import non_negative, positive, probability
from ..errors import PrivacyError
from .entropy import NoiseSource


def split_noise(noise_multiplier: float, bit_noise: float) -> float:
    """Noise multiplier for the updates so that updates and bits together cost one release at ``noise_multiplier``.

    ``z_delta = (z^-2 - (2 sigma_b)^-2)^(-1/2)`` (Andrew et al. 2021, Theorem 1): the bits are centred, so one device
    moves their sum by 1/2, and a noise of standard deviation ``sigma_b`` on it is a noise multiplier of ``2 sigma_b``.

    Args:
        noise_multiplier: z of the joint release, the one to account.
        bit_noise: sigma_b, in devices.

    Raises:
        PrivacyError: ``2 sigma_b <= z``: the bits alone would cost more than the whole release.
    """
    positive("noise_multiplier", noise_multiplier)
    positive("bit_noise", bit_noise)
    left = noise_multiplier**-2 - (2 * bit_noise) ** -2
    if left <= 0:
        raise PrivacyError(f"expected bit_noise > noise_multiplier / 2 = {noise_multiplier / 2:g}, got {bit_noise!r}")
    return 1 / math.sqrt(left)


def noisy_unclipped_fraction(
    unclipped: int, participants: int, expected_devices: float, bit_noise: float, noise: NoiseSource
) -> float:
    """The noised fraction of devices whose update was *not* clipped, over a fixed divisor.

    Args:
        unclipped: participants with norm <= clip (private).
        participants: devices that took part (private).
        expected_devices: public divisor: population times participation rate.
        bit_noise: standard deviation of the noise on the sum of centred bits; 0 adds none.
        noise: the noise source.

    Guarantee:
        Gaussian mechanism of sensitivity 1/2 (unit user, add or remove one device); account it through ``split_noise``.
        Released: the fraction, which may fall outside [0, 1].
    """
    positive("expected_devices", expected_devices)
    non_negative("bit_noise", bit_noise)
    if not 0 <= unclipped <= participants:
        raise ValueError(f"expected 0 <= unclipped <= participants = {participants}, got {unclipped}")
    centred = unclipped - participants / 2
    return (centred + float(noise.normal((), bit_noise))) / expected_devices + 0.5


def next_clip(clip: float, noisy_fraction_unclipped: float, target_quantile: float, learning_rate: float) -> float:
    """The next clip: ``clip * exp(-learning_rate * (fraction - target))`` (Andrew et al. 2021, algorithm 1).

    More devices below the clip than wanted: it shrinks. Fewer: it grows. Post-processing of a noised fraction.
    """
    positive("clip", clip)
    probability("target_quantile", target_quantile)
    non_negative("learning_rate", learning_rate)
    if not math.isfinite(noisy_fraction_unclipped):
        raise ValueError(f"expected a finite fraction, got {noisy_fraction_unclipped!r}")
    bounded = min(1.0, max(0.0, noisy_fraction_unclipped))
    return clip * math.exp(-learning_rate * (bounded - target_quantile))
