"""Thompson sampling through a Bayesian last layer (Riquelme et al. 2018, section 3, "NeuralLinear").

The policy's score is ``offset(a) + x(a) . taste``. A device keeps a Gaussian posterior over its taste whose prior mean
is the meta-learned one; each position of a slate takes the best item that is left under a *fresh* draw of the taste.

The probability of that is an integral without a closed form. It is estimated with ``draws`` further tastes:

    p(a | s, above) ~ (1 + how many of them choose a) / (1 + draws)

which is never zero and whose inverse, the weight that estimators use, has the expectation ``(1 - (1 - p)^(draws + 1)) /
p``: unbiased up to a factor that vanishes exponentially.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._validate import at_least
from .acting import Exploration, Slate, checked_scores, without
from .regression import Posterior, draw, posterior


def taste_posterior(
    features: Tensor,
    items: Tensor,
    rewards: Tensor,
    taste: Tensor,
    *,
    baseline: float = 0.0,
    prior_variance: float = 1.0,
    noise_variance: float = 1.0,
) -> Posterior:
    """The posterior of every user's taste after its log.

    Args:
        features: public content features ``[items, features]``.
        items: what was shown, -1 pads, int64 ``[users, n]``.
        rewards: what came of it, ``[users, n]``.
        taste: the meta-learned taste, the prior's mean, ``[features]`` or ``[users, features]``.
        baseline: what an item that the taste is indifferent to earns: ``reward - baseline`` is regressed.
        prior_variance: of every weight: how far tastes are apart.
        noise_variance: of a reward.
    """
    rows = features[items.clamp(min=0)].to(torch.float64)
    return posterior(
        rows,
        rewards.to(torch.float64) - baseline,
        (items >= 0).to(torch.float64),
        mean=taste.to(torch.float64),
        prior_variance=prior_variance,
        noise_variance=noise_variance,
    )


def thompson(
    offsets: Tensor,
    features: Tensor,
    tastes: Posterior,
    allowed: Tensor,
    *,
    size: int,
    draws: int,
    generator: torch.Generator,
) -> Slate:
    """Draw a slate for every user.

    Args:
        offsets: scores without the taste's part, ``[users, items]``.
        features: content features ``[items, features]``.
        tastes: each user's posterior.
        allowed: candidates, bool ``[users, items]``.
        size: positions of a slate.
        draws: tastes that estimate the propensities; takes ``users * draws * items`` numbers.
        generator: the stream of all draws.

    Raises:
        PolicyError: an offset is not finite.
    """
    at_least("draws", draws, 1)
    offsets = checked_scores(offsets, allowed, Exploration(size=size), None)
    features = features.to(torch.float64)
    acted = _scored(offsets, features, draw(tastes, size, generator))
    judged = _scored(offsets, features, draw(tastes, draws, generator))
    items, chances, left = [], [], allowed
    for position in range(size):
        some = left.any(1)
        item = torch.where(some, _best(acted[:, position], left), -1)
        agree = (_best(judged, left[:, None]) == item[:, None]).sum(1)
        chances.append(torch.where(some, (1 + agree) / (1 + draws), torch.ones(len(item))).to(torch.float64))
        items.append(item)
        left = without(left, item)
    return Slate(torch.stack(items, dim=1), torch.stack(chances, dim=1))


def _scored(offsets: Tensor, features: Tensor, tastes: Tensor) -> Tensor:
    """``[users, draws, items]``."""
    return offsets[:, None] + tastes @ features.T


def _best(scores: Tensor, left: Tensor) -> Tensor:
    return scores.masked_fill(~left, -torch.inf).argmax(-1)
