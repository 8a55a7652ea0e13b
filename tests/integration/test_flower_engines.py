"""The same apps in process and under ``flwr run`` on Flower's simulation engine: the same federation."""

import json
import math
import sqlite3

import fedrec
import pytest
import torch
from fedrec.config import Config
from fedrec.server.checkpoint import CheckpointStore
from fedrec.simulation.run import Quiet, Run
from safetensors.torch import load_file

pytestmark = pytest.mark.integration

NODES = 2
CENTRAL = Config().updated(
    seed=11,
    data={"name": "synthetic", "devices": 24, "items": 40, "interactions": 8},
    policy__state="history",
    policy__dim=4,
    privacy__unit="user",
    privacy__epsilon=None,
    privacy__noise_multiplier=0.8,
    server__rounds=3,
    server__participation=0.75,
    server__nodes=NODES,
    evaluation__every=2,
    evaluation__negatives=5,
    evaluation__resamples=100,
    evaluation__baselines=False,
    engine__threads=1,
)
BOTH = CENTRAL.updated(
    policy__state="personal",
    privacy__unit="both",
    privacy__sample_rate=0.5,
    privacy__expected_batch=4.0,
    server__rounds=4,
)


def on_flower(engine, config, run_dir, processes=1, **own):
    return engine.run(config.flat() | {"fedrec-run-dir": str(run_dir)} | own, nodes=NODES, processes=processes)


def tensors(run_dir):
    """Everything learned: initialization, outer optimizer and best of the last checkpoint, personal parameters."""
    last = CheckpointStore(run_dir).load()
    groups = {"phi": last.phi, "outer": last.outer.to_tensors(), "best": last.best}
    groups |= {
        str(path.relative_to(run_dir)): load_file(path) for path in sorted(run_dir.glob("nodes/*/*.safetensors"))
    }
    return {f"{group}/{name}": tensor for group, named in groups.items() for name, tensor in named.items()}


def ledgers(run_dir):
    """Every entry of the federation's ledger and of the devices' ones, hashes included."""
    found = {}
    for path in sorted(run_dir.rglob("*.sqlite")):
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        rows = connection.execute("SELECT sequence, body, hash FROM entries ORDER BY sequence").fetchall()
        connection.close()
        found[str(path.relative_to(run_dir))] = rows
    return found


def rows(run_dir):
    """The rows of ``metrics.jsonl`` without what is the clock's, and apart from them their validations."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    validations = [line.pop("validation") for line in lines]
    assert all(line.pop("seconds") > 0 for line in lines)
    return lines, validations


def assert_the_same(one, other):
    """Both run directories hold the same federation: parameters to 1e-6, accounts and rows exactly."""
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(
            second[name], tensor, rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert ledgers(one) == ledgers(other)
    (lines, judged), (other_lines, other_judged) = rows(one), rows(other)
    assert lines == other_lines
    for mine, its in zip(judged, other_judged, strict=True):
        assert its == (None if mine is None else pytest.approx(mine, abs=1e-6))


class StopAfter(Quiet):
    """Ctrl-C after a round."""

    def __init__(self, number):
        self._number = number

    def round(self, report):
        if report.round == self._number:
            raise KeyboardInterrupt


def assert_a_whole_run(flower, ended, run_dir, here):
    """Flower says that the run succeeded, nothing of it is left, and it is the run of this process."""
    assert ended.status == "finished:completed", ended.log
    there = Run.open(run_dir)
    assert there.config == here.config
    assert_the_same(here.directory, there.directory)
    assert there.summary["privacy"] == here.summary["privacy"]
    assert {str(row["quarantined"]) for row in rows(run_dir)[0]} == {"{}"}
    assert len(list(run_dir.glob("nodes/node-*-of-2"))) == NODES
    assert flower.settle() == []


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
