"""Put columns of users, items and rewards, and the tables about them, together into a ``Dataset``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from ...meta.interactions import Catalogue
from .dataset import Dataset, RewardKind
from .features import FeatureOptions, Features, encode_table
from .tables import FeatureTable

Repeats = Literal["last", "first", "keep"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Log:
    """Interactions in the order of their source, users and items as codes.

    Attributes:
        users: position in ``user_ids`` of every interaction, int32 ``[interactions]``.
        items: position in ``item_ids`` of every interaction, int32 ``[interactions]``.
        rewards: float32 ``[interactions]``.
        timestamps: seconds (or any number that orders them), int64 ``[interactions]``.
        propensities: float32 ``[interactions]``.
        user_ids: every id once, in any order.
        item_ids: every id once, in any order.
    """

    users: NDArray[np.int32]
    items: NDArray[np.int32]
    rewards: NDArray[np.float32]
    user_ids: Sequence[str]
    item_ids: Sequence[str]
    timestamps: NDArray[np.int64] | None = None
    propensities: NDArray[np.float32] | None = None


def build_dataset(
    name: str,
    log: Log,
    *,
    items: FeatureTable | None = None,
    users: FeatureTable | None = None,
    options: FeatureOptions | None = None,
    reward_kind: RewardKind = "rating",
    reward_range: tuple[float, float] | None = None,
    repeats: Repeats = "last",
) -> Dataset:
    """Sort, renumber and encode.

    Catalogue rows follow the item table, then the items that only the log knows; without a table, and for devices
    always, rows are sorted by id (as numbers where all ids are whole numbers). Devices are the users of the log: a
    user who is only in the user table has nothing to learn from and is left out. Within a device, rows are ordered
    by timestamp and then by their order in the source.

    Args:
        name: what to call it.
        log: the interactions.
        items: what is known about items.
        users: what is known about users.
        options: how wide the features are.
        reward_kind: what a reward is.
        reward_range: bounds of the scale; by default the least and greatest reward found.
        repeats: of several interactions of a device with the same item keep the ``last``, the ``first``, or ``keep``
            them all.
    """
    if repeats not in ("last", "first", "keep"):
        raise DataError(f"expected repeats to be last, first or keep, got {repeats!r}")
    device_ids = sort_ids(log.user_ids)
    item_ids = catalogue_ids(log.item_ids, items)
    rank_users, rank_items = _ranks(log.user_ids, device_ids), _ranks(log.item_ids, item_ids)
    device, item = rank_users[log.users], rank_items[log.items]
    order = _order(device, item, log.timestamps, repeats)
    device = device[order]
    offsets = np.searchsorted(device, np.arange(len(device_ids) + 1)).astype(np.int64)
    rewards = log.rewards[order]
    if reward_range is None:
        reward_range = (float(rewards.min()), float(rewards.max())) if len(rewards) else (0.0, 1.0)
    return Dataset(
        name=name,
        items=item[order],
        rewards=rewards,
        timestamps=None if log.timestamps is None else log.timestamps[order],
        propensities=None if log.propensities is None else log.propensities[order],
        offsets=offsets,
        device_ids=device_ids,
        reward_kind=reward_kind,
        reward_range=reward_range,
        **encode_tables(item_ids, device_ids, items, users, options),
    )


def encode_tables(
    item_ids: Sequence[str],
    device_ids: Sequence[str],
    items: FeatureTable | None,
    users: FeatureTable | None,
    options: FeatureOptions | None,
) -> dict[str, Any]:
    """The fields of ``Dataset`` that come from the tables: catalogue, device features and their names."""
    item_table = None if items is None else items.reindex(item_ids)
    item_features = encode_rows(item_table, len(item_ids), options)
    user_features = encode_rows(None if users is None else users.reindex(device_ids), len(device_ids), options)
    catalogue = Catalogue(
        features=item_features.matrix,
        feature_names=item_features.names,
        groups=item_features.groups,
        item_ids=item_ids,
        titles=None if item_table is None or item_table.titles is None else tuple(item_table.titles),
    )
    return {
        "catalogue": catalogue,
        "device_features": user_features.matrix,
        "device_feature_names": user_features.names,
    }


def encode_rows(table: FeatureTable | None, rows: int, options: FeatureOptions | None) -> Features:
    """Encode ``table``; without one, ``rows`` rows of no features."""
    if table is None:
        return Features(np.zeros((rows, 0), dtype=np.float32), (), ())
    return encode_table(table, options)


def sort_ids(ids: Sequence[str]) -> tuple[str, ...]:
    """Sort ids as numbers where all are whole numbers (``007`` and ``7`` stay two ids), else as texts."""
    if all(identifier.isascii() and identifier.isdigit() for identifier in ids):
        return tuple(sorted(ids, key=lambda identifier: (int(identifier), identifier)))
    return tuple(sorted(ids))


def catalogue_ids(logged: Sequence[str], items: FeatureTable | None) -> tuple[str, ...]:
    """The ids of the item table in its order, then those of the log that it lacks."""
    if items is None:
        return sort_ids(logged)
    listed: list[str] = items.frame["id"].to_list()
    known = set(listed)
    return (*listed, *sort_ids([identifier for identifier in logged if identifier not in known]))


def _ranks(ids: Sequence[str], ordered: Sequence[str]) -> NDArray[np.int32]:
    positions = {identifier: rank for rank, identifier in enumerate(ordered)}
    return np.array([positions[identifier] for identifier in ids], dtype=np.int32)


def _order(
    device: NDArray[np.int32], item: NDArray[np.int32], timestamps: NDArray[np.int64] | None, repeats: Repeats
) -> NDArray[np.int64]:
    """The rows to keep, by device, timestamp and then source order."""
    order = np.argsort(device, kind="stable") if timestamps is None else np.lexsort((timestamps, device))
    if repeats == "keep":
        return order
    pair = device[order].astype(np.int64) * (int(item.max(initial=0)) + 1) + item[order]
    grouped = np.argsort(pair, kind="stable")
    differs = pair[grouped[1:]] != pair[grouped[:-1]]
    edge = np.ones(len(pair), dtype=bool)
    if repeats == "first":
        edge[1:] = differs
    else:
        edge[:-1] = differs
    keep = np.zeros(len(pair), dtype=bool)
    keep[grouped[edge]] = True
    return order[keep]
