"""Adaptation of many devices at once, with a backward pass that is written out.

``meta.adapt`` says what is computed, one device at a time and by automatic differentiation; this module computes the
same for a stack of devices. No device gets an item table of gradients: what ``ids`` gets is kept as factors
(``meta.table``), from which norms and sums over devices follow.

Parameters are shared (``[*shape]``) or each device's own (``[devices, *shape]``); both may be mixed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from ..config import LocalConfig
from .adapt import step_size
from .examples import Examples
from .objective import blocked_history, example_shares, target_divisor
from .policy import Named, Parameters, Policy, State
from .slopes import DenseSlopes, SharedSlopes, Slopes, own_rows, product
from .table import TableGradient

_OFFSETS = frozenset({"taste", "latent", "personal"})
"""Parameters that add the same to the scores of all of a device's examples."""
_TINY = 1e-20


@dataclass(frozen=True, kw_only=True, eq=False)
class Stack:
    """Examples of many devices, and what does not change while they adapt.

    Attributes:
        policy: the policy.
        examples: every field with a leading axis ``[devices, ...]``, as from ``stack_examples``.
        settings: step sizes and objective.
        alike: all examples of a device have one state and one target each: their scores are computed once.
    """

    policy: Policy
    examples: Examples
    settings: LocalConfig
    alike: bool = False

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
        return torch.log1p(self.mask.sum(-1))

    @cached_property
    def targets(self) -> Tensor:
        """Actions taken, any item where there is none, int64 ``[devices, examples, targets]``."""
        return self.examples.targets.clamp(min=0)

    @cached_property
    def weights(self) -> Tensor:
        """``(r - b)`` of every target over its example's divisor, 0 where there is none (see ``meta.objective``)."""
        examples, settings = self.examples, self.settings
        valid = (examples.targets >= 0).to(torch.float32)
        advantage = examples.rewards if settings.reward == "value" else torch.ones_like(examples.rewards)
        return valid * (advantage - settings.baseline) / target_divisor(valid, settings)[..., None]

    @cached_property
    def logged(self) -> bool:
        """Whether any target has a propensity."""
        return bool((self.examples.propensities > 0).any())

    @cached_property
    def last(self) -> Tensor:
        """Weight of every example in its device's loss at the last step, ``[devices, examples]``."""
        return example_shares(self.examples, self.settings)

    @cached_property
    def before(self) -> Tensor:
        """The same at the steps before."""
        return example_shares(self.examples, self.settings, last=False)

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
        means = self.policy.kernel_means(flat, (flat >= 0).to(torch.float32)) * self.policy.trust(self.mask).flatten(
            0, 1
        )
        return means.movedim(0, 1).reshape(*self.examples.history.shape[:2], *means.shape[::2])

    @cached_property
    def places(self) -> tuple[Tensor, Tensor]:
        """Distinct history items of every device ``[devices, distinct]``, and every entry's place among them."""
        flat = self.examples.history.flatten(1)
        ordered, order = flat.sort(dim=1)
        begins = functional.pad((ordered[:, 1:] != ordered[:, :-1]).to(torch.int64), (1, 0))
        places = begins.cumsum(1)
        items = torch.zeros(len(flat), int(places[:, -1].amax()) + 1, dtype=torch.int64)
        items.scatter_(1, places, ordered.clamp(min=0))
        return items, torch.empty_like(flat).scatter_(1, order, places)

    def only(self, rows: Tensor) -> Stack:
        """The stack of some of the devices."""
        return replace(self, examples=Examples._make(value[rows] for value in self.examples))


@dataclass(frozen=True, kw_only=True, eq=False)
class Pass:
    """A forward pass.

    Attributes:
        scores: after the temperature, ``[devices, examples, items]``.
        slopes: of every example's own loss by the scores before the temperature.
        states: ``u(s)`` with all that is added to it, ``[devices, examples, dim]``; none without an item encoder.
        embedded: embeddings of the history, ``[devices, examples, length, dim]``; none without a state encoder.
        table: ``E`` of all items where there are ``ids``, ``[items, dim]``, shared or own.
    """

    scores: Tensor
    slopes: Slopes
    states: Tensor | None
    embedded: Tensor | None
    table: Tensor | None

    @property
    def finite(self) -> Tensor:
        """Devices all of whose scores are, bool ``[devices]``."""
        return torch.isfinite(self.scores.sum((-1, -2)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Pulled:
    """What the state encoder passes back.

    Attributes:
        small: by its own parameters, ``[devices, *shape]``, or ``[devices, examples, *shape]`` for each example.
        embedded: by the embeddings of the history, ``[devices, examples, length, dim]``, zero where padded.
    """

    small: Named
    embedded: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Gradients:
    """Gradients of every device's loss.

    Attributes:
        plain: ``[devices, *shape]`` by name.
        table: by ``ids``, where it was asked for.
    """

    plain: Named
    table: TableGradient | None


def is_own(policy: Policy, parameters: Parameters, name: str) -> bool:
    """Whether the parameter is each device's own."""
    return parameters[name].dim() > len(policy.specs[name].shape)


def leading(policy: Policy, parameters: Parameters, name: str) -> Tensor:
    """The parameter with a leading axis, ``[devices or 1, *shape]``."""
    return parameters[name] if is_own(policy, parameters, name) else parameters[name][None]


def scores(policy: Policy, parameters: Parameters, states: State) -> Tensor:
    """``policy.scores`` of one state each for many devices, ``[devices, items]``.

    Args:
        policy: the policy.
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
        user=states.user,
    )
    return _pass(Stack(policy=policy, examples=examples, settings=LocalConfig()), parameters)[0][:, 0]


def forward(stack: Stack, parameters: Parameters) -> Pass:
    """Scores of every example and the slopes of its own loss, at ``parameters``, shared or own."""
    scores, states, embedded, table = _pass(stack, parameters)
    heat = _heat(stack.policy, parameters)
    slopes = _slopes(stack, scores)
    return Pass(
        scores=scores,
        slopes=slopes if heat is None else slopes.weighted(heat),
        states=states,
        embedded=embedded,
        table=table,
    )


def _pass(stack: Stack, parameters: Parameters) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Scores, states, embedded histories and item table: the fields of a :class:`Pass`."""
    policy = stack.policy
    table = _table(policy, parameters)
    states, embedded = _states(stack, parameters, table) if policy.embeds else (None, None)
    scores = _scores(stack, parameters, states, table)
    heat = _heat(policy, parameters)
    if heat is not None:
        scores *= heat[..., None]
    return scores, states, embedded, table


def _heat(policy: Policy, parameters: Parameters) -> Tensor | None:
    """``exp(temperature)``, ``[devices or 1, 1]``; none where there is none."""
    return torch.exp(leading(policy, parameters, "temperature")) if "temperature" in policy.specs else None


def _table(policy: Policy, parameters: Parameters) -> Tensor | None:
    if not (policy.embeds and policy.settings.ids):
        return None
    if not policy.settings.content_embedding:
        return parameters["ids"]
    return parameters["ids"] + policy.features @ parameters["content"]


def _states(stack: Stack, parameters: Parameters, table: Tensor | None) -> tuple[Tensor, Tensor | None]:
    policy = stack.policy
    total = leading(policy, parameters, "latent")[:, None].expand(stack.count, stack.mask.shape[1], -1)
    if "user" in policy.specs:
        total = total + product(stack.examples.user[:, None], parameters["user"])
    if "personal" in policy.specs:
        total = total + leading(policy, parameters, "personal")[:, None]
    if not policy.encodes_history:
        return total, None
    history = stack.examples.history.clamp(min=0)
    embedded = _embedded(policy, parameters, history, table)
    small = _encoder_parameters(policy, parameters)
    axes = (_axes(policy, small), 0, 0, 0)
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


def _encoder_parameters(policy: Policy, parameters: Parameters) -> Named:
    return {name: parameters[name] for name in policy.specs if name.startswith("state.")}


def _axes(policy: Policy, parameters: Parameters) -> dict[str, int | None]:
    return {name: 0 if is_own(policy, parameters, name) else None for name in parameters}


def _scores(stack: Stack, parameters: Parameters, states: Tensor | None, table: Tensor | None) -> Tensor:
    """Scores before the temperature, ``[devices, examples, items]``, a tensor of its own."""
    policy, settings = stack.policy, stack.policy.settings
    if states is None:
        total = torch.zeros(stack.count, stack.mask.shape[1], policy.items)
    else:
        total = against_items(policy, parameters, states, table)
    if settings.affinity:
        weights = leading(policy, parameters, "affinity")[..., policy.kernel_of]
        mixed = (stack.kernel_means * weights[:, None]).sum(2)
        total += product(mixed, policy.kernels.T)
    if settings.bias:
        total.addcmul_(_gain(stack, parameters)[..., None], leading(policy, parameters, "bias")[:, None])
    if settings.content:
        total += (leading(policy, parameters, "taste") @ policy.features.T)[:, None]
    if stack.blocked is not None:
        total += stack.blocked
    return total


def against_items(policy: Policy, parameters: Parameters, rows: Tensor, table: Tensor | None) -> Tensor:
    """``<E(a), row>`` for every item, ``[devices, n, items]``; without ``ids`` through the features, with no table."""
    if table is not None:
        return product(rows, table.mT)
    return product(product(rows, parameters["content"].mT), policy.features.T)


def _from_items(policy: Policy, parameters: Parameters, done: Pass, slopes: Slopes) -> Tensor:
    """``slopes @ E``, ``[devices, examples, dim]``."""
    if done.table is not None:
        return slopes.times(done.table)
    return product(slopes.times(policy.features), parameters["content"])


def _gain(stack: Stack, parameters: Parameters) -> Tensor:
    """Weight of the bias, ``[devices, examples]`` (one column where all are alike)."""
    gain = leading(stack.policy, parameters, "gain")
    return stack.policy.settings.bias_scale * (gain[:, :1] + gain[:, 1:] * stack.known)


def _slopes(stack: Stack, scores: Tensor) -> Slopes:
    chosen, targets, weights = torch.softmax(scores, dim=-1), stack.targets, stack.weights
    if stack.logged:
        met = chosen.expand(-1, targets.shape[1], -1).gather(-1, targets)
        weights = weights * _ratio(stack, met)
    if stack.alike:
        return SharedSlopes(chosen, weights[..., 0], targets[..., 0])
    return DenseSlopes(chosen.mul_(weights.sum(-1, keepdim=True)).scatter_add_(-1, targets, -weights))


def _ratio(stack: Stack, met: Tensor) -> Tensor:
    """Capped importance weights of the targets, chosen with probability ``met``; 1 where the log has no propensity."""
    logged = stack.examples.propensities
    ratio = (met / logged.clamp(min=1e-12)).clamp(max=stack.settings.weight_cap)
    return torch.where(logged > 0, ratio, torch.ones_like(ratio))


def backward(
    stack: Stack,
    parameters: Parameters,
    done: Pass,
    weights: Tensor,
    names: Collection[str],
    pulled: Pulled | None = None,
) -> Gradients:
    """Gradients of ``sum_j weights_j loss_j`` for every device.

    Args:
        stack: the devices.
        parameters: where ``done`` was computed.
        done: the forward pass.
        weights: of the examples, ``[devices, examples]``.
        names: parameters asked for.
        pulled: what the state encoder passes back for each example, where the caller has it.
    """
    policy, slopes = stack.policy, done.slopes.weighted(weights)
    plain: Named = {}
    if "taste" in names:
        plain["taste"] = slopes.summed() @ policy.features
    if "bias" in names:
        plain["bias"] = slopes.combined(_gain(stack, parameters))
    for name in ("gain", "affinity", "temperature"):
        if name in names:
            plain[name] = _BY_EXAMPLE[name](stack, parameters, done, slopes).sum(1)
    if done.states is None or not set(policy.embedding_names) & set(names):
        return Gradients(plain=plain, table=None)
    cotangent = _from_items(policy, parameters, done, slopes)
    direct = cotangent.sum(1)
    plain |= {name: direct for name in ("latent", "personal") if name in names}
    if "user" in names:
        plain["user"] = stack.examples.user[..., None] * direct[:, None]
    passed = None
    if done.embedded is not None and needs_encoder(policy, names):
        if pulled is None:
            pulled = pull_back(stack, parameters, done, cotangent, names)
            plain |= pulled.small
            passed = pulled.embedded
        else:
            plain |= {name: torch.einsum("nb,nb...->n...", weights, one) for name, one in pulled.small.items()}
            passed = pulled.embedded * weights[..., None, None]
    rows = None if passed is None else _by_item(stack, passed)
    if "content" in names:
        plain["content"] = _by_content(stack, slopes, done.states, rows)
    table = None
    if "ids" in names:
        items = None if rows is None else stack.places[0]
        table = TableGradient(slopes=slopes, states=done.states, items=items, rows=rows)
    return Gradients(plain=plain, table=table)


def needs_encoder(policy: Policy, names: Collection[str]) -> bool:
    """Whether the gradients asked for pass through the state encoder."""
    return any(name in ("ids", "content") or name.startswith("state.") for name in names)


def _by_gain(stack: Stack, parameters: Parameters, done: Pass, slopes: Slopes) -> Tensor:
    """``[devices, examples, 2]``."""
    biased = slopes.times(parameters["bias"][..., None])[..., 0]
    scaled = stack.policy.settings.bias_scale * biased
    return torch.stack([scaled, scaled * stack.known], dim=-1)


def _by_affinity(stack: Stack, parameters: Parameters, done: Pass, slopes: Slopes) -> Tensor:
    """``[devices, examples, scales, kernels]``."""
    policy = stack.policy
    products = stack.kernel_means * slopes.times(policy.kernels)[:, :, None]
    sums = torch.zeros(*products.shape[:-1], len(policy.kernel_names))
    return sums.index_add_(-1, policy.kernel_of, products)


def _by_temperature(stack: Stack, parameters: Parameters, done: Pass, slopes: Slopes) -> Tensor:
    """``[devices, examples, 1]``."""
    heat = torch.exp(leading(stack.policy, parameters, "temperature"))
    return (slopes.dot(done.scores) / heat)[..., None]


_BY_EXAMPLE = {"gain": _by_gain, "affinity": _by_affinity, "temperature": _by_temperature}


def _by_content(stack: Stack, slopes: Slopes, states: Tensor, rows: Tensor | None) -> Tensor:
    """``[devices, features, dim]``, with what the items of the histories get."""
    features = stack.policy.features
    if stack.alike:
        total = (slopes.summed() @ features)[..., None] * states
    else:
        total = slopes.times(features).mT @ states
    return total if rows is None else total.baddbmm_(functional.embedding(stack.places[0], features).mT, rows)


def _by_item(stack: Stack, passed: Tensor) -> Tensor:
    """What is passed back to the entries of the histories, summed by item: ``[devices, distinct, dim]``."""
    items, places = stack.places
    rows = torch.zeros(items.numel(), passed.shape[-1])
    rows.index_add_(0, own_rows(places, items.shape[1]).flatten(), passed.reshape(-1, passed.shape[-1]))
    return rows.reshape(*items.shape, -1)


def pull_back(
    stack: Stack, parameters: Parameters, done: Pass, cotangent: Tensor, names: Collection[str], *, each: bool = False
) -> Pulled:
    """The state encoder's part of the backward pass, with a gradient for ``each`` example or one for each device."""
    policy = stack.policy
    small = _encoder_parameters(policy, parameters)
    wanted = [name for name in small if name in names]

    def one(own: Parameters, embedded: Tensor, levels: Tensor, mask: Tensor, slope: Tensor) -> tuple[Named, Tensor]:
        def encode(chosen: Named, rows: Tensor) -> Tensor:
            return policy.encode_history({**own, **chosen}, rows, levels, mask)

        pull = torch.func.vjp(encode, {name: own[name] for name in wanted}, embedded)[1]
        back: tuple[Named, Tensor] = pull(slope)
        return back

    def every(own: Parameters, *rows: Tensor) -> tuple[Named, Tensor]:
        single = tuple(value[:, None] for value in rows)
        nothing = dict.fromkeys(own)
        chosen, passed = torch.func.vmap(one, in_dims=(nothing, 0, 0, 0, 0))(own, *single)
        return chosen, passed[:, 0]

    batched = torch.func.vmap(every if each else one, in_dims=(_axes(policy, small), 0, 0, 0, 0))
    chosen, passed = batched(small, done.embedded, stack.examples.levels, stack.mask, cotangent)
    return Pulled(small=chosen, embedded=passed)


def example_squares(
    stack: Stack, parameters: Parameters, done: Pass, scales: Mapping[str, float], names: Collection[str]
) -> tuple[Tensor, Pulled | None]:
    """Squared norm of every example's own gradient over its scales, ``[devices, examples]``, and what the encoder gave.

    Ghost norms (Goodfellow 2015; Li et al. 2022, section 4): no example's gradient of an item table is written down.
    """
    policy, slopes = stack.policy, done.slopes
    squares: Named = {}
    if "taste" in names:
        squares["taste"] = slopes.times(policy.features).square().sum(-1)
    if "bias" in names:
        squares["bias"] = slopes.squares() * _gain(stack, parameters).square()
    for name in ("gain", "affinity", "temperature"):
        if name in names:
            squares[name] = _BY_EXAMPLE[name](stack, parameters, done, slopes).square().flatten(2).sum(-1)
    pulled = None
    if done.states is not None and set(policy.embedding_names) & set(names):
        cotangent = _from_items(policy, parameters, done, slopes)
        met = cotangent.square().sum(-1)
        squares |= {name: met for name in ("latent", "personal") if name in names}
        if "user" in names:
            squares["user"] = met * stack.examples.user.square().sum(-1, keepdim=True)
        if done.embedded is not None and needs_encoder(policy, names):
            pulled = pull_back(stack, parameters, done, cotangent, names, each=True)
            squares |= {name: one.square().flatten(2).sum(-1) for name, one in pulled.small.items()}
        if "content" in names:
            squares["content"] = _content_squares(stack, slopes, done.states, pulled)
        if "ids" in names:
            squares["ids"] = _table_squares(stack, slopes, done.states, pulled)
    total = torch.zeros(stack.examples.present.shape)
    for name, value in squares.items():
        total = total + value / scales.get(name, 1.0) ** 2
    return total, pulled


def _content_squares(stack: Stack, slopes: Slopes, states: Tensor, pulled: Pulled | None) -> Tensor:
    met = slopes.times(stack.policy.features)
    if pulled is None:
        return met.square().sum(-1) * states.square().sum(-1)
    rows = functional.embedding(stack.examples.history.clamp(min=0), stack.policy.features)
    gradients = met[..., None] * states[..., None, :] + rows.mT @ pulled.embedded
    return gradients.square().sum((-1, -2))


def _table_squares(stack: Stack, slopes: Slopes, states: Tensor, pulled: Pulled | None) -> Tensor:
    outer = slopes.squares() * states.square().sum(-1)
    if pulled is None:
        return outer
    history, passed = stack.examples.history, pulled.embedded
    along = (passed @ states[..., None])[..., 0]
    cross = 2 * (slopes.at(history.clamp(min=0)) * along).sum(-1)
    same = (history[..., :, None] == history[..., None, :]).to(passed.dtype)
    inner = ((passed @ passed.mT) * same).sum((-1, -2))
    return (outer + cross + inner).clamp(min=0)


def descend_stack(stack: Stack, parameters: Parameters, *, steps: int, names: Collection[str]) -> Named:
    """``meta.adapt.descend`` for every device: the named parameters ``[devices, *shape]`` after ``steps`` steps."""
    policy = stack.policy
    start = {name: leading(policy, parameters, name).expand(stack.count, *policy.specs[name].shape) for name in names}
    if steps == 0 or not names:
        return start
    if set(names) <= _OFFSETS and "temperature" not in policy.specs:
        arrived = _descend_offsets(stack, parameters, start, steps)
        if arrived is not None:
            return arrived
    own = dict(start)
    for _ in range(steps):
        here = {**parameters, **own}
        gradients = backward(stack, here, forward(stack, here), stack.before, names)
        slopes = dict(gradients.plain)
        if gradients.table is not None:
            slopes["ids"] = gradients.table.each(policy.items)
        own = {name: _stepped(stack, name, value, start[name], slopes[name]) for name, value in own.items()}
    return own


def _stepped(stack: Stack, name: str, here: Tensor, start: Tensor, slope: Tensor) -> Tensor:
    pull = slope + stack.settings.weight_decay * (here - start)
    return here - step_size(stack.policy, stack.settings, name) * pull


def _descend_offsets(stack: Stack, parameters: Parameters, start: Named, steps: int) -> Named | None:
    """``descend_stack`` where the parameters add the same to the scores of all of a device's examples.

    Then ``exp(score) = exp(score at the start) * exp(offset)``, and a step costs two products with a matrix that stays,
    instead of a softmax over every example. None where that product would vanish in float32.
    """
    policy, own = stack.policy, dict(start)
    table = _table(policy, parameters)
    states = _states(stack, parameters, table)[0] if policy.embeds else None
    base = _scores(stack, parameters, states, table)
    met = base.gather(-1, stack.targets.flatten(2)) if stack.logged else None
    highest = base.amax(-1, keepdim=True)
    likely = base.sub_(highest).exp_()
    shares = stack.before[..., None] * stack.weights
    taken = _scattered(stack, shares)
    for step in range(steps):
        offset = _offset(policy, parameters, start, own, table) if step else torch.zeros(stack.count, policy.items)
        top = offset.amax(-1, keepdim=True)
        factor = (offset - top).exp_()
        mass = (factor[:, None] @ likely.mT)[:, 0]  # ten times the speed of likely @ factor
        if not bool((mass > _TINY).all()):
            return None
        weights = shares
        if met is not None:
            level = highest + (top + mass.log())[..., None]
            moved = met + offset[:, None].expand(-1, met.shape[1], -1).gather(-1, stack.targets)
            weights = shares * _ratio(stack, (moved - level).exp())
            taken = _scattered(stack, weights)
        slope = ((weights.sum(-1) / mass)[:, None] @ likely)[:, 0] * factor - taken
        own = {
            name: _stepped(stack, name, own[name], start[name], one)
            for name, one in _by_offset(policy, parameters, table, slope, own).items()
        }
    return own


def _scattered(stack: Stack, weights: Tensor) -> Tensor:
    """What the targets take off the slopes, ``[devices, items]``."""
    total = torch.zeros(stack.count, stack.policy.items)
    return total.scatter_add_(1, stack.targets.flatten(1), weights.flatten(1))


def _offset(policy: Policy, parameters: Parameters, start: Named, own: Named, table: Tensor | None) -> Tensor:
    """What the parameters add to the scores now and did not at the start, ``[devices, items]``."""
    moved = {name: (own[name] - start[name])[:, None] for name in own}
    parts = [product(moved["taste"], policy.features.T)] if "taste" in own else []
    vectors = [moved[name] for name in ("latent", "personal") if name in own]
    if vectors:
        parts.append(against_items(policy, parameters, sum(vectors[1:], vectors[0]), table))
    return sum(parts[1:], parts[0])[:, 0]


def _by_offset(
    policy: Policy, parameters: Parameters, table: Tensor | None, slope: Tensor, names: Collection[str]
) -> Named:
    """Gradients from the slope by the offset."""
    gradients = {"taste": slope @ policy.features} if "taste" in names else {}
    vectors = [name for name in ("latent", "personal") if name in names]
    if vectors:
        row = slope[:, None]
        if table is not None:
            met = product(row, table)[:, 0]
        else:
            met = product(product(row, policy.features), parameters["content"])[:, 0]
        gradients |= dict.fromkeys(vectors, met)
    return gradients
