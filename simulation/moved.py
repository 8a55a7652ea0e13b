"""What a chunk's devices moved, without writing it all down: norms and sums of a rate times a gradient.

Large gradients stay where the backward pass left them; what is small lies together, because an operation of its own
for every parameter costs more than the copy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..meta.policy import Named, Policy
from ..privacy.mechanisms import Sensitivity

TOGETHER = 8
"""Squares summed in float32 before the rest is in float64: at most 7 roundings of 2^-24."""
SMALL = 128
"""Numbers of a parameter from which it is worth operations of its own."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Moved:
    """What some parameters moved: ``rate * values``.

    Attributes:
        names: their names.
        values: one parameter behind the other, ``[devices, numbers]``.
        rate: what the values are times.
    """

    names: Sequence[str]
    values: Tensor
    rate: float = 1.0

    def each(self, policy: Policy) -> Named:
        """Every device's own, ``[devices, *shape]``."""
        values = self.values if self.rate == 1 else self.values * self.rate
        return named_views(values, policy, self.names)

    def summed(self, factors: Tensor, policy: Policy) -> Named:
        """The sum over devices of ``factors [devices]`` times their own, ``[*shape]``."""
        return named_parts((factors.float() * self.rate) @ self.values, policy, self.names)

    def squares(self, policy: Policy, bound: Sensitivity) -> Tensor:
        """Squared norm of what every device releases of it over the scales, float64 ``[devices]``.

        Not finite where a value is not, whether it is released or not. Products are rounded to float32, by 3e-7 of
        each at most, and sums of eight of them by 4.2e-7; what follows is summed in float64. A float32 sum of 60,000
        of them can hide 9e-7.
        """
        weights = [1 / bound.scale(name) if name in policy.released else 0.0 for name in self.names]
        if len(set(weights)) == 1:
            squares, weight = self.values.square(), weights[0]
        else:
            spread = spread_out(weights, policy, self.names).to(self.values.device)
            squares, weight = (self.values * spread).square_(), 1.0
        count, numbers = squares.shape
        even = numbers // TOGETHER * TOGETHER
        total = squares[:, :even].view(count, TOGETHER, even // TOGETHER).sum(1).sum(1, dtype=torch.float64)
        if even < numbers:
            total += squares[:, even:].sum(1, dtype=torch.float64)
        return total * (self.rate * weight) ** 2


def along(gradients: Named, rates: Mapping[str, Tensor | float], before: Named, policy: Policy) -> list[Moved]:
    """A step along gradients: what it moved, a large parameter by itself and the small ones together.

    Args:
        gradients: of the devices, ``[devices, *shape]``.
        rates: what each of them is times; it is taken off.
        before: what some of the parameters had moved before the step, ``[devices, *shape]``.
        policy: the policy.
    """
    moved, small = [], []
    for name, gradient in gradients.items():
        rate = rates[name]
        if name in before or isinstance(rate, Tensor) or math.prod(policy.specs[name].shape) < SMALL:
            small.append(name)
        else:
            moved.append(Moved(names=(name,), values=gradient.flatten(1), rate=-rate))
    if small:
        together = torch.empty(len(gradients[small[0]]), sum(sizes(policy, small)))
        for name, values in named_views(together, policy, small).items():
            torch.mul(gradients[name], -rates[name], out=values)
            if name in before:
                values.add_(before[name])
        moved.append(Moved(names=small, values=together))
    return moved


def named_views(flat: Tensor, policy: Policy, names: Sequence[str]) -> Named:
    """The named parameters in rows of them one behind the other, ``[rows, *shape]``."""
    parts = torch.split(flat, sizes(policy, names), dim=1)
    return {name: part.view(flat.shape[0], *policy.specs[name].shape) for name, part in zip(names, parts, strict=True)}


def named_parts(flat: Tensor, policy: Policy, names: Sequence[str]) -> Named:
    """The named parameters of one row of them, ``[*shape]``."""
    return {name: rows[0] for name, rows in named_views(flat[None], policy, names).items()}


def spread_out(values: Sequence[float], policy: Policy, names: Sequence[str]) -> Tensor:
    """A value for each name, as often as its parameter has numbers, float32 ``[numbers]`` on the processor."""
    return torch.from_numpy(np.repeat(np.array(values, dtype=np.float32), sizes(policy, names)))


def sizes(policy: Policy, names: Sequence[str]) -> list[int]:
    """How many numbers each of the named parameters has."""
    return [math.prod(policy.specs[name].shape) for name in names]
