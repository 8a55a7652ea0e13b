"""Poisson sampling: every unit takes part independently with a public rate, whatever the private counts are.

The accountants cover exactly this sampler. The rate is a public constant; the number drawn is private.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from .._streams import numpy_stream
from .._validate import at_least, probability
from .entropy import system_uniforms


def poisson_participants(seed: int | None, round_number: int, population: int, rate: float) -> npt.NDArray[np.int64]:
    """The devices of one round: each of ``population`` takes part with probability ``rate``.

    Args:
        seed: the draw comes from the stream (seed, round, "participation"); ``None`` draws from OS entropy.
            Amplification by sampling holds against those who do not know the draw: keep a deployment's seed secret.
        round_number: rounds with different numbers are independent.
        population: number of devices of the federation, a public constant.
        rate: in (0, 1]; 1 takes every device.

    Returns:
        Sorted indices, int64 ``[participants]``; may be empty.
    """
    at_least("population", population, 0)
    probability("participation rate", rate)
    if rate == 1:
        return np.arange(population, dtype=np.int64)
    if seed is None:
        uniforms = system_uniforms(population)
    else:
        uniforms = numpy_stream(seed, round_number, "participation").random(population)
    return np.flatnonzero(uniforms < rate).astype(np.int64)


def poisson_batch(count: int, rate: float, generator: torch.Generator | None) -> torch.Tensor:
    """The examples of one DP-SGD step: each of ``count`` takes part with probability ``rate``.

    Args:
        count: private number of examples of the device, 0 allowed.
        rate: public sampling rate in (0, 1].
        generator: a seeded stream, or ``None`` for OS entropy.

    Returns:
        Sorted indices, int64 ``[batch]`` on the processor; may be empty (DP-SGD then takes a step of pure noise).
    """
    at_least("count", count, 0)
    probability("sampling rate", rate)
    if rate == 1:
        return torch.arange(count, device="cpu")
    if generator is None:
        uniforms = torch.from_numpy(system_uniforms(count))
    else:
        uniforms = torch.rand(count, generator=generator, dtype=torch.float64, device="cpu")
    return torch.nonzero(uniforms < rate).flatten()
