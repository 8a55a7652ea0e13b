"""A log of a domain: a known, imperfect recommender shows one item at a time, and its propensities are written down.

The recommender knows some of every user's taste. In step t it shows user u item i with probability

    p_t(i | u) proportional to ((1 - explore) softmax_i(sharpness * known utility) + explore / items) * fresh_t(i)

over the items that, unless people repeat, are not yet clicked; ``fresh_t = exp(-sharpness * freshness * age)``, and 0
before publication. That exact probability is the propensity.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..behaviour.draws import uniforms
from ..behaviour.dynamics import freshness_effects
from ..behaviour.simulator import UserSimulator
from ..data.dataset import Dataset
from .draw import DomainWorld

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_BEGIN, _STEP = 1_700_000_000, 1_800
"""First timestamp and seconds between two steps."""
_PATIENCE = 40
"""Steps for each interaction wanted, after which the log is taken as it is."""


@dataclass(frozen=True, kw_only=True)
class LoggingOptions:
    """The recommender that made the log."""

    interactions: float = 20.0
    """Mean clicks of a user at which the log ends."""
    impressions: bool = False
    """Keep what was shown and not clicked, too, with reward 0."""
    explore: float = 0.2
    """Part of what is shown that is drawn at random."""
    sharpness: float = 0.7
    """How much better known utility decides among the rest."""
    knowledge: float = 0.7
    """Part of the personal utility that the recommender knows."""


def logged_dataset(world: DomainWorld, options: LoggingOptions | None = None) -> Dataset:
    """Let the recommender act until users have clicked enough, and keep the log as a data set.

    Rewards are those of the domain's stages; drift, fatigue, noise and the rest are the domain's, too.
    """
    options = options if options is not None else LoggingOptions()
    population, behaviour = world.population, world.domain.behaviour
    simulator = UserSimulator(population, replace(behaviour, slate=1, track_regret=False, seed=world.seed))
    recommender = _Recommender(world, options)
    kept: list[tuple[Ints, Ints, Floats, Floats]] = []
    clicks, step = 0, 0
    while clicks < options.interactions * population.users and step < _PATIENCE * options.interactions:
        shown, propensity = recommender.show(simulator.state.time)
        feedback = simulator.respond(shown[:, None])
        rewards, clicked = feedback.rewards[:, 0], feedback.clicks[:, 0]
        recommender.clicked(shown, clicked)
        clicks, step = clicks + int(clicked.sum()), step + 1
        rows = np.arange(population.users) if options.impressions else np.flatnonzero(clicked)
        kept.append((rows, shown[rows], rewards[rows], propensity[rows]))
    return _as_dataset(world, kept)


class _Recommender:
    """Probabilities of what is shown, for all users at once."""

    def __init__(self, world: DomainWorld, options: LoggingOptions) -> None:
        population = world.population
        known = options.knowledge * (population.tastes @ population.qualities.T) + population.item_bias
        likely = (1 - options.explore) * _softmax(options.sharpness * known)
        self._all = likely + options.explore / population.items
        self._open = self._all.copy()
        self._world, self._options = world, options
        self._step = 0

    def show(self, time: Ints) -> tuple[Ints, Floats]:
        """An item for each user, and the probability with which it was drawn."""
        users, items = self._open.shape
        weights = self._open if self._world.population.published is None else self._open * self._present(int(time[0]))
        upper = np.cumsum(weights, axis=1)
        drawn = uniforms(self._world.seed, "logging", np.arange(users), np.full(users, self._step), 1)
        shown = np.minimum((upper <= drawn * upper[:, -1:]).sum(axis=1), items - 1)
        self._step += 1
        return shown, weights[np.arange(users), shown] / upper[:, -1]

    def _present(self, time: int) -> Floats:
        """Factor of age, 0 before an item is published."""
        population, behaviour = self._world.population, self._world.domain.behaviour
        age = freshness_effects(population, behaviour, np.arange(population.items), np.array(time))
        return np.asarray(np.exp(self._options.sharpness * age))

    def clicked(self, shown: Ints, clicked: NDArray[np.bool_]) -> None:
        """Close what was clicked to its user, unless people repeat in this domain; half a catalogue stays open."""
        if self._world.domain.behaviour.familiarity:
            return
        users = np.flatnonzero(clicked)
        self._open[users, shown[users]] = 0.0
        short = users[(self._open[users] == 0).sum(axis=1) > self._open.shape[1] // 2]
        self._open[short] = self._all[short]


def _softmax(scores: Floats) -> Floats:
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _as_dataset(world: DomainWorld, kept: list[tuple[Ints, Ints, Floats, Floats]]) -> Dataset:
    """Columns by user and, within one, by time."""
    population, stages = world.population, world.domain.behaviour.stages
    users, items, rewards, propensities = (np.concatenate(column) for column in zip(*kept, strict=True))
    steps = np.repeat(np.arange(len(kept)), [len(part[0]) for part in kept])
    order = np.argsort(users, kind="stable")
    counts = np.bincount(users, minlength=population.users)
    return Dataset(
        name=world.domain.name,
        items=items[order].astype(np.int32),
        rewards=rewards[order].astype(np.float32),
        timestamps=(_BEGIN + _STEP * steps[order]).astype(np.int64),
        propensities=propensities[order].astype(np.float32),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        catalogue=population.catalogue,
        device_features=population.user_features,
        device_feature_names=tuple(population.user_feature_names),
        device_ids=tuple(str(user) for user in range(population.users)),
        reward_kind="rating" if len(stages) > 1 else "click",
        reward_range=(0.0, stages[-1].reward),
    )
