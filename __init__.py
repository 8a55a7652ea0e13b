"""fedrec: federated, privacy-preserving recommendation with a meta-learned policy.

``simulate`` and ``Run`` need the extra ``fedrec[simulation]``; they are imported when first used, so that a device can
import fedrec without them. ``Device`` is imported when first used, too, and brings torch with its first recommendation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .config import Config, load_config
from .errors import FedrecError

if TYPE_CHECKING:
    from .client.device import Device
    from .simulation.run import Run, evaluate, simulate

__version__ = "0.1.0"
__all__ = ["Config", "Device", "FedrecError", "Run", "__version__", "evaluate", "load_config", "simulate"]

_SIMULATION = ("Run", "evaluate", "simulate")


def __getattr__(name: str) -> Any:
    if name in _SIMULATION:
        from .simulation import run

        return getattr(run, name)
    if name == "Device":
        from .client.device import Device

        return Device
    raise AttributeError(f"module 'fedrec' has no attribute {name!r}")
