"""Gradients of many devices' losses, and the norms of every example's, by a backward pass that is written out.

The plain forms are ``meta.adapt.loss_gradient`` and ``client.adaptation.per_example_gradients``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .policy import Named, Parameters, Policy
from .recency import Recency
from .slopes import Slopes, own_rows, product
from .stacked import Pass, Stack, batch_axes, bias_gain, encoder_parameters, leading
from .table import TableGradient


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
class EachExample:
    """What the norms of every example's own gradient took, which the gradients take again.

    Attributes:
        met: slopes times what gradients need, ``[devices, examples, k]``.
        pulled: what the state encoder passes back for each example, where it was asked.
    """

    met: Named
    pulled: Pulled | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Gradients:
    """Gradients of every device's loss.

    Attributes:
        plain: ``[devices, *shape]`` by name.
        tables: those that stay factors: by ``ids``, and by what it was asked for.
    """

    plain: Named
    tables: dict[str, TableGradient]


def backward(
    stack: Stack,
    parameters: Parameters,
    done: Pass,
    weights: Tensor,
    names: Collection[str],
    known: EachExample | None = None,
    factored: Collection[str] = (),
) -> Gradients:
    """Gradients of ``sum_j weights_j loss_j`` for every device.

    Args:
        stack: the devices.
        parameters: where ``done`` was computed.
        done: the forward pass.
        weights: of the examples, ``[devices, examples]``.
        names: parameters asked for.
        known: what :func:`example_squares` found there, where the caller has it.
        factored: ``bias`` or ``state.mix``, whose gradients are to stay factors, as those by ``ids`` always do; not
            where examples are alike.
    """
    policy, slopes = stack.policy, done.slopes.weighted(weights)
    if known is None:
        met, pulled = _met(slopes, _matrices(stack, parameters, done, names)), None
    else:
        needed = _matrices(stack, parameters, done, names)
        met, pulled = {name: known.met[name] * weights[..., None] for name in needed}, known.pulled
    plain = _by_scores(stack, parameters, done, slopes, met, set(names) - set(factored))
    tables: dict[str, TableGradient] = {}
    if "bias" in names and "bias" not in plain:
        tables["bias"] = TableGradient(slopes=slopes, states=bias_gain(stack, parameters)[..., None])
    if done.states is None or not _embeds(policy, names):
        return Gradients(plain=plain, tables=tables)
    cotangent = _from_items(parameters, done, met)
    direct = cotangent.sum(1)
    plain |= {name: direct for name in ("latent", "personal") if name in names}
    if "user" in names:
        plain["user"] = stack.examples.user[..., None] * direct[:, None]
    items = rows = None
    if done.embedded is not None and needs_encoder(policy, names):
        small, items, rows = _through_encoder(stack, parameters, done, cotangent, weights, names, pulled)
        plain |= small
    if isinstance(done.embedded, Recency) and "state.mix" in names:
        mixed = done.embedded.by_mix(cotangent)
        if "state.mix" in factored:
            tables["state.mix"] = mixed
        else:
            plain["state.mix"] = mixed.each(0).view(-1, *policy.specs["state.mix"].shape)
    if "content" in names:
        plain["content"] = _by_content(stack, slopes, met, done.states, items, rows)
    if "ids" in names:
        tables["ids"] = TableGradient(slopes=slopes, states=done.states, items=items, rows=rows)
    return Gradients(plain=plain, tables=tables)


def _by_scores(
    stack: Stack, parameters: Parameters, done: Pass, slopes: Slopes, met: Named, names: Collection[str]
) -> Named:
    """Gradients by what acts on the scores without the item encoder."""
    plain: Named = {}
    if "taste" in names:
        plain["taste"] = slopes.summed() @ stack.policy.features if stack.alike else met["features"].sum(1)
    if "bias" in names:
        plain["bias"] = slopes.combined(bias_gain(stack, parameters))
    if "gain" in names:
        plain["gain"] = _by_gain(stack, met["bias"]).sum(1)
    for name in ("affinity", "temperature"):
        if name in names:
            plain[name] = _BY_EXAMPLE[name](stack, parameters, done, slopes).sum(1)
    return plain


def _embeds(policy: Policy, names: Collection[str]) -> bool:
    """Whether the gradients asked for pass through the item encoder."""
    return bool(set(policy.embedding_names) & set(names))


def _matrices(stack: Stack, parameters: Parameters, done: Pass, names: Collection[str], each: bool = False) -> Named:
    """What slopes meet for the gradients asked for: ``features``, ``table`` and ``bias``, ``[items, k]`` or own.

    Where examples are alike and not asked for one by one, features meet their sum instead.
    """
    embeds = _embeds(stack.policy, names)
    matrices: Named = {}
    if ({"taste", "content"} & set(names) and (each or not stack.alike)) or (embeds and done.table is None):
        matrices["features"] = stack.policy.features
    if embeds and done.table is not None:
        matrices["table"] = done.table
    if "gain" in names:
        matrices["bias"] = parameters["bias"][..., None]
    return matrices


def _met(slopes: Slopes, matrices: Named) -> Named:
    """Slopes times the matrices, ``[devices, examples, k]``. What is shared is met in one product."""
    shared = {name: matrix for name, matrix in matrices.items() if matrix.dim() == 2}
    widths = [matrix.shape[1] for matrix in shared.values()]
    joint = slopes.times(torch.cat(list(shared.values()), dim=1)) if shared else torch.zeros(())
    met = dict(zip(shared, torch.split(joint, widths, dim=-1), strict=True)) if shared else {}
    return met | {name: slopes.times(matrix) for name, matrix in matrices.items() if name not in shared}


def _from_items(parameters: Parameters, done: Pass, met: Named) -> Tensor:
    """``slopes @ E``, ``[devices, examples, dim]``."""
    return met["table"] if done.table is not None else product(met["features"], parameters["content"])


def _through_encoder(
    stack: Stack,
    parameters: Parameters,
    done: Pass,
    cotangent: Tensor,
    weights: Tensor,
    names: Collection[str],
    pulled: Pulled | None,
) -> tuple[Named, Tensor, Tensor]:
    """Gradients by the state encoder's parameters, the distinct history items and what each of them gets."""
    if isinstance(done.embedded, Recency):
        small, rows = done.embedded.back(parameters, cotangent, names)
        return small, *done.embedded.by_item(rows)
    if pulled is None:
        pulled = pull_back(stack, parameters, done, cotangent, names)
        return pulled.small, stack.places[0], _by_item(stack, pulled.embedded)
    small = {name: torch.einsum("nb,nb...->n...", weights, one) for name, one in pulled.small.items()}
    return small, stack.places[0], _by_item(stack, pulled.embedded * weights[..., None, None])


def needs_encoder(policy: Policy, names: Collection[str]) -> bool:
    """Whether the gradients asked for pass through the state encoder."""
    return any(name in ("ids", "content") or name.startswith("state.") for name in names)


def _by_gain(stack: Stack, met: Tensor) -> Tensor:
    """``[devices, examples, 2]`` from the slopes times the bias."""
    scaled = stack.policy.settings.bias_scale * met[..., 0]
    return torch.stack([scaled, scaled * stack.known], dim=-1)


def _by_affinity(stack: Stack, parameters: Parameters, done: Pass, slopes: Slopes) -> Tensor:
    """``[devices, examples, scales, kernels]``."""
    policy = stack.policy
    products = stack.kernel_means * slopes.times(stack.shared.kernels)[:, :, None]
    sums = torch.zeros(*products.shape[:-1], len(policy.kernel_names))
    return sums.index_add_(-1, policy.kernel_of, products)


def _by_temperature(stack: Stack, parameters: Parameters, done: Pass, slopes: Slopes) -> Tensor:
    """``[devices, examples, 1]``."""
    heat = torch.exp(leading(stack.policy, parameters, "temperature"))
    return (slopes.dot(done.scores) / heat)[..., None]


_BY_EXAMPLE = {"affinity": _by_affinity, "temperature": _by_temperature}


def _by_content(
    stack: Stack, slopes: Slopes, met: Named, states: Tensor, items: Tensor | None, rows: Tensor | None
) -> Tensor:
    """``[devices, features, dim]``, with what the items of the histories get."""
    features = stack.policy.features
    if stack.alike:
        total = (slopes.summed() @ features)[..., None] * states
    else:
        total = met["features"].mT @ states
    if items is None or rows is None:
        return total
    return total.baddbmm_(functional.embedding(items, features).mT, rows)


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
    small = encoder_parameters(policy, parameters)
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

    if not isinstance(done.embedded, Tensor):
        raise TypeError("expected a pass over embeddings of the history, got another; build the stack with each = True")
    batched = torch.func.vmap(every if each else one, in_dims=(batch_axes(policy, small), 0, 0, 0, 0))
    chosen, passed = batched(small, done.embedded, stack.examples.levels, stack.mask, cotangent)
    return Pulled(small=chosen, embedded=passed)


def example_squares(
    stack: Stack, parameters: Parameters, done: Pass, scales: Mapping[str, float], names: Collection[str]
) -> tuple[Tensor, EachExample]:
    """Squared norm of every example's own gradient over its scales, ``[devices, examples]``, and what it took.

    Ghost norms (Goodfellow 2015; Li et al. 2022, section 4): no example's gradient of an item table is written down.
    """
    policy, slopes = stack.policy, done.slopes
    met = _met(slopes, _matrices(stack, parameters, done, names, each=True))
    squares: Named = {}
    if "taste" in names:
        squares["taste"] = met["features"].square().sum(-1)
    if "bias" in names:
        squares["bias"] = slopes.squares() * bias_gain(stack, parameters).square()
    if "gain" in names:
        squares["gain"] = _by_gain(stack, met["bias"]).square().sum(-1)
    for name in ("affinity", "temperature"):
        if name in names:
            squares[name] = _BY_EXAMPLE[name](stack, parameters, done, slopes).square().flatten(2).sum(-1)
    pulled = None
    if done.states is not None and _embeds(policy, names):
        cotangent = _from_items(parameters, done, met)
        direct = cotangent.square().sum(-1)
        squares |= {name: direct for name in ("latent", "personal") if name in names}
        if "user" in names:
            squares["user"] = direct * stack.examples.user.square().sum(-1, keepdim=True)
        if done.embedded is not None and needs_encoder(policy, names):
            pulled = pull_back(stack, parameters, done, cotangent, names, each=True)
            squares |= {name: one.square().flatten(2).sum(-1) for name, one in pulled.small.items()}
        if "content" in names:
            squares["content"] = _content_squares(stack, met["features"], done.states, pulled)
        if "ids" in names:
            squares["ids"] = _table_squares(stack, slopes, done.states, pulled)
    total = torch.zeros(stack.examples.present.shape)
    for name, value in squares.items():
        total = total + value / scales.get(name, 1.0) ** 2
    return total, EachExample(met=met, pulled=pulled)


def _content_squares(stack: Stack, met: Tensor, states: Tensor, pulled: Pulled | None) -> Tensor:
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
