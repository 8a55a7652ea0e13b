"""The one in-memory form of a data set: columns of interactions grouped by device, and who and what they are about."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import DataError
from ...meta.interactions import Catalogue, Interactions

RewardKind = Literal["rating", "click", "count"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Interactions of many devices as columns, 16 bytes an interaction, in memory or memory-mapped.

    Device ``d`` owns the rows ``offsets[d]:offsets[d + 1]`` of every column, in chronological order (rows with the
    same timestamp, or without one, keep the order of the source).

    Attributes:
        name: what the data set is called.
        items: catalogue row of every interaction, int32 ``[interactions]``.
        rewards: reward of every interaction, float32 ``[interactions]``, finite.
        timestamps: seconds since 1970, int64 ``[interactions]``, where the source has them.
        propensities: probability with which the logging policy showed the item, float32 ``[interactions]``.
        offsets: first row of every device and the number of rows, int64 ``[devices + 1]``.
        catalogue: the items, those nobody has met included.
        device_features: encoded user table, float32 ``[devices, features]``; no columns where there is no table.
        device_feature_names: one name for every column of ``device_features``.
        device_ids: the source's own id of every device.
        reward_kind: ``rating`` (a scale), ``click`` (0 or 1) or ``count`` (how often).
        reward_range: least and greatest reward the scale allows (or the source has).
    """

    name: str
    items: NDArray[np.int32]
    rewards: NDArray[np.float32]
    offsets: NDArray[np.int64]
    catalogue: Catalogue
    device_features: NDArray[np.float32]
    device_feature_names: tuple[str, ...]
    device_ids: Sequence[str]
    timestamps: NDArray[np.int64] | None = None
    propensities: NDArray[np.float32] | None = None
    reward_kind: RewardKind = "rating"
    reward_range: tuple[float, float] = (1.0, 5.0)

    def __post_init__(self) -> None:
        """Check types, lengths and offsets; values too, unless the columns are memory-mapped (checked when saved)."""
        self._check_types()
        self._check_offsets()
        if not isinstance(self.items, np.memmap):
            self._check_values()

    def _check_types(self) -> None:
        expected = {"items": np.int32, "rewards": np.float32, "timestamps": np.int64, "propensities": np.float32}
        for column, dtype in expected.items():
            values = getattr(self, column)
            if values is None and column in ("timestamps", "propensities"):
                continue
            if values.dtype != dtype or values.shape != self.items.shape or values.ndim != 1:
                wanted = f"{np.dtype(dtype).name} of shape {self.items.shape}"
                raise DataError(f"expected {column} to be {wanted}, got {values.dtype} of shape {values.shape}")
        width = (len(self.device_ids), len(self.device_feature_names))
        if self.device_features.dtype != np.float32 or self.device_features.shape != width:
            found = f"{self.device_features.dtype} of shape {self.device_features.shape}"
            raise DataError(f"expected device_features to be float32 of shape {width}, got {found}")

    def _check_offsets(self) -> None:
        offsets = self.offsets
        if offsets.dtype != np.int64 or offsets.shape != (len(self.device_ids) + 1,):
            wanted = f"int64 of shape {(len(self.device_ids) + 1,)}"
            raise DataError(f"expected offsets to be {wanted}, got {offsets.dtype} of shape {offsets.shape}")
        if offsets[0] != 0 or offsets[-1] != len(self.items) or bool((np.diff(offsets) < 0).any()):
            raise DataError(
                f"expected offsets to rise from 0 to {len(self.items)}, got others; build the data set anew"
            )

    def _check_values(self) -> None:
        if not self.interactions:
            return
        least, greatest = int(self.items.min()), int(self.items.max())
        if least < 0 or greatest >= self.items_count:
            found = least if least < 0 else greatest
            raise DataError(f"expected item rows in [0, {self.items_count}), got {found}; import the whole item table")
        if not np.isfinite(self.rewards).all():
            row = int(np.flatnonzero(~np.isfinite(self.rewards))[0])
            raise DataError(f"expected finite rewards, got {self.rewards[row]} in row {row}; drop or repair that row")
        if self.propensities is not None and not ((self.propensities > 0) & (self.propensities <= 1)).all():
            raise DataError("expected propensities in (0, 1], got others; drop or repair those rows")

    @property
    def devices(self) -> int:
        """Number of devices, those without an interaction included."""
        return len(self.device_ids)

    @property
    def items_count(self) -> int:
        """Number of catalogue rows."""
        return len(self.catalogue)

    @property
    def interactions(self) -> int:
        """Number of interactions of all devices."""
        return len(self.items)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of interactions of every device, int64 ``[devices]``."""
        return np.diff(self.offsets)

    def rows(self, device: int) -> slice:
        """The rows of ``device`` in every column."""
        if not 0 <= device < self.devices:
            raise DataError(f"expected a device in [0, {self.devices}), got {device}")
        return slice(int(self.offsets[device]), int(self.offsets[device + 1]))

    def log(self, device: int) -> Interactions:
        """The whole log of ``device`` as tensors (a copy)."""
        return self.slice_log(self.rows(device))

    def slice_log(self, rows: slice) -> Interactions:
        """The interactions of ``rows`` as tensors (a copy); ``Split`` gives such rows."""

        def column(values: NDArray[Any] | None, dtype: type) -> torch.Tensor | None:
            return None if values is None else torch.from_numpy(np.array(values[rows], dtype=dtype))

        return Interactions(
            items=cast(torch.Tensor, column(self.items, np.int64)),
            rewards=cast(torch.Tensor, column(self.rewards, np.float32)),
            timestamps=column(self.timestamps, np.int64),
            propensities=column(self.propensities, np.float32),
        )

    def device_of_rows(self) -> NDArray[np.int32]:
        """The device of every interaction, int32 ``[interactions]``."""
        return np.repeat(np.arange(self.devices, dtype=np.int32), self.lengths)

    @cached_property
    def _device_rows(self) -> dict[str, int]:
        return {str(identifier): row for row, identifier in enumerate(self.device_ids)}

    def device_index(self, identifier: str) -> int:
        """The device whose id in the source is ``identifier``; ``DataError`` where there is none."""
        if identifier not in self._device_rows:
            known = ", ".join(str(known) for known in self.device_ids[:3])
            raise DataError(f"expected a user of {self.name} such as {known}, got {identifier!r}")
        return self._device_rows[identifier]

    def replace(self, **changes: Any) -> Dataset:
        """A copy with other values in some fields, checked again."""
        return replace(self, **changes)

    def fingerprint(self) -> str:
        """SHA-256 of everything but the name: equal fingerprints mean equal data, wherever it is stored."""
        return self._fingerprint

    @cached_property
    def column_descriptions(self) -> dict[str, dict[str, Any]]:
        """Type, shape and SHA-256 of every column; computed once, as a large data set takes a while."""
        return {name: describe_column(values) for name, values in self.columns()}

    @cached_property
    def _fingerprint(self) -> str:
        content = {"columns": self.column_descriptions, **self.header()}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def columns(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """Every array that makes up the data set, texts as UTF-8 bytes and their ends, with its name."""
        from .strings import pack

        for name in ("items", "rewards", "timestamps", "propensities", "offsets", "device_features"):
            if getattr(self, name) is not None:
                yield name, getattr(self, name)
        yield "item_features", self.catalogue.features
        texts = {"device_ids": self.device_ids, "item_ids": self.catalogue.item_ids, "titles": self.catalogue.titles}
        for name, text in texts.items():
            if text is not None:
                packed = pack(text)
                yield f"{name}.text", packed.text
                yield f"{name}.ends", packed.ends

    def header(self) -> dict[str, Any]:
        """What is not an array: the reward's kind and range, the names of the features."""
        return {
            "reward_kind": self.reward_kind,
            "reward_range": [float(bound) for bound in self.reward_range],
            "feature_names": list(self.catalogue.feature_names),
            "feature_groups": [[g.name, g.kind, g.start, g.stop] for g in self.catalogue.groups],
            "device_feature_names": list(self.device_feature_names),
        }

    def save(self, directory: str | Path, *, overwrite: bool = False) -> Path:
        """Write the data set to ``directory``, all or nothing; see ``store.save``."""
        from .store import save

        return save(self, Path(directory), overwrite=overwrite)

    @staticmethod
    def open(directory: str | Path, *, mmap: bool | None = None, verify: bool | None = None) -> Dataset:
        """Open a saved data set, memory-mapped when it is large; see ``store.open_dataset``."""
        from .store import open_dataset

        return open_dataset(Path(directory), mmap=mmap, verify=verify)


def describe_column(values: NDArray[Any]) -> dict[str, Any]:
    """Type, shape and SHA-256 of the bytes of an array."""
    flat = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    digest = hashlib.sha256(flat.data).hexdigest() if flat.size else hashlib.sha256(b"").hexdigest()
    return {"dtype": values.dtype.str, "shape": list(values.shape), "sha256": digest}
