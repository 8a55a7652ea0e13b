"""What a Bernoulli Thompson sampler shows where, by simulation: the policy that the Open Bandit quick start judges."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from fedrec.simulation.ope.items import Floats
from numpy.typing import NDArray

_BLOCK = 1000


class DrawsBeta(Protocol):
    """A ``numpy.random.Generator``, or the older ``RandomState``."""

    def beta(self, a: Floats, b: Floats, size: tuple[int, int]) -> NDArray[np.float64]:
        """Beta variates, row after row."""


def thompson_places(alpha: Floats, beta: Floats, slots: int, draws: int, generator: DrawsBeta) -> Floats:
    """``P(item a stands at slot l)``, float64 ``[slots, items]``, as a share of ``draws`` simulated slates.

    Each slate draws every item's click probability from ``Beta(alpha, beta)`` and lists the largest (Thompson 1933;
    Chapelle and Li 2011, algorithm 2).
    """
    alpha, beta = np.asarray(alpha, np.float64), np.asarray(beta, np.float64)
    counts = np.zeros((slots, len(alpha)))
    for first in range(0, draws, _BLOCK):
        drawn = generator.beta(alpha, beta, size=(min(_BLOCK, draws - first), len(alpha)))
        order = np.argsort(-drawn, axis=1)[:, :slots]
        for slot in range(slots):
            counts[slot] += np.bincount(order[:, slot], minlength=len(alpha))
    return counts / draws
