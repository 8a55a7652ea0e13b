"""Acting: slates drawn without replacement, position by position, each with the propensity of what was drawn.

At every position the next item is drawn from a distribution over what is left, given the items above it:

    p(a | s, above) = (1 - epsilon) * softmax(rank(a) / temperature) + epsilon / (number left)
    rank(a)         = (1 - diversity) * score(a) - diversity * max over b above of cosine(a, b)

With ``epsilon = diversity = 0`` this is Plackett-Luce, and one sort of scores plus Gumbel noise draws it (Kool et al.
2019, section 2; Yellott 1977). Temperature 0 is greedy, and ties share alike. Diversity is maximal marginal relevance
(Carbonell and Goldstein 1998) made random: the penalty of what stands above is part of the distribution.

*Which propensity is logged*: the conditional one of every position. It is exact under all of these settings and costs
one softmax a position; the slate's propensity is the product of its positions' (:func:`slate_log_propensity`), a
cascade's the running product. The marginal propensity of an item at a position needs all slates there are: see
``meta.marginals``, exact where that is feasible.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .._validate import at_least, is_number, non_negative, quoted
from ..errors import ArgumentError, PolicyError

COLDEST = 1e-6
"""Smallest temperature above 0."""


@dataclass(frozen=True, kw_only=True)
class Exploration:
    """How slates are drawn.

    Attributes:
        size: positions of a slate, K.
        temperature: of the softmax; 0 takes the best, ties alike.
        epsilon: share of every position's draw that is uniform over what is left.
        diversity: weight of the likeness to what stands above, in [0, 1); a score is worth 1 - diversity.
    """

    size: int = 1
    temperature: float = 1.0
    epsilon: float = 0.0
    diversity: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        at_least("size", self.size, 1)
        non_negative("temperature", self.temperature)
        if 0 < self.temperature < COLDEST:
            raise ArgumentError(
                f"expected temperature 0 or >= {COLDEST:g}, got {quoted(self.temperature)}; 0 takes the best"
            )
        if not (is_number(self.epsilon) and 0 <= self.epsilon <= 1):
            raise ArgumentError(f"expected 0 <= epsilon <= 1, got {quoted(self.epsilon)}")
        if not (is_number(self.diversity) and 0 <= self.diversity < 1):
            raise ArgumentError(f"expected 0 <= diversity < 1, got {quoted(self.diversity)}")

    @property
    def plain(self) -> bool:
        """Whether slates are Plackett-Luce."""
        return self.temperature > 0 and self.epsilon == 0 and self.diversity == 0


Uniforms = Callable[[tuple[int, ...]], Tensor]
"""Fresh uniforms on [0, 1) of a shape, float64: streams that belong to users, where a generator belongs to a batch."""


class Slate(NamedTuple):
    """What is shown.

    Attributes:
        items: catalogue rows from the top, -1 where nothing was left, int64 ``[users, size]``.
        propensities: of every position given those above, 1 where nothing was left, float64 ``[users, size]``.
    """

    items: Tensor
    propensities: Tensor


def act(
    scores: Tensor,
    allowed: Tensor,
    how: Exploration,
    generator: torch.Generator | Uniforms,
    features: Tensor | None = None,
) -> Slate:
    """Draw a slate for every user.

    Args:
        scores: unnormalised log-probabilities, ``[users, items]``.
        allowed: candidates, bool ``[users, items]`` (``meta.eligibility``); no other item is ever drawn.
        how: size and exploration.
        generator: the stream of the draws, or what gives uniforms of a shape.
        features: public content features ``[items, features]``; needed for diversity.

    Raises:
        PolicyError: a candidate's score is not finite, or diversity is asked for without features.
    """
    scores = checked_scores(scores, allowed, how, features)
    if how.plain and how.size > 1:
        items = _gumbel_top(scores, allowed, how, generator)
        return Slate(items, propensities(items, scores, allowed, how))
    drawn: list[Tensor] = []
    chances: list[Tensor] = []
    left = allowed
    for _ in range(how.size):
        above = torch.stack(drawn, dim=1) if drawn else torch.full((len(scores), 0), -1)
        likely = conditional(scores, left, how, above, features)
        item = torch.where(left.any(1), _drawn(likely, generator), -1)
        chances.append(_at(likely, item))
        drawn.append(item)
        left = without(left, item)
    return Slate(torch.stack(drawn, dim=1), torch.stack(chances, dim=1))


def propensities(
    items: Tensor, scores: Tensor, allowed: Tensor, how: Exploration, features: Tensor | None = None
) -> Tensor:
    """Conditional propensities of given slates, float64 ``[users, size]``; 1 at -1, 0 for what can't be drawn.

    With another policy's scores these are the numerators of importance weights.
    """
    scores = checked_scores(scores, allowed, how, features)
    left, chances = allowed, []
    for position in range(items.shape[1]):
        likely = conditional(scores, left, how, items[:, :position], features)
        chances.append(_at(likely, items[:, position]))
        left = without(left, items[:, position])
    return torch.stack(chances, dim=1)


def slate_log_propensity(conditionals: Tensor) -> Tensor:
    """Log of the whole slate's propensity, ``[users]``: the sum of its positions' logs."""
    return conditionals.log().sum(-1)


def first_draw(conditionals: Tensor) -> Tensor:
    """Probability of every shown item at the *first* position, ``[users, size]``, where slates are Plackett-Luce.

    The mass left below position j is ``prod over i <= j of (1 - p_i)``, so ``pi(a_j) = p_j * prod over i < j of
    (1 - p_i)``. It is the ``pi(a | s)`` of independent draws, which off-policy REINFORCE divides by (Chen et al. 2019,
    section 4.3). Under epsilon or diversity it is not.
    """
    left = functional.pad((1 - conditionals)[:, :-1], (1, 0), value=1.0)
    return conditionals * left.cumprod(dim=1)


def conditional(scores: Tensor, left: Tensor, how: Exploration, above: Tensor, features: Tensor | None) -> Tensor:
    """The next position's distribution given the items ``above`` (-1 pads), float64 ``[users, items]``.

    Zero where nothing is left; each other row sums to one.
    """
    ranks = scores if how.diversity == 0 else _marginal_relevance(scores, how.diversity, above, features)
    ranks = ranks.masked_fill(~left, -torch.inf)
    if how.temperature > 0:
        likely = torch.softmax(ranks / how.temperature, dim=1).nan_to_num(0.0)
    else:
        best = (ranks == ranks.amax(1, keepdim=True)) & left
        likely = _alike(best)
    return likely if how.epsilon == 0 else (1 - how.epsilon) * likely + how.epsilon * _alike(left)


def _alike(chosen: Tensor) -> Tensor:
    """Uniform over the ``chosen``, bool ``[users, items]``."""
    some = chosen.to(torch.float64)
    return some / some.sum(1, keepdim=True).clamp(min=1)


def without(left: Tensor, items: Tensor) -> Tensor:
    """``left`` without ``items [users]``, of which -1 takes nothing away."""
    return left & (torch.arange(left.shape[1]) != items[:, None])


def checked_scores(scores: Tensor, allowed: Tensor, how: Exploration, features: Tensor | None) -> Tensor:
    """The scores in float64.

    Raises:
        PolicyError: as :func:`act`.
    """
    if scores.shape != allowed.shape:
        raise PolicyError(f"expected scores and candidates of one shape, got {[*scores.shape]} and {[*allowed.shape]}")
    if not bool(torch.isfinite(scores[allowed]).all()):
        raise PolicyError("expected finite scores of the candidates, got NaN or infinity; lower the step sizes")
    if how.diversity > 0 and features is None:
        raise PolicyError("expected content features for diversity, got none; set diversity to 0")
    return scores.detach().to(torch.float64)


def _drawn(likely: Tensor, generator: torch.Generator | Uniforms) -> Tensor:
    """One item a row of a distribution, ``[users]``, by inversion: never one of probability zero."""
    upto = likely.cumsum(1)
    total = upto[:, -1:].contiguous()
    point = _uniforms(total, generator) * total
    point = torch.minimum(point, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(upto, point, right=True)[:, 0].clamp(max=likely.shape[1] - 1)


def _uniforms(like: Tensor, generator: torch.Generator | Uniforms) -> Tensor:
    if isinstance(generator, torch.Generator):
        return torch.rand(like.shape, generator=generator, dtype=torch.float64)
    return generator(tuple(like.shape))


def _gumbel_top(scores: Tensor, allowed: Tensor, how: Exploration, generator: torch.Generator | Uniforms) -> Tensor:
    """Plackett-Luce: the candidates with the largest scores plus Gumbel noise, -1 pads, ``[users, size]``."""
    if isinstance(generator, torch.Generator):
        waiting = torch.empty_like(scores).exponential_(generator=generator)
    else:
        waiting = (-torch.log1p(-generator(tuple(scores.shape)))).clamp(min=2.0**-54)
    gumbel = -waiting.log()
    keys = (scores / how.temperature + gumbel).masked_fill(~allowed, -torch.inf)
    found = keys.topk(min(how.size, keys.shape[1]), dim=1).indices
    items = torch.where(allowed.gather(1, found), found, -1)
    return functional.pad(items, (0, how.size - items.shape[1]), value=-1)


def _marginal_relevance(scores: Tensor, diversity: float, above: Tensor, features: Tensor | None) -> Tensor:
    ranks = (1 - diversity) * scores
    if features is None or above.shape[1] == 0:
        return ranks
    unit = functional.normalize(features.to(torch.float64), dim=1)
    alike = unit[above.clamp(min=0)] @ unit.T
    return ranks - diversity * alike.masked_fill((above < 0)[..., None], 0.0).amax(1)


def _at(likely: Tensor, items: Tensor) -> Tensor:
    """The probability of ``items [users]``; 1 for -1."""
    met = likely.gather(1, items.clamp(min=0)[:, None])[:, 0]
    return torch.where(items >= 0, met, torch.ones_like(met))
