"""A seeded world whose tastes are known: data of any size without a network, and the truth to judge a policy by.

Items have latent qualities; part of them shows in their genres and year, the rest does not. Devices have tastes: those
of their segment, which a device feature tells, and their own. A device meets items that are popular and suit it, and
rates them 1 to 5 by how well they suit it, with noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..._streams import numpy_stream
from ..._validate import at_least, non_negative, positive, probability
from .build import encode_tables
from .dataset import Dataset
from .tables import FeatureTable, Kind, join_title

_BLOCK = 4096
"""Devices that share one random stream; a constant, because the world depends on it."""
_INDIFFERENT = 3.0
"""Rating of an item that leaves a device cold."""
_WORTH = 0.9
"""Points of rating that a unit of utility is worth."""
_GENRES = (
    *("Action", "Adventure", "Animation", "Comedy", "Crime", "Documentary", "Drama", "Fantasy", "History", "Horror"),
    *("Musical", "Mystery", "Romance", "Science", "Sports", "Thriller", "Travel", "War", "Western", "Youth"),
)


@dataclass(frozen=True, kw_only=True)
class SyntheticOptions:
    """The size and the nature of a synthetic world."""

    devices: int = 200
    """How many devices there are."""
    items: int = 300
    """How many items there are."""
    seed: int = 0
    """What the world is drawn from; equal options give equal worlds."""
    interactions: float = 20.0
    """Mean number of interactions of a device; log-normal over devices, at most half the catalogue."""
    length_spread: float = 0.6
    """Standard deviation of the logarithm of that number; 0 gives every device as many."""
    least_interactions: int = 3
    """Every device has at least so many, where the catalogue allows it."""
    latent: int = 8
    """Dimensions of taste."""
    genres: int = 12
    """Genres that items may have, up to 20."""
    segments: int = 4
    """Groups of devices with a common part of their taste."""
    content_share: float = 0.7
    """Part of the variance of an item's qualities that its genres tell."""
    segment_share: float = 0.3
    """Part of the variance of a device's taste that its segment tells."""
    popularity_skew: float = 1.0
    """Exponent of the power law of popularity; 0 makes all items equally known."""
    taste_strength: float = 1.5
    """How much taste, beside popularity, decides what a device meets."""
    noise: float = 0.5
    """Standard deviation of the noise in ratings, in units of rating."""

    def __post_init__(self) -> None:
        """Refuse worlds that can't exist."""
        for name in ("devices", "items", "latent", "genres", "segments"):
            at_least(name, getattr(self, name), 1)
        at_least("least_interactions", self.least_interactions, 0)
        if self.genres > len(_GENRES):
            raise ValueError(f"expected genres <= {len(_GENRES)}, got {self.genres}")
        positive("interactions", self.interactions)
        for name in ("length_spread", "popularity_skew", "taste_strength", "noise"):
            non_negative(name, getattr(self, name))
        for name in ("content_share", "segment_share"):
            if getattr(self, name):
                probability(name, getattr(self, name))


@dataclass(frozen=True, kw_only=True, eq=False)
class SyntheticWorld:
    """A data set and the truth behind it.

    Attributes:
        dataset: what a researcher would see.
        tastes: float32 ``[devices, latent]``.
        qualities: float32 ``[items, latent]``.
        popularity: probability that somebody without a taste meets the item, float64 ``[items]``, sums to 1.
        options: what the world was made from.
    """

    dataset: Dataset
    tastes: NDArray[np.float32]
    qualities: NDArray[np.float32]
    popularity: NDArray[np.float64]
    options: SyntheticOptions

    def utility(self, device: int) -> NDArray[np.float32]:
        """How well every item suits ``device``, float32 ``[items]``: zero mean, about unit variance over devices."""
        return _utility(self.qualities @ self.tastes[device], self.options)

    def expected_rating(self, device: int) -> NDArray[np.float32]:
        """What ``device`` would rate every item without noise and rounding, float32 ``[items]`` in [1, 5]."""
        return _rating(self.utility(device))


def synthetic_world(options: SyntheticOptions | None = None, **changes: Any) -> SyntheticWorld:
    """Make a world from ``options``, or from the keywords of ``SyntheticOptions``."""
    options = options if options is not None else SyntheticOptions(**changes)
    items = _make_items(options)
    popularity = _popularity(options)
    segment, tastes = _make_devices(options)
    log = _make_logs(options, tastes, items.qualities, popularity)
    device_ids = tuple(str(device) for device in range(options.devices))
    users = FeatureTable(
        frame=pl.DataFrame({"id": device_ids, "segment": [f"segment {s}" for s in segment.tolist()]}),
        kinds={"segment": "category"},
    )
    item_ids = tuple(items.table.frame["id"].to_list())
    dataset = Dataset(
        name="synthetic",
        device_ids=device_ids,
        reward_kind="rating",
        reward_range=(1.0, 5.0),
        **log,
        **encode_tables(item_ids, device_ids, items.table, users, None),
    )
    return SyntheticWorld(
        dataset=dataset, tastes=tastes, qualities=items.qualities, popularity=popularity, options=options
    )


def _utility(products: NDArray[np.float32], options: SyntheticOptions) -> NDArray[np.float32]:
    return np.asarray(products / np.sqrt(options.latent), dtype=np.float32)


def _rating(utility: NDArray[Any]) -> NDArray[np.float32]:
    return np.clip(_INDIFFERENT + _WORTH * utility, 1, 5).astype(np.float32)


def _normals(shape: tuple[int, ...], options: SyntheticOptions, *purpose: int | str) -> NDArray[np.float32]:
    return numpy_stream(options.seed, "synthetic", *purpose).standard_normal(shape, dtype=np.float32)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Items:
    qualities: NDArray[np.float32]
    table: FeatureTable


def _make_items(options: SyntheticOptions) -> _Items:
    """Items of one to three genres, whose qualities are the mean of their genres' and something of their own."""
    random = numpy_stream(options.seed, "synthetic", "items")
    most = min(3, options.genres)
    counts = random.integers(1, most + 1, size=options.items)
    drawn = random.random((options.items, options.genres)).argsort(axis=1)[:, :most]
    member = np.zeros((options.items, options.genres), dtype=np.float32)
    rows, columns = np.nonzero(np.arange(most) < counts[:, None])
    member[rows, drawn[rows, columns]] = 1
    years = random.integers(1960, 2024, size=options.items)
    shown = member / np.sqrt(counts[:, None]) @ _normals((options.genres, options.latent), options, "genres")
    own = _normals((options.items, options.latent), options, "items-own")
    share = options.content_share
    qualities = (np.sqrt(share) * shown + np.sqrt(1 - share) * own).astype(np.float32)
    names = np.array(_GENRES)
    table = FeatureTable(
        frame=pl.DataFrame(
            {
                "id": [str(item) for item in range(options.items)],
                "genre": pl.Series([names[np.flatnonzero(row)].tolist() for row in member], dtype=pl.List(pl.String)),
                "year": years.astype(np.float64),
            }
        ),
        kinds=_item_kinds(),
        titles=[join_title(f"Item {item}", year) for item, year in enumerate(years.tolist())],
    )
    return _Items(qualities=qualities, table=table)


def _item_kinds() -> dict[str, Kind]:
    return {"genre": "multilabel", "year": "year"}


def _popularity(options: SyntheticOptions) -> NDArray[np.float64]:
    """A power law over a random order of the items."""
    ranks = numpy_stream(options.seed, "synthetic", "popularity").permutation(options.items) + 1
    weights = ranks.astype(np.float64) ** -options.popularity_skew
    return np.asarray(weights / weights.sum())


def _make_devices(options: SyntheticOptions) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    segment = numpy_stream(options.seed, "synthetic", "segments").integers(0, options.segments, size=options.devices)
    common = _normals((options.segments, options.latent), options, "segment-tastes")[segment]
    own = _normals((options.devices, options.latent), options, "tastes")
    share = options.segment_share
    return segment, (np.sqrt(share) * common + np.sqrt(1 - share) * own).astype(np.float32)


def _lengths(options: SyntheticOptions) -> NDArray[np.int64]:
    """Log-normal with the mean asked for, cut to what the catalogue allows."""
    spread = options.length_spread
    random = numpy_stream(options.seed, "synthetic", "lengths")
    drawn = random.lognormal(np.log(options.interactions) - spread**2 / 2, spread, size=options.devices)
    most = _longest(options)
    return np.clip(np.rint(drawn).astype(np.int64), min(options.least_interactions, most), most)


def _longest(options: SyntheticOptions) -> int:
    """Most interactions that a device may have."""
    most = max(options.items // 2, min(options.least_interactions, options.items))
    return min(most, int(8 * options.interactions) + options.least_interactions)


def _wanted(longest: int) -> int:
    """Candidates that are drawn for devices with up to ``longest`` interactions."""
    return 4 * longest + 16


def _make_logs(
    options: SyntheticOptions,
    tastes: NDArray[np.float32],
    qualities: NDArray[np.float32],
    popularity: NDArray[np.float64],
) -> dict[str, Any]:
    """The columns of the data set, made in blocks of devices with logs of similar length, so that little is wasted."""
    lengths = _lengths(options)
    by_length = np.argsort(lengths, kind="stable")
    whole = options.items <= 2 * _wanted(_longest(options))  # no block decides: one law for all populations
    parts = []
    for block, first in enumerate(range(0, options.devices, _BLOCK)):
        devices = by_length[first : first + _BLOCK]
        random = numpy_stream(options.seed, "synthetic", "log", block)
        candidates, weight = _candidates(
            random, len(devices), popularity, None if whole else int(lengths[devices].max())
        )
        utility = _utility(np.einsum("dk,dck->dc", tastes[devices], qualities[candidates]), options)
        row, *columns = _draw_logs(
            random, options, candidates=candidates, weight=weight, utility=utility, lengths=lengths[devices]
        )
        parts.append((devices[row], *columns))
    owner, items, rewards, times = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(owner, kind="stable")
    counts = np.bincount(owner, minlength=options.devices)
    return {
        "items": items[order],
        "rewards": rewards[order],
        "timestamps": times[order],
        "offsets": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
    }


def _draw_logs(
    random: np.random.Generator,
    options: SyntheticOptions,
    *,
    candidates: NDArray[np.int64],
    weight: NDArray[np.float64],
    utility: NDArray[np.float32],
    lengths: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32], NDArray[np.int64]]:
    """Each device takes the candidates of highest weight plus taste plus Gumbel noise, in random order.

    That is sampling without replacement with probability proportional to ``exp(weight + taste)`` (Gumbel top-k).
    Returns device (row of ``candidates``), item, reward and time of every interaction.
    """
    noisy = weight + options.taste_strength * utility + random.gumbel(size=candidates.shape)
    ranked = np.argsort(-noisy, axis=1)[:, : int(lengths.max())]
    usable = np.isfinite(np.take_along_axis(noisy, ranked, axis=1)) & (np.arange(ranked.shape[1]) < lengths[:, None])
    order = np.argsort(np.where(usable, random.random(ranked.shape), 2.0), axis=1)
    chosen, usable = np.take_along_axis(ranked, order, axis=1), np.take_along_axis(usable, order, axis=1)
    liked = np.take_along_axis(utility, chosen, axis=1)[usable]
    noise = random.standard_normal(len(liked)) * options.noise
    rewards = np.clip(np.rint(_INDIFFERENT + _WORTH * liked + noise), 1, 5).astype(np.float32)
    gaps = np.cumsum(random.integers(30, 86_400, size=chosen.shape), axis=1)
    started = 1_600_000_000 + random.integers(0, 86_400 * 365, size=(len(candidates), 1))
    items = np.take_along_axis(candidates, chosen, axis=1)[usable].astype(np.int32)
    return np.nonzero(usable)[0], items, rewards, (started + gaps)[usable]


def _candidates(
    random: np.random.Generator, devices: int, popularity: NDArray[np.float64], longest: int | None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Items to choose among, int64 ``[devices, candidates]``, and the logarithm of the weight each has beside taste.

    A small catalogue (``longest`` is none) is offered whole, weighted by popularity. Else candidates are drawn by
    popularity, enough for ``longest`` interactions, so their weight is equal; repeated ones get none.
    """
    if longest is None:
        every = np.broadcast_to(np.arange(len(popularity)), (devices, len(popularity)))
        return every, np.broadcast_to(np.log(popularity), every.shape)
    wanted, cumulated = _wanted(longest), np.cumsum(popularity)
    drawn = np.searchsorted(cumulated, random.random((devices, wanted)) * cumulated[-1], side="right")
    drawn = np.sort(np.minimum(drawn, len(popularity) - 1), axis=1)
    weight = np.zeros(drawn.shape)
    weight[:, 1:][drawn[:, 1:] == drawn[:, :-1]] = -np.inf
    return drawn, weight
