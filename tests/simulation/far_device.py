"""A device with memory of its own, played by the processor: real numbers, and every mixture of places is an error.

Tensors on it are wrappers that say they are on torch's device type "lazy", which every build has and nothing here uses.
"""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("lazy", 0)
_COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class Far(torch.Tensor):
    """A tensor there; ``near`` holds its numbers."""

    near: torch.Tensor

    @staticmethod
    def __new__(cls, near):
        far = torch.Tensor._make_wrapper_subclass(
            cls,
            near.size(),
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            device=DEVICE,
        )
        far.near = near
        return far

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


class FarDevice(TorchDispatchMode):
    """While it is active, what is made on the device, or from what is there, is there."""

    operations = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.operations += any(isinstance(value, Far) for value in tree_flatten((args, kwargs))[0])
        return _run(function, args, kwargs or {})


def _run(function, args, kwargs):
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
    far = [value for value in tensors if isinstance(value, Far)]
    near = [value for value in tensors if not isinstance(value, Far) and value.dim() > 0]
    if far and near and function not in _COPIES:
        raise RuntimeError(f"{function}: tensors on two devices")
    device = kwargs.get("device")
    stays_far = bool(far) if device is None else torch.device(device).type == DEVICE.type
    near_kwargs = tree_map(_near, kwargs) | ({} if device is None else {"device": torch.device("cpu")})
    result = function(*tree_map(_near, args), **near_kwargs)
    if function._schema.name.endswith("_") and not function._schema.name.endswith("__"):  # in place, unlike __lshift__
        return args[0]
    if kwargs.get("out") is not None:
        return kwargs["out"]
    return tree_map(_far, result) if stays_far else result


def _near(value):
    return value.near if isinstance(value, Far) else value


def _far(value):
    return Far(value) if isinstance(value, torch.Tensor) and not isinstance(value, Far) else value
