"""Epsilon by privacy random variables (Gopi et al. 2021): Opacus' accountant, with bounds on time and memory.

The steps are those of ``opacus.accountants.PRVAccountant.get_epsilon``, which is the referee in the tests. It is not
called itself: it would find the width of its mesh anew after it had been asked for here, by far the larger part of
the work.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ._rdp import convert

if TYPE_CHECKING:
    from .accounting import History

_EPSILON_ERROR = 0.002
_MAX_MESH = 2**21
_MAX_STEPS = 1_000_000


def prv_epsilon(history: History, delta: float) -> float:
    """The upper bound at ``delta`` within bounds on mesh and steps; infinity where it can't be used.

    Args:
        history: not empty.
        delta: in (0, 1).
    """
    if sum(charge.steps for charge in history) > _MAX_STEPS:
        return math.inf
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            needed = _domain(history, delta)
            for error in (_EPSILON_ERROR, 5 * _EPSILON_ERROR, 25 * _EPSILON_ERROR):
                half_width, step = max(needed, error) + 3, error / _fineness(history, delta)
                if 2 * half_width / step <= _MAX_MESH:
                    cost = _composed(history, delta, error, half_width, step)
                    return max(0.0, cost) if math.isfinite(cost) else math.inf
        except (RuntimeError, ValueError, OverflowError, MemoryError, IndexError):
            return math.inf
    return math.inf


def _fineness(history: History, delta: float) -> float:
    """How much finer than the error the mesh has to be."""
    return math.sqrt(sum(charge.steps for charge in history) * math.log(12_000 / delta) / 2)


def _domain(history: History, delta: float) -> float:
    """Where the loss lies but for a probability that counts as error (remark 5.6, as in Opacus)."""
    from opacus.accountants import RDPAccountant

    error, steps = delta / 1000, sum(charge.steps for charge in history)
    orders = RDPAccountant.DEFAULT_ALPHAS
    once = [convert((replace(charge, steps=1),), orders, error / (8 * steps))[0] for charge in history]
    return max(convert(history, orders, error / 4)[0], *once)


def _composed(history: History, delta: float, error: float, half_width: float, step: float) -> float:
    """Discretize every mechanism on one mesh, convolve, and read the upper bound."""
    from opacus.accountants.analysis import prv

    domain = prv.Domain.create_aligned(-half_width, half_width, step)
    variables = [
        prv.TruncatedPrivacyRandomVariable(
            prv.PoissonSubsampledGaussianPRV(charge.sample_rate, charge.noise_multiplier), domain.t_min, domain.t_max
        )
        for charge in history
    ]
    whole = prv.compose_heterogeneous(
        dprvs=[prv.discretize(variable, domain) for variable in variables],
        num_self_compositions=[charge.steps for charge in history],
    )
    return float(whole.compute_epsilon(delta, delta / 1000, error)[2])
