"""What devices write down while they act: logs that grow, and the world that batches and serving read them from.

A row is what a device keeps of one shown item: item, reward, propensity, step. By default only *clicked* items become
rows (``kept = "clicks"``): the state is fed by what was clicked, and with baseline 0 the gradient of an item that was
not clicked is ``w (0 - 0) grad log pi = 0`` anyway. ``kept = "shown"`` keeps what was shown in vain too, with reward 0,
for policies whose state sees no history and whose objective has a baseline.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.dataset import Dataset
from ..data.split import Split
from ..world import World

Kept = Literal["clicks", "shown"]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
_COLUMNS: dict[str, type] = {
    "items": np.int32,
    "rewards": np.float32,
    "propensities": np.float32,
    "times": np.int64,
    "clicked": np.bool_,
}


@dataclass(kw_only=True, eq=False)
class Journal:
    """Logs of many devices, one row of every column a device; appending costs as much as what is appended.

    Attributes:
        devices: how many there are.
        kept: which shown items become rows.
        counts: rows of each device, int64 ``[devices]``.
        columns: name -> values ``[devices, room]``; what stands behind a device's count means nothing.
    """

    devices: int
    kept: Kept = "clicks"
    counts: Ints = field(init=False)
    columns: dict[str, NDArray[Any]] = field(init=False)

    def __post_init__(self) -> None:
        """Begin with nothing."""
        self.counts = np.zeros(self.devices, dtype=np.int64)
        self.columns = {name: np.zeros((self.devices, 8), dtype=kind) for name, kind in _COLUMNS.items()}

    def append(
        self, rows: Ints, slates: Ints, rewards: Floats, clicks: NDArray[np.bool_], propensities: Floats, times: Ints
    ) -> None:
        """Write down one slate of each of some devices, slot by slot.

        Args:
            rows: the devices, each once, int64 ``[rows]``.
            slates: what they showed, -1 where nothing, int64 ``[rows, slots]``.
            rewards: what every slot brought, ``[rows, slots]``.
            clicks: which slots were clicked, bool ``[rows, slots]``.
            propensities: what training divides by, in (0, 1], ``[rows, slots]``.
            times: steps that each device had taken before, int64 ``[rows]``.
        """
        keep = clicks if self.kept == "clicks" else slates >= 0
        self._make_room(int((self.counts[rows] + keep.sum(1)).max(initial=0)))
        values = {"items": slates, "rewards": rewards, "propensities": propensities, "clicked": clicks}
        for slot in range(slates.shape[1]):
            hit = np.flatnonzero(keep[:, slot])
            devices = rows[hit]
            places = self.counts[devices]
            for name, value in values.items():
                self.columns[name][devices, places] = value[hit, slot]
            self.columns["times"][devices, places] = times[hit]
            self.counts[devices] += 1

    def _make_room(self, wanted: int) -> None:
        room = self.columns["items"].shape[1]
        if wanted > room:
            more = max(wanted - room, room)
            self.columns = {name: np.pad(value, ((0, 0), (0, more))) for name, value in self.columns.items()}

    def clicked(self, rows: Ints) -> Tensor:
        """Items that some devices have clicked, -1 pads, int64 ``[rows, n]``."""
        width = int(self.counts[rows].max(initial=0))
        there = (np.arange(width) < self.counts[rows, None]) & self.columns["clicked"][rows, :width]
        return torch.from_numpy(np.where(there, self.columns["items"][rows, :width], -1).astype(np.int64))

    def column(self, name: str) -> NDArray[Any]:
        """A column with the devices' rows one after the other, ``[interactions]``."""
        there = np.arange(self.columns[name].shape[1]) < self.counts[:, None]
        return self.columns[name][there]

    def dataset(self, like: Dataset) -> Dataset:
        """The logs so far as a data set over the catalogue and the devices of ``like``."""
        offsets = np.concatenate([[0], np.cumsum(self.counts)]).astype(np.int64)
        columns = {name: self.column(name) for name in ("items", "rewards", "propensities")}
        return like.replace(offsets=offsets, timestamps=self.column("times"), **columns)

    def world(self, like: World) -> World:
        """``like`` with the logs so far, all of them training rows: there is nothing to be held back from acting."""
        data = self.dataset(like.dataset)
        return replace(like, dataset=data, split=everything(data))


def everything(data: Dataset) -> Split:
    """A split that trains on every row and asks for none."""
    start, end = data.offsets[:-1], data.offsets[1:]
    none = np.full(data.devices, -1, dtype=np.int64)
    return Split(start=start, train_end=end, valid=none, test=none, end=end)
