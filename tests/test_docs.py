"""What the documents say can be done is done here, on small data; every command they show can at least be parsed."""

from __future__ import annotations

import re
import runpy
import shlex
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import typer
from fedrec import config
from fedrec.cli import app, invoke
from fedrec.simulation import audit

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
DATA = ("data.name", "data.devices", "data.items", "data.interactions")


def blocks(page: Path, language: str) -> list[str]:
    return [body for found, body in FENCE.findall(page.read_text(encoding="utf-8")) if found == language]


def commands(page: Path) -> list[list[str]]:
    """Lines of a ``console`` block that a reader types, as arguments of fedrec."""
    lines = [line for block in blocks(page, "console") for line in block.splitlines() if line.startswith("$ ")]
    assert all(line.startswith("$ fedrec ") for line in lines), page
    return [shlex.split(line)[2:] for line in lines]


def mentioned(page: Path) -> list[list[str]]:
    """Every command line of fedrec in a page: on a line of its own in any block, or between backticks."""
    text = page.read_text(encoding="utf-8")
    lines = [line.removeprefix("$ ") for _, block in FENCE.findall(text) for line in block.splitlines()]
    inline = re.findall(r"`(fedrec [^`\n]+)`", FENCE.sub("", text))
    found = [line for line in (*lines, *inline) if line.startswith("fedrec ")]
    return [shlex.split(re.split(r"\s[#>|]\s|\s#|\.\.\.", line)[0])[1:] for line in found]


def parse(arguments: list[str]) -> None:
    """Let the command line's own parser read ``arguments``, without running anything."""
    command, rest = typer.main.get_command(app), [one for one in arguments if one != "--debug"]
    while hasattr(command, "commands"):
        if not rest:
            return
        assert rest[0] in command.commands or rest[0].startswith("--"), f"no command {rest[0]!r}"
        if rest[0].startswith("--"):
            return
        command, rest = command.commands[rest[0]], rest[1:]
    if rest:
        command.make_context("fedrec", list(rest))


@pytest.mark.parametrize("page", [page for page in PAGES if mentioned(page)], ids=lambda page: page.name)
def test_every_command_that_is_mentioned_is_one(page):
    for arguments in mentioned(page):
        parse(arguments)


@pytest.mark.parametrize(
    "arguments", [["simulat"], ["simulate", "--sett", "a=b"], ["recommend", "RUN"], ["data", "get"]]
)
def test_a_command_that_is_none_is_found(arguments):
    with pytest.raises(Exception, match=r"No such|Missing|no command"):
        parse(arguments)


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_the_commands_of_a_page_run_in_their_order(page, command_line, small_settings, small_audits, capsys):
    for arguments in commands(page):
        extra = small_settings if arguments[0] == "simulate" else []
        if arguments[0] == "sweep" and "--show" not in arguments:
            extra = [*small_settings, "--set", "seed=0", "--set", "privacy.epsilon=8", "--workers", "2"]
        assert invoke([*arguments, *extra]) == 0, f"{arguments}\n{capsys.readouterr().err}"
        assert capsys.readouterr().out


@pytest.fixture
def small_audits(monkeypatch):
    """Whatever size of audit a command asks for, it gets the least."""
    least = audit.Size(rounds=40, plans=0, devices=60, canaries=40)
    monkeypatch.setattr(audit, "SIZES", dict.fromkeys(audit.SIZES, least))


@pytest.fixture
def small_worlds(monkeypatch, small_overrides):
    """Whatever a program asks for, its run is small; its data are its own."""
    small = dict(override.split("=") for override in small_overrides if not override.startswith("data.name"))
    original = config.Config.from_mapping.__func__

    def shrunk(cls, values):
        flat = original(cls, values).flat()
        own_data = flat["data.name"] != "synthetic"
        changes = {key: value for key, value in small.items() if not (own_data and key in DATA)}
        changes["evaluation.baselines"] = flat["evaluation.baselines"]
        nested = {}
        for key, value in (flat | changes).items():
            config._assign(nested, key, config._value(value) if key in changes and isinstance(value, str) else value)
        return original(cls, nested)

    monkeypatch.setattr(config.Config, "from_mapping", classmethod(shrunk))


def test_the_python_of_the_readme_runs(command_line, small_worlds, capsys):
    (block,) = blocks(ROOT / "README.md", "python")
    exec(block, {})
    shown = capsys.readouterr().out
    assert shown.startswith("NDCG@10 0.")
    assert "unit user" in shown
    assert len(shown.splitlines()) == 2 + 5


def test_the_python_of_the_device_guide_runs(command_line, small_worlds, capsys):
    for block in blocks(ROOT / "docs" / "device.md", "python"):
        exec(block, {})
    *_, left, missing = capsys.readouterr().out.splitlines()
    assert left == "1 left; 0 shown", "what was shown with what is forgotten goes with it"
    assert missing.startswith("('unmetered'")


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_every_example_runs(example, command_line, small_worlds, capsys):
    runpy.run_path(str(example), run_name="__main__")
    assert len(capsys.readouterr().out.splitlines()) >= 3


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    missing = [target for target in targets if not (page.parent / target.split("#")[0]).exists()]
    assert missing == []


@pytest.mark.parametrize("picture", sorted((ROOT / "docs").glob("*.svg")), ids=lambda path: path.name)
def test_pictures_are_whole_small_and_self_contained(picture):
    text = picture.read_text(encoding="utf-8")
    ET.fromstring(text)
    assert len(text) < 60_000
    assert "prefers-color-scheme: dark" in text
    assert re.findall(r"(?:href|src)=\"(?!#)[^\"]*\"|url\((?!#)[^)]*\)", text) == []


def test_the_guides_are_all_in_the_index():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"({page.name})" not in index] == ["index.md"]
