"""Logged-bandit files: what is read, which rows make a slate, and one sentence for everything that is wrong."""

from __future__ import annotations

import polars as pl
import pytest
from fedrec.errors import DataError
from fedrec.simulation.data.bandit_log import read_bandit_log

FULL = (
    "user,item,propensity,reward,position,timestamp\n"
    "ann,a,0.5,0,1,10\nann,b,0.25,1,2,10\nbob,c,0.125,0,1,11\nann,a,0.75,2.5,1,12\n"
)


@pytest.fixture
def file(tmp_path):
    def write(text, name="log.csv"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_a_full_log(file):
    log = read_bandit_log(file(FULL))
    assert (log.item_ids, log.items.tolist()) == (["a", "b", "c"], [0, 1, 2, 0])
    assert (log.user_ids, log.users.tolist()) == (["ann", "bob"], [0, 0, 1, 0])
    assert log.propensities.tolist() == [0.5, 0.25, 0.125, 0.75]
    assert log.rewards.tolist() == [0, 1, 0, 2.5]
    assert log.positions.tolist() == [0, 1, 0, 0]
    assert log.timestamps.tolist() == [10, 10, 11, 12]
    assert log.slates[0] == log.slates[1]
    assert len({log.slates[0], log.slates[2], log.slates[3]}) == 3


def test_parquet_and_other_names_give_the_same(file, tmp_path):
    path = tmp_path / "log.parquet"
    names = {"user": "who", "reward": "click", "propensity": "pscore", "position": "slot"}
    pl.read_csv(file(FULL)).rename(names).write_parquet(path)
    log, same = read_bandit_log(path, mapping={"user": "who"}), read_bandit_log(file(FULL))
    for column in ("items", "users", "rewards", "propensities", "positions", "timestamps", "slates"):
        assert getattr(log, column).tolist() == getattr(same, column).tolist()


def test_the_least_log_and_columns_that_are_not_wanted(file):
    log = read_bandit_log(file("item,reward,propensity\na,1,1\n"))
    assert (log.users, log.slates, log.timestamps, log.positions.tolist()) == (None, None, None, [0])
    log = read_bandit_log(file(FULL), mapping={"position": None, "user": None})
    assert (log.users, log.slates, log.positions.tolist()) == (None, None, [0, 0, 0, 0])


def test_positions_may_begin_at_zero(file):
    log = read_bandit_log(file("item,reward,propensity,position\na,1,1,0\nb,1,1,2\n"))
    assert log.positions.tolist() == [0, 2]


def test_rows_at_one_time_are_no_slate_where_positions_are_missing(file):
    single = FULL.replace("bob,c,0.125,0,1,11", "bob,c,0.125,0,3,11")
    assert read_bandit_log(file(single)).slates is None


def test_a_slate_column_and_marginals(file):
    text = "item,reward,propensity,position,slate,marginal\na,0,0.5,2,x,0.25\nb,1,0.5,1,x,0.5\nc,0,1,1,y,0.125\n"
    log = read_bandit_log(file(text))
    assert log.slates.tolist() == [0, 0, 1]
    assert log.marginals.tolist() == [0.25, 0.5, 0.125]


@pytest.mark.parametrize(
    ("text", "mapping", "sentence"),
    [
        ("user,item,reward\nann,a,1\n", {}, "line 1: expected a column for the propensity among user, item, reward"),
        ("item,propensity\na,1\n", {}, "line 1: expected a column for the reward among"),
        (FULL, {"item": "thing"}, "line 1: expected a column for the item among .*, got 'thing'"),
        (FULL, {"weather": "item"}, "expected a mapping of user, item, .*, got 'weather'"),
        (
            FULL.replace("0.25", "0"),
            {},
            r"log.csv line 3, column propensity: expected a probability in \(0, 1\], got '0'",
        ),
        (FULL.replace("0.25", "1.5"), {}, r"line 3, column propensity: expected a probability in \(0, 1\]"),
        (FULL.replace("0.25", "half"), {}, "line 3, column propensity: expected a finite number, got 'half'"),
        (FULL.replace(",2.5,", ",inf,"), {}, "line 5, column reward: expected a finite number"),
        (FULL.replace(",2.5,1,", ",2.5,1.5,"), {}, "line 5, column position: expected a whole number of at least 0"),
        (FULL.replace(",2.5,1,", ",2.5,99999,"), {}, "expected positions below 1000, got 99999"),
        (FULL.replace("bob,c", "bob,"), {}, "line 4, column item: expected an id"),
        (FULL.replace(",12\n", ",noon\n"), {}, "line 5, column timestamp: expected seconds since 1970 or an ISO date"),
        ("item,reward,propensity\n", {}, "expected impressions in log.csv, got none"),
        ("item,reward,propensity,slate\na,1,1,x\n", {}, "expected positions in slates, got none"),
        (
            "item,reward,propensity,slate,position\na,1,1,x,1\nb,1,1,x,1\n",
            {},
            "once each, got others in the slate of row",
        ),
        (
            "item,reward,propensity,slate,position\na,1,1,x,1\nb,1,1,x,3\n",
            {},
            "once each, got others in the slate of row 2",
        ),
        ("item,reward,propensity,marginal\na,1,1,1\n", {}, "expected slates beside the column marginal, got single"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(file, text, mapping, sentence):
    with pytest.raises(DataError, match=sentence) as caught:
        read_bandit_log(file(text), mapping=mapping)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="expected a file at"):
        read_bandit_log(tmp_path / "none.csv")
