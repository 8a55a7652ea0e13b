"""A round's stacked updates, made one total: clip, then aggregate. Pure functions over named tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..config import ServerConfig
from ..meta.policy import Named
from ..privacy.mechanisms import Sensitivity
from .gate import Verdict
from .robust import AGGREGATORS, clipped_rows


@dataclass(frozen=True, kw_only=True, eq=False)
class Stack:
    """Every device's own update that passed the gate.

    Attributes:
        rows: ``[devices, *shape]`` by name.
        devices: roster index of each row, int64 ``[devices]``.
    """

    rows: Named
    devices: NDArray[np.int64]


def stack_of(verdict: Verdict, shares: Mapping[int, NDArray[np.int64]]) -> Stack | None:
    """The admitted replies' rows one below the other; none where no row was admitted.

    Args:
        verdict: of a gate that asked for stacks.
        shares: the roster indices that each node's order named.
    """
    if not verdict.admitted:
        return None
    names = sorted(verdict.admitted[0].update)
    places = [
        shares[node][reply.rows]
        for node, reply in zip(verdict.nodes, verdict.admitted, strict=True)
        if reply.rows is not None
    ]
    return Stack(
        rows={name: torch.cat([reply.update[name] for reply in verdict.admitted]) for name in names},
        devices=np.concatenate(places),
    )


def combined(stack: Stack, kept: NDArray[np.bool_], settings: ServerConfig, scales: Mapping[str, float]) -> Named:
    """A total in place of the sum: the estimate of the kept rows' mean, times the number of all rows.

    So a step is as long as if those left out had answered like the rest, and as a sum's where nobody is left out.

    Args:
        stack: the rows.
        kept: which of them may count, bool ``[devices]``, at least one.
        settings: aggregator, share of bad rows and clip.
        scales: public scale by parameter, in whose space rows are clipped.

    Returns:
        float64 tensors ``[*shape]``.
    """
    rows = stack.rows if kept.all() else {name: value[torch.from_numpy(kept)] for name, value in stack.rows.items()}
    if settings.robust_clip is not None:
        rows = clipped_rows(rows, Sensitivity(settings.robust_clip, scales))
    found = AGGREGATORS[settings.aggregator](rows, settings.byzantine)
    return {name: value * len(kept) for name, value in found.items()}
