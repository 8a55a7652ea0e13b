"""The command line: what it prints where, its exit codes, and that nothing is lost when it is interrupted."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from fedrec import __version__, load_config, simulate
from fedrec._cli import progress as progress_module
from fedrec._cli import render, terminal
from fedrec._cli.progress import Progress, clock
from fedrec._validate import positive
from fedrec.cli import invoke
from fedrec.config import Config
from fedrec.errors import FedrecError
from fedrec.server.lock import RunLock
from fedrec.server.plan import RoundReport
from fedrec.simulation.run import Run
from rich.console import Console

pytestmark = pytest.mark.usefixtures("command_line")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, small_overrides) -> Path:
    """A finished run of 60 synthetic devices."""
    out = tmp_path_factory.mktemp("cli") / "run"
    simulate(load_config(None, small_overrides), out=out)
    return out


def report(number: int, rounds: int = 20, metric: float | None = None, **changes) -> RoundReport:
    values = {
        "round": number,
        "participants": 50,
        "epsilon": {"user": number / 10},
        "validation": None if metric is None else {"ndcg@10": metric},
        "seconds": 0.1,
        "quarantined": {},
        "refused": 0,
        "rounds": rounds,
    }
    return RoundReport(**values | changes)


class FakeWorld:
    config = Config()
    roster = range(50)


def test_version_and_help(capsys):
    assert invoke(["--version"]) == 0
    assert capsys.readouterr().out == f"fedrec {__version__}\n"
    assert invoke(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in ("simulate", "evaluate", "recommend", "data", "config"))


def test_help_imports_nothing_heavy():
    code = "import sys; from fedrec.cli import invoke; invoke(['--help']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.rsplit("\n[", maxsplit=1)[1].replace("'", "").split(", "))
    assert "fedrec.cli" in loaded
    assert loaded.isdisjoint({"torch", "flwr", "numpy", "polars", "matplotlib"})


def test_simulate_ends_with_table_privacy_and_paths(small_settings, capsys, command_line):
    assert invoke(["simulate", *small_settings, "--set", "server.rounds=2"]) == 0
    shown = capsys.readouterr()
    run = next((command_line / "runs").iterdir())
    assert run.name.startswith("synthetic-user-")
    assert "meta-learned, served" in shown.out
    assert Run.open(run).summary["privacy"][0]["sentence"] in " ".join(shown.out.split())
    assert f"runs/{run.name}/report.html" in shown.out
    assert "round 2/2" in shown.err
    assert "Traceback" not in shown.err


def test_a_narrow_terminal_gets_the_full_ranking_alone_and_no_broken_intervals(finished):
    stream = io.StringIO()
    render.show_run(Console(file=stream, width=80), Run.open(finished))
    shown = stream.getvalue()
    assert "99 sampled" not in shown
    served = next(line for line in shown.splitlines() if "meta-learned, served" in line)
    assert served.count("[") == served.count("]") == 2
    stream = io.StringIO()
    render.show_run(Console(file=stream, width=101), Run.open(finished))
    assert "99 sampled" in stream.getvalue()


def test_json_alone_is_on_the_output_stream(small_settings, capsys):
    assert invoke(["simulate", *small_settings, "--set", "server.rounds=2", "--out", "run", "--json"]) == 0
    shown = capsys.readouterr()
    summary = json.loads(shown.out)
    assert summary["directory"] == "run"
    assert summary["rounds"] == 2
    assert "2 rounds with 54 devices" in shown.err


def test_quiet_prints_the_path_and_unit_none_is_loud_all_the_same(small_settings, capsys):
    code = invoke(["simulate", *small_settings, "--set", "privacy.unit=none", "--out", "run", "--quiet"])
    shown = capsys.readouterr()
    assert (code, shown.out) == (0, "run\n")
    assert "NO PRIVACY" in shown.err
    assert "rounds with" not in shown.err


def test_an_interrupted_run_says_how_to_go_on_and_ends_as_if_it_never_was(
    finished, small_settings, capsys, monkeypatch
):
    rounds = []

    def interrupt(self, report):
        rounds.append(report.round)
        if report.round == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "round", interrupt)
        assert invoke(["simulate", *small_settings, "--out", "run"]) == 130
    shown = capsys.readouterr().err
    assert rounds == [1, 2]
    assert "resume with: fedrec simulate --resume run" in shown
    assert "Traceback" not in shown
    assert invoke(["simulate", "--resume", "run", "--json"]) == 0
    resumed = json.loads(capsys.readouterr().out)
    assert resumed["results"] == Run.open(finished).summary["results"]


def test_interrupted_before_anything_is_written(small_settings, capsys, monkeypatch):
    monkeypatch.setattr("fedrec.simulation.run.World.build", failing(KeyboardInterrupt()))
    assert invoke(["simulate", *small_settings, "--out", "run"]) == 130
    assert "nothing is lost" in capsys.readouterr().err


def test_evaluate_writes_the_same_summary_again(finished, capsys):
    before = Run.open(finished).summary
    (finished / "report.html").unlink()
    assert invoke(["evaluate", str(finished), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["results"] == before["results"]
    assert (finished / "report.html").exists()


def test_recommend_shows_and_explains(finished, capsys):
    assert invoke(["recommend", str(finished), "--user", "7", "-k", "3", "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert [one["rank"] for one in plain] == [1, 2, 3]
    assert invoke(["recommend", str(finished), "--user", "7", "-k", "3", "--explain"]) == 0
    shown = capsys.readouterr().out
    assert plain[0]["title"] in shown
    assert "popularity" in shown


def test_recommend_draws_slates_with_their_propensities(finished, capsys):
    asked = ["recommend", str(finished), "--user", "7", "-k", "3", "--json"]
    ranked, first, again, other = (
        [*asked, *more] for more in ([], ["--sample"], ["--sample"], ["--sample", "--seed", "1", "--temperature", "5"])
    )
    slates = []
    for arguments in (ranked, first, again, other):
        assert invoke(arguments) == 0
        slates.append(json.loads(capsys.readouterr().out))
    assert {one["propensity"] for one in slates[0]} == {None}
    assert slates[1] == slates[2] != slates[3]
    assert all(0 < one["propensity"] < 1 for one in slates[1])
    assert invoke([*asked, "--diversity", "0.2"]) == 2
    assert "expected --sample with --temperature, --epsilon or --diversity" in capsys.readouterr().err


def test_data_commands(capsys, command_line):
    (command_line / "plays.csv").write_text("who,track,stars\nann,a,3\nann,b,5\nbob,a,1\nbob,c,4\n")
    roles = "user=who,item=track"
    assert invoke(["data", "import", "plays.csv", "--name", "mine", "--map", roles, "--map", "reward=stars"]) == 0
    assert "mine is ready" in capsys.readouterr().out
    assert invoke(["data", "list"]) == 0
    listed = capsys.readouterr().out
    assert "ml-100k" in listed
    assert "mine" in listed
    assert invoke(["data", "list", "--json"]) == 0
    infos = {info["name"]: info for info in json.loads(capsys.readouterr().out)}
    assert (infos["mine"]["devices"], infos["mine"]["interactions"]) == (2, 4)
    assert invoke(["data", "describe", "mine", "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["rewards"] == {"1": 1, "3": 1, "4": 1, "5": 1}
    assert invoke(["data", "describe", "mine"]) == 0
    assert "ann, bob" in capsys.readouterr().out


def test_config_show_prints_a_file_that_loads(capsys, command_line):
    assert invoke(["config", "show", "--set", "privacy.epsilon=2"]) == 0
    text = capsys.readouterr().out
    assert tomllib.loads(text)["privacy"]["epsilon"] == 2.0
    (command_line / "my.toml").write_text(text)
    assert invoke(["config", "show", "my.toml"]) == 0
    assert capsys.readouterr().out == text
    assert invoke(["config", "keys"]) == 0
    assert "privacy.noise_multiplier = none" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["simulate", "--set", "privacy.epsilom=2"], "did you mean privacy.epsilon?"),
        (["simulate", "--set", "privacy.epsilon=0"], "expected privacy.epsilon > 0, got 0"),
        (["simulate", "none.toml"], "expected a readable TOML file at none.toml"),
        (["simulate", "--resume", "nowhere"], "expected a run directory, got nowhere, which is no directory"),
        (["simulate", "--resume", "nowhere", "--set", "seed=1"], "expected --resume alone"),
        (["simulate", "--set", "data.name=unheard-of", "--out", "run"], "expected a data set I know"),
        (["evaluate", "nowhere"], "expected a run directory, got nowhere, which is no directory"),
        (["recommend", "nowhere", "--user", "1"], "expected a run directory"),
        (["recommend", "nowhere"], "Missing option '--user'."),
        (["data", "fetch", "unheard-of"], "expected a data set that can be fetched"),
        (["data", "import", "none.csv", "--name", "x"], "none.csv"),
        (["data", "import", "none.csv", "--name", "x", "--map", "user"], "expected --map role=column, got 'user'"),
        (["simulat"], "No such command 'simulat'. Did you mean 'simulate'? See 'fedrec --help'."),
    ],
)
def test_wrong_input_gets_one_sentence_and_exit_code_2(arguments, sentence, capsys):
    assert invoke(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert sentence in shown.err
    assert "Traceback" not in shown.err
    last = shown.err.splitlines()[-1]
    assert last.startswith("fedrec: ")
    assert sentence in last


def test_a_run_directory_in_use_or_taken_is_refused(finished, small_settings, capsys):
    with RunLock(finished):
        assert invoke(["simulate", "--resume", str(finished)]) == 2
    assert "another process" in capsys.readouterr().err
    assert invoke(["simulate", *small_settings, "--out", str(finished)]) == 2
    assert "resume it or choose another" in capsys.readouterr().err


def test_wrong_users_and_lengths_are_refused(finished, capsys):
    assert invoke(["recommend", str(finished), "--user", "nobody"]) == 2
    assert "got 'nobody'" in capsys.readouterr().err
    assert invoke(["recommend", str(finished), "--user", "7", "-k", "0"]) == 2
    assert "expected k to be an integer >= 1, got 0" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["data"]])
def test_without_a_command_there_is_help_and_nothing_else(arguments, capsys):
    assert invoke(arguments) == 2
    shown = capsys.readouterr()
    assert "Usage: fedrec" in shown.out
    assert shown.err == ""


def test_a_factor_for_a_parameter_that_is_not_there_is_told(small_settings, capsys):
    extra = ["--set", "local.rates={nobody=2}", "--set", "server.rounds=2", "--out", "run", "--quiet"]
    assert invoke(["simulate", *small_settings, *extra]) == 0
    assert "warning: local.rates.nobody has no effect: this policy's parameters are " in capsys.readouterr().err


def failing(error: BaseException):
    def action(*ignored):
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (FedrecError("expected a, got b;\n do c"), 2, "fedrec: expected a, got b; do c\n"),
        (KeyboardInterrupt(), 130, "fedrec: interrupted\n"),
        (terminal.Interrupted("go on"), 130, "fedrec: go on\n"),
        (OSError(28, "No space left"), 1, "fedrec: unexpected OSError: [Errno 28] No space left; run again"),
    ],
)
def test_a_failure_becomes_a_sentence_and_a_code(error, code, sentence, capsys):
    assert terminal.guarded(failing(error), debug=False) == code
    shown = capsys.readouterr()
    assert shown.err.startswith(sentence)
    assert "Traceback" not in shown.err


def test_a_value_error_of_a_library_is_unexpected_and_one_of_our_own_is_wrong_input(capsys):
    assert terminal.guarded(lambda: json.loads("{"), debug=False) == 1
    assert "unexpected JSONDecodeError: Expecting property name" in capsys.readouterr().err
    assert terminal.guarded(lambda: positive("k", -1), debug=False) == 2
    assert capsys.readouterr().err == "fedrec: expected k > 0 and finite, got -1\n"


def test_debug_shows_the_traceback_wherever_it_stands(capsys):
    assert invoke(["config", "show", "none.toml", "--debug"]) == 2
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert shown.splitlines()[-1].startswith("fedrec: expected a readable TOML file")


def test_a_log_file_gets_a_line_every_tenth_of_the_rounds():
    stream = io.StringIO()
    with Progress(Console(file=stream, width=200), live=False) as progress:
        progress.started(FakeWorld(), "meta-learned", 20)
        for number in range(1, 21):
            progress.round(report(number, metric=number / 100 if number % 5 == 0 else None))
        progress.stage("evaluating: served")
        progress.stage("evaluating: popularity")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "meta-learned: 20 rounds with 50 devices"
    assert len(lines) == 1 + 10 + 1
    assert "round 10/20" in lines[5]
    assert "epsilon 1.00 (user) of 8" in lines[5]
    assert "ndcg@10 0.1000 (best 0.1000, round 10)" in lines[5]
    assert lines[-1] == "evaluating"


def test_a_terminal_keeps_one_line_of_what_was_done(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "perf_counter", lambda: now[0])
    stream = io.StringIO()
    console = Console(file=stream, width=120, force_terminal=True, color_system=None)
    with Progress(console, live=True) as progress:
        progress.started(FakeWorld(), "meta-learned", 4)
        for number, metric in ((1, 0.2), (2, 0.1)):
            now[0] += 30
            progress.round(report(number, 4, metric))
        work = progress._work
        drawing = Console(file=io.StringIO(), width=120)
        drawing.print(work)
        drawn = drawing.file.getvalue()
    assert "2/4" in drawn
    assert "1:00, 1:00 left" in drawn
    assert "ndcg@10 0.1000 (best 0.2000, round 1)" in drawn
    left = "1:00  meta-learned: round 2 of 4, best ndcg@10 0.2000 in round 1, epsilon 0.20 (user) of 8"
    assert left in stream.getvalue()


def test_a_resumed_federation_counts_only_its_own_rounds(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "perf_counter", lambda: now[0])
    stream = io.StringIO()
    with Progress(Console(file=stream, width=200), live=False) as progress:
        progress.started(FakeWorld(), "meta-learned", 20)
        now[0] = 2.0
        progress.round(report(18, metric=0.1))
    assert "0:02, 0:04 left" in stream.getvalue()
    assert "(best since round 18 0.1000, round 18)" in stream.getvalue()


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (61, "1:01"), (3671, "1:01:11")])
def test_clock(seconds, text):
    assert clock(seconds) == text
