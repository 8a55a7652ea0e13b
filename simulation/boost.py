"""Updates that outliers blow up before they send them, without a word of it in the engine.

``clip(b u, S) = b clip(u, S / b)``: devices that multiply their updates by b are adapted at a b-th of the clip, and
what they release is multiplied by b. So a clip holds a blown up update as it holds any other.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from ..config import Config
from ..meta.policy import Named
from .cohort import CohortResult

Ints = NDArray[np.int64]
Adapt = Callable[[Ints, Config], CohortResult]


def adapt_boosted(adapt: Adapt, devices: Ints, outliers: Ints, config: Config) -> CohortResult:
    """What a round's devices release, outliers among them times ``data.outlier_boost``.

    Args:
        adapt: adapts some devices under a configuration.
        devices: the round's, increasing, int64 ``[devices]``.
        outliers: those of the whole world.
        config: the round's configuration.
    """
    boost = config.data.outlier_boost
    bad = np.isin(devices, outliers)
    if boost == 1 or not bad.any():
        return adapt(devices, config)
    theirs = _times(adapt(devices[bad], config.updated(privacy__clip=config.privacy.clip / boost)), boost)
    if bad.all():
        return theirs
    honest = adapt(devices[~bad], config)
    return CohortResult(
        total={name: value + theirs.total[name] for name, value in honest.total.items()},
        personal=_merged(honest.personal, theirs.personal, bad),
        unclipped=honest.unclipped + theirs.unclipped,
        each=_merged(honest.each, theirs.each, bad),
    )


def _times(result: CohortResult, boost: float) -> CohortResult:
    return CohortResult(
        total={name: value * boost for name, value in result.total.items()},
        personal=result.personal,
        unclipped=result.unclipped,
        each={name: value * boost for name, value in result.each.items()},
    )


def _merged(honest: Named, theirs: Named, bad: NDArray[np.bool_]) -> Named:
    """Rows of both in the order of the devices."""
    places = torch.from_numpy(bad)
    merged = {}
    for name, value in honest.items():
        merged[name] = torch.empty(len(bad), *value.shape[1:], dtype=value.dtype)
        merged[name][~places] = value
        merged[name][places] = theirs[name]
    return merged
