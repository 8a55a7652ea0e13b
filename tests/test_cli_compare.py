"""``fedrec compare``: table, JSON, report, exit codes, wrong input."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fedrec.cli import invoke
from fedrec.simulation.compare import run as runs
from fedrec.simulation.compare.sequential import sequential_test
from fedrec.simulation.run import simulate

pytestmark = pytest.mark.usefixtures("command_line")
QUICK = ["--interactions", "3"]
VALUES = {
    "data": {"name": "shop", "devices": 40, "items": 30, "interactions": 8},
    "policy": {"dim": 3, "history_length": 6},
    "server": {"rounds": 2},
    "evaluation": {"baselines": False, "resamples": 100, "cold_start": [0], "negatives": 5, "serve_steps": 1},
}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two short runs over the same data, and one over other data."""
    place = tmp_path_factory.mktemp("two")
    for name, changes in (("a", {}), ("b", {"local": {"lr": 0.1}}), ("news", {"data": {"name": "news"}})):
        values = VALUES | {key: VALUES.get(key, {}) | value for key, value in changes.items()}
        simulate(values, out=place / name)
    return str(place / "a"), str(place / "b")


def test_the_table_says_who_is_better_and_the_report_shows_it(two, capsys, tmp_path):
    assert invoke(["compare", *two, *QUICK, "--out", "kept"]) == 0
    shown = capsys.readouterr()
    for line in ("CTR", "reward a slate", "regret a slate", "sequential test", "always valid", "trained both"):
        assert line in shown.out
    assert "run A: 40 users, 3 interactions" in shown.err
    page = (tmp_path / "kept" / "report.html").read_text()
    figures = [f"<svg{part.split('</svg>')[0]}</svg>" for part in page.split("<svg")[1:]]
    assert len(figures) == 4
    assert all(ET.fromstring(one).get("aria-label") for one in figures)
    kept = json.loads((tmp_path / "kept" / "comparison.json").read_text())
    assert kept["verdict"] in page
    assert kept["verdict"] in " ".join(shown.out.split())


def test_json_holds_every_number(two, capsys):
    assert invoke(["compare", *two, *QUICK, "--json", "--users", "30", "--alpha", "0.2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["users"], found["data"], found["settings"]["alpha"]) == (30, "shop", 0.2)
    test = found["test"]
    assert test["sequence"]["users"] == list(range(1, 31))
    assert (test["low"], test["high"]) == (test["sequence"]["low"][-1], test["sequence"]["high"][-1])
    difference = found["metrics"]["ctr"]["difference"]["mean"]
    assert difference == pytest.approx(found["metrics"]["ctr"]["b"]["mean"] - found["metrics"]["ctr"]["a"]["mean"])
    assert test["sequence"]["mean"][-1] == pytest.approx(difference)
    assert sum(group["users"] for group in found["groups"].values()) == 30
    assert found["curves"]["interactions"] == [[1, 1], [2, 2], [3, 3]]


def test_a_run_against_itself_is_the_same(two, capsys):
    assert invoke(["compare", two[0], two[0], *QUICK, "--require", "not-worse"]) == 0
    assert "there is no difference to test" in " ".join(capsys.readouterr().out.split())
    assert invoke(["compare", two[0], two[0], *QUICK, "--require", "better"]) == 3


@pytest.mark.parametrize(("sign", "required", "code"), [(1, "better", 0), (-1, "not-worse", 3), (-1, None, 0)])
def test_exit_codes_follow_what_is_required(two, monkeypatch, sign, required, code):
    original = runs.judge

    def decided(*args, settings):
        return replace(original(*args, settings=settings), test=sequential_test(np.full(40, 0.9 * sign)), same=False)

    monkeypatch.setattr(runs, "judge", decided)
    assert invoke(["compare", *two, *QUICK, *(["--require", required] if required else [])]) == code


def test_an_unfinished_run_is_refused(two, capsys, tmp_path):
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.toml").write_text("[server]\nrounds = 3\n")
    assert invoke(["compare", two[0], "begun"]) == 2
    assert "expected a finished run in begun" in capsys.readouterr().err
    assert invoke(["compare", "nowhere", two[0]]) == 2
    assert "expected a run directory, got nowhere" in capsys.readouterr().err


def test_runs_over_other_data_are_refused(two, capsys):
    assert invoke(["compare", two[0], str(Path(two[0]).with_name("news"))]) == 2
    error = capsys.readouterr().err
    assert "expected two runs over the same data, got shop and news" in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--alpha", "0"], "expected 0 < alpha < 1, got 0.0"),
        (["--users", "1"], "expected users to be an integer >= 2, got 1"),
        (["--interactions", "0"], "expected interactions to be an integer >= 1, got 0"),
        (["--temperature", "-1"], "expected temperature >= 0 and finite, got -1.0"),
        (["--users", "41"], "expected 41 users, got 40"),
        (["--slate", "31"], "expected slate <= 30"),
    ],
)
def test_wrong_numbers_are_one_sentence(two, capsys, wrong, said):
    assert invoke(["compare", *two, *QUICK, *wrong]) == 2
    assert said in capsys.readouterr().err


def test_nothing_is_written_where_nothing_can_be(two, capsys, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert invoke(["compare", *two, *QUICK, "--out", "file"]) == 2
    assert (tmp_path / "file").read_text() == "mine"
    assert "can't write file" in capsys.readouterr().err
