"""Adaptation: K local steps from the initialization, at two speeds, giving an update that may leave the device.

Fast weights take K gradient steps. Slow weights take one, together with the K-th of the fast ones, so that their
gradient is taken where the fast weights arrived. With K = 1 this is one step of federated SGD on all parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import LocalConfig
from .examples import Examples
from .objective import device_loss
from .policy import RATE, Named, Parameters, Policy


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """What K local steps give.

    Attributes:
        update: ``theta - phi`` of the shared parameters; not yet clipped, must not leave as it is.
        personal: the personal parameters after the steps; never leave.
    """

    update: Named
    personal: Named


def adapt(
    policy: Policy,
    start: Parameters,
    examples: Examples,
    settings: LocalConfig,
    before_step: Callable[[], None] | None = None,
) -> Adaptation:
    """Adapt one device from ``start`` (shared and personal parameters together), without privacy noise.

    Args:
        policy: the policy.
        start: every parameter of the policy.
        examples: the device's examples; with none present the update is zero.
        settings: K, step sizes, objective.
        before_step: called before every step; what it raises ends the adaptation, and nothing of it is returned.
    """
    fast = descend(policy, start, examples, settings, steps=settings.steps - 1, before_step=before_step)
    if before_step is not None:
        before_step()
    gradients = loss_gradient(policy, {**start, **fast}, policy.trained, examples, settings, start=start)
    moved = {}
    for name, gradient in gradients.items():
        here = fast.get(name, start[name])
        pull = settings.weight_decay * (here - start[name]) if name in fast else 0.0
        moved[name] = here - step_size(policy, settings, name) * learned_rate(start, name) * (gradient + pull)
    return Adaptation(
        update={name: moved[name] - start[name] for name in policy.released},
        personal={name: moved[name] for name in policy.names(scope="personal")},
    )


def descend(
    policy: Policy,
    start: Parameters,
    examples: Examples,
    settings: LocalConfig,
    *,
    steps: int,
    names: tuple[str, ...] | None = None,
    before_step: Callable[[], None] | None = None,
) -> Named:
    """The named parameters (the fast ones, personal included) after ``steps`` gradient steps, the others fixed.

    ``before_step`` is called before every step; what it raises ends the descent.
    """
    names = policy.names(speed="fast") if names is None else names
    fast = {name: start[name] for name in names}
    if not names:
        return fast
    for _ in range(steps):
        if before_step is not None:
            before_step()
        gradients = loss_gradient(policy, {**start, **fast}, names, examples, settings, last=False, start=start)
        fast = {
            name: here
            - step_size(policy, settings, name)
            * learned_rate(start, name)
            * (gradients[name] + settings.weight_decay * (here - start[name]))
            for name, here in fast.items()
        }
    return fast


def loss_gradient(
    policy: Policy,
    parameters: Parameters,
    names: tuple[str, ...],
    examples: Examples,
    settings: LocalConfig,
    *,
    last: bool = True,
    start: Parameters | None = None,
) -> dict[str, Tensor]:
    """Gradient of the device's mean loss with respect to the named parameters, at the ``last`` step or before it.

    ``start`` is the initialization, which a trust region needs. Not by ``torch.func.grad``: its first call imports
    PyTorch's compiler and sympy, 70 MB and two seconds of which a small device has no use.
    """
    chosen = {name: parameters[name].detach().requires_grad_() for name in names}
    with torch.enable_grad():
        loss = device_loss(policy, {**parameters, **chosen}, examples, settings, last=last, start=start)
    found = torch.autograd.grad(loss, list(chosen.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(chosen, found, strict=True))


def step_size(policy: Policy, settings: LocalConfig, name: str) -> float:
    """Local step size of one parameter: fast or slow, times its own rate where one is set."""
    base = settings.lr if policy.specs[name].speed == "fast" else settings.slow_lr
    return base * settings.rates.get(name, 1.0)


def learned_rate(parameters: Parameters, name: str) -> Tensor | float:
    """Factor on the step size of every coordinate of a fast weight; 1 where none is learned (``meta.inner_rates``)."""
    return torch.exp(parameters[RATE + name]) if RATE + name in parameters else 1.0
