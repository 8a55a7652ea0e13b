"""What goes together: a bounded vote against a plain count, factors against their definition."""

import numpy as np
import pytest
import torch
from fedrec.meta.pairs import VOTE_NORM, cells, factorise, popular, vote
from hypothesis import given
from hypothesis import strategies as st

BIAS = torch.log1p(torch.tensor([3.0, 0.0, 9.0, 1.0, 5.0, 0.5, 2.0]))
LOGS = st.lists(st.integers(0, len(BIAS) - 1), max_size=40)


def plain_vote(items, bias, count, window):
    """Pair by pair, over all places."""
    likely = sorted(np.argsort(-bias.numpy(), kind="stable")[:count].tolist())
    near = np.zeros((count, count))
    for first, one in enumerate(items):
        for second, other in enumerate(items):
            if 0 < abs(first - second) <= window and one != other and one in likely and other in likely:
                near[likely.index(one), likely.index(other)] += 1 / abs(first - second)
    counts = np.expm1(bias.double().numpy())[likely]
    share = counts / counts.sum()
    surplus = near - near.sum() * np.outer(share, share)
    flat = np.array([surplus[row, column] for row in range(count) for column in range(row + 1, count)])
    return flat / max(np.linalg.norm(flat), 1e-30)


@given(items=LOGS, count=st.integers(2, 7), window=st.integers(1, 6))
def test_a_vote_is_the_surplus_of_pairs_on_the_unit_sphere(items, count, window):
    found = vote(torch.tensor(items, dtype=torch.int64), BIAS, count, window)
    assert found.shape == (cells(count),)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), plain_vote(items, BIAS, count, window), atol=2e-6)
    assert float(found.double().norm()) <= VOTE_NORM


@given(items=LOGS)
def test_what_is_not_popular_has_no_say_but_takes_room(items):
    """Items 1, 3 and 5 are not among the four: any of them may stand for another."""
    swapped = [{1: 3, 3: 5, 5: 1}.get(item, item) for item in items]
    first, second = (vote(torch.tensor(log, dtype=torch.int64), BIAS, 4, 3) for log in (items, swapped))
    assert torch.equal(first, second)


@pytest.mark.parametrize("items", [[], [2], [2, 2, 2], [1, 3, 5]])
def test_a_log_without_pairs_says_nothing(items):
    assert not vote(torch.tensor(items, dtype=torch.int64), BIAS, 4, 3).any()


def test_votes_where_nothing_is_known_of_popularity():
    found = vote(torch.tensor([0, 1]), torch.zeros(7), 3, 2)
    surplus = np.array([1 - 2 / 9, -2 / 9, -2 / 9])  # 2 entries in all, a ninth of them expected in every cell
    np.testing.assert_allclose(found.numpy(), surplus / np.linalg.norm(surplus), rtol=1e-5)


def test_factors_are_the_positive_part_of_the_weighted_sum():
    total = torch.randn(cells(4), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    table = factorise(total, BIAS, 4, 4).double()
    likely = popular(BIAS, 4)
    assert likely.tolist() == [0, 2, 4, 6]
    assert not table[[1, 3, 5]].any()
    square = np.zeros((4, 4))
    square[np.triu_indices(4, 1)] = total.numpy()
    share = np.array([3, 9, 5, 2]) / 19
    weight = 1 / np.sqrt(1 + 4 * share)
    values, vectors = np.linalg.eigh((square + square.T) * np.outer(weight, weight))
    positive = (vectors * values.clip(min=0)) @ vectors.T * np.outer(weight, weight)
    gram = (table[likely] @ table[likely].T).numpy()
    np.testing.assert_allclose(gram / gram.sum(), positive / positive.sum(), rtol=1e-4, atol=1e-6)
    assert float(table[likely].norm(dim=1).mean()) == pytest.approx(1.0)


def test_factors_lead_with_the_largest_and_may_be_more_than_there_are():
    total = torch.zeros(cells(3))
    total[0] = 2.0  # items 2 and 4 alone go together: one positive eigenvalue
    bias = torch.log1p(torch.tensor([0.0, 0, 5, 0, 5, 0, 5]))
    table = factorise(total, bias, 3, 6)
    assert table.shape == (7, 6)
    assert not table[:, 1:].abs().gt(1e-6).any()
    assert float(table[2, 0]) == pytest.approx(float(table[4, 0]))
    assert float(table[2, 0]) > 0
    assert not factorise(torch.zeros(cells(3)), bias, 3, 2).any()


def test_more_popular_items_than_there_are():
    assert popular(BIAS, 50).tolist() == list(range(7))
    assert factorise(torch.ones(cells(7)), BIAS, 50, 2).shape == (7, 2)
