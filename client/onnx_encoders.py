"""The state encoders of ``meta.state`` as ONNX operators; each function is the twin of the one of its name there."""

from __future__ import annotations

import math

import torch

from ..meta import state as encoders
from ..meta.policy import Parameters
from .onnx_graph import Graph


def recency_weights(graph: Graph, log_scale: torch.Tensor, mask: str, length: int) -> str:
    """Normalised weights of every history entry at every scale, ``[batch, scales, length]``."""
    ages = torch.arange(length - 1, -1, -1, dtype=torch.float32)
    decay = torch.exp(-ages * torch.exp(-log_scale)[:, None])
    raw = graph.op("Mul", graph.op("Unsqueeze", mask, graph.constant([1])), graph.constant(decay))
    total = graph.op("ReduceSum", raw, graph.constant([-1]), keepdims=1)
    return graph.op("Div", raw, graph.op("Add", total, graph.constant(encoders.EMPTY)))


def encode(graph: Graph, kind: str, parameters: Parameters, embedded: str, mask: str, length: int) -> str:
    """The encoder ``kind`` of embedded histories ``[batch, length, dim]``, zero where padded: ``[batch, dim]``."""
    build = {"history": _recency_means, "gru": _gru, "transformer": _transformer}[kind]
    return build(graph, parameters, embedded, mask, length)


def _recency_means(graph: Graph, parameters: Parameters, embedded: str, mask: str, length: int) -> str:
    weights = recency_weights(graph, parameters["state.log_scale"], mask, length)
    mix = parameters["state.mix"].flatten(0, 1)
    means = graph.op("Reshape", graph.op("MatMul", weights, embedded), graph.constant([0, mix.shape[0]]))
    return graph.op("MatMul", means, graph.constant(mix))


def _gru(graph: Graph, parameters: Parameters, embedded: str, mask: str, length: int) -> str:
    """Unrolled over the history; padding keeps the state, which ONNX's own GRU can't do on the left."""
    gates = range(3)
    inputs = [graph.op("MatMul", embedded, graph.constant(parameters["state.input"][gate])) for gate in gates]
    inputs = [graph.op("Add", inputs[gate], graph.constant(parameters["state.gate_bias"][gate])) for gate in gates]
    recurrent = [graph.constant(parameters["state.recurrent"][gate]) for gate in gates]
    one, zero = graph.constant(1.0), graph.constant(0.0)
    state = graph.op("Mul", _at(graph, embedded, 0), zero)
    for step in range(length):
        hidden = [graph.op("MatMul", state, recurrent[gate]) for gate in gates]
        given = [_at(graph, inputs[gate], step) for gate in gates]
        update, reset = (graph.op("Sigmoid", graph.op("Add", given[gate], hidden[gate])) for gate in (0, 1))
        fresh = graph.op("Tanh", graph.op("Add", given[2], graph.op("Mul", reset, hidden[2])))
        kept = graph.op("Mul", update, state)
        moved = graph.op("Add", kept, graph.op("Mul", graph.op("Sub", one, update), fresh))
        seen = graph.op("Gather", mask, graph.constant([step]), axis=1)
        state = graph.op("Add", state, graph.op("Mul", seen, graph.op("Sub", moved, state)))
    return graph.op("MatMul", state, graph.constant(parameters["state.output"]))


def _transformer(graph: Graph, parameters: Parameters, embedded: str, mask: str, length: int) -> str:
    norms, attention = parameters["state.norm"], parameters["state.attention"]
    dim = attention.shape[-1]
    wide = graph.op("Mul", embedded, graph.constant(math.sqrt(dim)))
    placed = graph.op("Add", wide, graph.constant(parameters["state.position"][-length:]))
    tokens = graph.op("Mul", placed, graph.op("Unsqueeze", mask, graph.constant([-1])))
    normed = _layer_norm(graph, tokens, norms[0])
    last = graph.op("Gather", normed, graph.constant([length - 1]), axis=1)
    query, key, value = (
        _heads(graph, graph.op("MatMul", rows, graph.constant(attention[part])), dim)
        for part, rows in enumerate((last, normed, normed))
    )
    met = graph.op("ReduceSum", graph.op("Mul", query, key), graph.constant([-1]), keepdims=0)
    scores = graph.op("Div", met, graph.constant(math.sqrt(_width(dim))))
    seen = graph.op("Greater", graph.op("Unsqueeze", mask, graph.constant([-1])), graph.constant(0.0))
    weights = graph.op("Softmax", graph.op("Where", seen, scores, graph.constant(-1e4)), axis=1)
    mixed = graph.op("Mul", graph.op("Unsqueeze", weights, graph.constant([-1])), value)
    mixed = graph.op("ReduceSum", mixed, graph.constant([1]), keepdims=0)
    mixed = graph.op("MatMul", graph.op("Reshape", mixed, graph.constant([0, dim])), graph.constant(attention[3]))
    state = graph.op("Add", _at(graph, tokens, length - 1), mixed)
    inner = graph.op("MatMul", _layer_norm(graph, state, norms[1]), graph.constant(parameters["state.widen"]))
    inner = graph.op("MatMul", _gelu(graph, inner), graph.constant(parameters["state.narrow"]))
    state = _layer_norm(graph, graph.op("Add", state, inner), norms[2])
    return graph.op("Mul", state, graph.op("ReduceMax", mask, graph.constant([1]), keepdims=1))


def _at(graph: Graph, values: str, step: int) -> str:
    """``values[:, step]`` of ``[batch, length, dim]``."""
    return graph.op("Gather", values, graph.constant(torch.tensor(step)), axis=1)


def _width(dim: int) -> int:
    return dim // encoders.HEADS if dim % encoders.HEADS == 0 else dim


def _heads(graph: Graph, values: str, dim: int) -> str:
    width = _width(dim)
    return graph.op("Reshape", values, graph.constant([0, 0, dim // width, width]))


def _layer_norm(graph: Graph, values: str, gain: torch.Tensor) -> str:
    last = graph.constant([-1])
    centred = graph.op("Sub", values, graph.op("ReduceMean", values, last, keepdims=1))
    variance = graph.op("ReduceMean", graph.op("Mul", centred, centred), last, keepdims=1)
    spread = graph.op("Sqrt", graph.op("Add", variance, graph.constant(1e-6)))
    return graph.op("Mul", graph.op("Div", centred, spread), graph.constant(1 + gain))


def _gelu(graph: Graph, values: str) -> str:
    erf = graph.op("Erf", graph.op("Div", values, graph.constant(math.sqrt(2.0))))
    half = graph.op("Mul", values, graph.constant(0.5))
    return graph.op("Mul", half, graph.op("Add", erf, graph.constant(1.0)))
