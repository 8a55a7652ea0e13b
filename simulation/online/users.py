"""The users of an online run and the world of their devices, which begin with empty logs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from ...config import Config, DataConfig
from ...errors import ConfigError, DataError
from ...meta.acting import Exploration
from ...meta.policy import Policy
from ..behaviour.options import UserOptions
from ..behaviour.population import Population
from ..behaviour.simulator import UserSimulator
from ..behaviour.taste import TasteOptions, fit_users
from ..data.dataset import Dataset
from ..data.split import held_out_devices
from ..domains import DOMAINS, domain_world
from ..exploring import exploration_of
from ..world import World, load_dataset
from .journal import everything

ENDLESS = 2**31
"""Horizon of an episode that is never cut."""
_MEMORY = 32
"""Clicks of a user that stay disliked."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Users:
    """Who is recommended to.

    Attributes:
        config: the run.
        population: the truth about them.
        options: how they behave.
        world: their devices with empty logs, those that never train, the policy.
    """

    config: Config
    population: Population
    options: UserOptions
    world: World

    @classmethod
    def of(cls, config: Config) -> Users:
        """The users that a configuration names: those of a domain, or those fitted on a data set.

        Raises:
            ConfigError: what the online loop can't do, such as slates of more items than there are.
            DataError: fewer than two devices are to train.
        """
        return cls.among(config, *_users(config))

    @classmethod
    def among(cls, config: Config, population: Population, options: UserOptions) -> Users:
        """All users of a population whose truth is given.

        Raises:
            ConfigError: as :meth:`of`.
            DataError: as :meth:`of`.
        """
        _check(config, population.items)
        options = replace(options, slate=config.exploration.size, horizon=ENDLESS, history=1, track_regret=True)
        return cls(config=config, population=population, options=options, world=_world(config, population, options))

    def simulator(self) -> UserSimulator:
        """All users at their start."""
        return UserSimulator(self.population, self.options)

    @property
    def exploration(self) -> Exploration:
        """How slates are drawn."""
        return exploration_of(self.config)

    def under(self, config: Config) -> Users:
        """The same users, whose devices follow another configuration of policy, privacy or server."""
        return replace(self, config=config, world=_world(config, self.population, self.options))


def _check(config: Config, items: int) -> None:
    if config.server.nodes != 1:
        raise ConfigError(
            f"expected server.nodes = 1 for the online loop, whose users live in one process, got "
            f"{config.server.nodes}; set it to 1"
        )
    if config.online.log == "shown" and config.policy.sees_history:
        raise ConfigError(
            "expected online.log = clicks with a policy whose state sees the history: what was shown in vain must "
            "not be part of it, got shown; set it, or policy.state = none and policy.affinity = false"
        )
    if config.online.log == "shown" and config.local.reward == "one" and config.local.reward_model == "constant":
        raise ConfigError(
            "expected local.reward = value where online.log = shown, got one, by which what was shown in vain counts "
            "as much as a click; set it, or online.log = clicks"
        )
    if config.exploration.size > items:
        raise ConfigError(
            f"expected exploration.size of at most {items}, the items there are, got {config.exploration.size}; "
            "lower it"
        )


def _users(config: Config) -> tuple[Population, UserOptions]:
    data, online = config.data, config.online
    if data.name in DOMAINS:
        population = domain_world(data.name, users=data.devices, items=data.items, seed=config.seed).population
    else:
        population = _fitted(data, config.seed, online.base_rate, online.taste_strength)
    return population, behaviour_of(config)


def behaviour_of(config: Config) -> UserOptions:
    """How the users that a configuration names behave: as their domain says, else as ``online`` does."""
    online = config.online
    if config.data.name in DOMAINS:
        return replace(DOMAINS[config.data.name].behaviour, seed=config.seed, shift_at=online.shift_at)
    return UserOptions(
        choice=online.choice,
        fatigue=online.fatigue,
        recovery=1.0,
        memory=_MEMORY if online.fatigue else 0,
        drift=online.drift,
        shift_at=online.shift_at,
        noise=online.noise,
        outliers=online.outliers,
        seed=config.seed,
    )


@lru_cache(maxsize=2)
def _fitted(data: DataConfig, seed: int, base_rate: float | None, strength: float) -> Population:
    options = TasteOptions(
        seed=seed, base_rate=base_rate, taste_strength=strength, positive_threshold=data.positive_threshold
    )
    return fit_users(load_dataset(Config(data=data, seed=seed)), options).population


def _world(config: Config, population: Population, options: UserOptions) -> World:
    """Devices of all users with empty logs."""
    dataset = Dataset(
        name=config.data.name,
        items=np.empty(0, dtype=np.int32),
        rewards=np.empty(0, dtype=np.float32),
        propensities=np.empty(0, dtype=np.float32),
        offsets=np.zeros(population.users + 1, dtype=np.int64),
        catalogue=population.catalogue,
        device_features=population.user_features,
        device_feature_names=tuple(population.user_feature_names),
        device_ids=[str(user) for user in range(population.users)],
        reward_kind="click",
        reward_range=(0.0, max(options.greatest_reward, 1e-6)),
    )
    held_out = held_out_devices(dataset, config.data.holdout, config.seed)
    roster = np.flatnonzero(~held_out).astype(np.int64)
    if len(roster) < 2:
        raise DataError(
            f"expected at least 2 training devices, got {len(roster)} of {population.users}; lower data.holdout"
        )
    policy = Policy.for_catalogue(config.policy, population.catalogue, population.user_features.shape[1])
    return World(
        config=config, dataset=dataset, split=everything(dataset), held_out=held_out, roster=roster, policy=policy
    )
