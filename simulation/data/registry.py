"""Data sets by name: load, list and describe them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from .build import encode_tables
from .cache import directory_of, is_stored, stored_names, stored_table
from .dataset import Dataset
from .features import FeatureOptions
from .fetching import REGISTERED, Progress, fetch, to_stderr
from .store import read_manifest

SYNTHETIC = "synthetic"
GENERATED = {
    SYNTHETIC: "seeded world with known tastes",
    "shop": "domain: view, cart, purchase",
    "video": "domain: start, half, finish",
    "news": "domain: click, read; fresh articles count",
    "music": "domain: play, listen to the end; repeats are welcome",
    "social": "domain: like, comment, share; some accounts are bots",
}
"""Worlds that are made when they are asked for; the domains are those of ``simulation.domains``."""


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """A data set that can be loaded by name.

    Attributes:
        name: what ``load`` takes.
        kind: ``registered`` (can be fetched), ``generated`` or ``imported``.
        available: whether it can be loaded without the network.
        title: what it is.
        devices: number of devices, where it is available and stored.
        items: number of items, where it is available and stored.
        interactions: number of interactions, where it is available and stored.
    """

    name: str
    kind: str
    available: bool
    title: str
    devices: int | None = None
    items: int | None = None
    interactions: int | None = None


def list_datasets() -> list[DatasetInfo]:
    """Every data set that ``load`` takes: registered, generated, imported."""
    stored = stored_names()
    found = [
        DatasetInfo(name=r.name, kind="registered", available=r.name in stored, title=r.title, **_counts(r.name))
        for r in REGISTERED.values()
    ]
    found += [DatasetInfo(name=name, kind="generated", available=True, title=GENERATED[name]) for name in GENERATED]
    imported = [name for name in stored if name not in REGISTERED]
    return found + [
        DatasetInfo(name=name, kind="imported", available=True, title="imported", **_counts(name)) for name in imported
    ]


def _counts(name: str) -> dict[str, int]:
    """Sizes of a stored data set; none of one whose manifest cannot be read, which must not hide the others."""
    if not is_stored(name):
        return {}
    try:
        columns = read_manifest(directory_of(name))["columns"]
    except DataError:
        return {}
    return {
        "devices": columns["offsets"]["shape"][0] - 1,
        "items": columns["item_features"]["shape"][0],
        "interactions": columns["items"]["shape"][0],
    }


def load(name: str, *, progress: Progress = to_stderr, **options: Any) -> Dataset:
    """Load a data set; one that is registered and not in the cache yet is fetched first.

    Args:
        name: ``ml-100k``, ``ml-1m``, ``synthetic``, a domain such as ``shop``, or what an imported data set was called.
        progress: is told, line by line, what fetching does; by default the error stream.
        options: for ``synthetic`` those of ``SyntheticOptions`` (``devices``, ``items``, ``seed``, ...); for a domain
            ``devices``, ``items``, ``seed`` and those of ``LoggingOptions`` (``interactions``, ``impressions``, ...);
            for all others those of ``FeatureOptions`` (``text_buckets``, ``year_bin``, ...), which encode the features
            anew.

    Raises:
        DataError: the name or an option is unknown, or the data set can't be fetched or read.
    """
    if name == SYNTHETIC:
        from .synthetic import SyntheticOptions, synthetic_world

        _check_options(name, options, [f.name for f in fields(SyntheticOptions)])
        return synthetic_world(SyntheticOptions(**options)).dataset
    if name in GENERATED:
        return _log_of_domain(name, options)
    _check_options(name, options, [f.name for f in fields(FeatureOptions)])
    if name in REGISTERED:
        fetch(name, progress=progress)
    elif name == "open-bandit" and not is_stored(name):
        raise DataError(
            "expected a data set with users, got 'open-bandit', which has none; judge a run on one of its logs with "
            "fedrec ope, or import one by segment"
        )
    elif not is_stored(name):
        known = ", ".join(info.name for info in list_datasets())
        raise DataError(f"expected a data set I know ({known}), got {name!r}; import it first")
    dataset = Dataset.open(directory_of(name))
    return encode_anew(dataset, FeatureOptions(**options)) if options else dataset


def _log_of_domain(name: str, options: dict[str, Any]) -> Dataset:
    from ..domains import domain_world, logged_dataset
    from ..domains.log import LoggingOptions

    sizes = {"devices": "users", "items": "items", "seed": "seed"}
    _check_options(name, options, [*sizes, *(f.name for f in fields(LoggingOptions))])
    world = domain_world(name, **{sizes[key]: value for key, value in options.items() if key in sizes})
    return logged_dataset(world, LoggingOptions(**{key: options[key] for key in options if key not in sizes}))


def _check_options(name: str, options: dict[str, Any], known: Sequence[str]) -> None:
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise DataError(f"expected options of {name} to be among {', '.join(known)}, got {unknown[0]!r}")


def encode_anew(dataset: Dataset, options: FeatureOptions) -> Dataset:
    """The same stored data set with features of other widths."""
    items, users = stored_table(dataset.name, "items"), stored_table(dataset.name, "users")
    return dataset.replace(**encode_tables(dataset.catalogue.item_ids, dataset.device_ids, items, users, options))


def describe(dataset: Dataset) -> dict[str, Any]:
    """What a data set holds, as plain values that JSON can carry.

    Quantiles of interactions per device are the minimum, the quartiles and the maximum; rewards with more than 20
    values are counted in 10 equal bins, each under its lower bound.
    """
    devices, items, interactions = dataset.devices, dataset.items_count, dataset.interactions
    rated = int(np.count_nonzero(np.bincount(dataset.items, minlength=items))) if interactions else 0
    return {
        "name": dataset.name,
        "devices": devices,
        "items": items,
        "items_never_met": items - rated,
        "interactions": interactions,
        "density": interactions / (devices * items) if devices and items else 0.0,
        "interactions_per_device": _quantiles(dataset.lengths),
        "devices_with_one_interaction": int((dataset.lengths == 1).sum()),
        "reward_kind": dataset.reward_kind,
        "reward_range": list(dataset.reward_range),
        "rewards": _histogram(dataset.rewards),
        "span": _span(dataset.timestamps),
        "repeated_rows": _repeated_rows(dataset),
        "propensities": dataset.propensities is not None,
        "item_features": {group.name: group.stop - group.start for group in dataset.catalogue.groups},
        "device_features": _feature_widths(dataset.device_feature_names),
        "fingerprint": dataset.fingerprint(),
    }


def _quantiles(lengths: NDArray[np.int64]) -> dict[str, float]:
    if not len(lengths):
        return {}
    labels = ("min", "25%", "median", "75%", "max")
    values = np.quantile(lengths, [0, 0.25, 0.5, 0.75, 1])
    return {"mean": float(lengths.mean()), **dict(zip(labels, values.tolist(), strict=True))}


def _histogram(rewards: NDArray[np.float32]) -> dict[str, int]:
    values, counts = np.unique(rewards, return_counts=True)
    if len(values) > 20:
        counts, edges = np.histogram(rewards, bins=10)
        values = edges[:-1]
    return {f"{value:g}": int(count) for value, count in zip(values.tolist(), counts.tolist(), strict=True)}


def _span(timestamps: NDArray[np.int64] | None) -> dict[str, Any] | None:
    if timestamps is None or not len(timestamps):
        return None
    first, last = int(timestamps.min()), int(timestamps.max())
    return {"first": _date(first), "last": _date(last), "days": round((last - first) / 86400, 1)}


def _date(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        return str(seconds)


def _repeated_rows(dataset: Dataset) -> int:
    from .split import met_before

    return int(met_before(dataset).sum())


def _feature_widths(names: Sequence[str]) -> dict[str, int]:
    return dict(Counter(name.split("=")[0].split("~")[0].split("#")[0].split(":")[0] for name in names))
