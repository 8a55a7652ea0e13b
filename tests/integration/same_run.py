"""What makes two run directories the same federation, and small federations to compare."""

from __future__ import annotations

import json
import sqlite3

import pytest
import torch
from fedrec.config import Config
from fedrec.server.checkpoint import CheckpointStore
from fedrec.simulation.run import Run
from safetensors.torch import load_file

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
    privacy__clipping="adaptive",
    privacy__bit_noise=1.0,
    privacy__sample_rate=0.5,
    privacy__expected_batch=4.0,
    server__rounds=4,
)


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
