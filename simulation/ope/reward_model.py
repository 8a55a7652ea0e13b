"""The reward model behind DM and DR: what an item earns at a place, fitted across folds so that no row predicts itself.

    q(a, l) = low + (high - low) sigmoid(intercept + features(a) . w + item[a] + place[l])

A ridge logistic regression of the scaled reward on the item's public features, the item and the place. It knows nothing
of the user: DR stays unbiased with any model, and one table ``[folds, places, items]`` serves every context.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..._streams import numpy_stream
from .items import Floats
from .logistic import Design, fit_logistic, sigmoid

FOLDS = 3
"""Parts of the log; each is predicted by a model of the others (cross-fitting, Chernozhukov et al. 2018)."""
RIDGE = 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class RewardModel:
    """Predictions for every item at every place.

    Attributes:
        table: ``q`` of each fold's model, float64 ``[folds, places, items]``.
        folds: the fold of every row, which is the model that did not see it, int64 ``[rows]``.
        outside: prediction for an item that the catalogue lacks, by fold and place, ``[folds, places]``.
    """

    table: Floats
    folds: NDArray[np.int64]
    outside: Floats

    def of(self, items: NDArray[np.int64], places: NDArray[np.int64]) -> Floats:
        """``q(a_i, l_i)`` of the logged items, ``[rows]``."""
        known = self.table[self.folds, places, np.maximum(items, 0)]
        return np.where(items >= 0, known, self.outside[self.folds, places])


def assign_folds(clusters: NDArray[np.int64], seed: int, folds: int = FOLDS) -> NDArray[np.int64]:
    """A fold for every row, int64 ``[rows]``; rows of one cluster (user, slate) share theirs.

    Clusters are shuffled with the stream (seed, "ope", "folds") and dealt in turn.
    """
    count = int(clusters.max()) + 1 if len(clusters) else 0
    order = numpy_stream(seed, "ope", "folds").permutation(count)
    dealt = np.empty(count, dtype=np.int64)
    dealt[order] = np.arange(count) % folds
    return dealt[clusters]


def fit_reward_model(
    items: NDArray[np.int64],
    places: NDArray[np.int64],
    rewards: Floats,
    clusters: NDArray[np.int64],
    features: Floats,
    *,
    seed: int,
) -> RewardModel:
    """Fit one model a fold on the rows of the others.

    Args:
        items: catalogue rows, -1 for items outside, ``[rows]``.
        places: slots from 0, ``[rows]``.
        rewards: ``[rows]``.
        clusters: numbers from 0 of what is not to be torn apart, ``[rows]``.
        features: public features of the catalogue, ``[items, features]``.
        seed: names the assignment of folds.
    """
    slots = int(places.max()) + 1 if len(places) else 1
    folds = assign_folds(clusters, seed)
    design = _design(items, places, features, slots)
    tables, outside = [], []
    for fold in range(FOLDS):
        others = folds != fold
        seen = rewards[others] if others.any() else rewards
        table, missing = _one_table(design.take(others) if others.any() else design, seen, features, slots)
        tables.append(table)
        outside.append(missing)
    return RewardModel(table=np.stack(tables), folds=folds, outside=np.stack(outside))


def _design(items: NDArray[np.int64], places: NDArray[np.int64], features: Floats, slots: int) -> Design:
    dense = np.where(items[:, None] >= 0, features[np.maximum(items, 0)], 0.0).astype(np.float64)
    return Design(dense=dense, codes=(items, places), levels=(len(features), slots))


def _one_table(design: Design, rewards: Floats, features: Floats, slots: int) -> tuple[Floats, Floats]:
    """Predictions of one model, ``[places, items]``, and those for an item outside, ``[places]``."""
    low, high = float(rewards.min()), float(rewards.max())
    count = len(features)
    if high == low:
        return np.full((slots, count), low), np.full(slots, low)
    coefficients = fit_logistic(design, (rewards - low) / (high - low), RIDGE)
    width = 1 + features.shape[1]
    place = coefficients[width + count :]
    item = features @ coefficients[1:width] + coefficients[width : width + count]
    table = sigmoid(coefficients[0] + place[:, None] + item)
    return low + (high - low) * table, low + (high - low) * sigmoid(coefficients[0] + place)
