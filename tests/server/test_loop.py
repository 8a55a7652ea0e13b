import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import federation_world as world
import pytest
import torch
from fedrec.errors import ConfigError, LedgerError, RunError
from fedrec.privacy.accounting import Charge, epsilon
from fedrec.privacy.ledger import Ledger
from fedrec.server.app import config_of, make_server_app
from fedrec.server.lock import RunLock
from fedrec.server.loop import run_federation
from flwr.app import Context, RecordDict


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The uninterrupted run that every other one is held against."""
    run_dir = tmp_path_factory.mktemp("plain") / "run"
    result = run_federation(world.grid(), world.plan(run_dir), world.config())
    return run_dir, result, world.outcome(run_dir, result)


def stop_after(number, error=KeyboardInterrupt):
    def on_round(report):
        if report.round == number:
            raise error

    return on_round


def interrupted(run_dir, number, **options):
    with pytest.raises(KeyboardInterrupt):
        run_federation(world.grid(), world.plan(run_dir, on_round=stop_after(number)), world.config(), **options)


def resumed(run_dir, config=None, **changes):
    plan = world.plan(run_dir, resume=True, **changes)
    result = run_federation(world.grid(), plan, config or world.config())
    return result, world.outcome(run_dir, result)


def test_a_whole_run(plain):
    run_dir, result, _ = plain
    assert [row["round"] for row in result.rows] == [1, 2, 3, 4, 5, 6]
    assert [row["validation"] is not None for row in result.rows] == [False, True] * 3
    assert (result.stop, result.rounds, result.best_round) == ("rounds", 6, 4)
    assert result.best_metric == pytest.approx(1.0, abs=0.01)
    assert not world.same(result.best, result.served)
    assert not world.same(result.phi, result.served)
    costs = [epsilon([Charge(1.0, 0.5, rounds)], 1e-5) for rounds in range(1, 7)]
    assert [row["epsilon"]["user"] for row in result.rows] == costs
    with Ledger.open(run_dir / "ledger.sqlite") as ledger:
        assert all(ledger.is_settled(f"round:{number}") for number in range(1, 7))
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert lines == list(result.rows)
    assert list(lines[0]) == [
        "round",
        "participants",
        "epsilon",
        "validation",
        "seconds",
        "quarantined",
        "refused",
        "bytes_down",
        "bytes_up",
    ]


def test_the_debit_is_on_disk_before_an_order_leaves(tmp_path):
    run_dir, seen = tmp_path / "run", []

    def look(order):
        with Ledger.open(run_dir / "ledger.sqlite") as ledger:
            seen.append((order.round, ledger.history("federation")[0].steps, ledger.is_settled(f"round:{order.round}")))

    run_federation(world.grid(world.Cohort(look), 1), world.plan(run_dir), world.config(server__rounds=3))
    assert seen == [(1, 1, False), (2, 2, False), (3, 3, False)]


@pytest.mark.parametrize("number", [1, 3, 5])
def test_ctrl_c_between_rounds_leaves_a_run_that_ends_alike(tmp_path, plain, caplog, number):
    interrupted(tmp_path / "run", number)
    assert f"{number} rounds are safe" in caplog.text
    assert resumed(tmp_path / "run")[1] == plain[2]


def test_ctrl_c_in_the_middle_of_a_device(tmp_path, plain):
    def interrupt(order):
        if order.round == 3:
            raise KeyboardInterrupt

    grid = world.grid(world.Cohort(interrupt))
    with pytest.raises(KeyboardInterrupt):
        run_federation(grid, world.plan(tmp_path / "run"), world.config())
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [1, 2]
    assert resumed(tmp_path / "run")[1] == plain[2]


def test_falling_back_to_an_older_checkpoint_ends_alike(tmp_path, plain, caplog):
    interrupted(tmp_path / "run", 4)
    state = tmp_path / "run" / "checkpoints" / "round-000004" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:100])
    assert resumed(tmp_path / "run")[1] == plain[2]
    assert "checkpoint 4 is damaged" in caplog.text


def test_a_finished_run_is_returned_and_not_continued(tmp_path, plain):
    run_dir = tmp_path / "run"
    shutil.copytree(plain[0], run_dir)
    cohort = world.Cohort()
    result = run_federation(world.grid(cohort), world.plan(run_dir, resume=True), world.config())
    assert cohort.orders == []
    assert world.outcome(run_dir, result) == plain[2]


def test_resuming_nothing_starts(tmp_path, plain):
    assert resumed(tmp_path / "run")[1] == plain[2]


def test_a_directory_with_a_run_is_not_overwritten(tmp_path):
    interrupted(tmp_path / "run", 2)
    with pytest.raises(RunError, match=r"without a run, got one of 2 rounds in .*; resume it or choose another"):
        run_federation(world.grid(), world.plan(tmp_path / "run"), world.config())


def test_another_configuration_does_not_resume(tmp_path):
    interrupted(tmp_path / "run", 2)
    with pytest.raises(RunError, match=r"server.momentum = 0.9 \(now 0.5\)"):
        resumed(tmp_path / "run", world.config(server__momentum=0.5))
    with pytest.raises(RunError, match="got world-2"):
        resumed(tmp_path / "run", schema="world-2")


def test_a_lost_or_rolled_back_ledger_stops_the_run(tmp_path):
    run_dir = tmp_path / "run"
    interrupted(run_dir, 2)
    files = {path.name: path.read_bytes() for path in run_dir.glob("ledger.sqlite*")}
    with pytest.raises(KeyboardInterrupt):
        run_federation(world.grid(), world.plan(run_dir, resume=True, on_round=stop_after(4)), world.config())
    for name, content in files.items():
        (run_dir / name).write_bytes(content)
    with pytest.raises(LedgerError, match="older than the checkpoint of round 4"):
        resumed(run_dir)
    for name in files:
        (run_dir / name).unlink()
    with pytest.raises(LedgerError, match="is missing"):
        resumed(run_dir)


def test_a_deployment_pays_again_for_a_round_that_it_repeats(tmp_path):
    def interrupt(order):
        if order.round == 2 and not (tmp_path / "crashed").exists():
            (tmp_path / "crashed").touch()
            raise KeyboardInterrupt

    grid = world.grid(world.Cohort(interrupt))
    with pytest.raises(KeyboardInterrupt):
        run_federation(grid, world.plan(tmp_path / "run", simulation=False), world.config(server__rounds=3))
    plan = world.plan(tmp_path / "run", simulation=False, resume=True)
    result = run_federation(grid, plan, world.config(server__rounds=3))
    assert result.rows[-1]["epsilon"]["user"] == epsilon([Charge(1.0, 0.5, 4)], 1e-5)


def test_the_budget_ends_the_run_with_a_last_validation(tmp_path):
    """Three rounds at z = 1, q = 0.5 cost 6.48, four cost 7.41."""
    budget = world.config(privacy__epsilon=7.0, privacy__noise_multiplier=None)
    result = run_federation(world.grid(), world.plan(tmp_path / "run"), budget)
    assert (result.stop, result.rounds) == ("budget", 3)
    assert result.rows[-1]["validation"] is not None
    assert result.epsilon["user"] == epsilon([Charge(1.0, 0.5, 3)], 1e-5) < 7.0
    again, _ = resumed(tmp_path / "run", budget)
    assert (again.stop, again.rounds) == ("budget", 3)


def test_a_budget_for_no_round_at_all(tmp_path):
    budget = world.config(privacy__epsilon=0.5, privacy__noise_multiplier=None)
    cohort = world.Cohort()
    result = run_federation(world.grid(cohort), world.plan(tmp_path / "run"), budget)
    assert (result.stop, result.rounds, result.epsilon) == ("budget", 0, {"user": 0.0})
    assert cohort.orders == []
    assert world.same(result.served, world.phi0())


def test_patience_ends_the_run_after_validations_without_a_better_one(tmp_path):
    config = world.config(server__rounds=20, server__patience=2, evaluation__every=1)
    result = run_federation(world.grid(), world.plan(tmp_path / "run"), config)
    assert (result.stop, result.rounds, result.best_round) == ("patience", 6, 4)


@pytest.mark.parametrize("unit", ["none", "interaction"])
def test_other_units_have_no_federation_ledger_and_no_central_noise(tmp_path, unit):
    config = world.config(privacy__unit=unit, server__rounds=2)
    spent = {"interaction": 1.5}
    plan = world.plan(tmp_path / "run", noise_multiplier=None, epsilon=lambda number: spent)
    result = run_federation(world.grid(), plan, config)
    assert not (tmp_path / "run" / "ledger.sqlite").exists()
    assert result.epsilon == spent


def test_unit_both_reports_both(tmp_path):
    plan = world.plan(tmp_path / "run", epsilon=lambda number: {"interaction": float(number)})
    result = run_federation(world.grid(), plan, world.config(privacy__unit="both", server__rounds=2))
    assert result.epsilon == {"user": epsilon([Charge(1.0, 0.5, 2)], 1e-5), "interaction": 2.0}


def test_failing_devices_do_not_stop_the_round(tmp_path):
    def fail(order):
        if 0 in order.devices % 3:
            raise OSError("their own affair")

    result = run_federation(world.grid(world.Cohort(fail)), world.plan(tmp_path / "run"), world.config())
    assert result.rounds == 6
    assert result.rows[0]["quarantined"] == {"error:OSError": 1}
    assert len({row["epsilon"]["user"] for row in result.rows}) == 6


def test_a_deadline_goes_on_without_the_missing(tmp_path):
    """Every device takes 10 s by this clock; the deadline of 15 s lets one node of three through."""
    now = [0.0]

    def work(order):
        now[0] += 10.0

    grid = world.grid(world.Cohort(work), clock=lambda: now[0])
    config = world.config(server__deadline=15.0, server__participation=1.0)
    result = run_federation(grid, world.plan(tmp_path / "run"), config)
    assert [row["participants"] for row in result.rows] == [4] * 6


@pytest.mark.parametrize(
    ("metrics", "error", "sentence"),
    [
        ({"score": float("nan")}, RunError, "finite validation metrics in round 2, got .*nan"),
        ({"hr@10": 0.5, "mrr": 0.1}, ConfigError, "evaluation.metric to be one of hr@10, mrr, got 'score'"),
    ],
)
def test_a_validation_that_says_nothing_usable(tmp_path, metrics, error, sentence):
    plan = world.plan(tmp_path / "run", validate=lambda number, served: metrics)
    with pytest.raises(error, match=sentence):
        run_federation(world.grid(), plan, world.config())


@pytest.mark.parametrize(
    ("changes", "config", "error", "sentence"),
    [
        ({"population": 0}, {}, RunError, "at least 2 devices, got 0"),
        ({"population": 1}, {}, RunError, "at least 2 devices, got 1"),
        ({"phi0": {}}, {}, RunError, "at least one tensor"),
        ({"phi0": {"w": torch.tensor([float("nan")])}, "scales": {}}, {}, RunError, "NaN in 'w'"),
        ({"phi0": {"w": torch.zeros(2).double()}, "scales": {}}, {}, RunError, "float64"),
        ({"noise_multiplier": None}, {}, ConfigError, "got None with unit user"),
        ({"noise_multiplier": 0.0}, {}, ValueError, "expected noise_multiplier > 0"),
        ({}, {"privacy__unit": "none"}, ConfigError, "got 1.0 with unit none"),
        ({"scales": {"bais": 0.1}}, {}, ValueError, r"got \['bais'\]"),
        ({"validate": None}, {"server__patience": 3}, ConfigError, "a validation for server.patience"),
    ],
)
def test_a_plan_that_cannot_run_is_a_sentence(tmp_path, changes, config, error, sentence):
    with pytest.raises(error, match=sentence):
        run_federation(world.grid(), world.plan(tmp_path / "run", **changes), world.config(**config))
    assert not (tmp_path / "run").exists()


def test_no_node_is_a_sentence(tmp_path, monkeypatch):
    grid = world.grid()
    monkeypatch.setattr(grid, "get_node_ids", list)
    with pytest.raises(RunError, match="at least one Flower node within 0 s, got none"):
        run_federation(grid, world.plan(tmp_path / "run", node_wait=0.0), world.config())


@pytest.mark.parametrize(
    ("nodes", "sentence"),
    [
        (4, "expected 4 Flower nodes within 0 s, got 3; start"),
        (2, "expected 2 Flower nodes, got 3; set server.nodes"),
    ],
)
def test_another_number_of_nodes_is_a_sentence(tmp_path, nodes, sentence):
    plan = world.plan(tmp_path / "run", nodes=nodes, node_wait=0.0)
    with pytest.raises(RunError, match=sentence):
        run_federation(world.grid(nodes=3), plan, world.config())
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_run_waits_for_all_its_nodes(tmp_path, monkeypatch, plain):
    """The bits of the plain run take all three nodes; they come one after the other."""
    grid = world.grid()
    there = list(grid.get_node_ids())
    seen = iter([there[:1], there[:2]])
    monkeypatch.setattr(grid, "get_node_ids", lambda: next(seen, there))
    monkeypatch.setattr("fedrec.server.loop.time.sleep", lambda seconds: None)
    result = run_federation(grid, world.plan(tmp_path / "run", nodes=3), world.config())
    assert world.outcome(tmp_path / "run", result) == plain[2]


def test_a_second_process_gets_one_sentence(tmp_path):
    run_dir = tmp_path / "run"
    with RunLock(run_dir):
        code = (
            "import sys; from fedrec.server.lock import RunLock\n"
            "try: RunLock(sys.argv[1]).__enter__()\n"
            "except Exception as error: print(type(error).__name__, error)"
        )
        package = str(Path(sys.modules["fedrec"].__file__).parents[1])
        environment = os.environ | {"PYTHONPATH": package + os.pathsep + os.environ.get("PYTHONPATH", "")}
        answer = subprocess.run(
            [sys.executable, "-c", code, str(run_dir)], capture_output=True, text=True, env=environment, check=True
        )
        assert answer.stdout.startswith(f"RunError another process (pid {os.getpid()}) is at work in {run_dir}; wait")
        with pytest.raises(RunError, match="at work"):
            run_federation(world.grid(), world.plan(run_dir), world.config())
        result = run_federation(world.grid(), world.plan(run_dir, locked=True), world.config(server__rounds=1))
    with RunLock(run_dir):
        assert result.rounds == 1


def test_a_run_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"can't use .*file/run as a run directory"):
        run_federation(world.grid(), world.plan(tmp_path / "file" / "run"), world.config())


def test_the_server_app_runs_the_same_loop(tmp_path, plain):
    finished = []
    app = make_server_app(
        lambda context, config: world.plan(tmp_path / "run"),
        lambda context, config, plan, result: finished.append(result),
    )
    run_config = world.config().flat() | {"fedrec-out": "somewhere"}
    context = Context(1, 1, {}, RecordDict(), run_config)
    assert config_of(context) == world.config()
    app(world.grid(), context)
    assert world.outcome(tmp_path / "run", finished[0]) == plain[2]


def test_an_unknown_key_of_the_run_config_is_a_sentence(tmp_path):
    app = make_server_app(lambda context, config: world.plan(tmp_path / "run"))
    context = Context(1, 1, {}, RecordDict(), {"server.round": 3})
    with pytest.raises(ConfigError, match=r"unknown configuration key server.round; did you mean server.rounds"):
        app(world.grid(), context)


def test_the_number_of_nodes_changes_nothing_but_rounding(tmp_path, plain):
    for nodes in (1, 5):
        run_dir = tmp_path / str(nodes)
        result = run_federation(world.grid(nodes=nodes), world.plan(run_dir), world.config())
        for name, tensor in result.phi.items():
            torch.testing.assert_close(tensor, plain[1].phi[name], rtol=1e-5, atol=1e-6)


def test_the_hook_sees_every_round_when_it_is_safe(tmp_path):
    seen = []

    def on_round(report):
        rounds = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
        seen.append((report.round, report.rounds, rounds[-1]))

    run_federation(world.grid(), replace(world.plan(tmp_path / "run"), on_round=on_round), world.config())
    assert seen == [(number, 6, f"round-{number:06d}") for number in range(1, 7)]
