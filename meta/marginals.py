"""Marginal propensities of slates, by walking through all of them: exact, for small slates and catalogues."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import PolicyError
from .acting import Exploration, checked_scores, conditional

FEASIBLE = 20_000_000
"""Most numbers of one step of the walk."""


def every_slate(
    scores: Tensor, allowed: Tensor, how: Exploration, features: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """All slates that one user may be shown, int64 ``[slates, size]`` (-1 pads), and their probabilities, float64.

    Args:
        scores: of one user, ``[items]``.
        allowed: candidates, bool ``[items]``.
        how: size and exploration.
        features: for diversity.

    Raises:
        PolicyError: there are too many.
    """
    items, chances, _ = _walk(scores, allowed, how, features, how.size)
    return items, chances


def position_marginals(scores: Tensor, allowed: Tensor, how: Exploration, features: Tensor | None = None) -> Tensor:
    """Probability of every item at every position of one user's slate, float64 ``[size, items]``.

    Their sum over positions is the probability of being shown at all. Independent estimators for slates divide by
    these. Exact under all settings: size 1 costs one softmax, size 2 one an item, size 3 one for each pair.

    Raises:
        PolicyError: too many slates; log and use the conditional propensities instead.
    """
    return _walk(scores, allowed, how, features, how.size - 1)[2]


def _walk(
    scores: Tensor, allowed: Tensor, how: Exploration, features: Tensor | None, depth: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Slates down to ``depth``, their probabilities, and the marginals of every position of the whole slate."""
    scores = checked_scores(scores[None], allowed[None], how, features)
    _check_feasible(int(allowed.sum()), scores.shape[1], how)
    above, chances = torch.full((1, 0), -1), torch.ones(1, dtype=torch.float64)
    marginals = []
    for position in range(how.size):
        left = allowed & ~_among(above, scores.shape[1])
        likely = conditional(scores.expand_as(left), left, how, above, features) * chances[:, None]
        marginals.append(likely.sum(0))
        if position < depth:
            above, chances = _longer(above, chances, likely)
    return above, chances, torch.stack(marginals)


def _longer(above: Tensor, chances: Tensor, likely: Tensor) -> tuple[Tensor, Tensor]:
    """Every slate with every next item; with nothing where nothing is left."""
    rows, items = likely.nonzero(as_tuple=True)
    ended = (likely.sum(1) == 0).nonzero()[:, 0]
    longer = torch.cat([above[rows], items[:, None]], dim=1)
    done = torch.cat([above[ended], torch.full((len(ended), 1), -1)], dim=1)
    return torch.cat([longer, done]), torch.cat([likely[rows, items], chances[ended]])


def _among(above: Tensor, items: int) -> Tensor:
    """Whether an item stands above, bool ``[slates, items]``."""
    met = torch.zeros(len(above), items + 1, dtype=torch.bool)
    return met.scatter(1, torch.where(above >= 0, above, items), torch.ones_like(above, dtype=torch.bool))[:, :items]


def _check_feasible(candidates: int, items: int, how: Exploration) -> None:
    if math.perm(candidates, min(candidates, how.size - 1)) * items > FEASIBLE:
        raise PolicyError(
            f"expected few enough slates for exact marginals, got size {how.size} over {candidates} candidates; "
            "use the conditional propensities that are logged"
        )
