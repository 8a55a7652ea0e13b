"""Anomaly scores of devices, by their released updates alone: how far from the others, and how much against them.

Each round a row is measured twice, by its distance to the coordinate-wise median of the rows and by its cosine to it.
Both are counted in robust standard deviations of the round (1.4826 times the median absolute deviation, Huber 1981),
upwards for the distance and downwards for the cosine; the larger one is the round's score. A device's score is the mean
over the rounds it took part in, known by its roster index: who is odd every time stands out of who was odd once.

What went into the score is what was released, so scoring costs no privacy. A score accuses nobody: an honest device of
unusual taste is an outlier, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .robust import flat, median, row_norms

_MAD = 1.4826
"""A normal distribution's standard deviation over its median absolute deviation."""
_TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What is known of every device of the roster.

    Attributes:
        total: sum of its rounds' scores, float64 ``[population]``.
        rounds: how many rounds it was scored in, int64 ``[population]``.
    """

    total: Tensor
    rounds: Tensor

    @classmethod
    def of(cls, population: int) -> Scores:
        """Of devices that nothing is known of."""
        return cls(
            total=torch.zeros(population, dtype=torch.float64), rounds=torch.zeros(population, dtype=torch.int64)
        )

    @property
    def mean(self) -> Tensor:
        """Score of every device, 0 where it was never scored, float64 ``[population]``."""
        return self.total / self.rounds.clamp(min=1)

    def after(self, devices: NDArray[np.int64], scores: Tensor) -> Scores:
        """With a round's scores of some devices."""
        places = torch.from_numpy(devices)
        return Scores(
            total=self.total.index_add(0, places, scores),
            rounds=self.rounds.index_add(0, places, torch.ones_like(places)),
        )

    def above(self, devices: NDArray[np.int64], threshold: float) -> NDArray[np.bool_]:
        """Who of some devices is above the threshold, bool ``[devices]``; the lower half of them never is."""
        scores = self.mean[torch.from_numpy(devices)]
        odd = (scores > threshold) & (scores > scores.median())
        return odd.numpy().astype(np.bool_)

    def to_tensors(self) -> dict[str, Tensor]:
        """``total`` and ``rounds``, for a safetensors file."""
        return {"total": self.total, "rounds": self.rounds}


def anomaly_scores(rows: Mapping[str, Tensor]) -> Tensor:
    """Score of each row of a round, in robust standard deviations, at least 0, float64 ``[devices]``.

    Args:
        rows: stacked updates ``[devices, *shape]``, finite.

    Raises:
        ValueError: there is no row, or a number is not finite.
    """
    centre = median(rows, 0.0)
    away = {name: value.double() - centre[name] for name, value in rows.items()}
    with_it = sum(flat(value).double() @ centre[name].flatten() for name, value in rows.items())
    length = row_norms({name: value[None] for name, value in centre.items()})
    cosine = with_it / (row_norms(rows) * length).clamp(min=_TINY)
    odd: Tensor = torch.maximum(deviations(row_norms(away)), deviations(-cosine))
    return odd.clamp(min=0)


def deviations(values: Tensor) -> Tensor:
    """How many robust standard deviations each value is above the median, float64 ``[n]``; 0 where all are alike."""
    above = values - values.median()
    spread = _MAD * above.abs().median()
    return torch.where(above.abs() <= _TINY, 0.0, above / spread.clamp(min=_TINY))
