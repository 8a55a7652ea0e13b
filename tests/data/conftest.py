from __future__ import annotations

from pathlib import Path

import pytest
from fedrec.simulation.data import Dataset, load
from fedrec.simulation.data.build import Log, build_dataset


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, so that no test sees or changes the user's."""
    directory = tmp_path / "cache"
    monkeypatch.setenv("FEDREC_CACHE", str(directory))
    return directory


@pytest.fixture(scope="session")
def ml_100k() -> Dataset:
    """MovieLens 100K from the user's cache, fetched the first time."""
    return load("ml-100k")


@pytest.fixture
def make_log():
    """Make a log from rows of (user, item, reward, timestamp)."""
    import numpy as np

    def make(rows, *, times: bool = True, propensities=None) -> Log:
        users, items = sorted({row[0] for row in rows}), sorted({row[1] for row in rows})
        return Log(
            users=np.array([users.index(row[0]) for row in rows], dtype=np.int32),
            items=np.array([items.index(row[1]) for row in rows], dtype=np.int32),
            rewards=np.array([row[2] for row in rows], dtype=np.float32),
            timestamps=np.array([row[3] for row in rows], dtype=np.int64) if times else None,
            propensities=None if propensities is None else np.array(propensities, dtype=np.float32),
            user_ids=users,
            item_ids=items,
        )

    return make


@pytest.fixture
def small(make_log) -> Dataset:
    """Three devices with 4, 1 and 3 interactions; items 1, 2, 3, 10, 20."""
    rows = [
        *[("7", "10", 5, 30), ("7", "2", 3, 10), ("9", "1", 1, 5), ("7", "3", 4, 20), ("7", "20", 2, 40)],
        *[("11", "3", 4, 1), ("11", "2", 4, 2), ("11", "1", 4, 3)],
    ]
    return build_dataset("small", make_log(rows))
