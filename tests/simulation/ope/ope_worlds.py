"""Bandit worlds that are small enough to be summed over: every outcome with its probability, and the true value."""

from __future__ import annotations

import itertools

import numpy as np


def item_world(seed=0, contexts=3, items=4):
    """Logging policy, judged policy, click probabilities and context probabilities, with the true value."""
    draw = np.random.default_rng(seed)
    logging, judged = (draw.dirichlet(np.ones(items), size=contexts) for _ in range(2))
    clicks = draw.uniform(0.1, 0.9, (contexts, items))
    share = draw.dirichlet(np.ones(contexts))
    value = float((share[:, None] * judged * clicks).sum())
    return {"logging": logging, "judged": judged, "clicks": clicks, "share": share, "value": value}


def item_outcomes(world):
    """Every (context, item, reward) and its probability under the logging policy."""
    contexts, items = world["logging"].shape
    rows = np.array(list(itertools.product(range(contexts), range(items), (0, 1))))
    x, a, r = rows.T
    clicked = np.where(r == 1, world["clicks"][x, a], 1 - world["clicks"][x, a])
    return x, a, r.astype(float), world["share"][x] * world["logging"][x, a] * clicked


def draw_items(world, rows, seed):
    draw = np.random.default_rng(seed)
    x = draw.choice(len(world["share"]), p=world["share"], size=rows)
    edges = np.cumsum(world["logging"], axis=1)[x]
    a = (draw.random(rows)[:, None] > edges).sum(axis=1).clip(max=edges.shape[1] - 1)
    return x, a, (draw.random(rows) < world["clicks"][x, a]).astype(float)


def slates_of(items, slots):
    return np.array(list(itertools.permutations(range(items), slots)))


def slate_probabilities(chances, slates):
    """Plackett-Luce, one factor after the other."""
    found = np.ones(len(slates))
    for row, slate in enumerate(slates):
        rest = dict(enumerate(chances))
        for item in slate:
            found[row] *= rest.pop(item) / sum((chances[item], *rest.values()))
    return found


def place_table(chances, slots):
    """``[slots, items]``: the probability of every item at every slot, by listing all slates."""
    slates = slates_of(len(chances), slots)
    table = np.zeros((slots, len(chances)))
    for slate, probability in zip(slates, slate_probabilities(chances, slates), strict=True):
        table[np.arange(slots), slate] += probability
    return table


def conditionals(chances, slates):
    """``[slates, slots]``: probability of each item among those that are left."""
    chosen = chances[slates]
    return chosen / (1 - (np.cumsum(chosen, axis=1) - chosen))
