"""Baselines that every summary prints: random, popularity, and popularity from one noisy histogram.

DP popularity is what the same privacy budget buys without any learning: a private model that does not beat it has
learned nothing worth its epsilon.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._streams import numpy_stream
from .._validate import at_least, positive
from ..privacy.accounting import find_noise_multiplier
from ..privacy.statement import PrivacyStatement
from .data.dataset import Dataset
from .data.split import Split
from .seen import chosen_devices, pairs, training_counts

Floats = NDArray[np.float64]


class FixedScores:
    """The same scores for every device, whatever it has seen."""

    def __init__(self, scores: NDArray[Any]) -> None:
        self.scores = torch.from_numpy(np.asarray(scores, dtype=np.float64))

    def score(self, devices: NDArray[np.int64]) -> Tensor:
        """Scores ``[devices, items]``, one row shared by all."""
        return self.scores.expand(len(devices), -1)

    def score_after(self, devices: NDArray[np.int64], seen: int) -> Tensor:
        """The same: what a device has seen changes nothing."""
        return self.score(devices)


class RandomScores:
    """Uniform scores, one stream a device, so that they do not depend on which devices are asked together."""

    def __init__(self, items: int, seed: int) -> None:
        self.items, self.seed = items, seed

    def score(self, devices: NDArray[np.int64]) -> Tensor:
        """Scores in [0, 1), float64 ``[devices, items]``."""
        rows = [numpy_stream(self.seed, "random-scores", int(device)).random(self.items) for device in devices]
        return torch.from_numpy(np.stack(rows) if rows else np.empty((0, self.items)))

    def score_after(self, devices: NDArray[np.int64], seen: int) -> Tensor:
        """The same: what a device has seen changes nothing."""
        return self.score(devices)


def popularity(dataset: Dataset, split: Split, devices: NDArray[Any] | None = None) -> FixedScores:
    """Number of training devices that have each item. Not private: the exact histogram is released.

    Args:
        dataset: the data.
        split: only its training rows are counted.
        devices: mask or list of the devices that train; without it, all.
    """
    return FixedScores(training_counts(dataset, split, devices))


@dataclass(frozen=True, kw_only=True)
class NoisyHistogram:
    """Popularity as one differentially private release.

    Attributes:
        scores: noisy counts; order is all that matters.
        noise_std: standard deviation of the noise on every entry of the sum.
        statement: the guarantee.
    """

    scores: FixedScores
    noise_std: float
    statement: PrivacyStatement


def dp_popularity(
    dataset: Dataset,
    split: Split,
    *,
    epsilon: float,
    delta: float,
    unit: Literal["user", "interaction"],
    seed: int,
    items_per_device: int = 20,
    devices: NDArray[Any] | None = None,
) -> NoisyHistogram:
    """Popularity from one Gaussian histogram that spends the whole budget at once.

    Unit ``user``: every device's 0/1 vector of training items is scaled to l2 norm at most
    ``sqrt(items_per_device)``, a public constant, and the server adds noise to the sum once. Unit ``interaction``:
    the server is not trusted, so each device adds noise to its own 0/1 vector, of which one interaction changes one
    entry by at most 1; ``n`` such noises add up to ``sqrt(n)`` times one, which is how they are drawn here.

    Args:
        dataset: the data.
        split: only its training rows are counted.
        epsilon: budget of the one release.
        delta: in (0, 1).
        unit: ``user`` or ``interaction``.
        seed: stream of the noise (a simulation; a deployment would draw from OS entropy).
        items_per_device: squared norm bound under unit ``user``. A device with more items counts less an item.
        devices: mask or list of the devices that train; without it, all.

    Guarantee:
        (epsilon, delta)-DP for adding or removing one unit, by the exact calibration of the Gaussian mechanism
        (Balle & Wang 2018, Theorem 8).
    """
    at_least("items_per_device", items_per_device, 1)
    if unit not in ("user", "interaction"):
        raise ValueError(f"expected unit 'user' or 'interaction', got {unit!r}; ask for one histogram a unit")
    noise_multiplier = find_noise_multiplier(epsilon, delta, 1.0, 1, "gaussian")
    chosen = chosen_devices(dataset, devices)
    if unit == "user":
        clip = sqrt(items_per_device)
        exact, noise_std = clipped_counts(dataset, split, chosen, clip), noise_multiplier * clip
    else:
        clip = 1.0
        exact = training_counts(dataset, split, chosen).astype(np.float64)
        noise_std = noise_multiplier * sqrt(len(chosen))
    noise = numpy_stream(seed, "dp-popularity", unit).normal(0.0, noise_std, size=len(exact))
    statement = PrivacyStatement(
        epsilon=epsilon,
        delta=delta,
        unit=unit,
        accountant="gaussian",
        sampler="every device, once",
        noise_multiplier=noise_multiplier,
        clip=clip,
        rounds=1,
        seeded=True,
    )
    return NoisyHistogram(scores=FixedScores(exact + noise), noise_std=noise_std, statement=statement)


def clipped_counts(dataset: Dataset, split: Split, devices: NDArray[np.int64], clip: float) -> Floats:
    """Sum of the devices' 0/1 item vectors, each scaled to l2 norm at most ``clip``, float64 ``[items]``.

    Removing one device changes the sum by at most ``clip`` in l2.
    """
    device, item = pairs(dataset, split.start[devices], split.train_end[devices])
    device, item = np.divmod(np.unique(device * dataset.items_count + item), dataset.items_count)
    distinct = np.bincount(device, minlength=len(devices))
    weight = np.minimum(1.0, clip / np.sqrt(np.maximum(distinct, 1)))
    return np.bincount(item, weights=weight[device], minlength=dataset.items_count).astype(np.float64)


class BiasRatings:
    """Ratings from a mean plus item and device offsets, shrunk towards 0: the floor for RMSE and MAE. Not private.

    Item offsets come from the training devices' training rows, a device's offset from its own; both are divided by
    (count + ``shrinkage``).
    """

    def __init__(
        self, dataset: Dataset, split: Split, devices: NDArray[Any] | None = None, shrinkage: float = 5.0
    ) -> None:
        positive("shrinkage", shrinkage)
        trains = np.zeros(dataset.devices, dtype=bool)
        trains[chosen_devices(dataset, devices)] = True
        owner = dataset.device_of_rows()
        known = np.arange(dataset.interactions) < split.train_end[owner]
        fit = known & trains[owner]
        self.mean = float(dataset.rewards[fit].mean(dtype=np.float64)) if fit.any() else 0.0
        self.item = _shrunk(dataset.items[fit], dataset.rewards[fit] - self.mean, dataset.items_count, shrinkage)
        rest = dataset.rewards - self.mean - self.item[dataset.items]
        self.device = _shrunk(owner[known], rest[known], dataset.devices, shrinkage)

    def rate(self, devices: NDArray[np.int64], items: NDArray[np.int64]) -> Floats:
        """Predicted rating of each (device, item) pair, float64 ``[pairs]``."""
        return np.asarray(self.mean + self.item[items] + self.device[devices])


def _shrunk(group: NDArray[Any], values: NDArray[Any], groups: int, shrinkage: float) -> Floats:
    total = np.bincount(group, weights=values, minlength=groups)
    return np.asarray(total / (np.bincount(group, minlength=groups) + shrinkage), dtype=np.float64)
