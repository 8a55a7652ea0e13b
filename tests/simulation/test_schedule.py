"""Chunks and blocks: everybody once, like work in each, and a division that knows nothing of threads."""

import itertools
import sys
import threading

import numpy as np
import pytest
import small_world as small
import torch
from fedrec.simulation import schedule
from fedrec.simulation.memory import give_back, keep_freed_memory, with_huge_pages
from fedrec.simulation.schedule import blocks, chunk_floats, chunks, device_floats, in_order
from hypothesis import given
from hypothesis import strategies as st

WORLD = small.world()


def divided(sizes, room, **changes):
    sizes = np.array(sizes, dtype=np.int64)
    devices = np.arange(len(sizes), dtype=np.int64)
    settings = small.config(**changes)
    return list(chunks(WORLD.policy, devices, sizes, settings, private=False, room=room)), sizes


@given(sizes=st.lists(st.integers(0, 200), max_size=40), room=st.integers(1, 3000))
def test_every_device_is_in_one_chunk_and_chunks_are_alike(sizes, room):
    found, lengths = divided(sizes, room)
    assert sorted(place for places in found for place in places.tolist()) == list(range(len(sizes)))
    if not sizes:
        return
    floats = device_floats(WORLD.policy, lengths, small.config(), private=False)
    padded = [len(places) * int(floats[places].max()) for places in found]
    assert all(work <= room or len(places) == 1 for work, places in zip(padded, found, strict=True))
    for places, following in itertools.pairwise(found):
        assert lengths[places].min() >= lengths[following].max()
    assert min(padded[:-1], default=room) > min(sum(padded) / len(padded), room) - floats.max()


def test_no_fewer_floats_a_chunk_would_do():
    sizes = [90, 60, 40, 23, 22, 14, 14, 9, 9, 9, 5, 3, 1]
    found, lengths = divided(sizes, 1100)
    floats = device_floats(WORLD.policy, lengths, small.config(), private=False)
    most = max(len(places) * int(floats[places].max()) for places in found)
    assert len(found) % 2 == 0
    assert len(divided(sizes, most - 1)[0]) > len(found)


def test_two_threads_get_the_same_number_of_chunks():
    assert len(divided([10] * 40, 700)[0]) % 2 == 0
    assert len(divided([10] * 40, 10**9)[0]) == 2


def test_the_same_devices_are_divided_once_and_others_anew():
    devices, sizes = np.arange(30), np.arange(30)[::-1] + 3
    settings = small.config()

    def parts(devices=devices, sizes=sizes, settings=settings, policy=WORLD.policy, room=700):
        return schedule.divided(policy, devices, sizes, settings, private=False, room=room)

    first = parts()
    assert parts(devices.copy(), sizes.copy(), settings.updated(server__outer_lr=0.5)) is first
    wanted = blocks(list(chunks(WORLD.policy, devices, sizes, settings, private=False, room=700)))
    assert [[places.tolist() for places in part] for part in first] == [[p.tolist() for p in part] for part in wanted]
    for changed in (
        {"devices": devices[::-1].copy()},
        {"sizes": sizes + 1},
        {"devices": devices[:29], "sizes": sizes[:29]},
        {"settings": small.config(engine__chunk=4)},
        {"settings": small.config(local__windows=2)},
        {"room": 300},
        {"policy": small.world().policy},
    ):
        assert parts() is not parts(**changed)
        again = parts()
        assert [[places.tolist() for places in part] for part in again] == [
            [places.tolist() for places in part] for part in wanted
        ]


def test_engine_chunk_is_a_number_of_devices():
    found, _ = divided([3] * 7, 1, engine__chunk=3)
    assert [len(places) for places in found] == [3, 3, 1]


@pytest.mark.parametrize(
    ("caches", "floats"),
    [
        ({}, 1_500_000),
        ({"index0": ("1", "48K"), "index2": ("2", "512K"), "index3": ("3", "32768K")}, 1_500_000),
        ({"index0": ("1", "48K"), "index2": ("2", "1024K")}, 2 * 1024 * 1024),
        ({"index2": ("2", "65536K")}, 4_000_000),
        ({"index2": ("2", "plenty")}, 1_500_000),
        ({"index2": ("2", None)}, 1_500_000),
    ],
)
def test_a_chunk_is_as_large_as_the_second_level_cache_lets_it(caches, floats, tmp_path, monkeypatch):
    for index, told in caches.items():
        (tmp_path / index).mkdir()
        for name, text in zip(("level", "size"), told, strict=True):
            if text is not None:
                (tmp_path / index / name).write_text(f"{text}\n")
    monkeypatch.setattr(schedule, "_CACHES", tmp_path)
    assert chunk_floats.__wrapped__() == floats


@pytest.mark.parametrize(("count", "groups"), [(0, 0), (1, 1), (255, 255), (1000, 256)])
def test_blocks_keep_the_order_and_their_number(count, groups):
    found = blocks(list(range(count)))
    assert [one for block in found for one in block] == list(range(count))
    assert len(found) == groups


@pytest.mark.parametrize("threads", [1, 3])
def test_answers_come_in_order_and_mistakes_are_raised(threads):
    before = torch.get_num_threads()
    assert list(in_order(lambda one: one * one, list(range(20)), threads=threads)) == [one * one for one in range(20)]
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda one: 1 / one, [2, 1, 0, 1], threads=threads))
    assert torch.get_num_threads() == before


def test_torch_computes_on_as_many_threads_as_before_whoever_ends_first():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        first, second = (in_order(abs, [1, 2, 3], threads=1) for _ in range(2))
        assert [next(first), next(second), torch.get_num_threads()] == [1, 1, 1]
        first.close()
        assert torch.get_num_threads() == 1
        second.close()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_every_thread_gets_its_own_number_of_threads_back():
    """Torch counts for every thread of Python, and a new one begins with what was set last."""
    before, found = torch.get_num_threads(), []
    torch.set_num_threads(3)
    try:
        mine = in_order(abs, [1, 2, 3], threads=1)
        next(mine)

        def another():
            theirs = in_order(abs, [1, 2, 3], threads=1)
            next(theirs)
            ready.set()
            go_on.wait(10)
            theirs.close()
            found.append(torch.get_num_threads())

        ready, go_on = threading.Event(), threading.Event()
        thread = threading.Thread(target=another)
        thread.start()
        ready.wait(10)
        mine.close()
        assert torch.get_num_threads() == 3
        go_on.set()
        thread.join(10)
        assert found == [3]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_the_allocator_takes_the_settings():
    assert keep_freed_memory()
    give_back()


def test_huge_pages_are_asked_for_unless_the_user_has_decided():
    asked = {"GLIBC_TUNABLES": "glibc.malloc.check=1"}
    assert with_huge_pages({"A": "b"}) == {"A": "b", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    assert with_huge_pages(asked) == {"GLIBC_TUNABLES": "glibc.malloc.check=1:glibc.malloc.hugetlb=1"}
    assert asked == {"GLIBC_TUNABLES": "glibc.malloc.check=1"}
    decided = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}
    assert with_huge_pages(decided) == decided
