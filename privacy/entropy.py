"""Where Gaussian noise comes from: the operating system's entropy in a deployment, a seeded stream in a simulation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from .._validate import non_negative

_CHUNK = 1 << 22


class NoiseSource(Protocol):
    """Draws independent normal variates. ``seeded`` says whether somebody could draw them again."""

    @property
    def seeded(self) -> bool:
        """True if the noise can be reproduced: a run with such noise is "simulation only"."""

    def normal(self, shape: Sequence[int], std: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """A CPU tensor of ``shape`` with independent N(0, std^2) entries; exact zeros for ``std`` = 0."""


class SeededNoise:
    """Noise from a torch generator. Whoever knows the seed can subtract it: for simulations and tests only."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    @property
    def seeded(self) -> bool:
        """Always true."""
        return True

    def normal(self, shape: Sequence[int], std: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """See ``NoiseSource.normal``."""
        return self.fill(torch.empty(tuple(shape), dtype=dtype), std)

    def fill(self, out: torch.Tensor, std: float) -> torch.Tensor:
        """Fill ``out`` with what ``normal`` would give for its shape and dtype, and return it."""
        non_negative("std", std)
        drawn = torch.randn(out.shape, generator=self._generator, dtype=out.dtype, device=out.device, out=out)
        return drawn if std == 1 else drawn.mul_(std)


class SystemNoise:
    """Noise from OS entropy; it can't be seeded.

    Each call takes a fresh 256-bit key from the operating system, expands it with ChaCha20 (a cryptographic stream
    cipher), turns 53-bit uniforms into normals in float64 (Box and Muller 1958) and forgets the key. A fresh key for
    each call means that a forked process can't repeat its parent's noise. Values lie within 8.6 standard deviations.
    """

    @property
    def seeded(self) -> bool:
        """Always false."""
        return False

    def normal(self, shape: Sequence[int], std: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """See ``NoiseSource.normal``."""
        non_negative("std", std)
        count = int(np.prod(tuple(shape), dtype=np.int64))
        values = torch.empty(count, dtype=dtype)
        for start in range(0, count, _CHUNK):
            stop = min(start + _CHUNK, count)
            values[start:stop] = torch.from_numpy(_system_normals(stop - start) * std).to(dtype)
        return values.reshape(tuple(shape))


def system_uniforms(count: int) -> npt.NDArray[np.float64]:
    """``count`` uniforms on [0, 1) with 53 random bits each, from OS entropy through ChaCha20."""
    encryptor = Cipher(algorithms.ChaCha20(os.urandom(32), bytes(16)), mode=None).encryptor()
    words = np.frombuffer(encryptor.update(bytes(8 * count)), dtype=np.uint64)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _system_normals(count: int) -> npt.NDArray[np.float64]:
    pairs = (count + 1) // 2
    uniforms = system_uniforms(2 * pairs)
    radius = np.sqrt(-2.0 * np.log(uniforms[:pairs] + 2.0**-53))  # in (0, 1]: the logarithm is finite
    angle = 2.0 * np.pi * uniforms[pairs:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
