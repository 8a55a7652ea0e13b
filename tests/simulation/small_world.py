"""Tiny synthetic federations, for tests of the simulation from end to end."""

import functools

import numpy as np
from fedrec.config import Config
from fedrec.simulation.data.dataset import Dataset
from fedrec.simulation.data.registry import load
from fedrec.simulation.world import World

UNITS = ("none", "interaction", "user", "both")
TINY = {
    "data": {"name": "synthetic", "devices": 14, "items": 24, "interactions": 8, "holdout": 0.2},
    "policy": {"dim": 3, "history_length": 6},
    "local": {"steps": 2, "windows": 3},
    "server": {"rounds": 3, "participation": 0.7, "nodes": 2},
    "evaluation": {"every": 2, "resamples": 100, "cold_start": (0, 2), "negatives": 5, "ks": (5, 10), "serve_steps": 2},
}


def config(**changes):
    return Config.from_mapping(TINY).updated(**changes)


@functools.cache
def dataset(seed=0):
    return load("synthetic", devices=14, items=24, interactions=8, seed=seed)


def world(data=None, **changes):
    return World.build(config(**changes), data or dataset())


def with_logs(data, logs):
    """The data set with the logs of some devices replaced: device -> (items, rewards)."""
    items, rewards, lengths = [], [], []
    for device in range(data.devices):
        rows = data.rows(device)
        own = logs.get(device, (data.items[rows], data.rewards[rows]))
        items.append(np.asarray(own[0], np.int32))
        rewards.append(np.asarray(own[1], np.float32))
        lengths.append(len(own[0]))
    return Dataset(
        name=data.name,
        items=np.concatenate(items),
        rewards=np.concatenate(rewards),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        catalogue=data.catalogue,
        device_features=data.device_features,
        device_feature_names=data.device_feature_names,
        device_ids=data.device_ids,
        reward_range=data.reward_range,
    )


def same(first, second):
    return first.keys() == second.keys() and all(bool((first[name] == second[name]).all()) for name in first)


def rows_of(run_dir):
    """``metrics.jsonl`` without what two equal runs do not share."""
    import json

    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
