"""Centralised references without privacy: what the data would give if it lay in one place.

Nobody in a federation can run these. They are printed as ceilings so that a score has both a floor (popularity) and a
ceiling; a federated score far above them points at a leak.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._streams import torch_stream
from .._validate import at_least, positive
from .data.dataset import Dataset
from .data.split import Split
from .seen import Which, pairs, seen_range

MAX_ENTRIES = 500_000_000
"""Largest device x item matrix that is built densely (2 GB)."""


def history_matrix(dataset: Dataset, split: Split, which: Which = "valid") -> Tensor:
    """What each device knows when the ``which`` target is asked for, 0/1 float32 ``[devices, items]``."""
    if dataset.devices * dataset.items_count > MAX_ENTRIES:
        raise ValueError(
            f"expected at most {MAX_ENTRIES:,} device x item entries for a centralised ceiling, got "
            f"{dataset.devices:,} x {dataset.items_count:,}; leave the ceilings out for this data set"
        )
    matrix = np.zeros((dataset.devices, dataset.items_count), dtype=np.float32)
    matrix[pairs(dataset, *seen_range(dataset, split, which, np.arange(dataset.devices)))] = 1.0
    return torch.from_numpy(matrix)


class LinearScores:
    """Scores ``history @ weights``."""

    def __init__(self, history: Tensor, weights: Tensor) -> None:
        self.history, self.weights = history, weights

    def score(self, devices: NDArray[Any]) -> Tensor:
        """Scores ``[devices, items]``."""
        scores: Tensor = self.history[torch.from_numpy(devices)] @ self.weights
        return scores


def ease(matrix: Tensor, regularisation: float = 300.0) -> Tensor:
    """Item-to-item weights of EASE in closed form, float32 ``[items, items]`` (Steck 2019, equation 8).

    Args:
        matrix: 0/1 ``[devices, items]``.
        regularisation: l2 penalty on the weights; the diagonal is held at 0.
    """
    positive("regularisation", regularisation)
    gram = (matrix.T @ matrix).double()
    gram.diagonal().add_(regularisation)
    inverse = torch.linalg.inv(gram)
    weights: Tensor = inverse / -inverse.diagonal()
    return weights.fill_diagonal_(0.0).float()


def ials(
    matrix: Tensor,
    *,
    dimensions: int = 32,
    unobserved_weight: float = 0.3,
    regularisation: float = 0.01,
    sweeps: int = 16,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Implicit alternating least squares, the variant of Rendle et al. 2022 ("Revisiting the performance of iALS").

    Minimises the squared error to 1 on observed pairs plus ``unobserved_weight`` times the squared score of all pairs,
    with an l2 penalty that grows with the number of observations of a row (their equation 9 with exponent 1).

    Args:
        matrix: 0/1 ``[devices, items]``.
        dimensions: length of a factor.
        unobserved_weight: weight of every pair.
        regularisation: penalty per observation.
        sweeps: alternations.
        seed: stream of the initial item factors.

    Returns:
        Device factors ``[devices, dimensions]`` and item factors ``[items, dimensions]``; a score is their product.
    """
    at_least("dimensions", dimensions, 1)
    generator = torch_stream(seed, "ials")
    items = torch.randn(matrix.shape[1], dimensions, generator=generator) * 0.1 / dimensions**0.5
    devices = torch.zeros(matrix.shape[0], dimensions)
    transposed = matrix.T.contiguous()
    for _ in range(at_least("sweeps", sweeps, 1)):
        devices = fold_in(matrix, items, unobserved_weight, regularisation)
        items = fold_in(transposed, devices, unobserved_weight, regularisation)
    return fold_in(matrix, items, unobserved_weight, regularisation), items


def fold_in(matrix: Tensor, factors: Tensor, unobserved_weight: float, regularisation: float) -> Tensor:
    """Least-squares factors of each row of ``matrix`` given the factors of its columns, ``[rows, dimensions]``."""
    width = factors.shape[1]
    gram = unobserved_weight * factors.T @ factors
    outer = (factors.unsqueeze(2) * factors.unsqueeze(1)).reshape(len(factors), width * width)
    out = []
    for block in torch.split(matrix, 1024):
        penalty = regularisation * (block.sum(dim=1) + unobserved_weight * matrix.shape[1])
        normal = (block @ outer).reshape(len(block), width, width) + gram
        normal = normal + penalty[:, None, None] * torch.eye(width)
        out.append(torch.linalg.solve(normal, block @ factors))
    return torch.cat(out)
