"""Work ``default``: fedrec's default policy as a plain module, adapted by plain SGD; privacy is the server's task.

Scores are ``gain(s) bias + features @ taste + E @ (u(s) + latent)`` with ``E = features @ content + ids``; the state
``u(s)`` mixes means of the recent interactions at four time scales. Five steps: four on the user's taste alone, the
fifth on everything.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from fedrec.meta.interactions import Interactions
from torch import Tensor, nn
from torch.nn import functional

Config = dict[str, Any]

TIME_SCALES = (0.7, 3.0, 12.0, 60.0)
RATINGS = 5


class Examples(NamedTuple):
    """Sampled positions of a log.

    Attributes:
        history: items before the position, most recent last, -1 pads, int64 ``[examples, length]``.
        ratings: their ratings from 0 to 4, int64 ``[examples, length]``.
        targets: the item at the position, int64 ``[examples]``.
    """

    history: Tensor
    ratings: Tensor
    targets: Tensor


def sample_examples(log: Interactions, count: int, length: int) -> Examples:
    """Draw ``count`` positions of the log (all, if there are fewer) with the ``length`` entries before each."""
    positions = torch.randperm(len(log))[:count]
    before = (length, 0)
    items = functional.pad(log.items, before, value=-1).unfold(0, length, 1)
    ratings = functional.pad(log.rewards.long() - 1, before, value=0).unfold(0, length, 1)
    return Examples(items[positions], ratings[positions], log.items[positions])


class Policy(nn.Module):
    """A softmax over the catalogue, given the recent history."""

    features: Tensor

    def __init__(self, features: Tensor, dim: int) -> None:
        super().__init__()
        items, width = features.shape
        self.register_buffer("features", features, persistent=False)
        self.bias = nn.Parameter(torch.zeros(items))
        self.gain = nn.Parameter(torch.tensor([1.0, 0.0]))
        self.taste = nn.Parameter(torch.zeros(width))
        self.latent = nn.Parameter(torch.zeros(dim))
        self.ids = nn.Parameter(0.1 * torch.randn(items, dim))
        self.content = nn.Parameter(0.1 * torch.randn(width, dim))
        self.log_scale = nn.Parameter(torch.log(torch.tensor(TIME_SCALES)))
        self.mix = nn.Parameter(torch.eye(dim).repeat(len(TIME_SCALES), 1, 1))
        self.rating_gain = nn.Parameter(torch.zeros(RATINGS))
        self.rating_shift = nn.Parameter(torch.zeros(RATINGS, dim))

    def forward(self, history: Tensor, ratings: Tensor) -> Tensor:
        """Scores ``[examples, items]``."""
        embedding = self.features @ self.content + self.ids
        known = (history >= 0).float()
        gain = self.gain[0] + self.gain[1] * torch.log1p(known.sum(1))
        state = self.latent + self.state(embedding, history, ratings, known)
        return gain[:, None] * self.bias + self.features @ self.taste + state @ embedding.T

    def state(self, embedding: Tensor, history: Tensor, ratings: Tensor, known: Tensor) -> Tensor:
        """Recency-weighted means of the history's embeddings, mixed, ``[examples, dim]``."""
        seen = functional.embedding(history.clamp(min=0), embedding)
        seen = seen * (1 + self.rating_gain[ratings])[..., None] + self.rating_shift[ratings]
        ages = torch.arange(history.shape[1] - 1, -1, -1)
        weights = torch.exp(-ages * torch.exp(-self.log_scale)[:, None])[:, None] * known
        weights = weights / (weights.sum(-1, keepdim=True) + 0.1)
        means = torch.einsum("sel,eld->sed", weights, seen)
        return torch.einsum("sed,sdf->ef", means, self.mix)


def train(policy: Policy, examples: Examples, config: Config) -> None:
    """Adapt in place: the taste by every step, all other weights by the last one only."""
    slow = [parameter for name, parameter in policy.named_parameters() if name != "taste"]
    fast_optimizer = torch.optim.SGD([policy.taste], lr=config["policy.fast-learning-rate"])
    slow_optimizer = torch.optim.SGD(slow, lr=config["policy.slow-learning-rate"])
    _require_gradients(slow, False)
    for _ in range(config["policy.steps"] - 1):
        _backward(policy, examples)
        fast_optimizer.step()
    _require_gradients(slow, True)
    _backward(policy, examples)
    fast_optimizer.step()
    slow_optimizer.step()


def _backward(policy: Policy, examples: Examples) -> None:
    policy.zero_grad()
    scores = policy(examples.history, examples.ratings)
    functional.cross_entropy(scores, examples.targets).backward()


def _require_gradients(parameters: Iterable[nn.Parameter], required: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(required)
