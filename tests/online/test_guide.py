"""What ``docs/online.md`` shows is done here."""

import re
import shlex
from pathlib import Path

from fedrec.cli import invoke

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "online.md").read_text(encoding="utf-8")


def fenced(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_the_python_of_the_guide_runs(capsys):
    (block,) = fenced("python")
    exec(block, {})
    oracle, chance = capsys.readouterr().out.splitlines()
    assert oracle.startswith("oracle ")
    assert abs(float(oracle.split()[1])) < 1e-9
    assert float(chance.split()[1]) > 0


def test_the_command_of_the_guide_tells_every_arm_and_what_it_costs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (block,) = fenced("console")
    assert invoke(shlex.split(block.removeprefix("$ "))[1:]) == 0
    shown = capsys.readouterr().out
    for arm in ("meta@2", "known-popularity", "oracle"):
        assert arm in shown
    assert "epsilon = 8 at delta" in " ".join(shown.split())
    assert "NO PRIVACY" in shown


def test_mistakes_are_one_sentence(tmp_path, capsys):
    assert invoke(["online", "--resume", str(tmp_path)]) == 2
    assert invoke(["online", "--set", "online.arms=['best']", "--out", str(tmp_path / "run")]) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert "expected a directory with an online.toml" in shown
    assert "expected online.arms among" in shown
    assert not (tmp_path / "run").exists()
    assert invoke(["online", "--show"]) == 0
    assert "[exploration]" in capsys.readouterr().out
