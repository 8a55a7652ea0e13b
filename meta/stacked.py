"""The policy for many devices at once: a stack of their examples and the forward pass.

``meta.adapt`` says what is computed, one device at a time and by automatic differentiation; this module,
``meta.backward`` and ``meta.descent`` compute the same for a stack of devices, with a backward pass written out. No
device gets an item table of gradients: what ``ids`` gets is kept as factors (``meta.table``), from which norms and sums
follow.

Parameters are shared (``[*shape]``) or each device's own (``[devices, *shape]``); both may be mixed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from ..config import LocalConfig
from .examples import Examples
from .objective import advantages, blocked_history, example_shares, target_divisor, target_weights
from .policy import Named, Parameters, Policy, State
from .policy_gradient import expected_slopes
from .recency import Entries, Recency, RecencyTable, distinct
from .slopes import DenseSlopes, SharedSlopes, Slopes, own_rows, product

Embedded = Tensor | Recency | None
_BY_ITEM = ("ids", "content", "bias", "taste")
"""Parameters of which there is something for every item."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Shared:
    """What all devices start from, and what follows of it that no step of theirs moves; for any number of stacks.

    Attributes:
        policy: the policy.
        phi: shared parameters.
    """

    policy: Policy
    phi: Parameters

    @cached_property
    def kernels(self) -> Tensor:
        """Features of the kernels (``Policy.kernel_table``)."""
        return self.policy.kernel_table(self.phi)

    @cached_property
    def recency(self) -> RecencyTable:
        """Recency weights of the state encoder ``history``, as long as its parameters are the shared ones."""
        return RecencyTable(self.phi["state.log_scale"], self.policy.settings.history_length)

    @cached_property
    def table(self) -> Tensor | None:
        """``E`` of all items where there are ``ids``, ``[items, dim]``."""
        return item_table(self.policy, self.phi)

    @cached_property
    def columns(self) -> Tensor | None:
        """What scores are a product with where the item encoder has a table (:func:`score_columns`)."""
        return score_columns(self.policy, self.phi, self.table)

    def prepare(self) -> None:
        """Compute now what stacks will ask for."""
        _ = self.kernels, self.columns
        if self.policy.settings.state == "history":
            self.recency.prepare()

    def to(self, device: torch.device) -> Shared:
        """The same on ``device``."""
        return Shared(policy=self.policy.to(device), phi={name: value.to(device) for name, value in self.phi.items()})


@dataclass(frozen=True, kw_only=True, eq=False)
class Stack:
    """Examples of many devices, and what does not change while they adapt.

    Attributes:
        shared: what all of them start from.
        examples: every field with a leading axis ``[devices, ...]``, as from ``stack_examples``.
        settings: step sizes and objective.
        each: norms of every example's own gradient will be asked for (:func:`example_squares`).
        anchor: ``pi`` at the initialization where there is a trust region, ``[devices, examples, items]``; see
            :func:`anchored`.
    """

    shared: Shared
    examples: Examples
    settings: LocalConfig
    each: bool = False
    anchor: Tensor | None = None

    @property
    def policy(self) -> Policy:
        """The policy."""
        return self.shared.policy

    @property
    def alike(self) -> bool:
        """Whether all examples of a device have one state and one target each: their scores are computed once."""
        single = not self.policy.sees_history and self.examples.targets.shape[-1] == 1
        return self.each and single and self.settings.trust_region == 0

    @property
    def count(self) -> int:
        """Number of devices."""
        return len(self.examples.present)

    @cached_property
    def mask(self) -> Tensor:
        """1 where there is a history entry, ``[devices, examples, length]``; one row where all are alike."""
        history = self.examples.history
        return ((history[:, :1] if self.alike else history) >= 0).to(torch.float32)

    @cached_property
    def known(self) -> Tensor:
        """``log(1 + entries of the history)``, ``[devices, examples]``."""
        return torch.log1p(self.number[..., 0])

    @cached_property
    def number(self) -> Tensor:
        """Entries of every history, ``[devices, examples, 1]``."""
        return self.mask.sum(-1, keepdim=True)

    @cached_property
    def targets(self) -> Tensor:
        """Actions taken, any item where there is none, int64 ``[devices, examples, targets]``."""
        return self.examples.targets.clamp(min=0)

    @cached_property
    def divisor(self) -> Tensor:
        """What the sum over an example's targets is divided by, ``[devices, examples]``."""
        return target_divisor(self.valid, self.settings)

    @cached_property
    def valid(self) -> Tensor:
        """1 where there is a target, ``[devices, examples, targets]``."""
        return (self.examples.targets >= 0).to(torch.float32)

    @cached_property
    def gains(self) -> tuple[Tensor, Tensor | None]:
        """What targets earned above what was expected of them, and of every item (``meta.objective.advantages``)."""
        return advantages(self.policy, self.examples, self.settings)

    @cached_property
    def weights(self) -> Tensor:
        """``r - q(a)`` of every target over its example's divisor, 0 where there is none (see ``meta.objective``)."""
        return self.gains[0] / self.divisor[..., None]

    @cached_property
    def moving(self) -> bool:
        """Whether weights of targets depend on the policy: propensities, or the top-K correction."""
        return self.settings.top_k > 1 or bool((self.examples.propensities > 0).any())

    @property
    def linear(self) -> bool:
        """Whether the loss is a weighted sum of ``log pi`` of the targets and nothing else."""
        return self.settings.trust_region == 0 and not self.settings.tells_items_apart

    @cached_property
    def last(self) -> Tensor:
        """Weight of every example in its device's loss at the last step, ``[devices, examples]``."""
        return example_shares(self.examples, self.settings)

    @cached_property
    def before(self) -> Tensor:
        """The same at the steps before, which only an episode's query tells from the last one."""
        return example_shares(self.examples, self.settings, last=False) if self.examples.query.any() else self.last

    @cached_property
    def blocked(self) -> Tensor | None:
        """What is added to the scores of candidates that are left out; none where none are."""
        if not (self.settings.exclude_history and self.policy.sees_history):
            return None
        return blocked_history(self.examples, self.policy.items)

    @cached_property
    def kernel_means(self) -> Tensor:
        """Recency-weighted kernel features of the histories, ``[devices, examples, scales, columns]``."""
        flat = self.examples.history.flatten(0, 1)
        mask = (flat >= 0).to(torch.float32)
        means = self.policy.kernel_means(self.shared.kernels, flat, mask) * self.policy.trust(mask)
        return means.movedim(0, 1).reshape(*self.examples.history.shape[:2], *means.shape[::2])

    @cached_property
    def entries(self) -> Entries:
        """Distinct entries of the histories."""
        history, levels = self.examples.history, self.examples.levels
        known = self.number[..., 0].to(torch.int64)
        return Entries.windows(history, levels, known, self.examples.position) or Entries.of(history, levels)

    @cached_property
    def places(self) -> tuple[Tensor, Tensor]:
        """Distinct history items of every device ``[devices, distinct]``, and every entry's place among them."""
        items, places = distinct(self.examples.history.flatten(1), -1)
        return items.clamp(min=0), places


@dataclass(frozen=True, kw_only=True, eq=False)
class Pass:
    """A forward pass.

    Attributes:
        scores: after the temperature, ``[devices, examples, items]``, or where no temperature needs them, a number
            ``[devices, examples, 1]`` that is finite where they are.
        slopes: of every example's own loss by the scores before the temperature.
        states: ``u(s)`` with all that is added to it, ``[devices, examples, dim]``; none without an item encoder.
        embedded: embeddings of the history, ``[devices, examples, length, dim]``, or the pass of the encoder
            ``history``; none without a state encoder.
        table: ``E`` of all items where there are ``ids``, ``[items, dim]``, shared or own.
    """

    scores: Tensor
    slopes: Slopes
    states: Tensor | None
    embedded: Embedded
    table: Tensor | None

    @property
    def finite(self) -> Tensor:
        """Devices all of whose scores are, bool ``[devices]``."""
        return torch.isfinite(self.scores.sum((-1, -2)))


def is_own(policy: Policy, parameters: Parameters, name: str) -> bool:
    """Whether the parameter is each device's own."""
    return parameters[name].dim() > len(policy.specs[name].shape)


def leading(policy: Policy, parameters: Parameters, name: str) -> Tensor:
    """The parameter with a leading axis, ``[devices or 1, *shape]``."""
    return parameters[name] if is_own(policy, parameters, name) else parameters[name][None]


def scores(shared: Shared, parameters: Parameters, states: State) -> Tensor:
    """``policy.scores`` of one state each for many devices, ``[devices, items]``.

    Args:
        shared: the policy and what the devices started from.
        parameters: every parameter, shared or each device's own.
        states: fields ``[devices, 1, length]`` and ``[devices, user_features]``.
    """
    count = len(states.history)
    nothing = torch.zeros(count, 1, 1)
    examples = Examples(
        history=states.history,
        levels=states.levels,
        targets=nothing.long() - 1,
        rewards=nothing,
        propensities=nothing,
        present=nothing[..., 0],
        query=nothing[..., 0],
        position=(states.history >= 0).sum(-1),  # as if the log began with its history
        user=states.user,
    )
    stack = Stack(shared=shared, examples=examples, settings=LocalConfig())
    return run_forward(stack, parameters)[0][:, 0]


def anchored(stack: Stack, start: Parameters) -> Stack:
    """The stack with what a trust region needs: ``pi`` at ``start``, the initialization."""
    if stack.settings.trust_region == 0:
        return stack
    return replace(stack, anchor=torch.softmax(run_forward(stack, start)[0], dim=-1))


def forward(stack: Stack, parameters: Parameters, *, last: bool = True) -> Pass:
    """Scores of every example and the slopes of its own loss, at ``parameters``, shared or own, for the last step."""
    scores, states, embedded, table = run_forward(stack, parameters)
    heat = _heat(stack.policy, parameters)
    slopes = _slopes(stack, scores, last)
    return Pass(
        scores=scores,
        slopes=slopes if heat is None else slopes.weighted(heat),
        states=states,
        embedded=embedded,
        table=table,
    )


def run_forward(
    stack: Stack, parameters: Parameters, *, times: float = 1.0
) -> tuple[Tensor, Tensor | None, Embedded, Tensor | None]:
    """Scores ``times`` a number, states, embedded histories and item table: the fields of a :class:`Pass`."""
    policy = stack.policy
    shared = stack.shared
    moved = [name for name in _BY_ITEM if parameters.get(name) is not shared.phi.get(name)]
    table = item_table(policy, parameters) if {"ids", "content"} & set(moved) else shared.table
    columns = score_columns(policy, parameters, table) if moved else shared.columns
    states, embedded = _states(stack, parameters, table) if policy.embeds else (None, None)
    scores = _scores(stack, parameters, states, table, columns, times)
    heat = _heat(policy, parameters)
    if heat is not None:
        scores *= heat[..., None]
    return scores, states, embedded, table


def _heat(policy: Policy, parameters: Parameters) -> Tensor | None:
    """``exp(temperature)``, ``[devices or 1, 1]``; none where there is none."""
    return torch.exp(leading(policy, parameters, "temperature")) if "temperature" in policy.specs else None


def item_table(policy: Policy, parameters: Parameters) -> Tensor | None:
    """``E(a)`` of all items where there are ``ids``, ``[items, dim]``, shared or own."""
    if not (policy.embeds and policy.settings.ids):
        return None
    if not policy.settings.content_embedding:
        return parameters["ids"]
    return parameters["ids"] + policy.features @ parameters["content"]


def _states(stack: Stack, parameters: Parameters, table: Tensor | None) -> tuple[Tensor, Embedded]:
    policy = stack.policy
    total = leading(policy, parameters, "latent")[:, None].expand(stack.count, stack.mask.shape[1], -1)
    if "user" in policy.specs:
        total = total + product(stack.examples.user[:, None], parameters["user"])
    if "personal" in policy.specs:
        total = total + leading(policy, parameters, "personal")[:, None]
    if not policy.encodes_history:
        return total, None
    small = encoder_parameters(policy, parameters)
    if (
        policy.settings.state == "history"
        and not stack.each
        and not any(is_own(policy, parameters, name) for name in small)
    ):
        plain = _embedded(policy, parameters, stack.entries.items[:, None], table)[:, 0]
        recency = Recency.of(policy, parameters, stack.shared.recency, stack.entries, plain, stack.number)
        return total + recency.encoded(parameters), recency
    embedded = _embedded(policy, parameters, stack.examples.history.clamp(min=0), table)
    axes = (batch_axes(policy, small), 0, 0, 0)
    seen: Tensor = torch.func.vmap(policy.encode_history, in_dims=axes)(
        small, embedded, stack.examples.levels, stack.mask
    )
    return total + seen, embedded


def _embedded(policy: Policy, parameters: Parameters, items: Tensor, table: Tensor | None) -> Tensor:
    """``E(a)`` of the histories, ``[devices, examples, length, dim]``."""
    if table is None:
        rows = functional.embedding(items, policy.features)
        return product(rows.flatten(1, 2), parameters["content"]).reshape(*items.shape, -1)
    if table.dim() == 2:
        return functional.embedding(items, table)
    return functional.embedding(own_rows(items, table.shape[1]), table.reshape(-1, table.shape[-1]))


def encoder_parameters(policy: Policy, parameters: Parameters) -> Named:
    """Those of the state encoder."""
    return {name: parameters[name] for name in policy.specs if name.startswith("state.")}


def batch_axes(policy: Policy, parameters: Parameters) -> dict[str, int | None]:
    """Along which axis ``vmap`` finds a device's parameter: none for a shared one."""
    return {name: 0 if is_own(policy, parameters, name) else None for name in parameters}


def score_columns(policy: Policy, parameters: Parameters, table: Tensor | None) -> Tensor | None:
    """The table, then the bias and what the taste adds where they are shared, too, ``[k, items]``.

    A product with some columns more costs less than passes over all scores. None without a table or for own ones.
    """
    if table is None or table.dim() == 3:
        return None
    columns = [table.T]
    if _adds_bias(policy, parameters):
        columns.append(parameters["bias"][None])
    if _adds_taste(policy, parameters):
        columns.append(product(parameters["taste"][None, None], policy.features.T)[0])
    return torch.cat(columns)


def _adds_bias(policy: Policy, parameters: Parameters) -> bool:
    return policy.settings.bias and not is_own(policy, parameters, "bias")


def _adds_taste(policy: Policy, parameters: Parameters) -> bool:
    return policy.settings.content and not is_own(policy, parameters, "taste")


def _scores(
    stack: Stack,
    parameters: Parameters,
    states: Tensor | None,
    table: Tensor | None,
    columns: Tensor | None,
    times: float,
) -> Tensor:
    """Scores before the temperature, ``[devices, examples, items]``, a tensor of its own; ``times`` is on the rows."""
    policy, settings, shape = stack.policy, stack.policy.settings, (stack.count, stack.mask.shape[1])
    adds_bias, adds_taste = settings.bias, settings.content
    if states is None:
        total = torch.zeros(*shape, policy.items)
    elif columns is None:
        total = against_items(policy, parameters, states * times, table)
    else:
        rows = [states]
        if _adds_bias(policy, parameters):
            rows, adds_bias = [*rows, bias_gain(stack, parameters).expand(shape)[..., None]], False
        if _adds_taste(policy, parameters):
            rows, adds_taste = [*rows, torch.ones(*shape, 1)], False
        total = product(torch.cat(rows, dim=-1) * times, columns)
    if settings.affinity:
        weights = leading(policy, parameters, "affinity")[..., policy.kernel_of]
        mixed = (stack.kernel_means * (times * weights)[:, None]).sum(2)
        total += product(mixed, stack.shared.kernels.T)
    if adds_bias:
        gain = bias_gain(stack, parameters)[..., None]
        total.addcmul_(gain, leading(policy, parameters, "bias")[:, None], value=times)
    if adds_taste:
        total.add_((leading(policy, parameters, "taste") @ policy.features.T)[:, None], alpha=times)
    if stack.blocked is not None:
        total += stack.blocked
    return total


def against_items(policy: Policy, parameters: Parameters, rows: Tensor, table: Tensor | None) -> Tensor:
    """``<E(a), row>`` for every item, ``[devices, n, items]``; without ``ids`` through the features, with no table."""
    if table is not None:
        return product(rows, table.mT)
    return product(product(rows, parameters["content"].mT), policy.features.T)


def bias_gain(stack: Stack, parameters: Parameters) -> Tensor:
    """Weight of the bias, ``[devices, examples]`` (one column where all are alike)."""
    gain = leading(stack.policy, parameters, "gain")
    return stack.policy.settings.bias_scale * (gain[:, :1] + gain[:, 1:] * stack.known)


def _slopes(stack: Stack, scores: Tensor, last: bool) -> Slopes:
    chosen, targets, weights = torch.softmax(scores, dim=-1), stack.targets, stack.weights
    if stack.moving:
        met = chosen.expand(-1, targets.shape[1], -1).gather(-1, targets)
        weights = weights * target_weights(met, stack.examples, stack.settings, last=last)
    if stack.alike:
        return SharedSlopes(chosen, weights[..., 0], targets[..., 0])
    more = None if stack.linear else _more_slopes(stack, chosen)
    values = chosen.mul_(weights.sum(-1, keepdim=True)).scatter_add_(-1, targets, -weights)
    if more is not None:
        values += more
    return DenseSlopes(values, torch.ones(values.shape[:2]))


def _more_slopes(stack: Stack, chosen: Tensor) -> Tensor:
    """Slopes of the trust region and of what is expected of all items."""
    total, settings = torch.zeros_like(chosen), stack.settings
    if settings.trust_region > 0:
        if stack.anchor is None:
            raise ValueError("expected the policy at the initialization for local.trust_region > 0, got none")
        total += settings.trust_region * stack.valid.amax(-1, keepdim=True) * (chosen - stack.anchor)
    expected = stack.gains[1]
    if expected is not None:
        share = (stack.valid.sum(-1) / stack.divisor)[..., None]
        total -= share * expected_slopes(chosen, expected, settings.top_k)
    return total
