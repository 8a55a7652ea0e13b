"""From a finished run to what a device needs: the chosen initialization, the catalogue and the rules of the run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..client.package import DeviceNoise, PolicyPackage
from ..meta.examples import changes_per_entry
from ..meta.policy import Named
from ..privacy.accounting import epsilon
from ..server.budget import plan_budget
from .data.dataset import Dataset
from .world import World

if TYPE_CHECKING:
    from .run import Run


def package_of(run: Run, *, version: int = 1, dataset: Dataset | None = None) -> PolicyPackage:
    """The policy that ``run`` chose, for devices that were not in it.

    Args:
        run: a finished run.
        version: of the package: devices take larger ones only.
        dataset: the run's data, unfiltered, in place of the one that its configuration names.

    Raises:
        RunError: the run holds no whole checkpoint.
        PolicyError: its checkpoint is of another policy than its data.
    """
    return package_for(World.build(run.config, dataset), run.policy(), version=version)


def package_for(world: World, phi: Named, *, version: int = 1) -> PolicyPackage:
    """The package of ``phi`` over a world's catalogue; see :func:`package_of`."""
    low, high = world.dataset.reward_range
    return PolicyPackage(
        config=world.config,
        catalogue=world.dataset.catalogue,
        phi=phi,
        reward_range=(float(low), float(high)),
        user_features=tuple(str(name) for name in np.asarray(world.dataset.device_feature_names, dtype=str)),
        version=version,
        noise=_noise(world),
    )


def _noise(world: World) -> DeviceNoise | None:
    """What the run's budget gives a device, planned as the run itself plans it."""
    config = world.config
    found = plan_budget(config, changes=changes_per_entry(world.policy, config.privacy.unit)).interaction
    if found is None:
        return None
    planned = epsilon(found.charges, config.privacy.delta, config.privacy.accountant)
    return DeviceNoise(adapt=found.adapt, warm=found.warm, epsilon=config.privacy.epsilon or planned)
