"""The objective: an importance-weighted policy gradient on logged feedback.

    loss = - mean over targets of  w * lambda_K * (r - q(a)) * log pi(a | s)     w = min(pi(a | s) / p, cap)
           - sum over all items of  alpha_K(a) * q(a)                            with a reward model q only
           + trust_region * KL(pi at the initialization || pi)

with ``p`` the logging policy's propensity, and ``w``, ``lambda_K`` and ``r - q`` held constant in the gradient
(REINFORCE off policy, Chen et al. 2019, section 4, with capped weights; doubly robust: Dudik et al. 2014, section 3). A
log without propensities has ``w = 1``; with rewards of one and nothing else this is the log-likelihood of positives.
The pieces are in ``meta.policy_gradient``, the keys in ``LocalConfig``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..config import LocalConfig
from .examples import Examples
from .policy import Parameters, Policy, State
from .policy_gradient import (
    importance_ratio,
    leave_one_out_models,
    self_normaliser,
    shown,
    top_k_factor,
    trust_region,
)


def example_losses(
    policy: Policy,
    parameters: Parameters,
    examples: Examples,
    settings: LocalConfig,
    *,
    last: bool = True,
    start: Parameters | None = None,
) -> Tensor:
    """The loss of every example, ``[examples]``; an absent example's is zero.

    Args:
        policy: the policy.
        parameters: its parameters by name.
        examples: one device's examples.
        settings: what the loss is made of.
        last: whether this is the last local step: where weights are self-normalised, it says over which examples.
        start: the initialization, which a trust region needs.

    Raises:
        ValueError: a trust region without ``start``.
    """
    log_policy = _log_policy(policy, parameters, examples, settings)
    chosen = log_policy.gather(-1, examples.targets.clamp(min=0))
    valid = (examples.targets >= 0).to(chosen.dtype)
    divisor = target_divisor(valid, settings)
    gained, expected = advantages(policy, examples, settings)
    weights = gained * target_weights(chosen.detach().exp(), examples, settings, last=last)
    losses = -(weights * chosen).sum(-1) / divisor
    if expected is not None:
        losses = losses - valid.sum(-1) / divisor * (shown(log_policy.exp(), settings.top_k) * expected).sum(-1)
    if settings.trust_region == 0:
        return losses
    if start is None:
        raise ValueError("expected the initialization for local.trust_region > 0, got none; pass start")
    log_start = _log_policy(policy, start, examples, settings).detach()
    return losses + settings.trust_region * valid.amax(-1) * trust_region(log_start, log_policy)


def advantages(policy: Policy, examples: Examples, settings: LocalConfig) -> tuple[Tensor, Tensor | None]:
    """What every target earned above what was expected of it, and what is expected of every item.

    A reward model is fitted to a device's own examples, in an episode to its support only; for each target without it.

    Returns:
        ``[..., examples, targets]``, 0 where there is no target; ``[..., examples, items]``, the mean of its targets'
        models, or none where no reward model tells items apart.
    """
    valid = (examples.targets >= 0).to(examples.rewards.dtype)
    if settings.reward_model == "constant":
        rewards = examples.rewards if settings.reward == "value" else torch.ones_like(examples.rewards)
        return valid * (rewards - settings.baseline), None
    table = torch.ones(policy.items, 1, dtype=torch.float64)
    if settings.reward_model == "content":
        table = torch.cat([table, policy.features.to(torch.float64)], dim=1)
    rows = functional.embedding(examples.targets.clamp(min=0), table)
    above = examples.rewards.to(torch.float64) - settings.baseline
    fitted = valid * (examples.present * (1 - examples.query))[..., None]
    models = leave_one_out_models(
        rows.flatten(-3, -2), above.flatten(-2), fitted.flatten(-2), ridge=settings.reward_ridge
    ).reshape(rows.shape)
    gained = valid * (above - (rows * models).sum(-1)).to(valid.dtype)
    if not settings.tells_items_apart:
        return gained, None
    mean = (models * valid[..., None]).sum(-2) / valid.sum(-1, keepdim=True).clamp(min=1)
    return gained, (settings.baseline + mean @ table.T).to(valid.dtype)


def target_weights(chosen: Tensor, examples: Examples, settings: LocalConfig, *, last: bool) -> Tensor:
    """Importance weight times top-K factor of every target, chosen with probability ``chosen``, same shape."""
    ratio = importance_ratio(chosen, examples.propensities, settings.weight_cap)
    if settings.self_normalised:
        valid = (examples.targets >= 0).to(ratio.dtype)
        share = example_shares(examples, settings, last=last) / target_divisor(valid, settings)
        ratio = ratio / self_normaliser(ratio, valid * share[..., None])
    return ratio if settings.top_k == 1 else ratio * top_k_factor(chosen, settings.top_k)


def target_divisor(valid: Tensor, settings: LocalConfig) -> Tensor:
    """What the sum over an example's targets is divided by, ``[examples]``: their number, or the public horizon.

    With the number, a long log weighs as much as a short one. With the constant, every logged interaction weighs
    alike: the multinomial likelihood of the log (Liang et al. 2018, eq. 2), whose best ranking of a device that nothing
    is known of is by popularity.
    """
    count = valid.sum(-1).clamp(min=1)
    return count if settings.targets == "mean" else torch.full_like(count, float(settings.horizon))


def device_loss(
    policy: Policy,
    parameters: Parameters,
    examples: Examples,
    settings: LocalConfig,
    *,
    last: bool = True,
    start: Parameters | None = None,
) -> Tensor:
    """Mean loss over the examples that are present, a scalar; zero for a device without any (``example_shares``)."""
    losses = example_losses(policy, parameters, examples, settings, last=last, start=start)
    return (losses * example_shares(examples, settings, last=last)).sum()


def example_shares(examples: Examples, settings: LocalConfig, *, last: bool = True) -> Tensor:
    """Weight of every example in its device's loss, ``[..., examples]``.

    In an episode the ``last`` step is taken on the query and those before it on the support (first-order MAML, Finn et
    al. 2017, section 5.2, on the weights that are slow); elsewhere every step on all examples.

    With ``settings.prior`` = p the mean is weighted by ``n / (n + p)`` for ``n`` known interactions: a device that has
    seen little stays close to its start, as if the start were worth ``p`` interactions.
    """
    part = examples.query if last else 1 - examples.query
    asked = functional.pad(examples.query, (0, 1)).amax(-1, keepdim=True)
    chosen = examples.present * torch.where(asked > 0, part, torch.ones_like(part))
    shares = chosen / chosen.sum(-1, keepdim=True).clamp(min=1)
    if settings.prior == 0:
        return shares
    known = ((examples.targets >= 0).sum(-1) + (examples.history >= 0).sum(-1)) * examples.present
    seen = functional.pad(known, (0, 1)).amax(-1, keepdim=True)  # a device without any example has seen nothing
    return seen / (seen + settings.prior).clamp(min=1) * shares


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
