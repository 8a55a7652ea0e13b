"""The world of a run: data set, split, held-out devices, the roster of those that train, and the policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._streams import torch_stream
from ..config import Config, Unit
from ..errors import ConfigError, DataError
from ..meta.examples import Examples, build_examples, reward_levels
from ..meta.interactions import Interactions
from ..meta.policy import Named, Policy, State
from .batches import batch_examples
from .data.dataset import Dataset
from .data.registry import GENERATED, load
from .data.split import Split, filter_positive, held_out_devices, leave_two_out
from .outliers import outliers_of, promoted_item, spoiled, unjudged

if TYPE_CHECKING:
    from .start import Start


@dataclass(frozen=True, kw_only=True, eq=False)
class World:
    """What a configuration's ``data`` and ``policy`` sections stand for.

    Attributes:
        config: the configuration.
        dataset: the data set, positives only where a threshold is set.
        split: chronological leave-two-out.
        held_out: devices that never train, bool ``[devices]``.
        roster: devices that train, in a fixed public order, int64 ``[population]``: the server names them by position.
        policy: the policy over the data set's catalogue.
        outliers: devices of the roster whose logs were replaced, increasing; they are never judged.
        promoted: catalogue row of the item that they promote; none where they don't.
        start: what was taken over from another run; none begins afresh.
    """

    config: Config
    dataset: Dataset
    split: Split
    held_out: NDArray[np.bool_]
    roster: NDArray[np.int64]
    policy: Policy
    outliers: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    promoted: int | None = None
    start: Start | None = None

    @classmethod
    def build(cls, config: Config, dataset: Dataset | None = None) -> World:
        """Load, filter and split the data and lay out the policy.

        Args:
            config: the run.
            dataset: data to use instead of ``config.data.name``.

        Raises:
            DataError: the data set can't be had, or leaves fewer than two devices to train.
            PolicyError: the policy does not fit the data.
        """
        dataset = load_dataset(config) if dataset is None else dataset
        if config.data.positive_threshold is not None:
            dataset = filter_positive(dataset, config.data.positive_threshold)
            if not dataset.interactions:
                raise DataError(
                    f"expected data.positive_threshold to leave some interactions of {dataset.name}, got "
                    f"{config.data.positive_threshold:g} above every reward; lower it"
                )
        held_out = held_out_devices(dataset, config.data.holdout, config.seed)
        roster = np.flatnonzero(~held_out).astype(np.int64)
        if len(roster) < 2:
            raise DataError(
                f"expected a federation of at least 2 training devices, got {len(roster)} of {dataset.devices} in "
                f"{dataset.name}; use more data or lower data.holdout"
            )
        split = leave_two_out(dataset)
        outliers = outliers_of(config, roster)
        promoted = None
        if len(outliers):
            promoted = promoted_item(config, dataset) if config.data.outlier_kind == "promote" else None
            dataset, split = spoiled(dataset, outliers, promoted, config.seed), unjudged(split, outliers)
        if not (split.valid[roster] >= 0).any() or not (split.test[roster] >= 0).any():
            raise DataError(
                f"expected training devices with 3 interactions or more, the last two with items that are new to them, "
                f"got none of {len(roster)} in {dataset.name}; without them nothing can be validated or tested"
            )
        policy = Policy.for_catalogue(config.policy, dataset.catalogue, dataset.device_features.shape[1])
        return cls(
            config=config,
            dataset=dataset,
            split=split,
            held_out=held_out,
            roster=roster,
            policy=policy,
            outliers=outliers,
            promoted=promoted,
        )

    def initialization(self) -> Named:
        """The shared parameters before the first round: those taken over, else fresh ones.

        Raises:
            ConfigError: ``server.start`` names some that are not here.
        """
        if self.start is not None:
            return dict(self.start.phi)
        if self.config.server.start:
            raise ConfigError(
                "expected server.start to be empty where nothing was taken over from another run, got "
                f"{self.config.server.start!r}; leave it to `fedrec simulate --start-from`"
            )
        return self.fresh()

    def fresh(self) -> Named:
        """Shared parameters that nothing was learned by, from the stream (seed, "init")."""
        parameters = self.policy.initial(torch_stream(self.config.seed, "init"))
        return {name: parameters[name] for name in self.policy.names(scope="shared")}

    def personal_start(self, devices: int) -> Named:
        """Personal parameters before a device's first round: zeros ``[devices, *shape]``."""
        specs = self.policy.specs
        return {name: torch.zeros(devices, *specs[name].shape) for name in self.policy.names(scope="personal")}

    def log(self, device: int, stop: int) -> Interactions:
        """The interactions of ``device`` before absolute row ``stop``."""
        data = self.dataset
        rows = slice(int(data.offsets[device]), int(stop))
        return Interactions(
            items=torch.from_numpy(data.items[rows].astype(np.int64)),
            rewards=torch.from_numpy(np.array(data.rewards[rows])),
            propensities=None if data.propensities is None else torch.from_numpy(np.array(data.propensities[rows])),
        )

    def user(self, device: int) -> Tensor:
        """The device's features, float32 ``[user_features]``."""
        return torch.from_numpy(np.array(self.dataset.device_features[device], dtype=np.float32))

    def examples(self, device: int, stop: int, *, unit: Unit, stream: Sequence[int | str]) -> Examples:
        """Training examples from the interactions of ``device`` before absolute row ``stop``."""
        return build_examples(
            self.policy,
            self.log(device, stop),
            self.user(device),
            settings=self.config.local,
            unit=unit,
            reward_range=self.dataset.reward_range,
            stream=stream,
        )

    def batch(
        self, devices: NDArray[np.int64], stops: NDArray[np.int64], *, unit: Unit, stream: Sequence[int | str]
    ) -> Examples:
        """:meth:`examples` of many devices at once, stacked; the device is added to the name of the stream."""
        return batch_examples(
            self.policy, self.dataset, devices, stops, settings=self.config.local, unit=unit, stream=stream
        )

    def states(self, devices: NDArray[np.int64], stops: NDArray[np.int64]) -> State:
        """The state of each device after the interactions before ``stops``: fields ``[devices, 1, ...]``."""
        length = self.config.policy.history_length if self.policy.sees_history else 0
        rows = stops[:, None] - length + np.arange(length)
        known = rows >= self.dataset.offsets[devices][:, None]
        history = torch.from_numpy(_where_known(self.dataset.items, rows, known, -1).astype(np.int64))
        rewards = torch.from_numpy(_where_known(self.dataset.rewards, rows, known, 0).astype(np.float32))
        levels = torch.where(history >= 0, reward_levels(rewards, self.dataset.reward_range), 0)
        user = torch.from_numpy(np.array(self.dataset.device_features[devices], dtype=np.float32))
        return State(history[:, None], levels[:, None], user)


@dataclass(frozen=True, kw_only=True, eq=False)
class Logs:
    """Logs of some devices up to a row each, and the rule by which they become examples.

    Attributes:
        world: whose devices they are.
        devices: their indices, int64 ``[devices]``.
        stops: absolute row at which each log ends, int64 ``[devices]``.
        unit: privacy unit.
        stream: names the draw of positions.
    """

    world: World
    devices: NDArray[np.int64]
    stops: NDArray[np.int64]
    unit: Unit
    stream: tuple[int | str, ...]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Length of every log, int64 ``[devices]``."""
        return self.stops - self.world.dataset.offsets[self.devices]

    def __call__(self, places: NDArray[np.int64]) -> Examples:
        """Stacked examples of the devices in some places."""
        return self.world.batch(self.devices[places], self.stops[places], unit=self.unit, stream=self.stream)


def _where_known(
    column: NDArray[np.generic], rows: NDArray[np.int64], known: NDArray[np.bool_], padding: float
) -> NDArray[np.generic]:
    """``column[rows]``, and ``padding`` where nothing is known: everywhere, where nobody has a log yet."""
    if not len(column):
        return np.full(rows.shape, padding)
    return np.where(known, column[np.where(known, rows, 0)], padding)


def load_dataset(config: Config) -> Dataset:
    """The data set that ``config.data`` names; sizes and seed matter to generated ones only."""
    if config.data.name in GENERATED:
        data = config.data
        if data.text_buckets:
            raise ConfigError(
                f"expected data.text_buckets = 0 with a generated world, whose titles are numbers, got "
                f"{data.text_buckets}; set it to 0"
            )
        return load(
            data.name,
            devices=data.devices,
            items=data.items,
            interactions=data.interactions,
            seed=config.seed,
        )
    return load(config.data.name, text_buckets=config.data.text_buckets)
