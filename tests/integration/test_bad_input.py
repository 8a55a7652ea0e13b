"""Directories, files and disks as users really have them: one sentence, exit code 2, and nothing is corrupted."""

from __future__ import annotations

import json
import resource
import shlex
import shutil
import signal
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from fedrec import load_config, simulate
from fedrec.cli import invoke
from fedrec.simulation.run import Run

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("command_line")]

SETTINGS = ("data.devices=24", "data.items=40", "server.rounds=3", "local.steps=2")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, small_overrides) -> Path:
    """A finished run with its baselines."""
    out = tmp_path_factory.mktemp("bad") / "run"
    settings = (*small_overrides, *SETTINGS, "evaluation.baselines=true")
    simulate(load_config(None, settings), out=out)
    return out


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of it to be harmed."""
    return shutil.copytree(finished, tmp_path / "run")


def files(run: Path) -> dict[str, str]:
    return {
        str(path.relative_to(run)): sha256(path.read_bytes()).hexdigest()
        for path in sorted(run.rglob("*"))
        if path.is_file() and path.name != "run.lock"
    }


def refused(capsys, *arguments: str | Path) -> str:
    """Run a command that must be refused; its one sentence."""
    assert invoke([str(argument) for argument in arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Traceback" not in shown.err
    assert "\x1b" not in shown.err
    told = [line for line in shown.err.splitlines() if line.startswith("fedrec: ")]
    assert len(told) == 1
    return told[0]


def changed(run: Path, name: str, old: str, new: str) -> None:
    text = (run / name).read_text()
    assert old in text
    (run / name).write_text(text.replace(old, new))


def without_first_row(run: Path) -> None:
    rows = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join(rows[1:]))


def a_directory_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def unfinished(run: Path) -> None:
    """The run as it was before its last round."""
    shutil.rmtree(run / "checkpoints" / "round-000003")


HARM: dict[str, tuple[Callable[[Path], object], tuple[str, ...], str]] = {
    "other seed": (
        lambda run: changed(run, "config.toml", "seed = 0", "seed = 1"),
        ("resume", "evaluate", "recommend"),
        "difference in seed = 0 (now 1)",
    ),
    "other width": (
        lambda run: changed(run, "config.toml", "dim = 16", "dim = 8"),
        ("resume", "evaluate", "recommend"),
        "difference in policy.dim = 16 (now 8)",
    ),
    "garbage for a configuration": (
        lambda run: (run / "config.toml").write_bytes(bytes(range(256))),
        ("resume", "evaluate", "recommend"),
        "got bytes that are no UTF-8 text",
    ),
    "no configuration": (
        lambda run: (run / "config.toml").unlink(),
        ("resume", "evaluate", "recommend"),
        "without one; check the path, or begin anew",
    ),
    "a list for a summary": (
        lambda run: (run / "summary.json").write_text("[]"),
        ("evaluate", "recommend"),
        "without a readable summary.json; finish it first with: fedrec simulate --resume",
    ),
    "no summary": (lambda run: (run / "summary.json").unlink(), ("evaluate", "recommend"), "expected a finished run"),
    "a round short": (unfinished, ("evaluate",), "got that of round 2; finish the run first with: fedrec simulate"),
    "no baseline": (lambda run: shutil.rmtree(run / "joint"), ("evaluate",), "got none; finish the run first"),
    "no metrics": (
        lambda run: (run / "metrics.jsonl").unlink(),
        ("resume", "evaluate"),
        "expected the rows of rounds 1 to 3",
    ),
    "garbage for metrics": (
        lambda run: (run / "metrics.jsonl").write_bytes(bytes(range(256))),
        ("resume", "evaluate"),
        "expected the rows of rounds 1 to 3",
    ),
    "a row short": (without_first_row, ("resume", "evaluate"), "got none of round 1; restore a copy"),
    "a directory for metrics": (
        lambda run: a_directory_instead(run / "metrics.jsonl"),
        ("resume", "evaluate"),
        "got Is a directory",
    ),
    "no ledger": (lambda run: (run / "ledger.sqlite").unlink(), ("resume", "evaluate"), "is missing"),
    "garbage for a ledger": (
        lambda run: (run / "ledger.sqlite").write_bytes(b"x" * 8192),
        ("resume", "evaluate"),
        "file is not a database",
    ),
    "a directory for a report": (
        lambda run: a_directory_instead(run / "report.html"),
        ("resume", "evaluate"),
        "Is a directory",
    ),
    "no whole checkpoint": (
        lambda run: [path.write_bytes(path.read_bytes()[:99]) for path in run.glob("checkpoints/*/state.*")],
        ("resume", "evaluate", "recommend"),
        "got round 3: the tensors were truncated or altered",
    ),
}


@pytest.mark.parametrize("kind", HARM)
def test_a_harmed_run_directory_gets_a_sentence_and_stays_as_it_is(run, kind, capsys):
    harm, commands, sentence = HARM[kind]
    harm(run)
    before = files(run)
    lines = {
        "resume": ("simulate", "--resume", run),
        "evaluate": ("evaluate", run),
        "recommend": ("recommend", run, "--user", "3"),
    }
    for command in commands:
        assert sentence in refused(capsys, *lines[command])
    assert files(run) == before


def test_a_finished_run_can_be_resumed_and_stays_the_same(run, capsys):
    before, summary = files(run), Run.open(run).summary
    assert invoke(["simulate", "--resume", str(run), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert {**again, "seconds": 0, "directory": 0} == {**summary, "seconds": 0, "directory": 0}
    after = files(run)
    assert before.keys() == after.keys()
    assert {name for name in before if after[name] != before[name]} <= {"report.html", "summary.json"}


@pytest.mark.parametrize("arguments", [("--set", "seed=1"), ("--out", "elsewhere")])
def test_a_run_is_resumed_by_its_own_configuration(run, arguments, capsys):
    assert "expected --resume alone" in refused(capsys, "simulate", "--resume", run, *arguments)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (("data.devices=1",), "expected a federation of at least 2 training devices, got 1 of 1"),
        (("data.devices=9", "data.holdout=0.99"), "expected a federation of at least 2 training devices"),
        (("data.positive_threshold=99",), "got 99 above every reward; lower it"),
        (("data.items=2", "data.interactions=1"), "expected training devices with 3 interactions or more"),
        (("evaluation.ks=[]",), "expected evaluation.ks to be one or more integers >= 1, got []"),
        (("evaluation.ks=[5, -1]",), "expected evaluation.ks to be one or more integers >= 1, got [5, -1]"),
        (("evaluation.cold_start=[-1]",), "expected evaluation.cold_start to be integers >= 0, got [-1]"),
        (("evaluation.metric=loss",), "expected evaluation.metric to be one of hr@5"),
        (("evaluation.ks=[3]",), "got 'ndcg@10'; its cut-off must be among evaluation.ks"),
        (("local.steps=0",), "expected local.steps >= 1, got 0"),
        (("privacy.epsilon=1e-9",), "no noise reaches epsilon 1e-09"),
        (("data.text_buckets=8",), "expected data.text_buckets = 0 with a generated world"),
        (("privacy.clip=0",), "expected privacy.clip > 0, got 0"),
        (("privacy.epsilon=true",), "expected privacy.epsilon to be a number, got True"),
        (("privacy=3",), "expected privacy to be a section, got 3"),
        (("policy.fast=taste",), "expected policy.fast to be a list, got 'taste'"),
    ],
)
def test_settings_that_can_not_work_are_refused_before_anything_is_written(
    settings, sentence, small_settings, capsys, tmp_path
):
    extra = [part for setting in settings for part in ("--set", setting)]
    assert sentence in refused(capsys, "simulate", *small_settings, *extra, "--out", "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("bytes.toml", bytes(range(256)), "expected TOML in bytes.toml, got bytes that are no UTF-8 text"),
        ("torn.toml", b"[privacy\nepsilon = 2", "expected TOML in torn.toml, got a syntax error"),
        ("two.toml", b"[privacy]\nepsilom = 2\n[server]\nrounds = 'x'", "did you mean privacy.epsilon?"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(name, content, sentence, capsys, tmp_path):
    (tmp_path / name).write_bytes(content)
    assert sentence in refused(capsys, "simulate", name)


def test_what_is_no_directory_is_refused(small_settings, capsys, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    assert "got Is a directory" in refused(capsys, "simulate", "folder")
    assert "it is a file; choose another" in refused(capsys, "simulate", *small_settings, "--out", "file")
    assert "Not a directory; choose another" in refused(capsys, "simulate", *small_settings, "--out", "file/run")
    assert "which is no directory" in refused(capsys, "evaluate", "file")
    assert "nothing has run here" in refused(capsys, "simulate", "--resume", "folder")
    assert (tmp_path / "file").read_text() == "mine"


LOGS = {
    "nan.csv": (b"user,item,rating\nann,a,nan\nbob,b,1\n", "nan"),
    "truncated.csv": (b"user,item,rating\nann,a,3\nbob,b\n", "line 3"),
    "bytes.csv": (bytes(range(256)) * 4, "bytes.csv"),
    "empty.csv": (b"", "empty.csv"),
}


@pytest.mark.parametrize("name", LOGS)
def test_a_log_that_can_not_be_read_is_refused_and_not_kept(name, capsys, tmp_path):
    content, sentence = LOGS[name]
    (tmp_path / name).write_bytes(content)
    assert sentence in refused(capsys, "data", "import", name, "--name", "mine")
    assert invoke(["data", "list", "--json"]) == 0
    assert "mine" not in {info["name"] for info in json.loads(capsys.readouterr().out)}


def test_a_log_without_a_table_about_items_works_as_the_import_says_and_so_does_a_device_of_one_interaction(
    capsys, tmp_path, small_settings
):
    rows = [f"u{user},i{(user * 3 + step) % 12},{1 + step % 5},{step}" for user in range(12) for step in range(6)]
    (tmp_path / "log.csv").write_text("\n".join(["user,item,rating,timestamp", *rows, "lone,i1,3,1", ""]))
    assert invoke(["data", "import", "log.csv", "--name", "mine"]) == 0
    told = shlex.split(capsys.readouterr().out.partition("mine is ready: fedrec ")[2])
    assert invoke([*told[:1], *small_settings, *told[1:], "--set", "data.holdout=0", "--out", "run", "--quiet"]) == 0
    capsys.readouterr()
    assert invoke(["recommend", "run", "--user", "lone", "--json"]) == 0
    assert "i1" not in {one["item_id"] for one in json.loads(capsys.readouterr().out)}


@pytest.fixture
def small_files():
    """Files may not grow beyond the given size: what a full disk looks like to a process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("size", [500, 6_000, 20_000, 30_000])
def test_a_full_disk_gets_a_sentence_and_the_run_goes_on_from_there(
    finished, small_settings, small_files, size, capsys, tmp_path
):
    """500 bytes: the configuration; 6 KB: the ledger; 20 KB: a checkpoint; 30 KB: the summary or the report."""
    settings = [part for setting in (*SETTINGS, "evaluation.baselines=true") for part in ("--set", setting)]
    command = ["simulate", *small_settings, *settings, "--out", "run"]
    small_files(size)
    refused(capsys, *command)
    small_files(resource.RLIM_INFINITY)
    begun = (tmp_path / "run" / "config.toml").exists()
    assert invoke(["simulate", "--resume", "run"] if begun else command) == 0
    assert Run.open("run").summary["results"] == Run.open(finished).summary["results"]
    drafts = [path.name for path in (tmp_path / "run").rglob(".*")]
    assert drafts == []
