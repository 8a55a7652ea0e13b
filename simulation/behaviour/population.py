"""The truth about users and items: what a policy never sees and every regret is measured by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from ...meta.interactions import Catalogue
from .choice import sigmoid

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_CELLS = 200_000
"""Cells of users x items by which a mean probability is estimated at most."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Population:
    """Users with tastes and items with qualities: ``utility = taste . quality + item_bias + user_bias``.

    Attributes:
        tastes: float64 ``[users, latent]``.
        qualities: float64 ``[items, latent]``.
        item_bias: how well an item does with everybody, float64 ``[items]``.
        user_bias: how much a user clicks at all, float64 ``[users]``.
        catalogue: the items as a policy sees them.
        user_features: what is known about users, float32 ``[users, features]``.
        user_feature_names: a name for every column of ``user_features``.
        published: step in which each item appears, int64 ``[items]``; none: all are there from the start.
    """

    tastes: Floats
    qualities: Floats
    item_bias: Floats
    user_bias: Floats
    catalogue: Catalogue
    user_features: NDArray[np.float32]
    user_feature_names: Sequence[str] = ()
    published: Ints | None = None

    def __post_init__(self) -> None:
        """Refuse shapes that do not fit and numbers that are none."""
        users, items, latent = len(self.tastes), len(self.catalogue), self.tastes.shape[1]
        shapes = {
            "tastes": (users, latent),
            "qualities": (items, latent),
            "item_bias": (items,),
            "user_bias": (users,),
            "user_features": (users, len(self.user_feature_names)),
        }
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise DataError(f"expected {name} of shape {shape}, got {getattr(self, name).shape}")
            if not np.isfinite(getattr(self, name)).all():
                raise DataError(f"expected finite {name}, got NaN or infinity; fit or draw the population anew")
        if not users or not items:
            raise DataError(f"expected one user and one item or more, got {users} and {items}")

    @property
    def users(self) -> int:
        """Number of users."""
        return len(self.tastes)

    @property
    def items(self) -> int:
        """Number of items."""
        return len(self.catalogue)

    @cached_property
    def spread(self) -> tuple[Floats, Floats]:
        """Mean and standard deviation of every coordinate of taste over users, float64 ``[latent]`` each."""
        return self.tastes.mean(axis=0), self.tastes.std(axis=0)

    @cached_property
    def directions(self) -> Floats:
        """Qualities divided by the mean of their own squared norm and everybody's, float64 ``[items, latent]``.

        Having clicked an item of mean norm takes ``satiation`` from its own utility, and more or less from others' as
        they are like it.
        """
        squared = (self.qualities**2).sum(axis=1, keepdims=True)
        return np.asarray(self.qualities / np.maximum((squared + squared.mean()) / 2, 1e-12))

    def utilities(self, user: int) -> Floats:
        """What every item is worth to ``user`` at the start, float64 ``[items]``."""
        return np.asarray(self.qualities @ self.tastes[user] + self.item_bias + self.user_bias[user])

    def mean_probability(self) -> float:
        """Mean probability that a user clicks an item that is shown alone, over all items and users (or a part)."""
        return float(sigmoid(self._grid()).mean())

    def with_base_rate(self, rate: float) -> Population:
        """The same tastes with the level of all utilities moved until ``mean_probability`` is ``rate``."""
        if not 0 < rate < 1:
            raise ValueError(f"expected 0 < base_rate < 1, got {rate!r}")
        grid, low, high = self._grid(), -40.0, 40.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if sigmoid(grid + middle).mean() < rate else (low, middle)
        return replace(self, item_bias=self.item_bias + low)

    def _grid(self) -> Floats:
        """Utilities of every item for every so many users, float64 ``[some users, items]``."""
        every = max(1, int(np.ceil(self.users * self.items / _CELLS)))
        users = slice(None, None, every)
        return np.asarray(
            self.tastes[users] @ self.qualities.T + self.item_bias + self.user_bias[users, None], dtype=np.float64
        )
