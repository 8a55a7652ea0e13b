"""Per-coordinate step sizes of the fast weights, learned by the server from what is released anyway.

ARUBA (Khodak, Balcan and Talwalkar 2019) sets the inner rate of a coordinate to the root of the summed
squared distances that tasks travel over the summed squared gradients that take them there. Distances and gradients of
single devices never leave them; what leaves is the noised mean update u of every round. So the ratio is taken over
rounds, with the released means as gradients and their sum as the way:

    rate_i^2 ~ ((sum of u_i)^2 + m) / (sum of u_i^2 + m)      m: mean over the tensor of sum of u_i^2

A coordinate along which rounds agree gets up to four times the rate, one that only noise moves as little as a quarter;
the geometric mean of a tensor's rates is 1 before these bounds. Rates are frozen shared parameters named ``rate.*``,
so that devices get them with the initialization.

Guarantee:
    Post-processing of released updates: no privacy is spent, and rates act before a device clips its update.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from .policy import RATE, Named
from .reptile import OuterState

LARGEST = math.log(4.0)
"""Bound of a log rate, either way."""


def log_rates(travel: Tensor, energy: Tensor) -> Tensor:
    """Log rates of one tensor's coordinates; zero where nothing was released yet.

    Args:
        travel: sum of the mean updates.
        energy: sum of their squares, same shape.
    """
    smooth = energy.mean().clamp(min=1e-20)
    ratio = 0.5 * ((travel.square() + smooth).log() - (energy + smooth).log())
    return (ratio - ratio.mean()).clamp(-LARGEST, LARGEST)


def learn_rates(phi: Named, mean: Mapping[str, Tensor], state: OuterState) -> tuple[Named, OuterState]:
    """The next rates of an initialization that holds some, and what the server remembers for them.

    Args:
        phi: the initialization, with ``rate.*`` for every tensor whose rates are learned.
        mean: this round's released mean update.
        state: of the outer optimizer.

    Returns:
        ``rate.*`` by name, empty where there are none, and the next state.
    """
    names = [name for name in sorted(mean) if RATE + name in phi]
    if not names:
        return {}, state
    travel = {name: state.travel.get(name, torch.zeros_like(mean[name])) + mean[name] for name in names}
    energy = {name: state.energy.get(name, torch.zeros_like(mean[name])) + mean[name].square() for name in names}
    rates = {RATE + name: log_rates(travel[name], energy[name]) for name in names}
    return rates, OuterState(state.step, state.momentum, state.second, state.average, travel, energy)
