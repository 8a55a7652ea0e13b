"""State encoders: from the most recent interactions to a vector ``u(s)`` of the policy's width.

Every encoder is a pure function of named parameters, so that the same code runs for one device, under
``torch.func.vmap`` for many, and under ``grad`` for one example. Histories are right-aligned: the most recent
interaction stands last and -1 pads on the left.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

Parameters = Mapping[str, Tensor]

SCALES = (0.7, 3.0, 12.0, 60.0)
"""Initial time constants, in interactions, of the recency-weighted means of the ``history`` encoder."""
HEADS = 2
"""Attention heads of the ``transformer`` encoder."""
EMPTY = 0.1
"""Mass of "nothing seen": keeps short histories close to zero and an empty one at zero."""


def encoder_shapes(kind: str, dim: int, length: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters of state encoder ``kind``."""
    if kind == "history":
        return {"state.log_scale": (len(SCALES),), "state.mix": (len(SCALES), dim, dim)}
    if kind == "gru":
        return {
            "state.input": (3, dim, dim),
            "state.recurrent": (3, dim, dim),
            "state.gate_bias": (3, dim),
            "state.output": (dim, dim),
        }
    if kind == "transformer":
        return {
            "state.position": (length, dim),
            "state.attention": (4, dim, dim),
            "state.widen": (dim, 2 * dim),
            "state.narrow": (2 * dim, dim),
            "state.norm": (3, dim),
        }
    return {}


def encode(kind: str, parameters: Parameters, embedded: Tensor, mask: Tensor) -> Tensor:
    """Encode histories.

    Args:
        kind: ``history``, ``gru`` or ``transformer``.
        parameters: at least those of :func:`encoder_shapes`.
        embedded: item embeddings of the history, ``[batch, length, dim]``, zero where padded.
        mask: 1 where there is an interaction, ``[batch, length]``.

    Returns:
        States ``[batch, dim]``; an empty history gives a finite state that depends on parameters only.
    """
    return {"history": _recency_means, "gru": _gru, "transformer": _transformer}[kind](parameters, embedded, mask)


def recency_weights(log_scale: Tensor, mask: Tensor) -> Tensor:
    """Normalised weights ``exp(-age / scale)`` of each interaction at each scale, ``[scales, batch, length]``."""
    ages = torch.arange(mask.shape[-1] - 1, -1, -1, device=mask.device, dtype=mask.dtype)
    raw = torch.exp(-ages * torch.exp(-log_scale)[:, None])[:, None, :] * mask
    return raw / (raw.sum(dim=-1, keepdim=True) + EMPTY)


def _recency_means(parameters: Parameters, embedded: Tensor, mask: Tensor) -> Tensor:
    """``sum_s mean_s(history) @ mix_s``, where ``mean_s`` forgets with time constant ``exp(log_scale_s)``."""
    weights = recency_weights(parameters["state.log_scale"], mask)
    means = torch.einsum("sbl,bld->sbd", weights, embedded)
    return torch.einsum("sbd,sde->be", means, parameters["state.mix"])


def _gru(parameters: Parameters, embedded: Tensor, mask: Tensor) -> Tensor:
    """Gated recurrent unit (Cho et al. 2014; reset gate after the product, as in cuDNN), padding left out."""
    inputs = torch.einsum("bld,gde->lgbe", embedded, parameters["state.input"])
    bias = parameters["state.gate_bias"]
    recurrent = parameters["state.recurrent"]
    state = torch.zeros_like(embedded[:, 0])
    for step in range(embedded.shape[1]):
        hidden = torch.einsum("bd,gde->gbe", state, recurrent)
        update = torch.sigmoid(inputs[step, 0] + hidden[0] + bias[0])
        reset = torch.sigmoid(inputs[step, 1] + hidden[1] + bias[1])
        fresh = torch.tanh(inputs[step, 2] + reset * hidden[2] + bias[2])
        seen = mask[:, step, None]
        state = seen * (update * state + (1 - update) * fresh) + (1 - seen) * state
    return state @ parameters["state.output"]


def _transformer(parameters: Parameters, embedded: Tensor, mask: Tensor) -> Tensor:
    """One pre-norm block (Kang and McAuley 2018, SASRec); only the last position is needed, so only it attends."""
    dim = embedded.shape[-1]
    norms = parameters["state.norm"]
    tokens = (embedded * math.sqrt(dim) + parameters["state.position"][-embedded.shape[1] :]) * mask[..., None]
    normed = _layer_norm(tokens, norms[0])
    query, key, value = (normed @ parameters["state.attention"][part] for part in range(3))
    width = dim // HEADS if dim % HEADS == 0 else dim
    scores = (_heads(query[:, -1:, :], width) * _heads(key, width)).sum(-1) / math.sqrt(width)
    attention = torch.softmax(scores.masked_fill(mask[..., None] == 0, -1e4), dim=1)
    mixed = (attention[..., None] * _heads(value, width)).sum(1).flatten(-2)
    state = tokens[:, -1] + mixed @ parameters["state.attention"][3]
    inner = functional.gelu(_layer_norm(state, norms[1]) @ parameters["state.widen"])
    state = _layer_norm(state + inner @ parameters["state.narrow"], norms[2])
    return state * mask.amax(dim=1, keepdim=True)


def _heads(values: Tensor, width: int) -> Tensor:
    """``[..., dim]`` as ``[..., dim / width, width]``."""
    return values.reshape(*values.shape[:-1], values.shape[-1] // width, width)


def _layer_norm(values: Tensor, gain: Tensor) -> Tensor:
    centred = values - values.mean(dim=-1, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(dim=-1, keepdim=True) + 1e-6) * (1 + gain)
