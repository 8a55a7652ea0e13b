"""Which node hosts which device: a public, fixed assignment that no node can influence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import RunError


@dataclass(frozen=True)
class Roster:
    """The devices ``0 .. population - 1`` of a federation.

    With n nodes, their ids sorted, node i hosts the devices whose index is i modulo n. With ``single`` node i hosts
    device i alone and is addressed without an index.
    """

    population: int
    """Number of devices: a public constant, whether or not their nodes are there."""
    single: bool = False
    """One device a node, as in a deployment."""

    def __post_init__(self) -> None:
        if self.population < 2:
            raise RunError(
                f"expected a federation of at least 2 devices, got {self.population}; use a larger data set, or adapt "
                "a single device without a server"
            )

    def assign(self, devices: npt.NDArray[np.int64], node_ids: Iterable[int]) -> dict[int, npt.NDArray[np.int64]]:
        """Divide drawn devices (sorted indices) among the nodes that are there, in node order.

        Devices whose node is not there are left out: they are missing replies.
        """
        nodes = sorted(set(node_ids))
        if not nodes:
            return {}
        if self.single:
            return {nodes[index]: np.array([index]) for index in devices.tolist() if index < len(nodes)}
        shares = {node: devices[devices % len(nodes) == place] for place, node in enumerate(nodes)}
        return {node: share for node, share in shares.items() if share.size}
