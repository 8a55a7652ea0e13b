"""Derived random streams: one independent stream for each (seed, round, device, purpose).

Results then depend neither on the order in which devices are visited nor on the number of workers or the engine.
These streams are for simulations; privacy noise in a deployment comes from OS entropy (``privacy.entropy``).
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray


def stream_seed(seed: int, *parts: int | str) -> int:
    """Hash ``seed`` and ``parts`` (SHA-256) into a 63-bit seed; distinct tuples give independent streams."""
    text = repr((int(seed), *parts)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def numpy_stream(seed: int, *parts: int | str) -> np.random.Generator:
    """A numpy generator for the stream named by ``parts``."""
    return np.random.Generator(np.random.PCG64(stream_seed(seed, *parts)))


def cell_uniforms(
    seed: int, *parts: int | str, rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> NDArray[np.float64]:
    """A uniform on [0, 1) with 53 bits for every cell (row, column) of the stream named by ``parts``.

    A cell's number depends on the stream and the cell, on nothing else, so that many devices' draws come in one call.
    SplitMix64's finaliser (Steele, Lea and Flood 2014) mixes stream and row, then both and the column: good enough to
    sample by, and never to be used for privacy noise.
    """
    base = np.uint64(stream_seed(seed, *parts))
    with np.errstate(over="ignore"):
        mixed = _mixed(_mixed(rows.astype(np.uint64) + base) + columns.astype(np.uint64))
    mixed >>= np.uint64(11)
    drawn = mixed.astype(np.float64)
    drawn *= 2.0**-53
    return drawn


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Another number for each, in place: a stream's cells are many."""
    values += np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values ^= values >> np.uint64(shift)
        values *= np.uint64(factor)
    values ^= values >> np.uint64(31)
    return values


def torch_stream(seed: int, *parts: int | str) -> torch.Generator:
    """A CPU torch generator for the stream named by ``parts``."""
    return torch.Generator().manual_seed(stream_seed(seed, *parts))
