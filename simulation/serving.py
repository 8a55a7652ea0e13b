"""What is served: the initialization, fine-tuned without noise on the device's own log, ranks the catalogue.

The served policy never leaves its device, so this costs no privacy. Evaluation judges it, not the initialization alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config import LocalConfig
from ..errors import PolicyError
from ..meta.adapt import descend
from ..meta.examples import Examples, stack_examples
from ..meta.policy import Named, State
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
        chunk = self.world.config.engine.chunk
        parts = [
            self._scores(devices[first : first + chunk], stops[first : first + chunk])
            for first in range(0, len(devices), chunk)
        ]
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
        start = {
            name: self.personal[name][torch.from_numpy(devices)]
            if self.personal is not None and name in self.personal
            else self._start(name).expand(len(devices), *policy.specs[name].shape)
            for name in names
        }
        steps = self.world.config.evaluation.serve_steps if self.steps is None else self.steps
        if steps == 0 or not names:
            return start
        seed = self.world.config.seed
        examples = stack_examples(
            [
                self.world.examples(int(device), int(stop), unit="none", stream=(seed, "serve", int(device)))
                for device, stop in zip(devices, stops, strict=True)
            ]
        )

        def one(own: Mapping[str, Tensor], device: Examples) -> Named:
            return descend(policy, {**self.phi, **own}, device, self._settings(), steps=steps, names=names)

        adapted: Named = torch.func.vmap(one)(start, examples)
        return adapted

    def _scores(self, devices: NDArray[np.int64], stops: NDArray[np.int64]) -> Tensor:
        own = self.adapted(devices, stops)
        states = self.world.states(devices, stops)

        def one(parameters: Mapping[str, Tensor], state: State) -> Tensor:
            return self.world.policy.scores({**self.phi, **parameters}, state)[0]

        scores: Tensor = torch.func.vmap(one)(own, states) if own else self._shared_scores(states)
        return scores

    def _shared_scores(self, states: State) -> Tensor:
        scores: Tensor = torch.func.vmap(lambda state: self.world.policy.scores(self.phi, state)[0])(states)
        return scores

    def _start(self, name: str) -> Tensor:
        if name in self.phi:
            return self.phi[name]
        return torch.zeros(self.world.policy.specs[name].shape)

    def _settings(self) -> LocalConfig:
        local = self.world.config.local
        slow = min(local.slow_lr, ALONE_SLOW_LR) if self.everything else local.slow_lr
        return local.model_copy(update={"lr": self.world.config.evaluation.serve_lr, "slow_lr": slow})
