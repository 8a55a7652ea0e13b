"""A policy's scores as an ONNX model, for inference outside of Python.

==================  ==============================  =============================================================
input               type and shape                  what
==================  ==============================  =============================================================
``history``         int64 ``[batch, length]``       catalogue rows, oldest first, -1 pads on the left
``levels``          int64 ``[batch, length]``       reward levels 0 to 4; only where the policy reads them
``user``            float32 ``[user features]``     the device's features; only where the policy reads them
fast weights        float32, as in the policy       may be left out: the meta-learned start stands in
``personal``        float32 ``[dim]``               may be left out: zeros
==================  ==============================  =============================================================

The output ``scores`` is float32 ``[batch, items]``. ``length`` is the policy's ``history_length``. A device that adapts
in Python and serves elsewhere feeds its own fast weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .._streams import torch_stream
from ..errors import BundleError
from ..meta import state as encoders
from ..meta.policy import Named, Parameters, Policy, State
from .bundle import Bundle
from .onnx_encoders import encode, recency_weights
from .onnx_graph import Graph
from .probing import random_states, with_personal

TOLERANCE = 1e-4
"""Largest difference to PyTorch, in scores, that an exported model may show."""


def export_onnx(policy: Policy, parameters: Parameters, notes: Mapping[str, str]) -> bytes:
    """The scoring function of ``policy`` at ``parameters`` as an ONNX model.

    Args:
        policy: the policy.
        parameters: shared ones; personal ones are zero where there are none.
        notes: texts for the model's metadata.

    Raises:
        BundleError: onnx is not installed.
    """
    builder = _Builder(policy, with_personal(policy, parameters))
    notes = {"schema": policy.schema(), "history_length": str(policy.settings.history_length), **notes}
    return builder.graph.model(builder.scores(), ["batch", policy.items], notes)


def largest_difference(content: bytes, policy: Policy, parameters: Parameters, seed: int = 0) -> float:
    """The largest difference between an exported model on onnxruntime and PyTorch, over random states.

    Fast and personal weights are moved at random too, so that the inputs that may be left out are judged as well.

    Raises:
        BundleError: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise BundleError("expected the package onnxruntime for an export, got none; install fedrec[export]") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    generator = torch_stream(seed, "onnx")
    states = random_states(policy, generator)
    start = with_personal(policy, parameters)
    own = {name: start[name] for name in served_names(policy)}
    own = {name: value + 0.1 * torch.randn(value.shape, generator=generator) for name, value in own.items()}
    worst = 0.0
    for moved in ({}, own):
        with torch.no_grad():
            expected = policy.scores({**start, **moved}, states)
        fed = _fed(session, states, moved)
        worst = max(worst, float((torch.from_numpy(session.run(["scores"], fed)[0]) - expected).abs().amax()))
    return worst


def checked_export(bundle: Bundle) -> tuple[bytes, float]:
    """A bundle's policy as an ONNX model, and the largest difference of its scores to PyTorch's.

    Raises:
        BundleError: onnx or onnxruntime is not installed, or the model differs by more than :data:`TOLERANCE`.
    """
    package = bundle.package
    notes = {"bundle": bundle.digest, "version": str(bundle.version), "item_ids": _json(package.catalogue.item_ids)}
    content = export_onnx(package.policy, package.phi, notes)
    off = largest_difference(content, package.policy, package.phi)
    if not off <= TOLERANCE:
        raise BundleError(f"expected scores within {TOLERANCE:g} of PyTorch's, got a difference of {off:g}; report it")
    return content, off


def served_names(policy: Policy) -> tuple[str, ...]:
    """Names of the weights that a device adapts for itself: fast and personal ones."""
    return tuple(sorted({*policy.names(speed="fast"), *policy.names(scope="personal")}))


class _Builder:
    """Writes ``Policy.scores`` term by term."""

    def __init__(self, policy: Policy, parameters: Named) -> None:
        self.graph = Graph()
        self._policy = policy
        self._parameters = parameters
        self._own = served_names(policy)
        self._length = policy.settings.history_length
        self._history = self.graph.read("history", ["batch", self._length], whole=True)
        zero = self.graph.constant(torch.tensor(0))
        seen = self.graph.op("GreaterOrEqual", self._history, zero)
        self._mask = self.graph.op("Cast", seen, to=1)
        self._rows = self.graph.op("Max", self._history, zero)
        self._known = self.graph.op("ReduceSum", self._mask, self.graph.constant([-1]), keepdims=1)

    def scores(self) -> str:
        """``[batch, items]``."""
        graph, policy = self.graph, self._policy
        nothing = graph.constant(torch.zeros(policy.items))
        total = graph.op("Mul", self._known, nothing)
        if policy.settings.bias:
            total = graph.op("Add", total, graph.op("Mul", self._gain(), self._weights("bias")))
        if policy.settings.content:
            taste = graph.op("MatMul", graph.constant(policy.features), self._weights("taste"))
            total = graph.op("Add", total, taste)
        if policy.settings.affinity:
            total = graph.op("Add", total, self._affinity())
        if policy.embeds:
            table = self._table()
            items = graph.op("Transpose", table, perm=[1, 0])
            total = graph.op("Add", total, graph.op("MatMul", self._state(table), items))
        if "temperature" in self._parameters:
            total = graph.op("Mul", total, graph.op("Exp", self._weights("temperature")))
        return total

    def _weights(self, name: str) -> str:
        """A parameter: a constant, or an input that may be left out."""
        value = self._parameters[name]
        return self.graph.default(value, name) if name in self._own else self.graph.constant(value, name)

    def _gain(self) -> str:
        graph = self.graph
        gain = self._weights("gain")
        level, slope = (graph.op("Gather", gain, graph.constant([place]), axis=0) for place in (0, 1))
        known = graph.op("Log", graph.op("Add", self._known, graph.constant(1.0)))
        weight = graph.op("Add", level, graph.op("Mul", slope, known))
        return graph.op("Mul", weight, graph.constant(self._policy.settings.bias_scale))

    def _trust(self) -> str:
        graph = self.graph
        worth = graph.op("Add", self._known, graph.constant(float(self._policy.settings.history_prior)))
        return graph.op("Div", self._known, graph.op("Max", worth, graph.constant(1.0)))

    def _affinity(self) -> str:
        graph, policy = self.graph, self._policy
        table = graph.constant(policy.kernel_table(self._parameters), "kernels")
        weights = recency_weights(graph, torch.log(torch.tensor(encoders.SCALES)), self._mask, self._length)
        means = graph.op("MatMul", weights, graph.op("Gather", table, self._rows, axis=0))
        columns = graph.op("Gather", self._weights("affinity"), graph.constant(policy.kernel_of), axis=1)
        mixed = graph.op("ReduceSum", graph.op("Mul", means, columns), graph.constant([1]), keepdims=0)
        trusted = graph.op("Mul", mixed, self._trust())
        return graph.op("MatMul", trusted, graph.op("Transpose", table, perm=[1, 0]))

    def _table(self) -> str:
        """``E(a)`` of every item: no device adapts what it is made of."""
        return self.graph.constant(self._policy.item_embedding(self._parameters), "items")

    def _state(self, table: str) -> str:
        graph, settings = self.graph, self._policy.settings
        total = graph.op("Add", graph.op("Mul", self._known, graph.constant(0.0)), self._weights("latent"))
        if "user" in self._parameters:
            features = graph.read("user", [self._policy.user_width])
            total = graph.op("Add", total, graph.op("MatMul", features, self._weights_of_user()))
        if settings.state == "personal":
            return graph.op("Add", total, self._weights("personal"))
        if not self._policy.encodes_history:
            return total
        return graph.op("Add", total, graph.op("Mul", self._encoded(table), self._trust()))

    def _weights_of_user(self) -> str:
        return self.graph.constant(self._parameters["user"], "user_weights")

    def _encoded(self, table: str) -> str:
        graph, parameters = self.graph, self._parameters
        embedded = graph.op("Gather", table, self._rows, axis=0)
        if self._policy.settings.history_rewards:
            levels = graph.read("levels", ["batch", self._length], whole=True)
            gain = graph.op("Gather", graph.constant(1 + parameters["state.reward_gain"]), levels, axis=0)
            embedded = graph.op("Mul", embedded, graph.op("Unsqueeze", gain, graph.constant([-1])))
            shift = graph.op("Gather", graph.constant(parameters["state.reward_shift"]), levels, axis=0)
            embedded = graph.op("Add", embedded, shift)
        embedded = graph.op("Mul", embedded, graph.op("Unsqueeze", self._mask, graph.constant([-1])))
        return encode(graph, self._policy.settings.state, parameters, embedded, self._mask, self._length)


def _json(texts: Sequence[str]) -> str:
    return json.dumps([str(one) for one in texts], ensure_ascii=False)


def _fed(session: Any, states: State, moved: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a session is fed: the states that it asks for and the weights that were moved."""
    wanted = [one.name for one in session.get_inputs()]
    given = {name: getattr(states, name).numpy() for name in wanted if name in State._fields}
    return given | {name: value.numpy() for name, value in moved.items()}
