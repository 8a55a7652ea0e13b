"""Local steps of many devices at once: ``meta.adapt.descend`` for a stack."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor

from .adapt import learned_rate, step_size
from .backward import backward
from .objective import target_weights
from .policy import Named, Parameters, Policy
from .slopes import DenseSlopes, narrow, product
from .stacked import Pass, Stack, against_items, anchored, forward, leading, run_forward

_OFFSETS = frozenset({"taste", "latent", "personal"})
"""Parameters that add the same to the scores of all of a device's examples."""
_TINY = 1e-20
_LITTLE = 1e-9
_LOST = 2.0 ** (27 - 126)
_LOG2_E = math.log2(math.e)


def descend_stack(stack: Stack, parameters: Parameters, *, steps: int, names: Collection[str]) -> Named:
    """``meta.adapt.descend`` for every device: the named parameters ``[devices, *shape]`` after ``steps`` steps."""
    start = own_start(stack.policy, parameters, names, stack.count)
    if steps == 0 or not names:
        return start
    stack = anchored(stack, parameters)
    if _adds_offsets(stack, names):
        offsets = Offsets(stack, parameters, start)
        if offsets.descend(steps):
            return offsets.own
    return _descend(stack, parameters, start, steps)


def arrive(stack: Stack, parameters: Parameters, *, steps: int, names: Collection[str]) -> tuple[Named, Pass]:
    """:func:`descend_stack`, and the forward pass at the parameters it arrived at."""
    start, stack = own_start(stack.policy, parameters, names, stack.count), anchored(stack, parameters)
    if steps and names and _adds_offsets(stack, names):
        offsets = Offsets(stack, parameters, start)
        if offsets.descend(steps):
            arrived = offsets.arrived()
            if arrived is not None:
                return offsets.own, arrived
    own = _descend(stack, parameters, start, steps)
    return own, forward(stack, {**parameters, **own})


def own_start(policy: Policy, parameters: Parameters, names: Collection[str], count: int) -> Named:
    """The named parameters of each of ``count`` devices before any step, ``[devices, *shape]``."""
    return {name: leading(policy, parameters, name).expand(count, *policy.specs[name].shape) for name in names}


def _adds_offsets(stack: Stack, names: Collection[str]) -> bool:
    return set(names) <= _OFFSETS and "temperature" not in stack.policy.specs and not stack.alike and stack.linear


def _descend(stack: Stack, parameters: Parameters, start: Named, steps: int) -> Named:
    own = dict(start)
    for _ in range(steps if start else 0):
        here = {**parameters, **own}
        gradients = backward(stack, here, forward(stack, here, last=False), stack.before, list(start))
        slopes = dict(gradients.plain)
        slopes |= {name: table.each(stack.policy.items) for name, table in gradients.tables.items()}
        own = {name: _stepped(stack, parameters, name, own[name], start[name], slopes[name]) for name in own}
    return own


def _stepped(stack: Stack, parameters: Parameters, name: str, here: Tensor, start: Tensor, slope: Tensor) -> Tensor:
    decay = stack.settings.weight_decay
    pull = torch.add(slope, here - start, alpha=decay) if decay else slope
    rate = step_size(stack.policy, stack.settings, name) * learned_rate(parameters, name)
    return here - rate * pull if isinstance(rate, Tensor) else torch.sub(here, pull, alpha=rate)


class Offsets:
    """Descent on parameters that add the same to the scores of all of a device's examples.

    Then ``pi`` is ``pi at the start * exp(offset)`` over what that sums to, and a step costs two products with a matrix
    that stays instead of a softmax over every example. Offsets and logarithms are to the base of two: torch computes
    ``exp2`` faster than ``exp``.
    """

    def __init__(self, stack: Stack, parameters: Parameters, start: Named) -> None:
        """Begin at ``start`` (own, ``[devices, *shape]``), all other ``parameters`` fixed."""
        self.own = dict(start)
        self._stack, self._parameters, self._start = stack, parameters, start
        scores, self._states, self._embedded, self._table = run_forward(stack, parameters, times=_LOG2_E)
        self._offset: Tensor | None = None  # none before any step
        self._begin(scores)
        if not self._fits(self._mass):
            scores = run_forward(stack, parameters, times=_LOG2_E)[0]
            self._begin(scores.sub_(scores.amax(-1, keepdim=True)))
        self._met = self._likely.gather(-1, stack.targets).log2() if stack.moving else None

    def _begin(self, scores: Tensor) -> None:
        """Take ``scores``, to the base of two, as those at the start; uses them up."""
        self._likely = scores.exp2_()
        self._mass = self._likely.sum(-1)
        self._most = float(self._mass.amax())

    def descend(self, steps: int) -> bool:
        """Take ``steps`` steps; false where a product of exponentials would leave float32."""
        stack = self._stack
        weights = stack.before[..., None] * stack.weights
        pull, taken = weights.sum(-1), self._taken(weights).neg_()
        for _ in range(steps):
            split = self._split()
            if split is None:
                return False
            factor, mass = split
            if self._met is not None:
                weights = self._weights(mass, last=False) * stack.before[..., None]
                pull, taken = weights.sum(-1), self._taken(weights).neg_()
            slope = ((pull / mass)[:, None] @ self._likely)[:, 0]
            slopes = self._gradients(slope.add_(taken) if factor is None else torch.addcmul(taken, slope, factor))
            self.own = {
                name: _stepped(stack, self._parameters, name, here, self._start[name], slopes[name])
                for name, here in self.own.items()
            }
            self._offset = self._added()
        return True

    def arrived(self) -> Pass | None:
        """The forward pass where the steps led; uses up what the steps need."""
        split = self._split()
        if split is None:
            return None
        factor, mass = split
        weights = self._stack.weights if self._met is None else self._weights(mass, last=True)
        slopes = self._likely if factor is None else self._likely.mul_(factor[:, None])
        share = weights.sum(-1) / mass
        if weights.shape[-1] == 1 and self._moderate(mass):
            slopes.scatter_add_(-1, self._stack.targets, -mass[..., None])
        else:
            slopes.mul_(share[..., None]).scatter_add_(-1, self._stack.targets, -weights)
            share = torch.ones_like(share)
        states = self._states
        if states is not None:
            for name in self._vectors:
                states = states + (self.own[name] - self._start[name])[:, None]
        return Pass(
            scores=mass.log2()[..., None],
            slopes=DenseSlopes(slopes, share),
            states=states,
            embedded=self._embedded,
            table=self._table,
        )

    @property
    def _vectors(self) -> list[str]:
        return [name for name in ("latent", "personal") if name in self.own]

    def _split(self) -> tuple[Tensor | None, Tensor] | None:
        """``2^offset`` and the mass of ``pi at the start`` times it; none where it leaves float32.

        Returns:
            What every item is multiplied by ``[devices, items]``, and the mass ``[devices, examples]``.
        """
        factor, mass = None, self._mass
        if self._offset is not None:
            factor = self._offset.exp2()
            mass = (factor[:, None] @ self._likely.mT)[:, 0]  # ten times the speed of likely @ factor
        return (factor, mass) if self._fits(mass) else None

    def _fits(self, mass: Tensor) -> bool:
        """Whether float32 lost nothing of any example's mass that could be seen.

        An exponential below 2^-126 is none. What an item lost at the start would weigh as much times what its offset
        multiplies it by, and what the offsets' own exponentials lose at most as much of the mass at the start: both
        have to be below 2^-27 of the mass.
        """
        low, high = (float(bound) for bound in torch.aminmax(mass))
        top = 0.0 if self._offset is None else min(float(self._offset.amax()), 1000.0)
        lost = max(self._stack.policy.items * 2.0**top, self._most) * _LOST
        return low > max(_TINY, lost) and high < 1 / _TINY

    @staticmethod
    def _moderate(mass: Tensor) -> bool:
        """Whether slopes times the mass have exact squares: then nothing divides them before their products."""
        low, high = (float(bound) for bound in torch.aminmax(mass))
        return low > _LITTLE and high < 1 / _LITTLE

    def _weights(self, mass: Tensor, *, last: bool) -> Tensor:
        """Weights of the targets where they depend on the policy."""
        stack = self._stack
        moved = torch.zeros(()) if self._met is None else self._met
        if self._offset is not None:
            moved = moved + self._offset[:, None].expand(-1, stack.targets.shape[1], -1).gather(-1, stack.targets)
        return stack.weights * target_weights(
            (moved - mass.log2()[..., None]).exp2(), stack.examples, stack.settings, last=last
        )

    def _taken(self, weights: Tensor) -> Tensor:
        """What the targets take off the slopes, ``[devices, items]``."""
        total = torch.zeros(self._stack.count, self._stack.policy.items)
        return total.scatter_add_(1, self._stack.targets.flatten(1), weights.flatten(1))

    def _added(self) -> Tensor:
        """What the parameters add to the scores since the start, times ``log2 e``, ``[devices, items]``."""
        policy = self._stack.policy
        moved = {name: ((here - self._start[name]) * _LOG2_E)[:, None] for name, here in self.own.items()}
        parts = [product(moved["taste"], policy.features.T)] if "taste" in moved else []
        if self._vectors:
            rows = sum((moved[name] for name in self._vectors[1:]), moved[self._vectors[0]])
            parts.append(against_items(policy, self._parameters, rows, self._table))
        return sum(parts[1:], parts[0])[:, 0]

    def _gradients(self, slope: Tensor) -> Named:
        policy = self._stack.policy
        gradients = {"taste": narrow(slope, policy.features)} if "taste" in self.own else {}
        if self._vectors:
            row = slope[:, None]
            if self._table is not None:
                met = product(row, self._table)[:, 0]
            else:
                met = product(product(row, policy.features), self._parameters["content"])[:, 0]
            gradients |= dict.fromkeys(self._vectors, met)
        return gradients
