"""Adaptive clipping: the clip follows a quantile of the norms (Andrew et al. 2021), itself noised and accounted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from .._validate import non_negative, positive, probability
from ..errors import PrivacyError
from .entropy import NoiseSource
from .mechanisms import Sensitivity, gaussian_sum_noise

_RANGE = (1e-12, 1e12)  # of the clip: devices that have nothing to say, or no bound, must not lead it out of float32


@dataclass(frozen=True, kw_only=True)
class JointRelease:
    """What a round of adaptive clipping releases; both parts together cost one release at z."""

    update: dict[str, Tensor]
    """The noised sum of clipped updates."""
    fraction: float
    """The noised fraction of devices that were not clipped; may fall outside [0, 1]."""


def joint_release(
    total: Mapping[str, Tensor],
    sensitivity: Sensitivity,
    *,
    unclipped: int,
    participants: int,
    expected_devices: float,
    noise_multiplier: float,
    bit_noise: float,
    noise: NoiseSource,
    bits: NoiseSource,
) -> JointRelease:
    """Release the sum of clipped updates and the fraction of unclipped ones at the price of one Gaussian.

    Args:
        total: sum of updates clipped to ``sensitivity``.
        sensitivity: what one device can move the sum by.
        unclipped: devices whose update was not clipped (private).
        participants: devices that took part (private).
        expected_devices: public divisor of the fraction.
        noise_multiplier: z, the one to account.
        bit_noise: sigma_b, in devices.
        noise: source of the updates' noise.
        bits: source of the bits' noise, independent of ``noise``.

    Guarantee:
        Unit user, add or remove one device. The pair (updates / (z_delta S), centred bits / sigma_b) moves by at most
        ``sqrt(z_delta^-2 + (2 sigma_b)^-2) = 1 / z`` in l2 and gets N(0, 1) in every coordinate: one Gaussian mechanism
        with multiplier z, which a Poisson sample of devices amplifies as any other (Andrew et al. 2021, theorem 1).

    Raises:
        PrivacyError: the bits alone would cost more than z, or the sum is not finite.
    """
    released = gaussian_sum_noise(total, sensitivity, split_noise(noise_multiplier, bit_noise), noise)
    fraction = noisy_unclipped_fraction(unclipped, participants, expected_devices, bit_noise, bits)
    return JointRelease(update=released, fraction=fraction)


def describe_adaptive(target_quantile: float, bit_noise: float | None) -> str:
    """Adaptive clipping in the words of a statement and of a ledger; none: sigma_b is a part of a cohort not known."""
    noise = "a twentieth of the expected cohort" if bit_noise is None else f"{bit_noise:.4g}"
    return f"adaptive clip (quantile {target_quantile:g}), its own noise sigma_b = {noise} accounted"


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
        raise PrivacyError(
            f"expected bit_noise > noise_multiplier / 2 = {noise_multiplier / 2:g}, got {bit_noise!r}; set "
            "privacy.bit_noise higher, or clip to a fixed norm: the cohort is too small to find one under this noise"
        )
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

    More devices below the clip than wanted: it shrinks. Fewer: it grows. It stays within 1e-12 .. 1e12. Post-processing
    of a noised fraction.
    """
    positive("clip", clip)
    probability("target_quantile", target_quantile)
    non_negative("learning_rate", learning_rate)
    if not math.isfinite(noisy_fraction_unclipped):
        raise ValueError(f"expected a finite fraction, got {noisy_fraction_unclipped!r}")
    bounded = min(1.0, max(0.0, noisy_fraction_unclipped))
    moved = clip * math.exp(-learning_rate * (bounded - target_quantile))
    return min(max(moved, _RANGE[0]), _RANGE[1])
