"""``fedrec budget``: what it prints, its JSON, and one sentence for everything that can't be planned or read."""

import json
import re
import shutil
import sqlite3

import numpy as np
import pytest
from fedrec import load_config, simulate
from fedrec.cli import invoke
from fedrec.privacy.accounting import Charge, epsilon
from fedrec.privacy.ledger import Ledger
from fedrec.privacy.scenario import Scenario, solve
from fedrec.server.budget import plan_budget

pytestmark = pytest.mark.usefixtures("command_line")

CHARGE = Charge(4.0, 1.0, 5)
QUICK = ["--axis", "rounds=10,20", "--axis", "devices=500,5000", "--axis", "epsilon=2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory, small_overrides):
    """A finished run of 60 synthetic devices that keeps both kinds of ledger."""
    out = tmp_path_factory.mktemp("budget") / "run"
    return simulate(load_config(None, [*small_overrides, "privacy.unit=both"]), out=out).directory


@pytest.fixture
def ledger(tmp_path):
    """A ledger file with two histories."""
    path = tmp_path / "devices.sqlite"
    with Ledger.create(path, unit="interaction", delta=1e-5, budget_epsilon=8.0) as opened:
        opened.reserve_numbered("device", np.arange(100), CHARGE, key="round:1")
        opened.settle("round:1")
        opened.reserve_numbered("device", np.arange(30), CHARGE, key="round:2")
    return path


def answer(capsys, *arguments):
    assert invoke([*arguments]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_a_plan_says_what_gives_it_meaning_and_shows_three_tables(capsys):
    shown = answer(capsys, "budget", "plan", "--epsilon", "4", "--rounds", "20", "--devices", "500", *QUICK)
    found = solve(Scenario(unit="user", rounds=20, devices=500, target_epsilon=4.0))
    flat = " ".join(shown.split())
    assert found.statement.sentence() in flat
    assert f"{found.noise_over_signal:.3g} of the clip" in flat
    two = solve(Scenario(unit="user", rounds=20, devices=500, target_epsilon=2.0))
    assert re.search(rf"20 +500 +{two.noise_multiplier:.3g}  {two.noise_over_signal:.2g}\n", shown)
    assert "GDP, an approximation that may underestimate" in shown
    assert "PLD of dp-accounting" in shown
    assert re.search(r"twice the devices .* -50 %\n", shown)
    titles = [line for line in shown.splitlines() if "unit user, delta 1e-05" in line]
    assert len(titles) == 3


def test_back_and_forth(capsys):
    forth = json.loads(answer(capsys, "budget", "plan", "--epsilon", "3", "--rounds", "9", *QUICK, "--json"))[0]
    noise = repr(forth["noise_multiplier"])
    back = json.loads(answer(capsys, "budget", "plan", "--noise", noise, "--rounds", "9", *QUICK, "--json"))[0]
    assert back["statement"] == forth["statement"]
    assert 2.99 < back["statement"]["epsilon"] <= 3
    assert {cell["rounds"] for cell in forth["table"]} == {10, 20}
    assert set(forth["accountants"]) == {"rdp", "prv", "gdp", "gaussian", "pld"}
    assert [knob["factor"] for knob in forth["knobs"]] == sorted(knob["factor"] for knob in forth["knobs"])


def test_a_plan_that_starts_from_a_configuration_is_what_it_would_spend(capsys, tmp_path, small_overrides):
    settings = load_config(None, [*small_overrides, "privacy.unit=both", "privacy.epsilon=3", "privacy.accountant=gdp"])
    file = tmp_path / "mine.toml"
    file.write_text(settings.to_toml())
    plans = json.loads(answer(capsys, "budget", "plan", "--config", str(file), *QUICK, "--json"))
    expected = plan_budget(settings, changes=2).statements
    assert [plan["statement"]["epsilon"] for plan in plans] == [one.epsilon for one in expected]
    assert [plan["statement"] for plan in plans] == [one.to_dict() for one in expected]
    assert plans[0]["warm_noise_multiplier"] == plan_budget(settings).user.warm
    (changed,) = json.loads(
        answer(capsys, "budget", "plan", "--config", str(file), "--set", "privacy.epsilon=1", "--unit", "user",
               "--devices", "700", *QUICK, "--json")
    )  # fmt: skip
    assert changed["statement"]["epsilon"] == pytest.approx(1, rel=1e-3)
    assert changed["scenario"]["devices"] == 700


def test_separation_and_bits_stand_in_the_plan(capsys):
    arguments = ["--epsilon", "4", "--rounds", "40", "--separation", "8", "--bit-noise", "30"]
    shown = " ".join(answer(capsys, "budget", "plan", *arguments, *QUICK).split())
    assert "minimum separation 8, no amplification (a device takes part in at most 5 of 40 rounds" in shown
    assert "A round has 125 of 1,000 devices" in shown
    assert "the bits of the adaptive clip take some" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epsilon", "1", "--noise", "1"], "got both; give one"),
        (["--epsilon", "0"], "target_epsilon > 0"),
        (["--axis", "rounds=x"], "expected --axis NAME=V,..."),
        (["--axis", "colour=1"], "one of rounds, devices, epsilon"),
        (["--axis", "rounds=1.5"], "expected --axis"),
        (["--set", "privacy.unit=none"], "got none: it spends no budget"),
        (["--config", "nowhere.toml"], "readable TOML file"),
        (["--bit-noise", "0.01"], "expected bit_noise > noise_multiplier / 2"),
        (["--separation", "4", "--participation", "0.5"], "participation <= 1 / separation"),
        (["--rounds", "0"], "rounds to be an integer >= 1, got 0"),
    ],
)
def test_what_can_not_be_planned_gets_one_sentence(arguments, message, capsys):
    assert invoke(["budget", "plan", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in " ".join(shown.err.split())


def test_a_ledger_is_shown_with_its_history_and_what_is_left(ledger, capsys):
    shown = answer(capsys, "budget", "show", str(ledger))
    assert "unit interaction (add or remove one interaction of one device), RDP accountant" in shown
    assert re.search(r"1  round:1 +100 +4 +5  everything, every time  yes", shown)
    assert re.search(r"3  round:2 +30 +4 +5  everything, every time  no", shown)
    once, twice = epsilon([CHARGE], 1e-5), epsilon([(CHARGE, 2)], 1e-5)
    most = max(n for n in range(1, 40) if epsilon([(CHARGE, n)], 1e-5) <= 8)
    assert re.search(rf"device:30-99 +70  5 x noise 4 +{once:.4g} +{8 - once:.4g} +{most - 1}\n", shown)
    assert re.search(rf"device:0-29 +30  10 x noise 4 +{twice:.4g} +{8 - twice:.4g} +{most - 2}\n", shown)
    assert "round:1 " not in answer(capsys, "budget", "show", str(ledger), "--last", "1")


def test_a_ledger_is_exported_whole(ledger, capsys):
    (exported,) = json.loads(answer(capsys, "budget", "show", str(ledger), "--json"))
    with Ledger.open(ledger) as opened:
        assert (exported["rows"], exported["head"]) == (opened.count, opened.head)
        assert exported["settings"] == opened.export()["settings"]
        assert {name: group["epsilon"] for name, group in exported["accounts"].items()} == {
            name: group["epsilon"] for name, group in opened.export()["accounts"].items()
        }
    assert [(debit["key"], debit["accounts"]) for debit in exported["debits"]] == [("round:1", 100), ("round:2", 30)]


def test_a_run_shows_all_its_ledgers(run, capsys):
    exported = json.loads(answer(capsys, "budget", "show", str(run), "--json"))
    assert [account["name"] for account in exported] == ["federation", "devices of node-0-of-1"]
    assert [account["settings"]["unit"] for account in exported] == ["user", "interaction"]
    assert list(exported[0]["accounts"]) == ["federation"]


def foreign(path):
    connection = sqlite3.connect(path / "x")
    connection.execute("CREATE TABLE entries (a)")
    connection.commit()
    connection.close()
    return path / "x"


def altered(path):
    (file,) = path.glob("*.sqlite")
    file.write_bytes(file.read_bytes().replace(b'"noise_multiplier": 4.0', b'"noise_multiplier": 9.0'))
    return file


def cut(path):
    (file,) = path.glob("*.sqlite")
    file.write_bytes(file.read_bytes()[:5000])
    return file


def text(path):
    (path / "x").write_text("no ledger")
    return path / "x"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path / "nowhere.sqlite", "is missing"),
        (foreign, "is not a ledger of this format"),
        (text, "file is not a database"),
        (altered, "was altered at row 1"),
        (cut, "can't be used|is damaged|is missing"),
        (lambda path: path, "expected a run directory with a config.toml"),
    ],
)
def test_what_is_no_ledger_gets_one_sentence(ledger, make, message, capsys):
    assert invoke(["budget", "show", str(make(ledger.parent))]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert re.search(message, shown.err)
    assert len(shown.err.strip().splitlines()) == 1


def test_a_run_that_lost_a_ledger_or_has_none_says_so(run, tmp_path, capsys):
    for index, name in enumerate(("ledger.sqlite", "nodes/node-0-of-1/devices.sqlite")):
        copy = tmp_path / f"lost-{index}"
        shutil.copytree(run, copy)
        (copy / name).unlink()
        assert invoke(["budget", "show", str(copy)]) == 2
        assert "is missing" in capsys.readouterr().err
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "config.toml").write_text(load_config(None, ["privacy.unit=none"]).to_toml())
    assert invoke(["budget", "show", str(tmp_path / "none")]) == 2
    assert "a run of unit none has none" in capsys.readouterr().err
