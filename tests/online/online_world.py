"""A tiny online run: users of the domain ``shop``, so that nothing is fetched or fitted."""

import numpy as np
from fedrec.config import Config
from fedrec.meta.interactions import Catalogue
from fedrec.simulation.behaviour.options import UserOptions
from fedrec.simulation.behaviour.population import Population
from fedrec.simulation.online.arms import Arm
from fedrec.simulation.online.users import Users

TINY = {
    "data": {"name": "shop", "devices": 24, "items": 30, "holdout": 0.25},
    "policy": {"state": "none", "dim": 3, "fast": ["taste", "latent"]},
    "local": {"steps": 2, "lr": 0.3, "targets": "sum", "horizon": 4, "reward": "value"},
    "server": {"rounds": 4, "participation": 0.6, "warm_start": "none"},
    "evaluation": {"serve_steps": 2, "serve_lr": 0.3, "resamples": 100},
    "exploration": {"size": 3},
    "online": {"interactions": 2, "late_round": 3, "arms": ["meta", "meta@8", "popularity", "random", "oracle"]},
}


def config(**changes):
    return Config.from_mapping(TINY).updated(**changes)


def users(**changes):
    return Users.of(config(**changes))


def lively(count, **changes):
    """Users who click often, and some items that nearly everybody likes."""
    random = np.random.default_rng(0)
    population = Population(
        tastes=random.standard_normal((count, 2)),
        qualities=random.standard_normal((30, 2)),
        item_bias=1.5 * random.standard_normal(30) - 2.5,
        user_bias=np.zeros(count),
        catalogue=Catalogue(
            features=np.zeros((30, 0), np.float32), feature_names=(), item_ids=[str(item) for item in range(30)]
        ),
        user_features=np.zeros((count, 0), np.float32),
    )
    own = {"policy__content": False, "policy__content_embedding": False, "policy__fast": ["latent"]}
    return Users.among(config(**own, **changes), population, UserOptions())


def arm(name):
    return Arm.of(name)


def same_traces(first, second):
    return all(np.array_equal(first.values[name], second.values[name], equal_nan=True) for name in first.values)
