"""What is served: the initialization, fine-tuned without noise on the device's own log, ranks the catalogue.

The served policy never leaves its device, so this costs no privacy. Evaluation judges it, not the initialization alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import PolicyError
from ..meta.descent import descend_stack, own_start
from ..meta.policy import Named
from ..meta.stacked import Shared, Stack
from ..meta.stacked import scores as stacked_scores
from .schedule import chunk_floats, in_order
from .seen import Which, seen_range
from .world import World

ALONE_SLOW_LR = 0.03
"""Largest step size of the slow weights in local-only training: item tables times state diverge with larger ones."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Served:
    """Scores the catalogue for devices that adapt ``phi`` to their own logs; a ``Scorer`` and a ``ColdScorer``.

    Attributes:
        world: data and policy.
        phi: shared parameters.
        which: ``valid`` adapts to the training rows, ``test`` to the validation row too.
        personal: personal parameters by data-set device, ``[devices, *shape]``; zeros where there are none.
        steps: noise-free local steps; none takes ``evaluation.serve_steps``.
        everything: let slow weights move as well (local-only training).
    """

    world: World
    phi: Named
    which: Which = "test"
    personal: Named | None = None
    steps: int | None = None
    everything: bool = False

    def __post_init__(self) -> None:
        """A policy that holds NaN must fail, not rank first."""
        for name, value in {**self.phi, **(self.personal or {})}.items():
            if not bool(torch.isfinite(value).all()):
                raise PolicyError(
                    f"expected finite parameters, got NaN or infinity in {name}; lower the learning rates"
                )

    def score(self, devices: NDArray[np.int64]) -> Tensor:
        """Scores ``[devices, items]`` given everything before the ``which`` target."""
        _, stops = seen_range(self.world.dataset, self.world.split, self.which, devices)
        return self.score_until(devices, stops)

    def score_after(self, devices: NDArray[np.int64], seen: int) -> Tensor:
        """Scores ``[devices, items]`` given the first ``seen`` interactions of each device."""
        offsets = self.world.dataset.offsets
        return self.score_until(devices, np.minimum(offsets[devices] + seen, offsets[devices + 1]))

    def score_until(self, devices: NDArray[np.int64], stops: NDArray[np.int64]) -> Tensor:
        """Scores ``[devices, items]`` given each device's interactions before its absolute row ``stops``.

        Raises:
            PolicyError: a score is NaN or infinite.
        """
        chunk = self._chunk()
        blocks = [slice(first, first + chunk) for first in range(0, len(devices), chunk)]
        parts = list(in_order(lambda block: self._scores(devices[block], stops[block]), blocks))
        scores = torch.cat(parts) if parts else torch.zeros(0, self.world.policy.items)
        if not bool(torch.isfinite(scores).all()):
            raise PolicyError(
                "expected finite scores, got NaN or infinity; lower evaluation.serve_lr or the step sizes"
            )
        return scores

    def adapted(self, devices: NDArray[np.int64], stops: NDArray[np.int64]) -> Named:
        """Each device's own parameters after the noise-free steps, ``[devices, *shape]``."""
        policy = self.world.policy
        names = policy.trained if self.everything else policy.names(speed="fast")
        start = {**self.phi, **self._personal(devices)}
        steps = self.world.config.evaluation.serve_steps if self.steps is None else self.steps
        if steps == 0 or not names:
            return own_start(policy, start, names, len(devices))
        world = self._serving
        examples = world.batch(devices, stops, unit="none", stream=(world.config.seed, "serve"))
        stack = Stack(shared=self._shared, examples=examples, settings=world.config.local)
        return descend_stack(stack, start, steps=steps, names=names)

    def _chunk(self) -> int:
        """Devices that are adapted and scored together."""
        config, policy = self.world.config, self.world.policy
        own = sum(torch.Size(policy.specs[name].shape).numel() for name in policy.trained) if self.everything else 0
        floats = policy.items * (config.local.windows if policy.sees_history else 1) + 3 * own
        return config.engine.chunk or max(1, chunk_floats() // floats)

    def _scores(self, devices: NDArray[np.int64], stops: NDArray[np.int64]) -> Tensor:
        own = self.adapted(devices, stops)
        states = self.world.states(devices, stops)
        parameters = {**self.phi, **self._personal(devices), **own}
        return stacked_scores(self._shared, parameters, states)

    def _personal(self, devices: NDArray[np.int64]) -> Named:
        """The devices' personal parameters, ``[devices, *shape]``; zeros where nobody has kept any."""
        if self.personal is None:
            return self.world.personal_start(len(devices))
        return {name: value[torch.from_numpy(devices)] for name, value in self.personal.items()}

    @cached_property
    def _shared(self) -> Shared:
        """What all devices start from."""
        return Shared(policy=self.world.policy, phi=self.phi)

    @cached_property
    def _serving(self) -> World:
        """The world with the local settings of serving: a device adapts on all that it knows, no part is kept back."""
        config = self.world.config
        slow = min(config.local.slow_lr, ALONE_SLOW_LR) if self.everything else config.local.slow_lr
        settings = {"lr": config.evaluation.serve_lr, "slow_lr": slow, "episodes": False}
        local = config.local.model_copy(update=settings)
        return replace(self.world, config=config.model_copy(update={"local": local}))
