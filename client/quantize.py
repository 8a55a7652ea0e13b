"""Eight-bit weights for inference: every row of a matrix as int8 with a scale of its own, made float32 again at load.

Rounding is to the nearest of 255 levels, so that an entry is off by at most half a level, ``max |row| / 254``. Vectors
(the bias, fast weights) stay float32: they are small, and their errors would go into the scores undamped.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..meta.policy import Named

LEVELS = 127
"""Largest level; the smallest is its negative."""
_SCALE = ":scale"


def quantized(named: Mapping[str, Tensor]) -> Named:
    """The tensors with matrices as int8 (``name``) and scales (``name:scale``, float32 without the last axis)."""
    found: Named = {}
    for name, tensor in named.items():
        if not is_quantized(tensor.shape):
            found[name] = tensor
            continue
        scale = tensor.abs().amax(dim=-1) / LEVELS
        levels = tensor / torch.where(scale > 0, scale, 1.0)[..., None]
        found[name] = levels.round().clamp(-LEVELS, LEVELS).to(torch.int8)
        found[scale_name(name)] = scale
    return found


def dequantized(named: Mapping[str, Tensor]) -> Named:
    """The float32 tensors again."""
    return {
        name: tensor.to(torch.float32) * named[scale_name(name)][..., None] if tensor.dtype == torch.int8 else tensor
        for name, tensor in named.items()
        if not name.endswith(_SCALE)
    }


def is_quantized(shape: tuple[int, ...]) -> bool:
    """Whether a tensor of this shape travels as int8."""
    return len(shape) > 1 and 0 not in shape


def scale_name(name: str) -> str:
    """The name of a quantized tensor's scales."""
    return name + _SCALE
