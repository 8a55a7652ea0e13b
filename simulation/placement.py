"""Which device computes a cohort's chunks."""

from __future__ import annotations

import torch

from ..config import EngineConfig
from ..errors import ConfigError


def compute_device(engine: EngineConfig) -> torch.device:
    """The device that ``engine.device`` names; for ``auto`` the first CUDA device, and the processor without one.

    Random numbers are drawn on the processor wherever chunks are computed, so that every stream is the same; sums are
    rounded differently on another device.

    Raises:
        ConfigError: torch finds no such device here.
    """
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if engine.device == "auto":
        return torch.device("cuda", 0) if found else torch.device("cpu")
    device = torch.device(engine.device)
    if device.type == "cuda" and (device.index or 0) >= found:
        raise ConfigError(
            f"expected engine.device to be one that torch finds here, got {engine.device} and {found} CUDA devices; "
            "set it to auto or cpu"
        )
    return device
