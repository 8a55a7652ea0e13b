"""Work ``table``: a user vector and an item table, trained by DP-SGD on the device with Opacus.

Opacus as its documentation has it (per-example gradients by hooks, ``DPOptimizer``, Poisson batches), but nothing that
is released depends on how much data a user has: sampling rate, divisor and number of steps are public constants.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from opacus import GradSampleModule
from opacus.accountants import RDPAccountant
from opacus.data_loader import DPDataLoader
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

Config = dict[str, Any]


class Recommender(nn.Module):
    """Scores every item by the inner product of its row and the user's vector."""

    def __init__(self, items: int, dim: int) -> None:
        super().__init__()
        self.user = nn.Embedding(1, dim)
        self.items = nn.Linear(dim, items, bias=False)
        nn.init.normal_(self.user.weight, std=0.1)

    def forward(self, users: Tensor) -> Tensor:
        """Scores ``[batch, items]`` for the user's row, which is 0, ``[batch]``."""
        scores: Tensor = self.items(self.user(users))
        return scores


def train(model: Recommender, items: Tensor, accountant: RDPAccountant, config: Config) -> None:
    """Take the DP-SGD steps of one round in place.

    Args:
        model: user vector and item table, both trained.
        items: catalogue rows of the user's interactions, int64 ``[n]``; one example each.
        accountant: is told of every step.
        config: the run's configuration.
    """
    private = GradSampleModule(model, loss_reduction="mean")
    rates = [
        {"params": model.user.parameters(), "lr": config["table.user-learning-rate"]},
        {"params": model.items.parameters(), "lr": config["table.learning-rate"]},
    ]
    optimizer = DPOptimizer(
        torch.optim.SGD(rates),
        noise_multiplier=config["noise-multiplier"],
        max_grad_norm=config["table.clip"],
        expected_batch_size=config["table.expected-batch"],
        loss_reduction="mean",
    )
    rate = config["table.sample-rate"]
    optimizer.attach_step_hook(accountant.get_optimizer_hook_fn(sample_rate=rate))
    loader = DPDataLoader(TensorDataset(items), sample_rate=rate)
    for batch in islice(_without_end(loader), config["table.steps"]):
        optimizer.zero_grad()
        scores = private(torch.zeros_like(batch))
        functional.cross_entropy(scores, batch).backward()
        optimizer.step()


def _without_end(loader: DPDataLoader) -> Iterator[Tensor]:
    while True:
        for (batch,) in loader:
            yield batch


def recall_personal(model: Recommender, context: Context) -> None:
    """Put the user's vector of the last round in place; it stays on the node. The first one is random."""
    if "personal" in context.state:
        model.user.load_state_dict(context.state.array_records["personal"].to_torch_state_dict())


def keep_personal(model: Recommender, context: Context) -> None:
    """Remember the user's vector for the next round."""
    context.state["personal"] = ArrayRecord(model.user.state_dict())


def open_account(context: Context, config: Config) -> RDPAccountant:
    """The node's accountant with all its steps so far: epsilon is that of the whole run, not of one round."""
    accountant = RDPAccountant()
    if "account" in context.state:
        steps = context.state.metric_records["account"]["steps"]
        accountant.history = [(config["noise-multiplier"], config["table.sample-rate"], steps)]
    return accountant


def close_account(accountant: RDPAccountant, context: Context) -> int:
    """Remember the steps in the node's state and return their number, a public figure."""
    steps = sum(count for _, _, count in accountant.history)
    context.state["account"] = MetricRecord({"steps": steps})
    return steps
