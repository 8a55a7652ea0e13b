"""The data of every node: the log of one MovieLens user. The only thing that is taken from fedrec."""

from __future__ import annotations

from functools import cache

import torch
from fedrec.meta.interactions import Interactions
from fedrec.simulation.data import registry
from fedrec.simulation.data.dataset import Dataset
from flwr.app import Context
from torch import Tensor

HELD_OUT = 2


@cache
def movielens() -> Dataset:
    """MovieLens 100K with genres and years as item features; loaded once in each process."""
    return registry.load("ml-100k", text_buckets=0)


def item_features() -> Tensor:
    """Content features of the catalogue, float32 ``[items, features]``."""
    return torch.tensor(movielens().catalogue.features, dtype=torch.float32)


def log_of(context: Context) -> Interactions:
    """The log of the node's user, oldest first, without the last two entries, which fedrec holds out."""
    rows = movielens().rows(int(context.node_config["partition-id"]))
    return movielens().slice_log(slice(rows.start, rows.stop - HELD_OUT))
