"""Distinct entries of histories: in the order of a log where they are windows of one, else sorted."""

import policy_world as world
import pytest
import torch
from fedrec.meta.examples import stack_examples
from fedrec.meta.recency import Entries, RecencyTable, _Scattered, _Sliding
from torch.nn import functional

POLICY = world.policy()
LENGTHS = (0, 1, 5, 9, 11)


def stacked(lengths=LENGTHS, once=True, **settings):
    chosen = {"windows": 4, "horizon": 2} | settings
    return stack_examples(
        [world.examples(POLICY, length, length, stream=(0, 1, length), once=once, **chosen) for length in lengths]
    )


def windows(examples):
    known = (examples.history >= 0).sum(-1)
    return Entries.windows(examples.history, examples.levels, known, examples.position)


@pytest.mark.parametrize("episodes", [False, True])
def test_every_history_ends_where_it_says(episodes):
    built = stacked(episodes=episodes)
    found, sorted_ = windows(built), Entries.of(built.history, built.levels)
    assert found.once
    for device, rows in enumerate(built.history):
        for row, history in enumerate(rows):
            seen = history >= 0
            end = int(found.ends[device, row])
            there = slice(end - int(seen.sum()), end)
            assert torch.equal(found.items[device, there], history[seen])
            assert torch.equal(found.levels[device, there], built.levels[device, row][seen])
    assert found.items.shape[1] == int(found.ends.max())
    assert found.items.shape[1] <= sorted_.items.shape[1]


def small(history=((-1, 4, 5), (4, 5, 6)), position=(2, 3), known=(2, 3)):
    history, known, position = (torch.tensor([value]) for value in (history, known, position))
    return Entries.windows(history, torch.zeros_like(history), known, position)


@pytest.mark.parametrize(
    "strange",
    [
        {"position": (3, 2)},
        {"position": (3, 2), "known": (3, 2), "history": ((4, 5, 6), (-1, 4, 5))},
        {"position": (-1, -1)},
        {"known": (2, 2)},
        {"history": ((-1, 4, 5), (5, 4, 5))},
    ],
)
def test_what_is_no_window_of_a_log_without_repetition_is_sorted(strange):
    assert small() is not None
    assert small(**strange) is None


def test_a_history_wider_than_the_encoder_looks_is_sorted():
    """Its padding would stand on other entries."""
    built = stacked(lengths=(11,), windows=11)
    assert windows(built) is not None
    wide = built._replace(
        history=functional.pad(built.history, (2, 0), value=-1), levels=functional.pad(built.levels, (2, 0))
    )
    assert windows(wide) is None


@pytest.mark.parametrize("width", [3, 40])
def test_weights_move_along_however_many_entries_there_are(width):
    """Fewer places than histories, which are looked up in a table, or more, which are copied one by one."""
    ends = torch.tensor([[0, 2, 3, 3], [1, 3, 3, 3]]) if width == 3 else torch.tensor([[0, 7, 40]])
    table = RecencyTable(torch.tensor([0.2, 1.5]), 5)
    known = ends.clamp(max=5)
    rows = torch.randn(len(ends), width, 4, generator=torch.Generator().manual_seed(0))
    places = (ends[..., None] + torch.arange(-5, 0)).clamp(min=0)
    sliding, scattered = _Sliding(table, ends, known, width), _Scattered(table, places, known, width)
    means = sliding.means(rows)
    torch.testing.assert_close(means, scattered.means(rows))
    slope = torch.randn(means.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(sliding.back(slope), scattered.back(slope))
    torch.testing.assert_close(sliding.by_scale(slope, rows, means), scattered.by_scale(slope, rows, means))
