"""Two policies and users whose truth is known: nothing is trained."""

import functools
import tomllib

import torch
from fedrec.config import Config
from fedrec.simulation.compare.settings import CompareSettings
from fedrec.simulation.serving import Served
from fedrec.simulation.world import World

VALUES = {
    "data": {"name": "shop", "devices": 60, "items": 40, "interactions": 6, "holdout": 0.25},
    "policy": {"dim": 3, "history_length": 6},
    "evaluation": {"serve_steps": 1, "resamples": 100},
    "exploration": {"size": 2},
}
FEW = CompareSettings(interactions=4, resamples=50)


class Fake:
    """Stands in for a run on disk: parameters that somebody chose."""

    def __init__(self, directory, bias=None, **changes):
        self.directory = directory
        self.config = Config.from_mapping(VALUES).updated(**changes)
        self._bias = bias

    def served(self, dataset=None):
        world = _world(self.config)
        phi = dict(world.initialization())
        if self._bias is not None:
            phi["bias"] = torch.as_tensor(self._bias, dtype=torch.float32)
        return Served(world=world, phi=phi)


@functools.cache
def _cached(text):
    return World.build(Config.from_mapping(tomllib.loads(text)))


def _world(config):
    return _cached(config.to_toml())
