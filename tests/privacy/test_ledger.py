"""The ledger: budgets, replay, groups, concurrency within a process, and random sequences against a plain model."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from fedrec.errors import BudgetExhausted, LedgerError, PrivacyError
from fedrec.privacy.accounting import Charge, epsilon, find_noise_multiplier
from fedrec.privacy.ledger import Ledger
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_world import CHARGE, DELTA, create, filled


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite"


def test_reserved_counts_as_spent_before_it_is_settled(path):
    with create(path) as ledger:
        assert ledger.spent("device:1") == 0.0
        assert ledger.remaining("device:1") == 8.0
        ledger.reserve("device:1", CHARGE, key="round:1")
        assert ledger.spent("device:1") == epsilon([CHARGE], DELTA)
        assert not ledger.is_settled("round:1")
        ledger.settle("round:1")
        ledger.settle("round:1")
        assert ledger.is_settled("round:1")
        assert ledger.spent("device:1") == epsilon([CHARGE], DELTA)
        assert ledger.count == 3
    with Ledger.open(path) as ledger:
        assert ledger.history("device:1") == [CHARGE]
        assert ledger.is_settled("round:1")


def test_what_a_debit_pays_for_is_said_in_words_that_nobody_can_change(path):
    words = "minimum separation 4, no amplification"
    with create(path, mechanism=words) as ledger:
        head = ledger.head
    with Ledger.open(path) as ledger:
        assert ledger.settings.mechanism == ledger.export()["settings"]["mechanism"] == words
    with create(path.with_name("plain.sqlite")) as plain:
        assert plain.head != head
        assert "mechanism" not in plain.export()["settings"]
    with pytest.raises(ValueError, match="mechanism to be a text, got 4"):
        create(path.with_name("other.sqlite"), mechanism=4)


def test_the_planned_rounds_fit_exactly_and_not_one_more(path):
    noise = find_noise_multiplier(2.0, DELTA, 0.25, 5)
    with create(path, 2.0, "user") as ledger:
        for number in range(5):
            ledger.reserve("federation", Charge(noise, 0.25, 1), key=f"round:{number}")
        before = ledger.export()
        with pytest.raises(BudgetExhausted, match=r"'federation' has spent epsilon .* of 2 "):
            ledger.reserve("federation", Charge(noise, 0.25, 1), key="round:5")
        assert ledger.export() == before
        assert ledger.spent("federation") == epsilon([Charge(noise, 0.25, 5)], DELTA) <= 2.0


def test_a_refusal_does_not_stop_the_others(path):
    with create(path, 3.0) as ledger:
        ledger.reserve("device:1", Charge(2.07, 0.25, 20), key="earlier")
        outcome = ledger.reserve_many(["device:1", "device:2", "device:3"], Charge(2.07, 0.25, 20), key="round:1")
        assert outcome.refused == {"device:1"}
        assert outcome.accepted == {"device:2", "device:3"}
        assert ledger.history("device:1") == [Charge(2.07, 0.25, 20)]
        rows = ledger.count
        assert ledger.reserve_many(["device:1"], Charge(2.07, 0.25, 20), key="round:2").accepted == frozenset()
        assert ledger.count == rows


def test_without_budget_everything_is_recorded(path):
    with create(path, None) as ledger:
        ledger.reserve("device:1", Charge(0.1, 1.0, 100), key="a")
        assert ledger.remaining("device:1") is None
        assert ledger.spent("device:1") > 1000


def test_budgets_by_kind_of_account(path):
    with create(path, {"federation": 1.0, "device": 50.0}, "both") as ledger:
        ledger.reserve("device:1", Charge(1.0, 1.0, 1), key="a")
        with pytest.raises(BudgetExhausted):
            ledger.reserve("federation", Charge(1.0, 1.0, 1), key="a")
        with pytest.raises(PrivacyError, match=r"budgets for \['device', 'federation'\], none for account 'node:1'"):
            ledger.reserve("node:1", Charge(1.0, 1.0, 1), key="a")
        ledger.reserve("device:2", Charge(1.0, 1.0, 1), key="b")  # an error leaves the ledger usable
    with Ledger.open(path) as ledger:
        assert ledger.accounts() == ["device:1", "device:2"]


def test_replay_of_a_seeded_round_is_not_debited_again_but_a_deployment_is(path):
    with create(path) as ledger:
        first = ledger.reserve("device:1", CHARGE, key="round:1", replay=True)
        head = ledger.head
        again = ledger.reserve("device:1", CHARGE, key="round:1", replay=True)
        assert (first.replayed, again.replayed) == (False, True)
        assert ledger.head == head
        late = ledger.reserve_many(["device:1", "device:2"], CHARGE, key="round:1", replay=True)
        assert late.accepted == {"device:1", "device:2"}
        assert ledger.history("device:1") == ledger.history("device:2") == [CHARGE]
        with pytest.raises(PrivacyError, match="another release needs another key"):
            ledger.reserve("device:1", Charge(1.0, 0.25, 8), key="round:1", replay=True)
        ledger.reserve("device:1", CHARGE, key="round:1")
        assert ledger.history("device:1") == [Charge(2.07, 0.25, 16)]


def test_numbered_accounts_are_the_accounts_of_those_names(tmp_path):
    with create(tmp_path / "names", 3.0) as named, create(tmp_path / "numbers", 3.0) as numbered:
        for step, devices in enumerate(([5, 1, 2], [2, 9], [2, 1, 9], [2])):
            charge, key = Charge(2.07, 0.25, 8), f"round:{step}"
            outcome = named.reserve_many([f"device:{d}" for d in devices], charge, key=key, replay=True)
            same = numbered.reserve_numbered("device", np.array(devices), charge, key=key, replay=True)
            assert {f"device:{d}" for d in same.accepted} == outcome.accepted
            assert {f"device:{d}" for d in same.refused} == outcome.refused
        assert named.export() == numbered.export()
        assert len(same.refused) == 1  # the last one could not pay a fourth time
        again = numbered.reserve_numbered("device", np.array([1, 2, 7]), CHARGE, key="round:0", replay=True)
        assert again.accepted.tolist() == [1, 2, 7]  # 1 and 2 had paid for this round; 7 pays now
        assert numbered.history("device:7") == [CHARGE]
        empty = numbered.reserve_numbered("device", np.array([], dtype=int), CHARGE, key="round:9")
        assert (len(empty.accepted), len(empty.refused)) == (0, 0)


def test_accounts_of_equal_histories_stand_together(path):
    with create(path) as ledger:
        ledger.reserve_numbered("device", np.arange(100), CHARGE, key="round:1")
        ledger.settle("round:1")
        ledger.reserve_numbered("device", np.arange(0, 6), CHARGE, key="round:2")
        ledger.reserve("federation", CHARGE, key="round:2")
        export = ledger.export()["accounts"]
        assert list(export) == ["federation", "device:6-99", "device:0-5"]
        assert [group["accounts"] for group in export.values()] == [1, 94, 6]
        assert export["device:0-5"]["epsilon"] == epsilon([(CHARGE, 2)], DELTA) == ledger.spent("device:3")
        assert export["device:0-5"]["remaining"] == ledger.remaining("device:0")
        told = [(debit.sequence, debit.key, debit.accounts, debit.settled) for debit in ledger.debits()]
        assert told == [(1, "round:1", 100, True), (3, "round:2", 6, False), (4, "round:2", 1, False)]


def test_interrupted_and_repeated_equals_uninterrupted(tmp_path):
    def rounds(ledger, numbers):
        for number in numbers:
            ledger.reserve_many(["device:1", f"device:{number}"], CHARGE, key=f"round:{number}", replay=True)
            ledger.settle(f"round:{number}")

    with create(tmp_path / "plain") as plain:
        rounds(plain, range(2, 6))
        expected = plain.export()
    with create(tmp_path / "resumed") as ledger:
        rounds(ledger, range(2, 4))
        ledger.reserve_many(["device:1", "device:4"], CHARGE, key="round:4", replay=True)
    with Ledger.open(tmp_path / "resumed") as ledger:  # killed in round 4; the checkpoint is that of round 2
        rounds(ledger, range(3, 6))
        assert ledger.export() == expected


def test_two_instances_see_each_other(path):
    with create(path, 3.0) as one, Ledger.open(path) as two:
        charge = Charge(2.07, 0.25, 10)
        accepted = 0
        for number in range(8):
            ledger = (one, two)[number % 2]
            accepted += bool(ledger.reserve_many(["device:1"], charge, key=f"k{number}").accepted)
        one.refresh()
        two.refresh()
        assert one.export() == two.export()
        total = one.history("device:1")[0].steps
        assert total == 10 * accepted
        assert epsilon([Charge(2.07, 0.25, total)], DELTA) <= 3.0 < epsilon([Charge(2.07, 0.25, total + 10)], DELTA)


def test_rollback_is_told_by_head_and_count(path):
    with create(path) as ledger:
        ledger.reserve("device:1", CHARGE, key="a")
        seen = ledger.count, ledger.head
        ledger.reserve("device:1", CHARGE, key="b")
        assert ledger.extends(*seen)
        assert not ledger.extends(seen[0] + 1, seen[1])
        assert not ledger.extends(9, ledger.head)


def test_a_full_disk_forgets_nothing_and_releases_nothing(path):
    with create(path) as ledger:
        ledger.reserve("device:1", CHARGE, key="a")
        pages = ledger._chain._connection.execute("PRAGMA page_count").fetchone()[0]
        ledger._chain._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(LedgerError, match=r"full.*nothing may be released"):
            ledger.reserve_many([f"device:{3 * d + d % 2}" for d in range(50_000)], CHARGE, key="b")
        with pytest.raises(LedgerError, match="can't be used"):
            ledger.reserve("device:1", CHARGE, key="c")
    with Ledger.open(path) as ledger:
        assert ledger.history("device:1") == [CHARGE]


def test_a_ledger_is_never_started_over(path):
    filled(path)
    with pytest.raises(LedgerError, match=r"exists at .* already"):
        create(path)
    with pytest.raises(LedgerError, match="can't create the ledger"):
        create(path / "below" / "a" / "file")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"unit": "none"}, "unit to be interaction, user or both, got 'none'"),
        ({"delta": 0.0}, "ledger.delta"),
        ({"budget_epsilon": 0.0}, "ledger.budget_epsilon > 0"),
        ({"budget_epsilon": {"device": -1.0}}, "the budget of 'device' > 0"),
        ({"accountant": "none"}, "accountant to be one of"),
    ],
)
def test_wrong_settings_raise_and_leave_no_file(path, arguments, message):
    good = {"unit": "user", "delta": DELTA, "budget_epsilon": 8.0}
    with pytest.raises(ValueError, match=message):
        Ledger.create(path, **(good | arguments))
    assert not path.exists()


def test_wrong_names_and_keys_raise(path):
    with create(path) as ledger:
        with pytest.raises(PrivacyError, match="without line breaks"):
            ledger.reserve("device:1\ndevice:2", CHARGE, key="a")
        with pytest.raises(ValueError, match="non-empty key"):
            ledger.reserve("device:1", CHARGE, key="")
        with pytest.raises(PrivacyError, match="nothing was reserved under 'a': reserve before"):
            ledger.settle("a")
        assert ledger.count == 1


operations = st.one_of(
    st.tuples(
        st.just("reserve"),
        st.frozensets(st.sampled_from("abc"), max_size=3),
        st.sampled_from([Charge(2.0, 0.25, 8), Charge(3.0, 0.5, 2)]),
        st.sampled_from(["r1", "r2", "r3"]),
        st.booleans(),
    ),
    st.tuples(st.just("settle"), st.sampled_from(["r1", "r2", "r3"])),
    st.tuples(st.just("reopen")),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(operations, max_size=12))
def test_random_sequences_match_a_plain_model(sequence):
    spent: dict[str, list[Charge]] = {}
    under: dict[str, dict[str, Charge]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.sqlite"
        ledger = create(path, 4.0)
        for step in sequence:
            if step[0] == "reopen":
                ledger.close()
                ledger = Ledger.open(path)
            elif step[0] == "settle":
                if step[1] in under:
                    ledger.settle(step[1])
            else:
                reserve_in_both(ledger, spent, under, *step[1:])
            for name, charges in spent.items():
                assert ledger.spent(name) == epsilon(charges, DELTA) <= 4.0
        ledger.close()


def reserve_in_both(ledger, spent, under, names, charge, key, replay):
    standing = under.get(key, {})
    if replay and any(other != charge for other in standing.values()):
        with pytest.raises(PrivacyError):
            ledger.reserve_many(names, charge, key=key, replay=True)
        return
    expected = set()
    for name in names:
        if replay and name in standing:
            expected.add(name)
        elif epsilon([*spent.get(name, []), charge], DELTA) <= 4.0:
            expected.add(name)
            spent.setdefault(name, []).append(charge)
            # under one key there may be several charges only without replay: remember one that differs, if any
            under.setdefault(key, {}).setdefault(name if name not in standing else f"{name}+{charge}", charge)
    outcome = ledger.reserve_many(names, charge, key=key, replay=replay)
    assert (outcome.accepted, outcome.refused) == (expected, names - expected)
