"""Off-policy estimators for slates: K items shown in order, a reward for each; the value is the mean reward of a slate.

Arrays are ``[slates, slots]``, the first item first. ``ratios`` are the importance ratios of each slot given the slots
above it, ``e(a_l | x, a_1 .. a_{l-1}) / b(a_l | x, a_1 .. a_{l-1})``; a slot that a shorter slate lacks has ratio 1 and
reward 0. What users are assumed to do decides which ratios a reward has to be weighted with:

    anything at all             all slots of the slate           slate_ips
    look from top to bottom     the slots down to the reward's   reward_interaction_ips, cascade_dr
    judge every item alone      the reward's slot                independent_ips
"""

from __future__ import annotations

import numpy as np

from .items import Floats, Terms, mean_of


def slate_ips(ratios: Floats, rewards: Floats) -> Terms:
    """``mean(prod_l ratio_l sum_l r_l)``: the slate as one action (McInerney et al. 2020, eq. 1). One term a slate.

    No assumption on users, and a variance that is exponential in the number of slots.
    """
    return mean_of(ratios.prod(axis=1) * rewards.sum(axis=1))


def independent_ips(marginal_ratios: Floats, rewards: Floats) -> Terms:
    """Independent IPS (IIPS): ``mean(sum_l m_l r_l)`` (Li et al. 2018, section 4.2; McInerney et al. 2020, eq. 2).

    Args:
        marginal_ratios: ``e(a_l at slot l | x) / b(a_l at slot l | x)`` whatever stands in the other slots.
        rewards: rewards by slot.

    Unbiased where a slot's reward depends on its own item and place only (item-position model).
    """
    return mean_of((marginal_ratios * rewards).sum(axis=1))


def reward_interaction_ips(ratios: Floats, rewards: Floats) -> Terms:
    """Reward-interaction IPS (RIPS): ``mean(sum_l w_l r_l)``, ``w_l = prod_{j <= l} ratio_j`` (McInerney et al. 2020).

    Unbiased where a slot's reward depends on the slots down to it, not on those below (cascade model).
    """
    return mean_of((np.cumprod(ratios, axis=1) * rewards).sum(axis=1))


def reward_interaction_snips(ratios: Floats, rewards: Floats) -> Terms:
    """RIPS with each slot's weights divided by their mean: ``sum_l sum(w_l r_l) / sum(w_l)`` (McInerney et al. 2020).

    The terms are those of the plain mean with the normalisers held fixed.
    """
    weights = np.cumprod(ratios, axis=1)
    means = weights.mean(axis=0)
    return mean_of((weights / np.where(means > 0, means, 1.0) * rewards).sum(axis=1))


def cascade_dr(ratios: Floats, rewards: Floats, predicted: Floats, expected: Floats) -> Terms:
    """Cascade doubly robust: ``mean(sum_l w_l (r_l - Q_l) + w_{l-1} V_l)``, w_0 = 1 (Kiyohara et al. 2022, section 4).

    Args:
        ratios: importance ratios.
        rewards: rewards by slot.
        predicted: ``Q_l(x, a_1 .. a_l)``: modelled reward of slot l and those below it, given the slots down to l.
        expected: ``V_l = sum_a e(a | x, a_1 .. a_{l-1}) Q_l(x, a_1 .. a_{l-1}, a)``.

    Unbiased where RIPS is, whatever the model; a good model lowers the variance.
    """
    weights = np.cumprod(ratios, axis=1)
    before = np.concatenate([np.ones((len(weights), 1)), weights[:, :-1]], axis=1)
    return mean_of((weights * (rewards - predicted) + before * expected).sum(axis=1))
