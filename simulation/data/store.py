"""The form on disk: one ``.npy`` file a column and a JSON manifest with the SHA-256 of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from ...meta.interactions import Catalogue, FeatureGroup
from ._atomic import atomic_directory
from .dataset import Dataset, describe_column
from .strings import Strings, unpack

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MMAP_BYTES = 256 * 2**20
"""Data sets above this size are memory-mapped, and not read through to check their hashes, unless told otherwise."""


def save(dataset: Dataset, directory: Path, *, overwrite: bool = False) -> Path:
    """Write ``dataset`` to ``directory``, all or nothing, and return the directory.

    Raises:
        DataError: the directory exists (and ``overwrite`` is off) or can't be written, for instance on a full disk.
    """
    with atomic_directory(directory, overwrite=overwrite) as temporary:
        write_columns(dataset, temporary)
    return directory


def write_columns(dataset: Dataset, directory: Path) -> None:
    """Write the columns and the manifest into an existing, empty directory."""
    for name, values in dataset.columns():
        np.save(directory / f"{name}.npy", values, allow_pickle=False)
    manifest = {
        "format": "fedrec-dataset",
        "version": FORMAT_VERSION,
        "name": dataset.name,
        "fingerprint": dataset.fingerprint(),
        "columns": dataset.column_descriptions,
        **dataset.header(),
    }
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def open_dataset(directory: Path, *, mmap: bool | None = None, verify: bool | None = None) -> Dataset:
    """Open what ``save`` wrote.

    Args:
        directory: where it was saved.
        mmap: memory-map the columns instead of reading them; by default above ``MMAP_BYTES``.
        verify: compare every column with its SHA-256; by default below ``MMAP_BYTES``. Types and shapes are always
            compared.

    Raises:
        DataError: there is no data set, it has another version, or a column is missing or was changed.
    """
    manifest = read_manifest(directory)
    size = sum(np.dtype(c["dtype"]).itemsize * int(np.prod(c["shape"])) for c in manifest["columns"].values())
    mapped = size > MMAP_BYTES if mmap is None else mmap
    checked = size <= MMAP_BYTES if verify is None else verify
    columns = {
        name: _read_column(directory / f"{name}.npy", expected, mapped=mapped, verify=checked)
        for name, expected in manifest["columns"].items()
    }
    return _assemble(manifest, columns, lazy=mapped)


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a saved data set; ``DataError`` where there is none or it can't be read."""
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"expected a data set in {directory}, found no {MANIFEST}; fetch or import it again") from None
    except (OSError, ValueError) as error:
        raise DataError(f"could not read {path}: {error}; fetch or import the data set again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != "fedrec-dataset":
        raise DataError(f"expected a fedrec data set in {directory}, found another {MANIFEST}; check the path")
    if manifest.get("version") != FORMAT_VERSION:
        found = manifest.get("version")
        raise DataError(f"expected {path} of version {FORMAT_VERSION}, got {found}; fetch or import the data set again")
    return manifest


def _read_column(path: Path, expected: dict[str, Any], *, mapped: bool, verify: bool) -> NDArray[Any]:
    empty = 0 in expected["shape"]
    try:
        values: NDArray[Any] = np.load(path, mmap_mode="r" if mapped and not empty else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"could not read {path}: {error}; fetch or import the data set again") from error
    found = {"dtype": values.dtype.str, "shape": list(values.shape)}
    if found != {"dtype": expected["dtype"], "shape": expected["shape"]}:
        raise DataError(f"expected {path} to hold {expected['dtype']} of shape {expected['shape']}, got {found}")
    if verify and describe_column(values)["sha256"] != expected["sha256"]:
        raise DataError(f"expected the content of {path} to match its manifest, it was changed; fetch or import again")
    if not mapped:
        values.flags.writeable = False
    return values


def _assemble(manifest: dict[str, Any], columns: dict[str, NDArray[Any]], *, lazy: bool) -> Dataset:
    def texts(name: str) -> Any:
        packed = Strings(columns[f"{name}.text"], columns[f"{name}.ends"])
        return packed if lazy else unpack(packed)

    groups = [FeatureGroup(name=n, kind=k, start=a, stop=b) for n, k, a, b in manifest["feature_groups"]]
    catalogue = Catalogue(
        features=columns["item_features"],
        feature_names=tuple(manifest["feature_names"]),
        item_ids=texts("item_ids"),
        titles=texts("titles") if "titles.ends" in columns else None,
        groups=tuple(groups),
    )
    low, high = manifest["reward_range"]
    return Dataset(
        name=manifest["name"],
        catalogue=catalogue,
        device_ids=texts("device_ids"),
        device_feature_names=tuple(manifest["device_feature_names"]),
        reward_kind=manifest["reward_kind"],
        reward_range=(low, high),
        timestamps=columns.get("timestamps"),
        propensities=columns.get("propensities"),
        **{name: columns[name] for name in ("items", "rewards", "offsets", "device_features")},
    )
