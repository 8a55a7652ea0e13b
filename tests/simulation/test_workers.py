"""Worker processes: the same bits as threads, and what becomes of them."""

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_world as small
import torch
from fedrec.client.adaptation import LocalMechanism
from fedrec.client.wire import TrainOrder
from fedrec.errors import RunError
from fedrec.simulation import workers as workers_module
from fedrec.simulation.cohort import PartResult, Task, Work, _Outcome, adapt_cohort
from fedrec.simulation.moved import named_parts
from fedrec.simulation.participant import Cohort
from fedrec.simulation.workers import Workers, worker_count
from fedrec.simulation.world import Logs


@pytest.fixture(scope="module")
def world():
    return small.world(privacy__unit="both", policy__state="personal", engine__chunk=2)


@pytest.fixture(scope="module")
def workers(world):
    started = Workers(world, 2)
    yield started
    started.close()


def phi_of(world):
    generator = torch.Generator().manual_seed(1)
    return {
        name: value + torch.randn(value.shape, generator=generator) for name, value in world.initialization().items()
    }


def task_of(world):
    """A task whose devices differ from those of `adapted`."""
    work, mechanism = work_of(world, world.roster[::-1].copy(), 5.0), LocalMechanism.of(world.policy, world.config, 0.7)
    return Task(
        policy=world.policy,
        phi=world.initialization(),
        work=work,
        config=world.config,
        mechanism=mechanism,
        round_number=4,
        device=torch.device("cpu"),
    )


def work_of(world, devices, scale):
    logs = Logs(
        world=world, devices=devices, stops=world.split.train_end[devices], unit="both", stream=(world.config.seed, 3)
    )
    personal = {"personal": torch.arange(len(devices) * 3.0).view(-1, 3) / scale}
    return Work(devices=devices, sizes=logs.sizes, examples=logs, personal=personal)


def adapted(world, workers=None, count=None, broken=False, phi=None):
    devices = world.roster[:count]
    work = work_of(world, devices, 10)
    work = replace(work, personal={}) if broken else work
    mechanism = LocalMechanism.of(world.policy, world.config, 0.7)
    phi = phi or world.initialization()
    return adapt_cohort(world.policy, phi, work, world.config, mechanism, round_number=3, workers=workers)


def alive(process_id):
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("inline", [0, 10**7], ids=["in-a-file", "on-the-pipe"])
@pytest.mark.parametrize("count", [None, 1])
def test_processes_change_no_bit(world, workers, count, inline, monkeypatch):
    monkeypatch.setattr(workers_module, "_INLINE", inline)
    here, there = adapted(world, count=count), adapted(world, workers, count=count)
    assert small.same(here.total, there.total)
    assert small.same(here.personal, there.personal)
    assert any(float(value.abs().max()) > 0 for value in here.total.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_travel_as_plain_numbers_to_the_bit(dtype):
    sums = torch.randn(31, generator=torch.Generator().manual_seed(0), dtype=dtype)
    message = workers_module._told(PartResult(sums=sums, unclipped=7))
    assert len(message) == 16 + sums.nbytes
    found = workers_module._opened(message)
    assert found.unclipped == 7
    assert found.sums.dtype == dtype
    assert torch.equal(found.sums, sums)
    each = {"ids": sums[None]}
    assert small.same(workers_module._opened(workers_module._told(PartResult(sums=sums, each=each))).each, each)


def test_sums_stand_in_the_order_of_what_is_released(world):
    policy, generator = world.policy, torch.Generator().manual_seed(0)
    missing, *names = policy.released
    total = {name: torch.randn(policy.specs[name].shape, generator=generator) for name in reversed(names)}
    sums = _Outcome(total=total, personal={}, finite=torch.ones(1, dtype=torch.bool)).sums(policy)
    found = named_parts(sums, policy, policy.released)
    assert small.same(
        found, {missing: torch.zeros(policy.specs[missing].shape), **{name: total[name] for name in names}}
    )


def test_a_task_lies_flat_on_its_way_and_begins_every_parameter_at_a_line(world):
    phi = {**world.initialization(), "alone": torch.tensor(3.0), "nothing": torch.zeros(0, 4)}
    task = replace(task_of(world), phi=phi)
    flat = workers_module._FlatTask.of(task)
    assert flat.task.phi == {}
    opened = flat.opened().phi
    assert list(opened) == list(phi)
    assert small.same(opened, phi)
    assert all(value.data_ptr() % 64 == 0 for value in opened.values())


def test_a_worker_that_looks_after_the_round_is_over_is_not_missed(world, workers, monkeypatch):
    monkeypatch.setattr(workers_module, "_INLINE", 0)
    late = workers.processes[1].id
    os.kill(late, signal.SIGSTOP)
    try:
        adapted(world, workers, count=1)  # one part, which the other one gets; the files are gone then
    finally:
        os.kill(late, signal.SIGCONT)
    assert small.same(adapted(world, workers).total, adapted(world).total)
    assert workers.processes[1].id == late
    assert alive(late)


def test_a_task_whose_file_somebody_else_removed_is_told(world, workers, monkeypatch):
    monkeypatch.setattr(workers_module, "_INLINE", 0)
    adapted(world, workers)  # they have a former task
    for process in workers.processes:
        os.kill(process.id, signal.SIGSTOP)
    try:
        answers = workers.adapt(task_of(world))
        for path in workers.folder.iterdir():
            path.unlink()
    finally:
        for process in workers.processes:
            os.kill(process.id, signal.SIGCONT)
    with pytest.raises(RunError, match=r"^expected a worker process to find its task .* run it again$"):
        list(answers)
    assert small.same(adapted(world, workers).total, adapted(world).total)


@pytest.mark.parametrize(("inline", "sent"), [(0, 4), (10**7, 3)], ids=["in-a-file", "on-the-pipe"])
def test_how_devices_are_divided_is_told_once_where_the_same_follow(world, workers, inline, sent, monkeypatch):
    monkeypatch.setattr(workers_module, "_INLINE", inline)
    workers._divided = None
    given = []
    give = workers._give
    monkeypatch.setattr(workers, "_give", lambda thing, name: given.append(name.partition("-")[0]) or give(thing, name))
    for count in (None, None, 5, None):
        assert small.same(adapted(world, workers, count=count).total, adapted(world, count=count).total)
    assert [given.count(name) for name in ("task", "parts")] == [4, sent]


@pytest.mark.parametrize("inline", [0, 10**7], ids=["in-a-file", "on-the-pipe"])
def test_a_round_that_was_left_does_not_answer_for_the_next(world, workers, inline, monkeypatch):
    monkeypatch.setattr(workers_module, "_INLINE", inline)
    begun, left = workers.adapt(task_of(world)), workers.adapt(task_of(world))
    next(left)
    assert small.same(adapted(world, workers).total, adapted(world).total)
    assert list(workers.folder.iterdir()) == []
    del begun, left


@pytest.mark.parametrize("state", ["gru", "transformer"])
def test_parameters_may_lie_in_any_order(state, workers):
    other = small.world(privacy__unit="none", policy__state=state, engine__chunk=2)
    turned = {name: value.mT.contiguous().mT if value.dim() > 1 else value for name, value in phi_of(other).items()}
    work = replace(work_of(other, other.roster, 10), personal={})
    here, there = (
        adapt_cohort(other.policy, turned, work, other.config, None, round_number=3, workers=helpers)
        for helpers in (None, workers)
    )
    assert small.same(here.total, there.total)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc, and glibc's allocator")
def test_processes_ask_for_huge_pages(workers):
    for process in workers.processes:
        assert b"glibc.malloc.hugetlb=1" in Path(f"/proc/{process.id}/environ").read_bytes()


def test_a_mistake_in_a_worker_is_the_callers(world, workers):
    with pytest.raises((RunError, KeyError), match="personal"):
        adapted(world, workers, broken=True)
    assert small.same(adapted(world, workers).total, adapted(world).total)


def test_a_killed_worker_is_one_sentence_and_the_others_end():
    world = small.world(privacy__unit="both", policy__state="personal", engine__chunk=2)
    started = Workers(world, 2)
    adapted(world, started)
    ids = [process.id for process in started.processes]
    os.kill(ids[0], signal.SIGKILL)
    with pytest.raises(RunError, match=r"^expected an answer of a worker process, got its end with code -9; resume"):
        adapted(world, started)
    started.close()
    assert not any(alive(one) for one in ids)


def test_workers_end_with_their_caller_and_leave_no_file(world):
    started = Workers(world, 2)
    adapted(world, started)
    ids, folder = [process.id for process in started.processes], started.folder
    assert folder.exists()
    assert list(folder.iterdir()) == []  # the world is mapped and its file gone, so a killed caller leaves none either
    del started
    deadline = time.monotonic() + 10
    while any(alive(one) for one in ids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(one) for one in ids)
    assert not folder.exists()


def test_a_node_with_workers_answers_with_the_same_bits(tmp_path):
    answers = []
    for workers in (1, 2):
        world = small.world(privacy__unit="user", server__warm_start="none", engine__workers=workers, engine__chunk=3)
        node = Cohort(world, tmp_path / str(workers), 1)
        devices = np.arange(len(world.roster))
        schema = world.policy.schema()
        order = TrainOrder(round=1, phi=world.initialization(), schema=schema, run="run", devices=devices)
        answers.append(node.train(order).update)
        node.close()
    assert small.same(*answers)


@pytest.mark.parametrize(
    ("settings", "floats", "count"),
    [
        ({}, 10**6, 1),
        ({}, 10**10, None),
        ({"server__nodes": 2}, 10**10, 1),
        ({"engine__workers": 3}, 1, 3),
        ({"engine__workers": 1}, 10**10, 1),
        ({"engine__kind": "reference"}, 10**10, 1),
    ],
)
def test_processes_are_started_where_they_are_worth_it(settings, floats, count):
    wanted = torch.get_num_threads() if count is None else count
    assert worker_count(small.config(**({"server__nodes": 1} | settings)), floats) == wanted
