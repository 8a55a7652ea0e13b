"""The columns themselves, and what is written to the disk."""

from __future__ import annotations

import json
import resource

import numpy as np
import pytest
import torch
from fedrec.errors import DataError
from fedrec.meta.interactions import Catalogue
from fedrec.simulation.data import Dataset, synthetic_world
from fedrec.simulation.data.strings import pack, unpack
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def _dataset(lengths, texts, seed):
    random = np.random.default_rng(seed)
    n, items = sum(lengths), max(len(texts), 1)
    ids = tuple(f"{row}{text}" for row, text in enumerate(texts)) or ("only",)
    return Dataset(
        name="random",
        items=random.integers(0, items, n).astype(np.int32),
        rewards=random.normal(size=n).astype(np.float32),
        timestamps=random.integers(0, 2**40, n) if seed % 2 else None,
        propensities=random.uniform(0.1, 1, n).astype(np.float32) if seed % 3 else None,
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        catalogue=Catalogue(
            features=random.normal(size=(items, 2)).astype(np.float32),
            feature_names=("a", "b"),
            item_ids=ids,
            titles=ids if seed % 2 else None,
        ),
        device_features=np.zeros((len(lengths), 0), dtype=np.float32),
        device_feature_names=(),
        device_ids=tuple(str(d) for d in range(len(lengths))),
        reward_kind="count",
        reward_range=(-4.0, 4.0),
    )


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(0, 5), max_size=6),
    texts=st.lists(st.text(max_size=6), max_size=5),
    seed=st.integers(0, 99),
    mmap=st.booleans(),
)
def test_round_trip(tmp_path_factory, lengths, texts, seed, mmap):
    dataset = _dataset(lengths, texts, seed)
    opened = Dataset.open(dataset.save(tmp_path_factory.mktemp("d") / "saved"), mmap=mmap)
    assert opened.fingerprint() == dataset.fingerprint()
    assert (opened.name, opened.reward_kind, opened.reward_range) == ("random", "count", (-4.0, 4.0))
    for name, values in dataset.columns():
        np.testing.assert_array_equal(dict(opened.columns())[name], values)
    assert tuple(opened.catalogue.item_ids) == dataset.catalogue.item_ids
    assert opened.catalogue.titles is None if dataset.catalogue.titles is None else True
    for device, length in enumerate(lengths):
        assert len(opened.log(device)) == length


@given(st.lists(st.text()))
def test_texts_survive_packing(texts):
    packed = pack(texts)
    assert unpack(packed) == tuple(texts) == tuple(packed)
    assert pack(packed) is packed
    if texts:
        assert packed[-1] == texts[-1]
        assert list(packed[1:]) == texts[1:]


def test_large_data_sets_are_memory_mapped(small, tmp_path, monkeypatch):
    opened = Dataset.open(small.save(tmp_path / "s"))
    assert not isinstance(opened.items, np.memmap)
    monkeypatch.setattr("fedrec.simulation.data.store.MMAP_BYTES", 10)
    mapped = Dataset.open(tmp_path / "s")
    assert isinstance(mapped.items, np.memmap)
    assert mapped.device_index("11") == 2
    assert mapped.log(2).items.tolist() == [2, 1, 0]
    for dataset in (opened, mapped):
        with pytest.raises(ValueError, match="read-only"):
            dataset.items[0] = 3


def test_log_is_a_copy_in_torch_types(small):
    log = small.log(0)
    assert (log.items.dtype, log.rewards.dtype, log.timestamps.dtype) == (torch.int64, torch.float32, torch.int64)
    log.rewards[0] = 99
    assert small.rewards[0] == 3


def test_fingerprint_sees_every_value_but_not_the_name(small):
    same = small.replace(name="other")
    assert same.fingerprint() == small.fingerprint()
    rewards = small.rewards.copy()
    rewards[4] = 2
    changes = [
        {"rewards": rewards},
        {"timestamps": None},
        {"reward_kind": "count"},
        {"reward_range": (0.0, 5.0)},
        {"device_ids": ("7", "9", "12")},
    ]
    prints = {small.replace(**change).fingerprint() for change in changes}
    assert len(prints) == len(changes)
    assert small.fingerprint() not in prints


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"items": np.zeros(8, dtype=np.int64)}, "expected items to be int32 of shape"),
        ({"rewards": np.zeros(7, dtype=np.float32)}, r"expected rewards to be float32 of shape \(8,\), got .*\(7,\)"),
        ({"offsets": np.array([0, 4, 3, 8])}, "expected offsets to rise from 0 to 8"),
        ({"offsets": np.array([0, 4, 5, 9])}, "expected offsets to rise from 0 to 8"),
        ({"items": np.full(8, 5, dtype=np.int32)}, r"expected item rows in \[0, 5\), got 5; import"),
        ({"items": np.full(8, -1, dtype=np.int32)}, r"expected item rows in \[0, 5\), got -1"),
        ({"rewards": np.full(8, np.nan, dtype=np.float32)}, "expected finite rewards, got nan in row 0"),
        ({"propensities": np.zeros(8, dtype=np.float32)}, r"expected propensities in \(0, 1\]"),
        ({"device_features": np.zeros((2, 0), dtype=np.float32)}, "expected device_features to be float32 of shape"),
    ],
)
def test_wrong_columns_are_refused(small, change, message):
    with pytest.raises(DataError, match=message):
        small.replace(**change)


def test_unknown_devices(small):
    with pytest.raises(DataError, match="expected a user of small such as 7, 9, 11, got '8'"):
        small.device_index("8")
    with pytest.raises(DataError, match=r"expected a device in \[0, 3\), got 3"):
        small.log(3)


def test_a_changed_column_is_noticed(small, tmp_path):
    directory = small.save(tmp_path / "s")
    values = np.load(directory / "rewards.npy")
    values[0] += 1
    np.save(directory / "rewards.npy", values)
    with pytest.raises(DataError, match=r"expected the content of .*rewards.npy to match its manifest"):
        Dataset.open(directory)


def test_damaged_directories(small, tmp_path):
    directory = small.save(tmp_path / "s")
    with pytest.raises(DataError, match=r"expected a data set in .*nowhere, found no manifest.json"):
        Dataset.open(tmp_path / "nowhere")
    manifest = json.loads((directory / "manifest.json").read_text())
    (directory / "manifest.json").write_text(json.dumps({**manifest, "version": 99}))
    with pytest.raises(DataError, match="of version 1, got 99; fetch or import the data set again"):
        Dataset.open(directory)
    (directory / "manifest.json").write_text(json.dumps(manifest)[:50])
    with pytest.raises(DataError, match=r"could not read .*manifest.json"):
        Dataset.open(directory)
    (directory / "manifest.json").write_text(json.dumps(manifest))
    content = (directory / "items.npy").read_bytes()
    (directory / "items.npy").write_bytes(content[:-2])
    for mmap in (False, True):
        with pytest.raises(DataError, match=r"could not read .*items.npy"):
            Dataset.open(directory, mmap=mmap)
    (directory / "items.npy").unlink()
    with pytest.raises(DataError, match=r"could not read .*items.npy"):
        Dataset.open(directory)


def test_an_existing_data_set_is_not_overwritten_by_accident(small, tmp_path):
    small.save(tmp_path / "s")
    with pytest.raises(DataError, match="found one; choose another place or ask to replace it"):
        small.save(tmp_path / "s")
    small.replace(name="new").save(tmp_path / "s", overwrite=True)
    assert Dataset.open(tmp_path / "s").name == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_full_disk_leaves_what_was_there(small, tmp_path):
    small.save(tmp_path / "s")
    large = synthetic_world(devices=200, items=100).dataset
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        for target, overwrite in ((tmp_path / "s", True), (tmp_path / "new", False)):
            with pytest.raises(DataError, match=r"could not write .*; nothing was kept, free some space"):
                large.save(target, overwrite=overwrite)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    assert Dataset.open(tmp_path / "s").fingerprint() == small.fingerprint()
