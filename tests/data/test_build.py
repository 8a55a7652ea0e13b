"""From a log in any order to columns by device: ids, order, ties, repeats, tables."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from fedrec.errors import DataError
from fedrec.simulation.data.build import Log, build_dataset, sort_ids
from fedrec.simulation.data.tables import FeatureTable
from hypothesis import given, settings
from hypothesis import strategies as st


def test_devices_are_grouped_and_chronological(small):
    assert small.device_ids == ("7", "9", "11")
    assert small.catalogue.item_ids == ("1", "2", "3", "10", "20")
    assert small.offsets.tolist() == [0, 4, 5, 8]
    assert small.items.tolist() == [1, 2, 3, 4, 0, 2, 1, 0]
    assert small.rewards.tolist() == [3, 4, 5, 2, 1, 4, 4, 4]
    assert small.timestamps.tolist() == [10, 20, 30, 40, 5, 1, 2, 3]
    assert small.reward_range == (1, 5)


def test_whole_numbers_are_sorted_as_numbers_and_leading_zeros_stay():
    assert sort_ids(["10", "9", "7", "007"]) == ("007", "7", "9", "10")
    assert sort_ids(["10", "9", "b"]) == ("10", "9", "b")
    assert sort_ids(["²", "10"]) == ("10", "²")  # a digit to str.isdigit, but no number


def test_equal_timestamps_keep_the_order_of_the_source(make_log):
    dataset = build_dataset("ties", make_log([("u", i, 1, 7) for i in ("c", "a", "b")] + [("u", "z", 1, 6)]))
    assert [dataset.catalogue.item_ids[row] for row in dataset.items] == ["z", "c", "a", "b"]


def test_without_timestamps_the_order_of_the_source_counts(make_log):
    rows = [("u", "c", 1, 0), ("v", "a", 1, 0), ("u", "a", 1, 0), ("v", "c", 1, 0)]
    dataset = build_dataset("untimed", make_log(rows, times=False))
    assert dataset.timestamps is None
    assert dataset.items.tolist() == [1, 0, 0, 1]
    assert dataset.log(0).timestamps is None


@pytest.mark.parametrize(
    ("repeats", "rewards"), [("last", [4, 3]), ("first", [1, 4]), ("keep", [1, 4, 3])], ids=["last", "first", "keep"]
)
def test_repeats(make_log, repeats, rewards):
    rows = [("u", "a", 3, 30), ("u", "a", 1, 10), ("u", "b", 4, 20)]
    assert build_dataset("again", make_log(rows), repeats=repeats).rewards.tolist() == rewards


def test_unknown_repeats(make_log):
    with pytest.raises(DataError, match="expected repeats to be last, first or keep, got 'mean'"):
        build_dataset("x", make_log([("u", "a", 1, 1)]), repeats="mean")


def _plainly(rows, repeats):
    """The slow, obvious version: a list for each user."""
    logs: dict[str, list] = {}
    for user, item, reward, time in rows:
        logs.setdefault(user, []).append((time, item, reward))
    result = {}
    for user, log in logs.items():
        log.sort(key=lambda entry: entry[0])
        kept = log
        if repeats == "last":
            kept = [e for n, e in enumerate(log) if all(e[1] != later[1] for later in log[n + 1 :])]
        elif repeats == "first":
            kept = [e for n, e in enumerate(log) if all(e[1] != earlier[1] for earlier in log[:n])]
        result[user] = kept
    return result


_rows = st.lists(
    st.tuples(st.sampled_from("uvwx"), st.sampled_from("abcde"), st.integers(-10, 10), st.integers(0, 4)), min_size=1
)


@settings(deadline=None, max_examples=60)
@given(rows=_rows, repeats=st.sampled_from(["last", "first", "keep"]))
def test_equals_the_slow_version(rows, repeats):
    users, items = sorted({r[0] for r in rows}), sorted({r[1] for r in rows})
    log = Log(
        users=np.array([users.index(r[0]) for r in rows], dtype=np.int32),
        items=np.array([items.index(r[1]) for r in rows], dtype=np.int32),
        rewards=np.array([r[2] for r in rows], dtype=np.float32),
        timestamps=np.array([r[3] for r in rows], dtype=np.int64),
        user_ids=users,
        item_ids=items,
    )
    dataset = build_dataset("random", log, repeats=repeats)
    expected = _plainly(rows, repeats)
    assert dataset.offsets[-1] == dataset.interactions == sum(map(len, expected.values()))
    for device, user in enumerate(dataset.device_ids):
        rows_ = dataset.rows(device)
        found = [dataset.catalogue.item_ids[i] for i in dataset.items[rows_]]
        assert list(zip(dataset.timestamps[rows_], found, dataset.rewards[rows_], strict=True)) == expected[user]


def test_items_never_met_stay_and_unlisted_items_follow(make_log):
    table = FeatureTable(
        frame=pl.DataFrame({"id": ["9", "2", "5"], "genre": [["x"], ["y"], None]}),
        kinds={"genre": "multilabel"},
        titles=["Nine", "Two", "Five"],
    )
    dataset = build_dataset("partial", make_log([("u", "2", 1, 1), ("u", "100", 1, 2), ("u", "30", 1, 3)]), items=table)
    assert dataset.catalogue.item_ids == ("9", "2", "5", "30", "100")
    assert dataset.catalogue.titles == ("Nine", "Two", "Five", "30", "100")
    assert dataset.items.tolist() == [1, 4, 3]
    assert dataset.catalogue.features.tolist() == [[1, 0], [0, 1], [0, 0], [0, 0], [0, 0]]


def test_users_of_the_table_only_are_left_out_and_unlisted_users_have_no_features(make_log):
    table = FeatureTable(frame=pl.DataFrame({"id": ["v", "w"], "g": ["F", "M"]}), kinds={"g": "category"})
    dataset = build_dataset("users", make_log([("v", "a", 1, 1), ("u", "a", 1, 1)]), users=table)
    assert dataset.device_ids == ("u", "v")
    assert dataset.device_feature_names == ("g=F",)
    assert dataset.device_features.tolist() == [[0], [1]]


def test_without_tables_there_are_no_features(small):
    assert small.catalogue.features.shape == (5, 0)
    assert small.device_features.shape == (3, 0)
    assert small.catalogue.title(3) == "10"


def test_a_table_with_an_id_twice_is_refused():
    with pytest.raises(DataError, match="expected one row for each id, got 'a' more than once"):
        FeatureTable(frame=pl.DataFrame({"id": ["a", "a"]}))
