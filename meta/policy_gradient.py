"""Pieces of the off-policy policy gradient, one formula each. ``meta.objective`` puts them together.

All of them are held constant in the gradient unless they say otherwise. Shapes are ``[..., examples, targets]`` with
any number of axes in front, so that one device and a stack of devices run the same lines.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .regression import posterior


def importance_ratio(chosen: Tensor, propensities: Tensor, cap: float) -> Tensor:
    """``min(pi(a | s) / p, cap)``, and 1 where the log has no propensity (p = 0).

    Capped weights: Ionides 2008; in REINFORCE for recommenders: Chen et al. 2019, section 4.4.
    """
    ratio = (chosen / propensities.clamp(min=1e-12)).clamp(max=cap)
    return torch.where(propensities > 0, ratio, torch.ones_like(ratio))


def self_normaliser(ratio: Tensor, mass: Tensor) -> Tensor:
    """What importance weights are divided by: their mean under ``mass``, ``[..., 1, 1]``; 1 where there is no mass.

    Swaminathan and Joachims 2015, section 4. It is a mean over *all* of a device's targets: one interaction changes the
    weight of every other one, so it is no part of a gradient that is clipped example by example (unit interaction).

    Args:
        ratio: capped importance weights.
        mass: weight of every target in its device's loss, zero where there is none.
    """
    total = mass.sum((-1, -2), keepdim=True)
    mean = (ratio * mass).sum((-1, -2), keepdim=True) / total.clamp(min=1e-12)
    return torch.where(total > 0, mean.clamp(min=1e-12), torch.ones_like(mean))


def top_k_factor(chosen: Tensor, k: int) -> Tensor:
    """``lambda_K = d alpha / d pi = K (1 - pi)^(K - 1)`` with ``alpha = 1 - (1 - pi)^K``, the chance to be in a slate.

    Chen et al. 2019, section 4.3: an item that the slate holds anyway gains nothing from more probability.
    """
    return k * (1 - chosen).clamp(min=0) ** (k - 1)


def shown(chances: Tensor, k: int) -> Tensor:
    """``alpha = 1 - (1 - pi)^K``, differentiable; ``pi`` itself for K = 1."""
    return chances if k == 1 else 1 - (1 - chances) ** k


def expected_slopes(chances: Tensor, expected: Tensor, k: int) -> Tensor:
    """Slopes of ``sum over a of alpha_K(a) q(a)`` by the scores, ``[..., examples, items]``.

    They are ``pi (g - pi . g)`` with ``g = lambda_K q``, because ``alpha_K' = lambda_K``.
    """
    worth = top_k_factor(chances, k) * expected
    return chances * (worth - (chances * worth).sum(-1, keepdim=True))


def leave_one_out_models(rows: Tensor, values: Tensor, fitted: Tensor, *, ridge: float) -> Tensor:
    """A ridge regression of the values for every entry, fitted to all others, float64 ``[..., n, d]``.

    ``v = argmin sum (y - x . v)^2 + ridge |v|^2`` over all; without entry t it is ``v - A^-1 x_t e_t / (1 - x_t' A^-1
    x_t)`` with ``A = X'X + ridge I`` and ``e = y - x . v`` (Allen 1974). An entry's own reward thus never enters what
    is expected of it, which keeps baselines and doubly robust estimates unbiased (cross-fitting, Chernozhukov et al.
    2018). With the single column 1 and ridge 1 it is the leave-one-out mean, shrunk (Kool et al. 2019).

    It couples the device's interactions: no part of unit interaction.

    Args:
        rows: features of the entries, float64 ``[..., n, d]``.
        values: what came of them, ``[..., n]``.
        fitted: 1 for the entries that the regressions are fitted to, ``[..., n]``.
        ridge: weight of the penalty.
    """
    values, counted = values.to(torch.float64), fitted.to(torch.float64)
    start = torch.zeros(rows.shape[-1], dtype=torch.float64)
    model = posterior(rows, values, counted, mean=start, prior_variance=1 / ridge, noise_variance=1.0)
    reach = torch.cholesky_solve(rows.mT, model.factor).mT
    rest = values - (rows @ model.mean[..., None])[..., 0]
    pulled = counted * rest / (1 - counted * (reach * rows).sum(-1)).clamp(min=1e-6)
    return model.mean[..., None, :] - pulled[..., None] * reach


def trust_region(log_start: Tensor, log_policy: Tensor) -> Tensor:
    """``KL(pi_start || pi) = sum over a of pi_start(a) (log pi_start(a) - log pi(a))``, ``[..., examples]``.

    Differentiable in ``log_policy``; its slope by the scores is ``pi - pi_start``. A penalty in place of the bound of
    Schulman et al. 2015, section 4. It reads the state of one example and no reward, so it is sound under every unit.
    """
    return (log_start.exp() * (log_start - log_policy)).sum(-1)
