"""Sets of accounts: packed and unpacked they are the same, altered texts are refused, the book is a dictionary."""

import contextlib

import numpy as np
import pytest
from fedrec.errors import PrivacyError
from fedrec.privacy._accounts import AccountSet, Book
from fedrec.privacy._packing import LIMIT, pack, unpack
from fedrec.privacy.accounting import Charge, normalise
from hypothesis import given, settings
from hypothesis import strategies as st

CHARGES = [Charge(2.0, 0.25, 8), Charge(3.0, 1.0, 1)]
numbers = st.sets(st.integers(0, 300), min_size=1) | st.sets(st.integers(0, LIMIT - 1), min_size=1, max_size=200)
names = st.sampled_from(["federation", "device:1", "device:2", "device:07", "device:9999999", "node:3", "a:b:4"])


def ascending(values):
    return np.array(sorted(values), dtype=np.int64)


@settings(max_examples=150, deadline=None)
@given(numbers)
def test_unpacked_is_what_was_packed(values):
    assert unpack(pack(ascending(values))).tolist() == sorted(values)


@pytest.mark.parametrize("share", [1.0, 0.95, 0.5, 0.1, 0.01, 0.0001])
def test_a_debit_of_many_devices_is_near_the_least_possible_size(share):
    drawn = np.flatnonzero(np.random.default_rng(3).random(200_000) < share)
    text = pack(drawn)
    assert (unpack(text) == drawn).all()
    rest = 1 - share
    entropy = 0.0 if share == 1 else -200_000 * (share * np.log2(share) + rest * np.log2(rest))
    # Base64 takes 8 bits for 6; a bitmap a bit a device; Elias-Fano about half a bit a number more than the entropy.
    assert len(text) <= 8 / 6 * min(200_000, entropy + 0.7 * len(drawn)) + 200


@pytest.mark.parametrize(
    "text",
    ["", "x", "1,1", "2,1", "1-", "-1", "5-3", "1-2,3", " 1", "+1", "01", f"{LIMIT}", "0-99999999999", "bits:",
     "bits:!", "bits:AA==", "fano:3:1:AA==", "fano:99999999999:2:AAAA", "fano:1:99:AAAA", "fano:-1:0:AAAA",
     "fano:1:AAAA", "what:1"],
)  # fmt: skip
def test_a_text_that_is_no_set_is_refused(text):
    with pytest.raises(ValueError, match="expected a packed set of numbers"):
        unpack(text)


@settings(max_examples=100, deadline=None)
@given(st.sets(st.integers(0, 5000), min_size=60, max_size=120), st.data())
def test_an_altered_text_is_refused_or_is_another_set(values, data):
    text = pack(ascending(values))
    place = data.draw(st.integers(0, len(text) - 1))
    altered = text[:place] + data.draw(st.sampled_from("0123456789ABCxyz:=,-")) + text[place + 1 :]
    with contextlib.suppress(ValueError):
        assert pack(unpack(altered)) == altered  # one text a set: what is read is what would be written


@pytest.mark.parametrize("values", [[], [3, 3], [4, 2], [-1], [LIMIT]])
def test_what_is_no_set_is_not_packed(values):
    with pytest.raises(ValueError, match="expected distinct ascending numbers"):
        pack(np.array(values, dtype=np.int64))


@settings(max_examples=150, deadline=None)
@given(st.sets(names), st.sets(names))
def test_sets_of_accounts_are_sets_of_names(one, other):
    first, second = AccountSet.of(one), AccountSet.of(other)
    assert set(first) == one
    assert len(first) == len(one)
    assert set(first | second) == one | other
    assert set(first & second) == one & other
    assert set(first - second) == one - other
    if one:
        assert set(AccountSet.from_record(first.record())) == one


def test_numbers_name_the_same_accounts_as_names():
    assert (
        AccountSet.numbered("device", np.array([4, 1, 4])).record() == AccountSet.of(["device:1", "device:4"]).record()
    )
    assert AccountSet.of(["device:1", "device:4"]).record() == {"names": [], "numbers": {"device": "1,4"}}
    with pytest.raises(PrivacyError, match="numbers of accounts in"):
        AccountSet.numbered("device", np.array([-1]))
    with pytest.raises(PrivacyError, match="without colon"):
        AccountSet.numbered("a:b", np.array([1]))


@pytest.mark.parametrize(
    "record",
    [
        {"names": [], "numbers": {}},
        {"names": ["b", "a"], "numbers": {}},
        {"names": ["a", "a"], "numbers": {}},
        {"names": "ab", "numbers": {}},
        {"names": ["device:1"], "numbers": {}},
        {"names": [""], "numbers": {}},
        {"names": [], "numbers": {"a:b": "1"}},
        {"names": [], "numbers": {"device": "1,1"}},
        {"names": ["a"], "numbers": {}, "more": 1},
        {"numbers": {"device": "1"}},
        {"names": [1], "numbers": {}},
    ],
)
def test_a_record_that_is_none_is_refused(record):
    with pytest.raises((ValueError, KeyError, TypeError, PrivacyError)):
        AccountSet.from_record(record)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.sets(names, min_size=1), st.sampled_from(CHARGES)), max_size=8))
def test_the_book_is_a_dictionary_of_histories(debits):
    book, plain = Book(), {}
    for accounts, charge in debits:
        book.add(AccountSet.of(accounts), charge)
        for name in accounts:
            plain[name] = normalise((*plain.get(name, ()), charge))
    assert {name: book.history(name) for name in plain} == plain
    assert {name: history for accounts, history in book.groups() for name in accounts} == plain
    everyone = AccountSet.of({*plain, "device:5", "nobody"})
    few = book.where(everyone, lambda name, history: sum(charge.steps for charge in history) < 9)
    assert set(few) == {name for name in everyone if sum(charge.steps for charge in plain.get(name, ())) < 9}


def test_verdicts_are_worked_out_once_a_history():
    book, asked = Book(), []
    book.add(AccountSet.numbered("device", np.arange(50_000)), CHARGES[0])
    book.add(AccountSet.numbered("device", np.arange(0, 50_000, 2)), CHARGES[1])
    even = book.where(
        AccountSet.numbered("device", np.arange(60_000)),
        lambda name, history: asked.append(history) or len(history) == 2,
    )
    assert len(asked) == 3  # nothing, one charge, two charges
    assert (even.numbers["device"] == np.arange(0, 50_000, 2)).all()
    assert len(list(book.groups())) == 2


def test_kinds_of_equal_history_have_verdicts_of_their_own():
    book, everyone = Book(), AccountSet.of(["federation", "device:1", "node:1", "node:2"])
    assert set(book.where(everyone, lambda name, history: name.startswith("node"))) == {"node:1", "node:2"}
