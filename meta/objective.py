"""The objective: an importance-weighted policy gradient on logged feedback.

    loss = - mean over targets of  w * (r - b) * log pi(a | s),   w = min(pi(a | s) / p, cap)

with ``p`` the logging policy's propensity and ``w`` held constant in the gradient (REINFORCE off policy, Chen et al.
2019, eq. 4, with capped weights). A log without propensities has ``w = 1``: the log-likelihood of positives.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..config import LocalConfig
from .examples import Examples
from .policy import Parameters, Policy, State


def example_losses(policy: Policy, parameters: Parameters, examples: Examples, settings: LocalConfig) -> Tensor:
    """The loss of every example, ``[examples]``; an absent example's is zero.

    Args:
        policy: the policy.
        parameters: its parameters by name.
        examples: one device's examples.
        settings: baseline, weight cap, reward rule.
    """
    log_policy = _log_policy(policy, parameters, examples, settings)
    chosen = log_policy.gather(-1, examples.targets.clamp(min=0))
    valid = (examples.targets >= 0).to(chosen.dtype)
    advantage = examples.rewards if settings.reward == "value" else torch.ones_like(examples.rewards)
    weights = valid * (advantage - settings.baseline)
    ratio = (chosen.detach().exp() / examples.propensities.clamp(min=1e-12)).clamp(max=settings.weight_cap)
    weights = weights * torch.where(examples.propensities > 0, ratio, torch.ones_like(ratio))
    return -(weights * chosen).sum(-1) / target_divisor(valid, settings)


def target_divisor(valid: Tensor, settings: LocalConfig) -> Tensor:
    """What the sum over an example's targets is divided by, ``[examples]``: their number, or the public horizon.

    With the number, a long log weighs as much as a short one. With the constant, every logged interaction weighs
    alike: the multinomial likelihood of the log (Liang et al. 2018, eq. 2), whose best ranking of a device that nothing
    is known of is by popularity.
    """
    count = valid.sum(-1).clamp(min=1)
    return count if settings.targets == "mean" else torch.full_like(count, float(settings.horizon))


def device_loss(
    policy: Policy, parameters: Parameters, examples: Examples, settings: LocalConfig, *, last: bool = True
) -> Tensor:
    """Mean loss over the examples that are present, a scalar; zero for a device without any (``example_shares``)."""
    losses = example_losses(policy, parameters, examples, settings)
    return (losses * example_shares(examples, settings, last=last)).sum()


def example_shares(examples: Examples, settings: LocalConfig, *, last: bool = True) -> Tensor:
    """Weight of every example in its device's loss, ``[..., examples]``.

    In an episode the ``last`` step is taken on the query and those before it on the support (first-order MAML, Finn et
    al. 2017, section 5.2, on the weights that are slow); elsewhere every step on all examples.

    With ``settings.prior`` = p the mean is weighted by ``n / (n + p)`` for ``n`` known interactions: a device that has
    seen little stays close to its start, as if the start were worth ``p`` interactions.
    """
    known = ((examples.targets >= 0).sum(-1) + (examples.history >= 0).sum(-1)) * examples.present
    seen = functional.pad(known, (0, 1)).amax(-1, keepdim=True)  # a device without any example has seen nothing
    trust = seen / (seen + settings.prior).clamp(min=1)
    part = examples.query if last else 1 - examples.query
    asked = functional.pad(examples.query, (0, 1)).amax(-1, keepdim=True)
    chosen = examples.present * torch.where(asked > 0, part, torch.ones_like(part))
    return trust * chosen / chosen.sum(-1, keepdim=True).clamp(min=1)


def _log_policy(policy: Policy, parameters: Parameters, examples: Examples, settings: LocalConfig) -> Tensor:
    """``log pi`` with the history left out of the candidates where the settings say so (targets always stay in)."""
    state = State(examples.history, examples.levels, examples.user)
    scores = policy.scores(parameters, state)
    if settings.exclude_history and policy.sees_history:
        scores = scores + blocked_history(examples, policy.items)
    return torch.log_softmax(scores, dim=-1)


def blocked_history(examples: Examples, items: int) -> Tensor:
    """-1e9 for the items of each example's history that are no targets of it, else 0, ``[..., examples, items]``."""
    blocked = torch.zeros(*examples.history.shape[:-1], items + 1)
    blocked = blocked.scatter(-1, _or_last(examples.history, items), -1e9)
    return blocked.scatter(-1, _or_last(examples.targets, items), 0.0)[..., :items]


def _or_last(rows: Tensor, items: int) -> Tensor:
    return torch.where(rows >= 0, rows, items)
