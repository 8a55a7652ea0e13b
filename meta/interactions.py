"""What a device has seen and what it can recommend: the log of one device and the public catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError


@dataclass(frozen=True, kw_only=True)
class FeatureGroup:
    """A block of columns of a feature matrix that encode one source column.

    Attributes:
        name: the source column, such as ``genre``.
        kind: ``category``, ``multilabel``, ``number`` or ``text``.
        start: first column of the block.
        stop: one past its last column.
    """

    name: str
    kind: str
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """The items that may be recommended. All of it is public.

    Attributes:
        features: content features, float32 ``[items, features]``.
        feature_names: one name for every column, such as ``genre=Comedy``.
        item_ids: the data set's own id of every row.
        titles: a text to show for every row, where the data has one.
        groups: which columns encode which source column.
    """

    features: np.ndarray
    feature_names: tuple[str, ...]
    item_ids: Sequence[str]
    titles: Sequence[str] | None = None
    groups: tuple[FeatureGroup, ...] = field(default=())

    def __post_init__(self) -> None:
        """Check shapes and that the features are finite."""
        if self.features.ndim != 2 or self.features.shape != (len(self.item_ids), len(self.feature_names)):
            expected = (len(self.item_ids), len(self.feature_names))
            raise DataError(f"expected catalogue features of shape {expected}, got {self.features.shape}")
        if not np.isfinite(self.features).all():
            raise DataError("expected finite catalogue features, got NaN or infinity; clean the item table")

    def __len__(self) -> int:
        return len(self.item_ids)

    def title(self, item: int) -> str:
        """What to show for row ``item``: its title, else its id."""
        return self.titles[item] if self.titles is not None else str(self.item_ids[item])


@dataclass(frozen=True, kw_only=True)
class Interactions:
    """One device's log, in the order in which it happened.

    Attributes:
        items: catalogue rows, int64 ``[n]``.
        rewards: rewards (rating, click, count), float32 ``[n]``.
        timestamps: seconds, int64 ``[n]``, where the log has them.
        propensities: probability with which the logging policy showed the item, float32 ``[n]`` in [0, 1], where the
            log has them; 0 where one entry has none, as what somebody found without being shown it.
    """

    items: Tensor
    rewards: Tensor
    timestamps: Tensor | None = None
    propensities: Tensor | None = None

    def __post_init__(self) -> None:
        """Refuse unequal lengths, NaN rewards and propensities outside [0, 1]."""
        for name in ("rewards", "timestamps", "propensities"):
            column = getattr(self, name)
            if column is not None and column.shape != self.items.shape:
                raise DataError(f"expected {len(self.items)} {name}, one an item, got {tuple(column.shape)}")
        if not bool(torch.isfinite(self.rewards).all()):
            raise DataError("expected finite rewards, got NaN or infinity; drop or repair those interactions")
        if self.propensities is not None and not bool(((self.propensities >= 0) & (self.propensities <= 1)).all()):
            raise DataError("expected propensities in [0, 1], got others; drop or repair those interactions")

    def __len__(self) -> int:
        return int(self.items.shape[0])

    def head(self, count: int) -> Interactions:
        """The first ``count`` interactions."""
        return Interactions(
            items=self.items[:count],
            rewards=self.rewards[:count],
            timestamps=None if self.timestamps is None else self.timestamps[:count],
            propensities=None if self.propensities is None else self.propensities[:count],
        )

    def check_catalogue(self, size: int) -> None:
        """Refuse an item outside a catalogue of ``size`` rows."""
        outside = self.items[(self.items < 0) | (self.items >= size)]
        if len(outside):
            found = int(outside[0])
            raise DataError(f"expected item rows in [0, {size}), got {found}; import the log with its own item table")
