import errno
import json
import os
import resource

import federation_world as world
import pytest
import torch
from fedrec.errors import RunError
from fedrec.meta.reptile import OuterState
from fedrec.server.checkpoint import Checkpoint, CheckpointStore, check_same_run, settings_of
from fedrec.server.metrics import MetricsLog


def checkpoint(number=1, **changes):
    phi = {name: torch.full(shape, float(number)) for name, shape in world.SHAPES.items()}
    values = {
        "round": number,
        "phi": phi,
        "outer": OuterState(number, momentum=phi, average=phi),
        "schema": "world-1",
        "config": settings_of(world.config()),
        "population": world.POPULATION,
        "best": phi,
        "best_round": 1,
        "best_metric": 0.1 + 0.2,
        "ledger_count": 3,
        "ledger_head": "ab",
    }
    return Checkpoint(**(values | changes))


def saved(tmp_path, *numbers):
    store = CheckpointStore(tmp_path)
    for number in numbers:
        store.save(checkpoint(number))
    return store


def test_everything_comes_back_to_the_bit(tmp_path):
    before, after = checkpoint(), saved(tmp_path, 1).load()
    assert world.same(after.phi, before.phi)
    assert world.same(after.best, before.best)
    assert world.same(after.outer.to_tensors(), before.outer.to_tensors())
    for field in ("round", "schema", "config", "population", "best_round", "best_metric", "stale", "stopped"):
        assert getattr(after, field) == getattr(before, field)
    assert (after.ledger_count, after.ledger_head) == (3, "ab")


def test_the_last_two_are_kept_and_no_draft(tmp_path):
    store = saved(tmp_path, 1, 2, 3)
    assert store.rounds() == [2, 3]
    (tmp_path / "checkpoints" / ".round-000009.dead").mkdir()
    store.save(checkpoint(4))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["round-000003", "round-000004"]


def test_none_at_all_is_no_error(tmp_path):
    assert CheckpointStore(tmp_path).load() is None


def truncate(path):
    path.write_bytes(path.read_bytes()[:-10])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))


def rewrite(path):
    body = json.loads(path.read_text())
    path.write_text(json.dumps(body | {"best_round": 7}))


@pytest.mark.parametrize(
    ("file", "harm"),
    [
        ("state.safetensors", truncate),
        ("state.safetensors", flip),
        ("state.safetensors", lambda path: path.unlink()),
        ("manifest.json", truncate),
        ("manifest.json", rewrite),
        ("manifest.json", lambda path: path.write_text("[]")),
        ("manifest.json", lambda path: path.unlink()),
    ],
)
def test_a_damaged_one_is_passed_over_with_a_warning(tmp_path, caplog, file, harm):
    store = saved(tmp_path, 1, 2)
    harm(tmp_path / "checkpoints" / "round-000002" / file)
    assert store.load().round == 1
    assert "checkpoint 2 is damaged" in caplog.text
    store.save(checkpoint(2))
    assert store.load().round == 2


def test_all_damaged_is_a_sentence(tmp_path):
    store = saved(tmp_path, 1, 2)
    for number in (1, 2):
        truncate(tmp_path / "checkpoints" / f"round-00000{number}" / "state.safetensors")
    with pytest.raises(RunError, match=r"expected a whole checkpoint in .*round 2.*round 1.*restore a copy"):
        store.load()


def test_a_later_damaged_one_goes_when_its_round_is_held_again(tmp_path):
    store = saved(tmp_path, 4, 5)
    truncate(tmp_path / "checkpoints" / "round-000005" / "manifest.json")
    store.save(checkpoint(4))
    assert store.rounds() == [4]


def test_another_configuration_is_named_by_its_keys():
    other = world.config(server__outer_lr=0.25, local__steps=9)
    with pytest.raises(RunError, match=r"local.steps = 5 \(now 9\), server.outer_lr = 1.0 \(now 0.25\);"):
        check_same_run(checkpoint(), other, "world-1", world.POPULATION)
    with pytest.raises(RunError, match="policy world-1 over 12 devices, got world-2 over 12"):
        check_same_run(checkpoint(), world.config(), "world-2", world.POPULATION)
    with pytest.raises(RunError, match="over 12 devices, got world-1 over 13"):
        check_same_run(checkpoint(), world.config(), "world-1", 13)


def test_speed_knobs_are_no_other_configuration():
    check_same_run(checkpoint(), world.config(engine__chunk=7), "world-1", world.POPULATION)


def full_disk(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_a_sentence_and_the_old_checkpoint_is_intact(tmp_path, monkeypatch):
    store = saved(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr("fedrec._durable.os.write", full_disk)
        with pytest.raises(
            RunError, match="No space left on device; the checkpoints before round 2 are intact, so free"
        ):
            store.save(checkpoint(2))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["round-000001"]
    assert store.load().round == 1
    store.save(checkpoint(2))
    assert store.load().round == 2


def test_a_disk_that_fills_in_the_middle_of_a_file(tmp_path):
    """A real short write: the limit on file size lets the first kilobyte of the tensors through."""
    store = saved(tmp_path, 1)
    big = checkpoint(2, best={"w": torch.ones(10_000)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        with pytest.raises(RunError, match="File too large; the checkpoints before round 2"):
            store.save(big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert store.load().round == 1


def test_metrics_drop_what_comes_after_the_checkpoint_and_torn_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for number in (1, 2, 3):
        log.append({"round": number, "validation": {"score": 0.1 * number}})
    path.write_bytes(path.read_bytes() + b'{"round": 4, "vali')
    log = MetricsLog(path)
    assert [row["round"] for row in log.rows] == [1, 2, 3]
    log.keep_until(2)
    log.append({"round": 3})
    assert [json.loads(line)["round"] for line in path.read_text().splitlines()] == [1, 2, 3]
    assert MetricsLog(path).rows == log.rows


def test_metrics_on_a_full_disk_are_a_sentence(tmp_path, monkeypatch):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    monkeypatch.setattr("fedrec._durable.os.write", full_disk)
    with pytest.raises(RunError, match="No space left on device; rounds before 1 are intact"):
        log.append({"round": 1})


def test_a_reader_never_meets_half_a_checkpoint(tmp_path, monkeypatch, caplog):
    """At every flush of the writer the newest checkpoint is whole: the old one, or the new one."""
    store, seen = saved(tmp_path, 1), []
    flush = os.fsync

    def look(descriptor):
        seen.append(CheckpointStore(tmp_path).load().round)
        flush(descriptor)

    monkeypatch.setattr("fedrec._durable.os.fsync", look)
    store.save(checkpoint(2))
    assert seen == [1, 1, 1, 2]
    assert caplog.text == ""
