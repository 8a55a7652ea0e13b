"""A tiny online run: users of the domain ``shop``, so that nothing is fetched or fitted."""

from fedrec.config import Config
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


def arm(name):
    return Arm.of(name)


def same_traces(first, second):
    import numpy as np

    return all(np.array_equal(first.values[name], second.values[name], equal_nan=True) for name in first.values)
