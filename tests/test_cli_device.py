"""``fedrec device`` in the terminal; the commands of the guide run in tests/test_docs.py."""

import json
import os
import sys
from pathlib import Path

import pytest
from fedrec.cli import invoke
from fedrec.client.device import Device

sys.path[:0] = [str(Path(__file__).parent / room) for room in ("client", "meta", "simulation", "privacy")]
import device_world as one  # noqa: E402


@pytest.fixture
def store(command_line):
    """A device in the working directory."""
    one.device(command_line / "d.sqlite", one.world(evaluation__serve_steps=2)).close()
    return "d.sqlite"


def run(capsys, *arguments):
    """What a command of the device prints."""
    assert invoke(["device", *arguments]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def state(capsys):
    return json.loads(run(capsys, "status", "d.sqlite", "--json"))


def test_a_slate_travels_through_a_file_and_comes_back_with_clicks(store, capsys):
    slate = json.loads(run(capsys, "recommend", store, "-k", "3", "--out", "slate.json", "--json"))
    assert json.loads(Path("slate.json").read_text()) == slate
    first, second = (slot["item"] for slot in slate["slots"][:2])
    told = run(capsys, "record", store, "--slate", "slate.json", "--clicked", first, "--rating", f"{second}=3")
    assert told == "2 logged, 2 in all\n"
    found = json.loads(run(capsys, "export", store))
    assert [(entry["item"], entry["reward"]) for entry in found["interactions"]] == [(first, 5.0), (second, 3.0)]
    assert found["interactions"][0]["propensity"] == slate["slots"][0]["propensity"]
    assert len(found["impressions"]) == 3
    rest = json.loads(run(capsys, "recommend", store, "-k", "99", "--json"))["slots"]
    assert rest
    assert not {first, second} & {slot["item"] for slot in rest}


def test_training_needs_consent_and_forgetting_drops_what_came_of_it(store, capsys):
    run(capsys, "record", store, "--rating", "1=5", "--purchase", "2")
    assert invoke(["device", "adapt", store]) == 2
    assert "expected consent" in capsys.readouterr().err
    assert run(capsys, "consent", store, "--give") == "consent given\n"
    assert run(capsys, "adapt", store) == "adapted on 2 interactions, from version 1\n"
    assert state(capsys)["adapted"]
    assert json.loads(run(capsys, "explain", store, "3", "--json"))["item"] == "3"
    assert run(capsys, "forget", store, "--item", "1").startswith("1 interactions and impressions removed")
    assert (state(capsys)["adapted"], state(capsys)["interactions"]) == (False, 1)
    assert run(capsys, "forget", store, "--everything").startswith("1 interactions")
    assert run(capsys, "consent", store, "--withdraw").startswith("consent withdrawn")
    assert not state(capsys)["consent"]


def test_conditions_are_required_and_reported(store, capsys):
    run(capsys, "record", store, "--rating", "1=5")
    run(capsys, "consent", store, "--give")
    assert run(capsys, "require", store, "--charging", "--unmetered") == "missing: charging, unmetered\n"
    assert invoke(["device", "adapt", store]) == 2
    assert "expected charging while" in capsys.readouterr().err
    assert run(capsys, "conditions", store, "--charging") == "missing: unmetered\n"
    run(capsys, "adapt", store)
    assert run(capsys, "conditions", store, "--charging", "--unmetered") == "met\n"
    assert run(capsys, "require", store, "--hours", "0", "0") == "missing: hours\n"
    assert run(capsys, "require", store) == "met\n"
    assert state(capsys)["missing"] == []


def test_a_log_is_limited(store, capsys):
    told = run(capsys, "limit", store, "--interactions", "2", "--days", "30.5")
    assert told == "the newest 2 interactions are kept, none older than 30.5 days; it holds from the next record on\n"
    assert (
        run(capsys, "record", store, "--rating", "1=5", "--rating", "2=5", "--rating", "3=5") == "3 logged, 2 in all\n"
    )
    assert run(capsys, "limit", store).startswith("the newest 10,000 interactions are kept; it holds")
    with Device.open(store) as found:
        assert found.store.values("limits") == {"interactions": 10_000, "days": None}


def test_a_run_is_adopted_after_a_rollback_too(store, capsys, monkeypatch):
    monkeypatch.setattr("fedrec._cli.device._package", lambda *a: one.package(one.world(), a[-1]))
    run(capsys, "adopt", store, "--run", "r")
    assert run(capsys, "rollback", store) == "version 1 serves again\n"
    run(capsys, "adopt", store, "--run", "r")
    assert state(capsys)["versions"] == {"current": 3, "previous": 1}


def test_an_encrypted_store_opens_by_its_key_file_only(command_line, capsys):
    pytest.importorskip("apsw")
    Path("key").write_text("secret\n")
    one.device(command_line / "e.sqlite", one.world(), key=b"secret").close()
    assert invoke(["device", "status", "e.sqlite"]) == 2
    assert "give its key" in capsys.readouterr().err
    assert "consent" in run(capsys, "status", "e.sqlite", "--key-file", "key")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["status", "nowhere"], "expected a device store in nowhere, got none"),
        (["status", "d.sqlite", "--key-file", "nowhere"], "expected a readable key file"),
        (["create", "d.sqlite"], "expected exactly one of --run and --bundle"),
        (["create", "n.sqlite", "--bundle", "b"], "expected --key with --bundle"),
        (["recommend", "d.sqlite", "-k", "0"], "expected k to be an integer >= 1"),
        (["recommend", "d.sqlite", "--candidate", "nowhere"], "expected items of the catalogue, got 'nowhere'"),
        (["recommend", "d.sqlite", "--temperature", "nan"], "expected temperature >= 0 and finite"),
        (["recommend", "d.sqlite", "--out", "none/slate.json"], "choose another path"),
        (["record", "d.sqlite", "--slate", "nowhere"], "recommend --out writes one"),
        (["record", "d.sqlite", "--slate", "list.json"], "got something else"),
        (["record", "d.sqlite", "--slate", "deep.json"], "recommend --out writes one"),
        (["record", "d.sqlite", "--rating", "1"], "expected --rating ITEM=VALUE, got '1'"),
        (["record", "d.sqlite", "--rating", "1=99"], "expected a rating from 1 to 5"),
        (["record", "d.sqlite", "--clicked", "nowhere"], "expected items of the catalogue"),
        (["forget", "d.sqlite"], "expected exactly one of before, item and everything"),
        (["consent", "d.sqlite"], "Missing option"),
        (["rollback", "d.sqlite"], "expected a previous package"),
        (["require", "d.sqlite", "--hours", "22", "25"], "expected hours as two whole numbers in [0, 24]"),
        (["require", "d.sqlite", "--fresh", "0"], "expected fresh > 0"),
        (["limit", "d.sqlite", "--interactions", "0"], "expected interactions to be an integer >= 1, got 0"),
        (["limit", "d.sqlite", "--days", "nan"], "expected days > 0 and finite, got nan"),
    ],
)
def test_wrong_calls_get_a_sentence_and_change_nothing(arguments, sentence, store, capsys):
    Path("list.json").write_text("[]")
    Path("deep.json").write_text("[" * 100_000)
    before = Path(store).read_bytes()
    assert invoke(["device", *arguments]) == 2
    error = capsys.readouterr().err
    assert sentence in " ".join(error.split())
    assert "Traceback" not in error
    assert Path(store).read_bytes() == before
    assert not os.path.exists("n.sqlite")
