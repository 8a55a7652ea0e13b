"""A small builder of ONNX graphs: operators in, a checked model out. The graph is written by hand, not traced.

Tracing PyTorch would need one more dependency, and what it writes changes with PyTorch's version.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import BundleError

OPSET, IR_VERSION = 18, 9
"""Operators of ONNX 1.13 (2022), in the file format of 1.14: what inference engines have read for years."""


def onnx_package() -> Any:
    """The package ``onnx``.

    Raises:
        BundleError: it is not installed.
    """
    try:
        import onnx
    except ImportError:
        raise BundleError("expected the package onnx for an export, got none; install fedrec[export]") from None
    return onnx


class Graph:
    """Collects nodes, constants and inputs; values go by their names."""

    def __init__(self) -> None:
        """An empty graph."""
        self._onnx = onnx_package()
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}
        self._inputs: list[Any] = []

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Append a node with one output and return that output's name."""
        output = f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(self._onnx.helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def constant(self, value: Tensor | Sequence[int] | float, name: str = "") -> str:
        """A constant: float32, or int64 for whole numbers."""
        tensor = torch.as_tensor(value).detach()
        name = name or f"constant_{len(self._constants)}"
        wanted = np.dtype("<f4") if tensor.is_floating_point() else np.dtype("<i8")
        array = np.array(tensor.numpy(), dtype=wanted, order="C")
        self._constants[name] = self._onnx.numpy_helper.from_array(array, name)
        return name

    def read(self, name: str, shape: Sequence[int | str], *, whole: bool = False) -> str:
        """An input that the caller must feed: float32, or int64 where it is ``whole``."""
        kind = self._onnx.TensorProto.INT64 if whole else self._onnx.TensorProto.FLOAT
        self._inputs.append(self._onnx.helper.make_tensor_value_info(name, kind, list(shape)))
        return name

    def default(self, value: Tensor, name: str) -> str:
        """An input that may be left out: ``value`` is what it is then."""
        return self.constant(value, self.read(name, value.shape))

    def model(self, output: str, shape: Sequence[int | str], notes: Mapping[str, str]) -> bytes:
        """The checked model with one output, named ``scores``, as bytes; ``notes`` go into its metadata."""
        helper, kind = self._onnx.helper, self._onnx.TensorProto.FLOAT
        self._nodes.append(helper.make_node("Identity", [output], ["scores"]))
        graph = helper.make_graph(
            self._nodes,
            "policy",
            self._inputs,
            [helper.make_tensor_value_info("scores", kind, list(shape))],
            list(self._constants.values()),
        )
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION, producer_name="fedrec")
        helper.set_model_props(model, dict(notes))
        self._onnx.checker.check_model(model, full_check=True)
        content: bytes = model.SerializeToString()
        return content
