"""Users fitted on a real log: tastes by weighted matrix factorisation, click probabilities calibrated where held out.

Every (user, item) cell of the log's matrix is either met or not. Nine tenths of the met cells train the factors. On
half of the others, and on cells drawn from those not met, weighted so that both stand for all of their kind, a logistic
regression turns score, popularity and activity into the probability that a cell is met. The other half tells how far
those probabilities are to be believed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..._streams import numpy_stream
from ..._validate import at_least, positive, probability
from ...errors import DataError
from ..data.dataset import Dataset
from ..data.split import filter_positive
from .choice import sigmoid
from .population import Population

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class TasteOptions:
    """How tastes are fitted."""

    latent: int = 16
    """Dimensions of taste."""
    sweeps: int = 8
    """Alternating sweeps over users and items."""
    unmet_weight: float = 0.1
    """Weight of a cell that was not met, beside 1 for one that was."""
    regularization: float = 4.0
    """Weight of the squared norm of every factor."""
    held_out: float = 0.1
    """Part of the met cells that calibrate."""
    positive_threshold: float | None = None
    """Cells with a reward below it count as not met; none counts all."""
    base_rate: float | None = None
    """Mean probability of a click on an item drawn at random; none keeps the density of the log."""
    taste_strength: float = 1.0
    """Factor on the personal part of utility; other than 1 it is no longer what the log says."""
    seed: int = 0
    """Root of the streams that hold out, draw and begin."""

    def __post_init__(self) -> None:
        """Refuse fits that make no sense."""
        at_least("latent", self.latent, 1)
        at_least("sweeps", self.sweeps, 1)
        positive("unmet_weight", self.unmet_weight)
        positive("regularization", self.regularization)
        positive("taste_strength", self.taste_strength)
        probability("held_out", self.held_out, open_right=True)
        if self.base_rate is not None:
            probability("base_rate", self.base_rate, open_right=True)


class Reliability(NamedTuple):
    """Cells of similar predicted probability: how many (weighted), the mean prediction, the share that was met."""

    cells: float
    predicted: float
    observed: float


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedUsers:
    """A population and how well its probabilities held on cells that neither factors nor calibration had seen.

    Attributes:
        population: one user for each device of the data set, in its order.
        reliability: ten groups of cells from the least to the most probable, before ``base_rate`` and
            ``taste_strength``.
        log_loss: mean log loss of those cells, in nats.
        log_loss_popularity: the same for a regression without the personal score.
    """

    population: Population
    reliability: tuple[Reliability, ...]
    log_loss: float
    log_loss_popularity: float


class _Cells(NamedTuple):
    users: Ints
    items: Ints
    met: Floats
    weight: Floats


def fit_users(dataset: Dataset, options: TasteOptions | None = None) -> FittedUsers:
    """Fit one simulated user for each device of ``dataset``.

    Raises:
        DataError: fewer than 100 cells would calibrate.
    """
    options = options if options is not None else TasteOptions()
    if options.positive_threshold is not None:
        dataset = filter_positive(dataset, options.positive_threshold)
    users, items = _met_cells(dataset)
    random = numpy_stream(options.seed, "taste", "held-out")
    calibrates = random.random(len(users)) < options.held_out
    if calibrates.sum() < 100:
        found = int(calibrates.sum())
        raise DataError(
            f"expected 100 or more met cells to calibrate on, got {found}; use a longer log or hold out more"
        )
    train = (users[~calibrates], items[~calibrates])
    tastes, qualities = _factorise(*train, (dataset.devices, dataset.items_count), options)
    offsets = _log_counts(train[0], dataset.devices), _log_counts(train[1], dataset.items_count)
    fitted, judged = _draw_cells(random, dataset, users, items, calibrates)
    score = _Predictors(tastes, qualities, *offsets)
    weights, without = _logistic(score(fitted), fitted), _logistic(score(fitted)[:, 1:], fitted)
    population = _population(dataset, tastes, qualities, offsets, weights, options)
    predicted = sigmoid(score(judged) @ weights)
    return FittedUsers(
        population=population,
        reliability=_reliability(predicted, judged),
        log_loss=_log_loss(predicted, judged),
        log_loss_popularity=_log_loss(sigmoid(score(judged)[:, 1:] @ without), judged),
    )


def _met_cells(dataset: Dataset) -> tuple[Ints, Ints]:
    cells = np.unique(dataset.device_of_rows().astype(np.int64) * dataset.items_count + dataset.items)
    return cells // dataset.items_count, cells % dataset.items_count


def _factorise(users: Ints, items: Ints, shape: tuple[int, int], options: TasteOptions) -> tuple[Floats, Floats]:
    """Factors of least ``sum over met (1 - score)^2 + unmet_weight * sum over all score^2 + L2`` (Hu et al. 2008).

    The factors are turned so that tastes have no correlation between coordinates.
    """
    scale = 0.1 / np.sqrt(options.latent)
    qualities = numpy_stream(options.seed, "taste", "start").standard_normal((shape[1], options.latent)) * scale
    for _ in range(options.sweeps):
        tastes = _solve(users, items, qualities, shape[0], options)
        qualities = _solve(items, users, tastes, shape[1], options)
    _, _, turn = np.linalg.svd(tastes - tastes.mean(axis=0), full_matrices=True)
    return tastes @ turn.T, qualities @ turn.T


def _solve(rows: Ints, columns: Ints, factors: Floats, count: int, options: TasteOptions) -> Floats:
    """Factors of one side, the other fixed, float64 ``[count, latent]``."""
    order = np.argsort(rows, kind="stable")
    ends = np.searchsorted(rows[order], np.arange(1, count))
    identity = np.eye(factors.shape[1])
    common = options.unmet_weight * factors.T @ factors + options.regularization * identity
    mets = [factors[part] for part in np.split(columns[order], ends)]
    left = np.stack([met.T @ met for met in mets]) + common
    right = np.stack([met.sum(axis=0) for met in mets])
    return np.asarray(np.linalg.solve(left, right[..., None])[..., 0])


def _log_counts(indices: Ints, count: int) -> Floats:
    return np.asarray(np.log(np.bincount(indices, minlength=count) + 0.5), dtype=np.float64)


def _draw_cells(
    random: np.random.Generator, dataset: Dataset, users: Ints, items: Ints, calibrates: NDArray[np.bool_]
) -> tuple[_Cells, _Cells]:
    """Cells to calibrate on and cells to judge by: held-out met ones, and ones not met, weighted to stand for all."""
    width, met = dataset.items_count, users * dataset.items_count + items
    drawn = np.unique(random.integers(0, dataset.devices * width, size=8 * int(calibrates.sum())))
    unmet = drawn[~np.isin(drawn, met)]
    cells = np.concatenate([met[calibrates], unmet])
    is_met = np.arange(len(cells)) < calibrates.sum()
    every_unmet = dataset.devices * width - len(met)
    weight = np.where(is_met, len(met) / is_met.sum(), every_unmet / max(len(unmet), 1))
    judges = random.random(len(cells)) < 0.5

    def chosen(mask: NDArray[np.bool_]) -> _Cells:
        return _Cells(cells[mask] // width, cells[mask] % width, is_met[mask].astype(np.float64), weight[mask])

    return chosen(~judges), chosen(judges)


class _Predictors:
    """Predictors of cells: personal score, log popularity, log activity, one."""

    def __init__(self, tastes: Floats, qualities: Floats, activity: Floats, popularity: Floats) -> None:
        self.tastes, self.qualities, self.activity, self.popularity = tastes, qualities, activity, popularity

    def __call__(self, cells: _Cells) -> Floats:
        score = (self.tastes[cells.users] * self.qualities[cells.items]).sum(axis=1)
        return np.stack([score, self.popularity[cells.items], self.activity[cells.users], np.ones_like(score)], axis=1)


def _logistic(rows: Floats, cells: _Cells, steps: int = 30) -> Floats:
    """Weighted logistic regression by Newton's method, float64 ``[predictors]``."""
    weights, scale = np.zeros(rows.shape[1]), cells.weight / cells.weight.sum()
    for _ in range(steps):
        predicted = sigmoid(rows @ weights)
        gradient = rows.T @ (scale * (predicted - cells.met))
        curvature = (rows * (scale * predicted * (1 - predicted))[:, None]).T @ rows
        weights = weights - np.linalg.solve(curvature + 1e-9 * np.eye(len(weights)), gradient)
    return weights


def _population(
    dataset: Dataset,
    tastes: Floats,
    qualities: Floats,
    offsets: tuple[Floats, Floats],
    weights: Floats,
    options: TasteOptions,
) -> Population:
    activity, popularity = offsets
    population = Population(
        tastes=tastes * weights[0] * options.taste_strength,
        qualities=qualities,
        item_bias=weights[1] * popularity + weights[3],
        user_bias=weights[2] * activity,
        catalogue=dataset.catalogue,
        user_features=dataset.device_features,
        user_feature_names=dataset.device_feature_names,
    )
    return population if options.base_rate is None else population.with_base_rate(options.base_rate)


def _reliability(predicted: Floats, cells: _Cells, groups: int = 10) -> tuple[Reliability, ...]:
    """Groups of equal numbers of met cells, so that probable cells are not all in one group."""
    order = np.argsort(predicted, kind="stable")
    met = np.cumsum(cells.met[order])
    found = []
    for part in np.split(order, np.searchsorted(met, met[-1] * np.arange(1, groups) / groups)):
        if len(part):
            weight = cells.weight[part]
            mean = [float((weight * value[part]).sum() / weight.sum()) for value in (predicted, cells.met)]
            found.append(Reliability(float(weight.sum()), *mean))
    return tuple(found)


def _log_loss(predicted: Floats, cells: _Cells) -> float:
    loss = -np.where(cells.met > 0, np.log(predicted), np.log1p(-predicted))
    return float((cells.weight * loss).sum() / cells.weight.sum())
