"""Renyi divergence of Poisson-subsampled Gaussians, and the epsilon that it comes to: Opacus, with one series faster.

At a fractional order Opacus sums term by term in Python, some hundredths of a second each; planning looks at hundreds.
Here all terms are summed at once. Opacus' own function is the referee of this one in the tests.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .accounting import History

_LAST = -30.0
"""Log of the terms that end the series, as in Opacus."""
_MOST_TERMS = 2**20
_LOST = 1e-9
"""A sum below this share of its largest term has lost its digits to cancellation."""


def convert(history: History, orders: Sequence[float], delta: float) -> tuple[float, float]:
    """Opacus' conversion of the composed divergence to epsilon at ``delta``: (epsilon, best order)."""
    from opacus.accountants.analysis import rdp

    total = np.zeros(len(orders))
    for charge in history:
        per_step = [_rdp_at(charge.sample_rate, charge.noise_multiplier, order) for order in orders]
        total += np.array(per_step) * charge.steps
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "the optimal order is the largest": the bound stays valid
        cost, best = rdp.get_privacy_spent(orders=np.array(orders), rdp=total, delta=delta)
    return float(cost), float(best)


@lru_cache(maxsize=65536)
def _rdp_at(sample_rate: float, noise_multiplier: float, order: float) -> float:
    if sample_rate < 1 and not float(order).is_integer():
        return fractional_rdp(sample_rate, noise_multiplier, order)
    from opacus.accountants.analysis import rdp

    try:
        return float(rdp.compute_rdp(q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=float(order)))
    except (ValueError, OverflowError):  # a number beyond float64: leave that order out
        return math.inf


def fractional_rdp(sample_rate: float, noise_multiplier: float, order: float) -> float:
    """RDP of one release at an order that is not whole (Mironov et al. 2019, arXiv:1908.10530, section 3.3).

    Args:
        sample_rate: in (0, 1).
        noise_multiplier: > 0.
        order: > 1, not an integer.

    Returns:
        The divergence in nats; infinity where the alternating series can't be summed in float64: the caller then
        does without that order, which only loosens its bound.
    """
    terms = 256
    while terms <= _MOST_TERMS:
        with np.errstate(all="ignore"):  # what is beyond float64 comes to infinity below
            logs, signs = _series(sample_rate, noise_multiplier, order, terms)
        ends = np.flatnonzero(logs.max(axis=0) < _LAST)
        if len(ends):
            last = int(ends[0]) + 1
            below, above = (_log_sum(part[:last], signs[:last]) for part in logs)
            return float(np.logaddexp(below, above)) / (order - 1)
        terms *= 4
    return math.inf


def _series(rate: float, noise: float, order: float, terms: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Logarithms of the terms of both integrals, ``[2, terms]``, and the signs that they share, ``[terms]``."""
    places = np.arange(terms, dtype=np.float64)
    rest = order - places
    binomials = np.cumprod(np.concatenate([[1.0], rest[:-1] / places[1:]]))
    meet = noise**2 * math.log(1 / rate - 1) + 0.5
    exponents = np.stack([places, rest])
    tails = torch.special.log_ndtr(torch.from_numpy(np.stack([meet - places, rest - meet]) / noise)).numpy()
    logs = exponents * math.log(rate) + exponents[::-1] * math.log1p(-rate)
    logs = logs + np.log(np.abs(binomials)) + (exponents**2 - exponents) / (2 * noise**2) + tails
    return logs, np.sign(binomials)


def _log_sum(logs: NDArray[np.float64], signs: NDArray[np.float64]) -> float:
    """Logarithm of the signed sum of exponentials, exactly rounded; infinity where nothing of it is certain."""
    largest = float(logs.max())
    if not math.isfinite(largest):
        return math.inf
    total = math.fsum(signs * np.exp(logs - largest))
    return largest + math.log(total) if total > _LOST else math.inf
