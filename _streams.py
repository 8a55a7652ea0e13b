"""Derived random streams: one independent stream for each (seed, round, device, purpose).

Results then depend neither on the order in which devices are visited nor on the number of workers or the engine.
These streams are for simulations; privacy noise in a deployment comes from OS entropy (``privacy.entropy``).
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def stream_seed(seed: int, *parts: int | str) -> int:
    """Hash ``seed`` and ``parts`` (SHA-256) into a 63-bit seed; distinct tuples give independent streams."""
    text = repr((int(seed), *parts)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def numpy_stream(seed: int, *parts: int | str) -> np.random.Generator:
    """A numpy generator for the stream named by ``parts``."""
    return np.random.Generator(np.random.PCG64(stream_seed(seed, *parts)))


def torch_stream(seed: int, *parts: int | str) -> torch.Generator:
    """A CPU torch generator for the stream named by ``parts``."""
    return torch.Generator().manual_seed(stream_seed(seed, *parts))
