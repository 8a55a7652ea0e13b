"""Bayesian linear regression in closed form, for many users at once: the last layer of a policy, and reward models.

Values are ``y = x . w + N(0, noise_variance)`` with the prior ``w ~ N(mean, prior_variance * I)`` (Bishop 2006,
section 3.3.1):

    precision = I / prior_variance + X' X / noise_variance
    posterior mean = mean + precision^-1 X' (y - X mean) / noise_variance
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .._validate import positive


class Posterior(NamedTuple):
    """A Gaussian over weights.

    Attributes:
        mean: ``[..., d]``.
        factor: lower Cholesky factor of the precision, ``[..., d, d]``.
    """

    mean: Tensor
    factor: Tensor


def posterior(
    rows: Tensor, values: Tensor, counted: Tensor, *, mean: Tensor, prior_variance: float, noise_variance: float
) -> Posterior:
    """The posterior of the weights.

    Args:
        rows: features of what was seen, ``[..., n, d]``.
        values: what came of it, ``[..., n]``.
        counted: 1 for an observation, 0 for padding, ``[..., n]``.
        mean: the prior's mean, ``[d]`` or ``[..., d]``.
        prior_variance: of every weight.
        noise_variance: of a value.
    """
    positive("prior_variance", prior_variance)
    positive("noise_variance", noise_variance)
    weighted = rows * counted[..., None]
    precision = weighted.mT @ rows / noise_variance + torch.eye(rows.shape[-1], dtype=rows.dtype) / prior_variance
    factor = torch.linalg.cholesky(precision)
    rest = (values - (rows * mean[..., None, :]).sum(-1)) * counted / noise_variance
    moved = torch.cholesky_solve((rows.mT @ rest[..., None]), factor)[..., 0]
    return Posterior(mean + moved, factor)


def leverage(model: Posterior, rows: Tensor) -> Tensor:
    """``x' precision^-1 x`` for every row ``[..., n, d]``, ``[..., n]``: the variance of what it predicts."""
    solved: Tensor = torch.linalg.solve_triangular(model.factor, rows.mT, upper=False)
    return solved.square().sum(-2)


def draw(model: Posterior, count: int, generator: torch.Generator) -> Tensor:
    """``count`` draws of the weights for each user, ``[..., count, d]``."""
    shape = (*model.mean.shape, count)
    noise = torch.randn(shape, generator=generator, dtype=model.mean.dtype)
    spread: Tensor = torch.linalg.solve_triangular(model.factor.mT, noise, upper=True)
    return model.mean[..., None, :] + spread.mT
