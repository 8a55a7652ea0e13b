"""The Reptile step: the devices' mean update moves the initialization. Pure functions over named tensors.

Reptile (Nichol, Achiam and Schulman 2018, algorithm 1, batched) is ``phi <- phi + outer_lr * mean(theta - phi)``. The
mean update takes the place of a negative gradient, so any first-order optimizer may process it (Reddi et al. 2021). All
of this is post-processing: it reads nothing but the released mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .._validate import at_least, positive
from ..config import ServerConfig
from .policy import Named

ADAM_SECOND_DECAY = 0.99
"""Decay of Adam's second moment (Reddi et al. 2021, section 5)."""
ADAM_EPSILON = 1e-8
"""Added to the root of Adam's second moment (Kingma and Ba 2015)."""
_SLOTS = ("momentum", "second", "average", "travel", "energy")


@dataclass(frozen=True)
class OuterState:
    """What the outer optimizer remembers between rounds. Empty maps stand for zeros that were never needed."""

    step: int = 0
    """Steps taken."""
    momentum: Named = field(default_factory=dict)
    """First moment: heavy-ball velocity or Adam's m."""
    second: Named = field(default_factory=dict)
    """Adam's second moment v."""
    average: Named = field(default_factory=dict)
    """Running average of the initializations, bias-corrected: it can be served as it is."""
    travel: Named = field(default_factory=dict)
    """Sum of the mean updates, where rates are learned (``meta.inner_rates``)."""
    energy: Named = field(default_factory=dict)
    """Sum of their squares, coordinate by coordinate."""

    def to_tensors(self) -> Named:
        """One flat map (``momentum/<name>``, ...) and an int64 ``step``, for a safetensors file."""
        flat = {f"{slot}/{name}": tensor for slot in _SLOTS for name, tensor in getattr(self, slot).items()}
        return flat | {"step": torch.tensor(self.step, dtype=torch.int64)}

    @classmethod
    def from_tensors(cls, flat: Mapping[str, Tensor]) -> OuterState:
        """Read what :meth:`to_tensors` wrote.

        Raises:
            ValueError: ``step`` is missing or a key belongs to no slot.
        """
        slots: dict[str, Named] = {slot: {} for slot in _SLOTS}
        for key, tensor in flat.items():
            slot, _, name = key.partition("/")
            if slot in slots and name:
                slots[slot][name] = tensor
            elif key != "step":
                raise ValueError(f"expected keys step, {'/..., '.join(_SLOTS)}/..., got {key!r}")
        if "step" not in flat:
            raise ValueError("expected the outer state to hold its step, got none")
        return cls(step=int(flat["step"]), **slots)


def outer_learning_rate(settings: ServerConfig, round_number: int) -> float:
    """Step size of one round, counted from 1; linear decay is ``outer_lr * (1 - (round - 1) / rounds)``."""
    at_least("round", round_number, 1)
    if settings.decay == "none":
        return settings.outer_lr
    return settings.outer_lr * max(0.0, 1.0 - (round_number - 1) / settings.rounds)


def mean_update(total: Mapping[str, Tensor], divisor: float) -> Named:
    """The sum of updates over a divisor that is fixed and public, whoever replied; float32.

    Raises:
        ValueError: the divisor is not above zero.
    """
    positive("divisor", divisor)
    return {name: (total[name].double() / divisor).to(torch.float32) for name in sorted(total)}


def reptile_step(
    phi: Named, mean: Named, state: OuterState, settings: ServerConfig, round_number: int
) -> tuple[Named, OuterState]:
    """Move the initialization along the processed mean update.

    ``sgd``: ``phi + lr * mean``. ``momentum`` (heavy ball, Polyak 1964): ``m <- beta m + mean``, ``phi + lr * m``.
    ``adam`` (Kingma and Ba 2015, algorithm 1, bias-corrected): the mean update in place of the negative gradient.

    Args:
        phi: the initialization; not changed in place.
        mean: the mean update, same names and shapes.
        state: what the optimizer remembers.
        settings: optimizer, ``outer_lr``, its decay, ``momentum`` and ``average``.
        round_number: counted from 1; sets the learning rate.

    Returns:
        The next initialization and state.

    Raises:
        ValueError: names or shapes of ``phi`` and ``mean`` differ.
    """
    _check_alike(phi, mean)
    lr = outer_learning_rate(settings, round_number)
    step = state.step + 1
    direction, momentum, second = _direction(mean, state, settings, step)
    moved = {name: phi[name] + lr * direction[name] for name in sorted(phi)}
    average = _average(moved, state.average, settings.average, step)
    return moved, OuterState(step, momentum, second, average, state.travel, state.energy)


def served(phi: Named, state: OuterState, settings: ServerConfig) -> Named:
    """What devices are given: the running average of initializations where one is kept, else the last one."""
    return state.average if settings.average > 0 and state.step > 0 else phi


def _direction(mean: Named, state: OuterState, settings: ServerConfig, step: int) -> tuple[Named, Named, Named]:
    """Direction of the step, next first moment, next second moment."""
    beta = settings.momentum
    if settings.outer_optimizer == "sgd":
        return mean, {}, {}
    if settings.outer_optimizer == "momentum":
        velocity = {name: _slot(state.momentum, name, mean) * beta + mean[name] for name in sorted(mean)}
        return velocity, velocity, {}
    first, second, direction = {}, {}, {}
    for name in sorted(mean):
        first[name] = _slot(state.momentum, name, mean) * beta + mean[name] * (1 - beta)
        squares = mean[name] * mean[name] * (1 - ADAM_SECOND_DECAY)
        second[name] = _slot(state.second, name, mean) * ADAM_SECOND_DECAY + squares
        root = (second[name] / (1 - ADAM_SECOND_DECAY**step)).sqrt() + ADAM_EPSILON
        direction[name] = first[name] / (1 - beta**step) / root
    return direction, first, second


def _average(phi: Named, average: Named, decay: float, step: int) -> Named:
    """Bias-corrected exponential average, updated in place of the sum: weight (1 - d) / (1 - d^t) for the newest."""
    if decay == 0:
        return {}
    weight = (1 - decay) / (1 - decay**step)
    return {name: torch.lerp(average.get(name, phi[name]), phi[name], weight) for name in sorted(phi)}


def _slot(slot: Named, name: str, like: Named) -> Tensor:
    return slot[name] if name in slot else torch.zeros_like(like[name])


def _check_alike(phi: Named, mean: Named) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in phi.items()}
    found = {name: tuple(tensor.shape) for name, tensor in mean.items()}
    if shapes != found:
        wrong = sorted(name for name in shapes.keys() | found.keys() if shapes.get(name) != found.get(name))
        raise ValueError(
            f"expected a mean update with the names and shapes of the initialization, got a difference at {wrong}"
        )
