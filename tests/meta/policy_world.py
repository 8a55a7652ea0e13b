"""Small catalogues, logs and policies for tests of what is learned."""

import numpy as np
import torch
from fedrec._streams import torch_stream
from fedrec.config import LocalConfig, PolicyConfig
from fedrec.meta.examples import build_examples
from fedrec.meta.interactions import Catalogue, FeatureGroup, Interactions
from fedrec.meta.policy import Policy, State

ITEMS, USER, LENGTH = 11, 2, 6
RANGE = (1.0, 5.0)
ENCODERS = ("none", "personal", "history", "gru", "transformer")


def catalogue(items=ITEMS, seed=0):
    """Two categories, a multi-label one and a number."""
    rng = np.random.default_rng(seed)
    kind = np.eye(3, dtype=np.float32)[rng.integers(0, 3, items)]
    genres = (rng.random((items, 3)) < 0.5).astype(np.float32)
    year = rng.random((items, 1)).astype(np.float32)
    return Catalogue(
        features=np.concatenate([kind, genres, year], axis=1),
        feature_names=("kind=a", "kind=b", "kind=c", "genre=x", "genre=y", "genre=z", "year"),
        item_ids=tuple(str(item) for item in range(items)),
        groups=(
            FeatureGroup(name="kind", kind="category", start=0, stop=3),
            FeatureGroup(name="genre", kind="multilabel", start=3, stop=6),
            FeatureGroup(name="year", kind="number", start=6, stop=7),
        ),
    )


def policy(user_width=USER, **settings):
    defaults = {"state": "history", "dim": 4, "history_length": LENGTH}
    return Policy.for_catalogue(PolicyConfig(**(defaults | settings)), catalogue(), user_width)


def parameters(policy, seed=0, scale=0.3):
    """A point where nothing is zero or neutral."""
    generator = torch_stream(seed, "point")
    start = policy.initial(torch_stream(seed, "start"))
    return {name: value + scale * torch.randn(value.shape, generator=generator) for name, value in start.items()}


def log(length, seed=0, items=ITEMS, propensities=False, once=False):
    """Interactions at random, no item more often than ``once`` where it says so."""
    rng = np.random.default_rng(seed)
    return Interactions(
        items=torch.from_numpy(rng.permutation(items)[:length] if once else rng.integers(0, items, length)),
        rewards=torch.from_numpy(rng.integers(1, 6, length).astype(np.float32)),
        propensities=torch.from_numpy(rng.uniform(0.05, 1, length).astype(np.float32)) if propensities else None,
    )


def user(seed=0):
    return torch.randn(USER, generator=torch_stream(seed, "user"))


def examples(policy, length=7, seed=0, unit="none", propensities=False, stream=(0, 1, 2), once=False, **settings):
    return build_examples(
        policy,
        log(length, seed, policy.items, propensities, once),
        user(seed) if policy.user_width else torch.zeros(0),
        settings=LocalConfig(**settings),
        unit=unit,
        reward_range=RANGE,
        stream=stream,
    )


def state(histories, length=LENGTH, levels=None):
    """Right-aligned histories, one a row."""
    rows = torch.full((len(histories), length), -1)
    binned = torch.zeros(len(histories), length, dtype=torch.int64)
    for row, history in enumerate(histories):
        if history:
            rows[row, length - len(history) :] = torch.tensor(history)
            binned[row, length - len(history) :] = torch.tensor(levels[row] if levels else [h % 5 for h in history])
    return State(rows, binned, user())
