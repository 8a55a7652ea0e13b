"""Where data sets live between runs: one directory each under the user's cache directory."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ...errors import DataError
from ._atomic import atomic_directory
from .dataset import Dataset
from .store import MANIFEST, write_columns
from .tables import FeatureTable

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def cache_directory() -> Path:
    """``FEDREC_CACHE``, else ``fedrec`` under ``XDG_CACHE_HOME``, else ``~/.cache/fedrec``."""
    if own := os.environ.get("FEDREC_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "fedrec"


def directory_of(name: str) -> Path:
    """Where the data set ``name`` is (or would be) kept; ``DataError`` for a name that is no plain file name."""
    if not _NAME.fullmatch(name):
        raise DataError(
            f"expected a name of letters, digits, dots, dashes and underscores, got {name!r}; choose another"
        )
    return cache_directory() / "datasets" / name


def is_stored(name: str) -> bool:
    """Whether the data set ``name`` is in the cache."""
    return (directory_of(name) / MANIFEST).is_file()


def stored_names() -> list[str]:
    """The names of all data sets in the cache, sorted."""
    root = cache_directory() / "datasets"
    return sorted(path.parent.name for path in root.glob(f"*/{MANIFEST}") if not path.parent.name.startswith("."))


def store(dataset: Dataset, *, items: FeatureTable | None, users: FeatureTable | None, overwrite: bool = False) -> Path:
    """Keep a data set and the tables its features were encoded from, all or nothing."""
    target = directory_of(dataset.name)
    with atomic_directory(target, overwrite=overwrite) as temporary:
        write_columns(dataset, temporary)
        for label, table in (("items", items), ("users", users)):
            if table is not None:
                table.save(temporary / f"{label}.parquet")
    return target


def stored_table(name: str, label: str) -> FeatureTable | None:
    """The ``items`` or ``users`` table of a stored data set, where it has one."""
    path = directory_of(name) / f"{label}.parquet"
    return FeatureTable.open(path) if path.is_file() else None
