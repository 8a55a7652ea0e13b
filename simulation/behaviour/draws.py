"""Random numbers that belong to a user and a step, so that thousands of users draw in one call what one draws alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..._streams import cell_uniforms

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def uniforms(seed: int, purpose: str, users: Ints, ticks: Ints, width: int) -> Floats:
    """Uniforms on [0, 1), float64 ``[users, width]``: a function of seed, purpose, user, tick and column only."""
    columns = ticks[:, None] * width + np.arange(width)
    return cell_uniforms(seed, "users", purpose, rows=users[:, None], columns=columns)


def normals(seed: int, purpose: str, users: Ints, ticks: Ints, width: int) -> Floats:
    """Standard normals, float64 ``[users, width]`` (Box and Muller 1958, the cosine of every pair)."""
    drawn = uniforms(seed, purpose, users, ticks, 2 * width)
    radius = np.sqrt(-2.0 * np.log1p(-drawn[:, :width]))
    return np.asarray(radius * np.cos(2.0 * np.pi * drawn[:, width:]))
