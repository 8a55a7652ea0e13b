"""Clipping and Gaussian noise over named tensors. Clipping returns its sensitivity, noise takes that object.

One unit's contribution is clipped jointly over all its tensors. Optional public scales precondition it: norms are taken
of ``value / scale`` and noise is drawn in that space and multiplied back, so that some tensors get less noise.

==================  ====================================================================
input               what leaves
==================  ====================================================================
zero                zero
NaN or inf          a zero contribution, flagged ``nonfinite``: the bound holds all the same
norm <= clip        the contribution itself, to the bit
norm > clip         the contribution scaled onto the ball, a hair (2^-22) inside
no devices          a zero sum
==================  ====================================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from .._validate import non_negative, positive
from ..errors import PrivacyError
from .entropy import NoiseSource

_INSIDE = 1.0 - 2.0**-22  # rounding a product to float32 adds at most 2^-24 to the norm


@dataclass(frozen=True)
class Sensitivity:
    """How far one unit can move a sum: ``value`` in l2, measured in the space ``tensor / scale``."""

    value: float
    """The l2 bound on one unit's contribution, in scaled space."""
    scales: Mapping[str, float] = field(default_factory=dict)
    """Public scale of each named tensor; 1 for those not named."""
    unit: Literal["interaction", "user"] = "user"
    """The privacy unit whose contribution is bounded."""

    def __post_init__(self) -> None:
        positive("clip", self.value)
        for name, scale in self.scales.items():
            positive(f"the scale of {name!r}", scale)
        object.__setattr__(self, "scales", dict(self.scales))

    def scale(self, name: str) -> float:
        """The scale of one tensor."""
        return self.scales.get(name, 1.0)

    def check_names(self, names: Mapping[str, object]) -> None:
        """Raise ``ValueError`` if a scale names no tensor: it would silently do nothing."""
        unknown = sorted(set(self.scales) - set(names))
        if unknown or not names:
            raise ValueError(f"expected scales for tensors among {sorted(names)}, got {unknown}")


@dataclass(frozen=True)
class Clipped:
    """One unit's contribution after clipping. Only ``value`` may leave, and only into a noised sum."""

    value: dict[str, Tensor]
    """float32 tensors; their joint norm in scaled space is at most ``sensitivity.value``."""
    norm_before: float
    """Private diagnostic: never leaves the device. NaN if the input was not finite."""
    was_clipped: bool
    """Private diagnostic, except as the noised bit of adaptive clipping."""
    nonfinite: bool
    """The input held NaN or inf and was replaced by zero."""
    sensitivity: Sensitivity


@dataclass(frozen=True)
class ClippedSum:
    """The sum of many units' clipped contributions."""

    value: dict[str, Tensor]
    """float64 tensors."""
    was_clipped: Tensor
    """bool ``[devices]``, private."""
    nonfinite: Tensor
    """bool ``[devices]``, private."""
    sensitivity: Sensitivity


def clip_update(
    update: Mapping[str, Tensor],
    clip: float,
    scales: Mapping[str, float] | None = None,
    unit: Literal["interaction", "user"] = "user",
) -> Clipped:
    """Clip one unit's contribution to l2 norm ``clip``, jointly over its tensors (float64 norms, sorted names).

    Args:
        update: named tensors; cast to float32.
        clip: the bound S > 0.
        scales: public preconditioner, see the module docstring.
        unit: whose contribution this is.

    Guarantee:
        The unit's contribution to any sum has l2 norm at most ``sensitivity.value`` (add or remove one unit). Releases
        nothing by itself.

    Raises:
        ValueError: clip <= 0, a scale <= 0 or of an unknown tensor, an empty update.
    """
    stacked = {name: tensor.unsqueeze(0) for name, tensor in update.items()}
    sensitivity = Sensitivity(clip, scales or {}, unit)
    norms, nonfinite, factors = _clip_factors(stacked, sensitivity)
    value = {
        name: (_clean(tensor.to(torch.float32), nonfinite[0]).double() * factors[0]).to(torch.float32)
        for name, tensor in update.items()
    }
    return Clipped(value, float(norms[0]), bool(norms[0] > clip), bool(nonfinite[0]), sensitivity)


def clip_updates(
    stacked: Mapping[str, Tensor],
    clip: float,
    scales: Mapping[str, float] | None = None,
    unit: Literal["interaction", "user"] = "user",
) -> ClippedSum:
    """Clip many devices' updates (tensors ``[devices, *shape]``) each to ``clip`` and sum them in float64.

    Equals the loop over ``clip_update``; guarantee and errors as there.
    """
    sensitivity = Sensitivity(clip, scales or {}, unit)
    norms, nonfinite, factors = _clip_factors(stacked, sensitivity)
    total = {}
    for name, tensor in stacked.items():
        clean = tensor.to(torch.float32)
        if bool(nonfinite.any()):
            clean = _clean(clean, nonfinite)
        clipped = (clean.double() * _along(factors, clean)).to(torch.float32)
        total[name] = clipped.sum(dim=0, dtype=torch.float64)
    return ClippedSum(total, norms > clip, nonfinite, sensitivity)


def gaussian_sum_noise(
    total: Mapping[str, Tensor], sensitivity: Sensitivity, noise_multiplier: float, noise: NoiseSource
) -> dict[str, Tensor]:
    """Release a sum of clipped contributions: add N(0, (z * sensitivity * scale)^2) to every coordinate.

    Noise is drawn in float64, tensor by tensor in sorted-name order, and added once, however many units contributed.

    Args:
        total: sum over units of contributions clipped to ``sensitivity``.
        sensitivity: the object that clipping returned.
        noise_multiplier: z >= 0. With 0 nothing is protected; no ``Charge`` can be built for it.
        noise: ``SystemNoise`` in a deployment.

    Guarantee:
        Gaussian mechanism (Dwork and Roth 2014, app. A) with noise multiplier z for the sensitivity's unit, add or
        remove one unit. Released: the noised sum, and by post-processing all that is computed from it.

    Raises:
        PrivacyError: the sum is not finite: noise can't hide an infinity.
    """
    non_negative("noise_multiplier", noise_multiplier)
    sensitivity.check_names(total)
    released = {}
    for name in sorted(total):
        if not bool(torch.isfinite(total[name]).all()):
            raise PrivacyError(f"the sum of updates holds NaN or inf in {name!r}; clip every update before summing")
        std = noise_multiplier * sensitivity.value * sensitivity.scale(name)
        drawn = noise.normal(total[name].shape, std, torch.float64)
        released[name] = (total[name].double() + drawn).to(total[name].dtype)
    return released


def _clip_factors(stacked: Mapping[str, Tensor], sensitivity: Sensitivity) -> tuple[Tensor, Tensor, Tensor]:
    """Norms before clipping (scaled space), flags of non-finite rows and factors in [0, 1], each ``[devices]``."""
    sensitivity.check_names(stacked)
    squares = []
    for name in sorted(stacked):
        tensor = stacked[name]
        rows = tensor.to(torch.float32).double().reshape(
            tensor.shape[0], math.prod(tensor.shape[1:])
        ) / sensitivity.scale(name)
        squares.append((rows * rows).sum(dim=1))
    norms = torch.stack(squares).sum(dim=0).sqrt()
    nonfinite = ~torch.isfinite(norms)
    factors = clip_factors(norms, sensitivity)
    return torch.where(nonfinite, torch.nan, norms), nonfinite, torch.where(nonfinite, 0.0, factors)


def clip_factors(norms: Tensor, sensitivity: Sensitivity) -> Tensor:
    """Factors in [0, 1] that hold contributions of these norms (scaled space, float64) to the sensitivity."""
    return torch.where(norms > sensitivity.value, sensitivity.value / norms * _INSIDE, torch.ones_like(norms))


def _clean(tensor: Tensor, nonfinite: Tensor) -> Tensor:
    return torch.where(_along(nonfinite, tensor), torch.zeros_like(tensor), tensor)


def _along(per_device: Tensor, tensor: Tensor) -> Tensor:
    return per_device if per_device.dim() == 0 else per_device.reshape(-1, *[1] * (tensor.dim() - 1))
