"""The audit's devices: what one device releases under unit ``interaction``, on neighbouring logs, again and again.

Releases come through the real path: the examples of ``simulation.batches``, DP-SGD of the cohort engine (or of Opacus,
with ``engine.kind = "reference"``), the vote of the warm start, and the public constants of the configuration.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from .._streams import stream_seed, torch_stream
from ..client.adaptation import LocalMechanism
from ..client.phases import ballot
from ..config import Config
from ..meta.examples import Examples
from ..privacy.audit import Scores
from ..privacy.entropy import SeededNoise
from ..server.budget import PhaseNoise
from .audit_worlds import ITEMS, DeviceWorld, device_config, logs_of, statistics_of
from .batches import batch_examples
from .cohort import Work, adapt_cohort

Ints = NDArray[np.int64]


def device_releases(
    world: DeviceWorld, items: tuple[int, ...], config: Config, noise: float, devices: Ints, *, round_number: int = 1
) -> Scores:
    """Statistics of what devices with this log release in one round, float64 ``[devices, statistics]``.

    Args:
        world: policy and initialization.
        items: the log of each of them.
        config: public constants.
        noise: multiplier of the plan.
        devices: numbers of the devices, which name their random streams, int64 ``[devices]``.
        round_number: the round, which names them, too.
    """
    config = device_config(config, world.policy)
    data = logs_of([items], ITEMS)
    built = batch_examples(
        world.policy,
        data,
        np.zeros(1, dtype=np.int64),
        data.offsets[1:],
        settings=config.local,
        unit="interaction",
        stream=(config.seed, round_number),
    )
    runs = len(devices)
    work = Work(
        devices=devices,
        sizes=np.full(runs, len(items), dtype=np.int64),
        examples=lambda places: Examples._make(value.expand(len(places), *value.shape[1:]) for value in built),
        personal={
            name: torch.zeros(runs, *world.policy.specs[name].shape) for name in world.policy.names(scope="personal")
        },
    )
    mechanism = LocalMechanism.of(world.policy, config, noise)
    result = adapt_cohort(world.policy, world.phi, work, config, mechanism, round_number=round_number, each=True)
    return world.look(result.each)


def vote_releases(items: tuple[int, ...], config: Config, noise: PhaseNoise, devices: Ints) -> Scores:
    """Statistics of the warm start's noised votes of devices with this log; the canary is the last item."""
    log, rows = torch.tensor(items, dtype=torch.int64), []
    config = config.model_copy(update={"privacy": config.privacy.model_copy(update={"unit": "interaction"})})
    for device in devices.tolist():
        source = SeededNoise(torch_stream(config.seed, 1, device, "local-noise"))
        rows.append(ballot(log, ITEMS, config, noise, source))
    votes = torch.stack(rows).double()
    return statistics_of(votes[:, ITEMS - 1], votes[:, ITEMS // 2 : ITEMS - 1])


def audit_seed(config: Config, name: str) -> Config:
    """The configuration with a random stream of its own."""
    return config.model_copy(update={"seed": stream_seed(config.seed, "audit", name)})
