"""kill -9 before every single write of a device's calls: nothing acknowledged is lost, no debit is forgotten."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    rooms = [str(TESTS / room) for room in ("client", "simulation", "privacy")]
    path = os.pathsep.join([*rooms, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", TESTS / "client" / "kill_device.py", tmp_path_factory.mktemp("killed")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    if found is None:
        pytest.skip("processes may not be traced here")
    return found


def test_it_was_killed_hundreds_of_times(outcomes):
    assert sum(len(some) - 1 for some in outcomes.values()) >= 250


def test_the_file_always_opens(outcomes):
    assert [one for some in outcomes.values() for one in some if "error" in one] == []


def test_a_store_is_there_whole_or_not_at_all(outcomes):
    assert {one["there"] for one in outcomes["begin"]} == {True, False}
    assert all(one["litter"] == ["device.sqlite"] for one in outcomes["begin"])


def test_what_was_acknowledged_stays_and_what_was_forgotten_does_not_come_back(outcomes):
    secret, seen = "item-that-is-forgotten", set()
    for one in outcomes["use"]:
        told, items = one["told"], one["items"]
        assert items[0] == "0"
        assert "recorded 1" not in told or "1" in items
        assert "recorded 4" not in told or "4" in items
        assert "forgot" not in told or secret not in items
        assert "withdrew" not in told or not one["consent"]
        assert one["after"] == "5"
        if secret not in items:
            assert one["bytes"] == 0, "the next opening finishes what forget began"
        if told == ["recorded 1", "recorded 2"]:
            seen.add(secret in items)
    assert outcomes["use"][-1]["items"] == ["0", "1", "4"]
    assert seen == {True, False}, "it is killed before and after the rows were deleted"


def test_no_debit_is_forgotten_and_what_leaves_was_paid_and_noted(outcomes):
    for one in outcomes["train"]:
        if "ok 1" in one["told"]:
            assert one["settled"] == ["run:1"]
        assert set(one["settled"]) <= set(one["trainings"]) <= set(one["debits"])
    last = outcomes["train"][-1]
    assert last["told"] == ["ok 1"]
    stages = {(len(one["debits"]), len(one["trainings"]), len(one["settled"])) for one in outcomes["train"]}
    assert stages == {(0, 0, 0), (1, 0, 0), (1, 1, 0), (1, 1, 1)}, "it is killed between any two of the steps"
