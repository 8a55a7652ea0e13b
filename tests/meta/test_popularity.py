import numpy as np
import pytest
import torch
from fedrec.meta.popularity import log_popularity, vote
from hypothesis import given
from hypothesis import strategies as st

LOGS = st.lists(st.integers(0, 6), max_size=20)


@given(items=LOGS.filter(len), data=st.data())
@pytest.mark.parametrize("unit_norm", [True, False])
def test_removing_one_interaction_moves_the_vote_by_one_at_most(items, unit_norm, data):
    gone = data.draw(st.integers(0, len(items) - 1))
    fewer = items[:gone] + items[gone + 1 :]
    moved = vote(torch.tensor(items), 7, unit_norm=unit_norm) - vote(
        torch.tensor(fewer, dtype=torch.int64), 7, unit_norm=unit_norm
    )
    assert float(moved.norm()) <= 1 + 1e-6
    assert unit_norm or float(moved.norm()) == 1


@given(items=LOGS)
def test_a_device_speaks_with_norm_one_whatever_it_holds(items):
    ballot = vote(torch.tensor(items, dtype=torch.int64), 7, unit_norm=True)
    assert float(ballot.norm()) == pytest.approx(1.0 if items else 0.0, abs=1e-6)
    assert set(np.flatnonzero(ballot.numpy()).tolist()) == set(items)


def test_counts_are_counts():
    assert vote(torch.tensor([1, 1, 3]), 4, unit_norm=False).tolist() == [0, 2, 0, 1]


def test_log_popularity_maps_noise_below_zero_to_zero():
    bias = log_popularity(torch.tensor([-3.0, 0.0, 2.0], dtype=torch.float64), 0.5)
    torch.testing.assert_close(bias, torch.tensor([0.0, 0.0, float(np.log(5))]))


@given(items=LOGS, full=st.integers(1, 9))
def test_up_to_full_items_count_alike_and_more_share_the_norm(items, full):
    ballot = vote(torch.tensor(items, dtype=torch.int64), 7, unit_norm=True, full=full)
    distinct = len(set(items))
    assert float(ballot.norm()) <= 1 + 1e-6
    expected = max(full, distinct) ** -0.5
    assert all(value == pytest.approx(expected) for value in ballot[ballot > 0].tolist())
    assert int((ballot > 0).sum()) == distinct
