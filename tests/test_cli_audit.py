"""``fedrec audit``: tables, JSON, exit codes, wrong input."""

from __future__ import annotations

import json

import pytest
from fedrec.cli import invoke
from fedrec.server import strategy
from fedrec.simulation import audit as audits
from fedrec.simulation.audit import Size

pytestmark = pytest.mark.usefixtures("command_line")
CHEAP = ["--set", "server.rounds=2", "--set", "server.warm_start=none", "--set", "privacy.epsilon=4"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(
        audits, "SIZES", dict.fromkeys(audits.SIZES, Size(rounds=150, plans=0, devices=300, canaries=100))
    )


def test_a_configuration_is_not_refuted(capsys, tmp_path):
    (tmp_path / "my.toml").write_text('[privacy]\nunit = "both"\nmax_participations = 2\n')
    assert invoke(["audit", "my.toml", "--quick", *CHEAP, "--out", "kept.json"]) == 0
    shown = capsys.readouterr()
    assert "one round, with and without a device" in shown.out
    assert "canary interactions in one run" in shown.out
    assert "not refuted by" in shown.out
    assert "epsilon = 4 at delta = 1e-05, unit user" in " ".join(shown.out.split())
    assert "kept in kept.json" in shown.out
    assert "one release" in shown.err
    assert json.loads((tmp_path / "kept.json").read_text())["verdict"] == "not refuted"


def test_a_refuted_claim_ends_with_code_3(capsys, monkeypatch):
    original = strategy.gaussian_sum_noise
    monkeypatch.setattr(
        strategy, "gaussian_sum_noise", lambda total, bound, z, noise: original(total, bound, 0.0, noise)
    )
    assert invoke(["audit", "--quick", *CHEAP]) == 3
    assert "REFUTED by" in capsys.readouterr().out
    assert invoke(["audit", "--json", *CHEAP]) == 3
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "refuted"
    first = found["findings"][0]
    assert first["verdict"] == "refuted"
    assert {"attack", "unit", "claimed_epsilon", "delta", "measured_epsilon", "confidence", "points"} <= set(first)
    assert any(point["refuted"] and point["measured"] > point["claimed"] for point in first["points"])


PAIRS = ["--set", "server.warm_pairs=5", "--set", "policy.affinity=true", "--set", "policy.pairs=2"]


@pytest.mark.parametrize(("share", "code"), [(1.0, 0), (0.1, 3)])
def test_a_vote_on_pairs_is_attacked(capsys, monkeypatch, share, code):
    original = strategy.gaussian_sum_noise

    def noised(total, bound, z, noise):
        return original(total, bound, z * (share if "pairs" in total else 1), noise)

    monkeypatch.setattr(strategy, "gaussian_sum_noise", noised)
    settings = ["--set", "server.rounds=4", "--set", "privacy.epsilon=4", *PAIRS]
    assert invoke(["audit", "--json", *settings]) == code
    findings = {one["attack"]: one for one in json.loads(capsys.readouterr().out)["findings"]}
    found = findings["vote on pairs, with and without a device"]
    assert found["verdict"] == ("refuted" if code else "not refuted")
    assert "canary devices in one run, all rounds" in findings


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--set", "privacy.unit=none"], "expected a configuration that claims privacy, got privacy.unit = none"),
        (["--set", "privacy.clipping=adaptive"], "expected a fixed clip and no minimum separation"),
        (["--set", "server.min_separation=2"], "and server.min_separation = 2; audit the configuration with"),
        (["--quick", "--thorough"], "expected one of --quick and --thorough"),
        (["nowhere.toml"], "expected a readable TOML file"),
        (["."], "expected a run directory with a config.toml"),
        ([".", "--set", "seed=1"], "a run is audited as it was run"),
        (["--confidence", "1"], "expected 0 < confidence < 1"),
    ],
)
def test_wrong_input_is_told_in_one_sentence(arguments, sentence, capsys):
    assert invoke(["audit", *arguments]) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert sentence in shown
    assert "Traceback" not in shown
