"""Draw a domain's world: items with qualities, people with tastes, and the tables that show part of both.

A person has the same number, the same own taste and the same shared labels in every domain of a seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..._streams import cell_uniforms, numpy_stream
from ..._validate import at_least
from ...errors import DataError
from ..behaviour.population import Population
from ..data.build import encode_tables
from ..data.tables import FeatureTable, Kind
from .registry import DOMAINS
from .schema import Domain, Label, Measure

Floats = NDArray[np.float64]
_LATENT = 12
"""Dimensions of taste in every domain, so that directions can be shared."""
_ALREADY_OUT = 0.3
"""Part of a domain's items that were published before the first step."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DomainWorld:
    """A domain that was drawn.

    Attributes:
        domain: what it is.
        population: the truth, with the catalogue and the user features that may be seen.
        seed: what it was drawn from.
    """

    domain: Domain
    population: Population
    seed: int


def domain_world(name: str, *, users: int = 1000, items: int = 500, seed: int = 0) -> DomainWorld:
    """Draw the world of a domain.

    Raises:
        DataError: there is no such domain.
        ValueError: fewer than one user or two items.
    """
    if name not in DOMAINS:
        raise DataError(f"expected a domain among {', '.join(DOMAINS)}, got {name!r}; choose one of them")
    at_least("users", users, 1)
    at_least("items", items, 2)
    domain = DOMAINS[name]
    qualities, columns = _labelled(domain.item_labels, items, seed, domain.name, "items")
    own = numpy_stream(seed, "domain", name, "items-own").standard_normal((items, _LATENT))
    qualities = qualities + np.sqrt(1 - _told(domain.item_labels)) * own
    measures, appeal = _measured(domain.item_measures, items, seed, name)
    tastes, user_columns = _people(domain, users, seed)
    item_table = _table(domain.item_labels, columns, measures, names=f"{name} ")
    published = _published(domain, items, seed)
    if published is not None:
        item_table = _with_number(item_table, "published", published)
    user_table = _table(domain.user_labels, user_columns, {}, names=None)
    ids = [str(item) for item in range(items)], [str(user) for user in range(users)]
    shown = encode_tables(*ids, item_table, user_table, None)
    random = numpy_stream(seed, "domain", name, "bias")
    population = Population(
        tastes=domain.taste_strength * tastes / np.sqrt(_LATENT),
        qualities=qualities,
        item_bias=appeal + domain.popularity * random.standard_normal(items),
        user_bias=domain.activity * _personal(users, seed, "activity", 1)[:, 0],
        catalogue=shown["catalogue"],
        user_features=shown["device_features"],
        user_feature_names=shown["device_feature_names"],
        published=published,
    )
    return DomainWorld(domain=domain, population=population.with_base_rate(domain.base_rate), seed=seed)


def _told(labels: Sequence[Label]) -> float:
    return sum(label.weight for label in labels)


def _directions(label: Label, seed: int, domain: str) -> Floats:
    """One direction of taste for each value, float64 ``[values, latent]``."""
    scope = "shared" if label.shared else domain
    random = numpy_stream(seed, "domain", "label", scope, label.name)
    return random.standard_normal((len(label.values), _LATENT))


def _labelled(
    labels: Sequence[Label], rows: int, seed: int, domain: str, what: str
) -> tuple[Floats, dict[str, list[list[str]]]]:
    """The part of qualities that labels tell, float64 ``[rows, latent]``, and the values of every row."""
    total, columns = np.zeros((rows, _LATENT)), {}
    for label in labels:
        scope = "people" if what == "people" and label.shared else domain
        member = _membership(label, rows, seed, scope, what)
        counts = member.sum(axis=1, keepdims=True)
        total += np.sqrt(label.weight) * (member / np.sqrt(counts)) @ _directions(label, seed, domain)
        columns[label.name] = [[label.values[value] for value in np.flatnonzero(row)] for row in member]
    return total, columns


def _membership(label: Label, rows: int, seed: int, scope: str, what: str) -> Floats:
    """Which values each row has, 0 or 1, float64 ``[rows, values]``.

    Value v is drawn with weight ``1 / (v + 3)``, one or, for half of the rows where ``most`` allows it, two of them.
    The first rows have the first values, so that no column is missing from a small table.
    """
    values = np.arange(len(label.values))
    drawn = cell_uniforms(seed, "domain", scope, what, label.name, rows=np.arange(rows)[:, None], columns=values)
    count = 1 + (_personal(rows, seed, f"{scope} {what} {label.name}", 1)[:, 0] > 0) * (label.most > 1)
    keys = np.log(np.maximum(drawn, 1e-300)) * (values + 3)
    rank = np.argsort(np.argsort(-keys, axis=1), axis=1)
    member = (rank < count[:, None]).astype(np.float64)
    first = min(rows, len(values))
    member[:first] = np.eye(first, len(values))
    return member


def _measured(measures: Sequence[Measure], rows: int, seed: int, domain: str) -> tuple[dict[str, Floats], Floats]:
    columns, appeal = {}, np.zeros(rows)
    for measure in measures:
        standard = numpy_stream(seed, "domain", domain, "measure", measure.name).standard_normal(rows)
        columns[measure.name] = np.round(measure.typical * np.exp(measure.spread * standard), 2)
        appeal += measure.effect * standard
    return columns, appeal


def _people(domain: Domain, users: int, seed: int) -> tuple[Floats, dict[str, list[list[str]]]]:
    """Tastes with about unit variance in each coordinate: common, told by labels, and own."""
    told, columns = _labelled(domain.user_labels, users, seed, domain.name, "people")
    common = numpy_stream(seed, "domain", "common-taste").standard_normal(_LATENT)
    rest = 1 - domain.common_taste - _told(domain.user_labels)
    own = _personal(users, seed, "taste", _LATENT)
    return np.sqrt(domain.common_taste) * common + told + np.sqrt(rest) * own, columns


def _personal(users: int, seed: int, purpose: str, width: int) -> Floats:
    """Standard normals that a person keeps in every domain and population size, float64 ``[users, width]``."""
    rows, columns = np.arange(users)[:, None], np.arange(2 * width)
    drawn = cell_uniforms(seed, "domain", "people", purpose, rows=rows, columns=columns)
    return np.asarray(np.sqrt(-2 * np.log1p(-drawn[:, :width])) * np.cos(2 * np.pi * drawn[:, width:]))


def _published(domain: Domain, items: int, seed: int) -> NDArray[np.int64] | None:
    """Step in which each item appears: some before the first step, the others evenly over the lifetime."""
    if not domain.lifetime:
        return None
    drawn = numpy_stream(seed, "domain", domain.name, "published").permutation(items) / items
    steps = np.floor((drawn - _ALREADY_OUT) / (1 - _ALREADY_OUT) * domain.lifetime)
    return np.asarray(steps, dtype=np.int64)


def _table(
    labels: Sequence[Label], columns: dict[str, list[list[str]]], numbers: dict[str, Floats], names: str | None
) -> FeatureTable:
    rows = len(next(iter(columns.values())))
    kinds: dict[str, Kind] = {}
    frame: dict[str, object] = {"id": [str(row) for row in range(rows)]}
    for label in labels:
        many = label.most > 1
        kinds[label.name] = "multilabel" if many else "category"
        values = columns[label.name]
        frame[label.name] = (
            pl.Series(values, dtype=pl.List(pl.String)) if many else pl.Series([row[-1] for row in values])
        )
    for name, number in numbers.items():
        kinds[name], frame[name] = "number", number
    titles = None if names is None else [f"{names}{row}" for row in range(rows)]
    return FeatureTable(frame=pl.DataFrame(frame), kinds=kinds, titles=titles)


def _with_number(table: FeatureTable, name: str, values: NDArray[np.int64]) -> FeatureTable:
    frame = table.frame.with_columns(pl.Series(name, values.astype(np.float64)))
    return FeatureTable(frame=frame, kinds={**table.kinds, name: "number"}, titles=table.titles)
