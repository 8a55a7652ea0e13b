"""The same apps in process and under ``flwr run`` on Flower's simulation engine: the same federation."""

import math

import fedrec
import pytest
from fedrec.simulation.run import Quiet
from same_run import BOTH, CENTRAL, NODES, assert_a_whole_run, assert_the_same, ledgers, tensors

pytestmark = pytest.mark.integration


def on_flower(engine, config, run_dir, processes=1, **own):
    return engine.run(config.flat() | {"fedrec-run-dir": str(run_dir)} | own, nodes=NODES, processes=processes)


class StopAfter(Quiet):
    """Ctrl-C after a round."""

    def __init__(self, number):
        self._number = number

    def round(self, report):
        if report.round == self._number:
            raise KeyboardInterrupt


def test_flowers_engine_and_this_process_hold_the_same_federation(flower, tmp_path):
    here = fedrec.simulate(CENTRAL, out=tmp_path / "here")
    ended = on_flower(flower, CENTRAL, tmp_path / "there")
    assert_a_whole_run(flower, ended, tmp_path / "there", here)


def test_a_run_that_began_in_this_process_goes_on_on_flowers_engine(flower, tmp_path):
    """Each node in a process of its own; ledgers and personal parameters of the devices move over with the run."""
    here, there = fedrec.simulate(BOTH, out=tmp_path / "here"), tmp_path / "there"
    with pytest.raises(KeyboardInterrupt):
        fedrec.simulate(BOTH, out=there, listener=StopAfter(2))
    ended = on_flower(flower, BOTH, there, NODES, **{"fedrec-resume": True})
    assert_a_whole_run(flower, ended, there, here)


def test_what_the_comparison_compares(tmp_path):
    """Noise, learning and two ledgers are in it, and another seed is not the same."""
    one = fedrec.simulate(BOTH, out=tmp_path / "one").directory
    again = fedrec.simulate(BOTH, out=tmp_path / "again").directory
    assert_the_same(one, again)
    named = tensors(one)
    assert any("personal" in name for name in named)
    assert all(0 < tensor.norm() < math.inf for name, tensor in named.items() if name.startswith("best/"))
    assert {path.split("/")[-1] for path in ledgers(one)} == {"ledger.sqlite", "devices.sqlite"}
    other = fedrec.simulate(BOTH.updated(seed=12), out=tmp_path / "other").directory
    with pytest.raises(AssertionError, match="phi/"):
        assert_the_same(one, other)


def test_an_app_that_fails_is_a_failed_run(flower, tmp_path):
    """It is `flwr list` that tells, and why; the exit code of `flwr run` is about starting the run."""
    ended = on_flower(flower, CENTRAL.updated(server__nodes=1), tmp_path / "run")
    assert ended.status == "finished:failed", ended.log
    assert "expected 1 Flower nodes, got 2" in ended.details
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert flower.settle() == []


def test_a_key_that_is_not_in_the_folder_does_not_start(flower, tmp_path):
    ended = on_flower(flower, CENTRAL, tmp_path / "run", **{"server.round": 3})
    assert (ended.code, ended.status) == (1, "")
    assert "Invalid run configuration" in ended.log
