"""Metrics against values worked out by hand and against a slow referee that shuffles ties."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from fedrec.errors import PolicyError
from fedrec.simulation.metrics import (
    Ranks,
    exposure,
    gini,
    list_metrics,
    multi_relevant_metrics,
    popularity_percentile,
    ranking_metrics,
    rating_errors,
    target_ranks,
    top_k,
)
from hypothesis import given, settings
from hypothesis import strategies as st


def _referee(scores: list[float], relevant: set[int], k: int) -> dict[str, float]:
    """Metrics averaged over every order of the items that is consistent with the scores."""
    orders = [
        order
        for order in itertools.permutations(range(len(scores)))
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]
    sums = {"hr": 0.0, "ndcg": 0.0, "recall": 0.0, "mrr": 0.0}
    ideal = sum(1 / math.log2(place + 2) for place in range(min(k, len(relevant))))
    for order in orders:
        places = [place for place, item in enumerate(order) if item in relevant]
        inside = [place for place in places if place < k]
        sums["hr"] += bool(inside)
        sums["ndcg"] += sum(1 / math.log2(place + 2) for place in inside) / ideal
        sums["recall"] += len(inside) / len(relevant)
        sums["mrr"] += 1 / (places[0] + 1)
    return {name: value / len(orders) for name, value in sums.items()}


def test_ranks_against_the_whole_catalogue():
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.7], [3.0, 3.0, 3.0, 1.0], [0.0, 1.0, 2.0, 3.0]])
    ranks = target_ranks(scores, torch.tensor([2, 0, -1]))
    np.testing.assert_array_equal(ranks.above, [2, 0, -1])
    np.testing.assert_array_equal(ranks.ties, [0, 2, 0])
    np.testing.assert_array_equal(ranks.expected, [2.0, 1.0, np.nan])


def test_excluded_items_are_no_rivals():
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.5]])
    excluded = torch.tensor([[False, True, False, True]])
    assert target_ranks(scores, torch.tensor([2]), excluded).expected[0] == 0.0


def test_a_held_out_item_that_was_seen_before_gets_no_rank():
    scores = torch.tensor([[0.1, 0.9, 0.5]])
    assert np.isnan(target_ranks(scores, torch.tensor([1]), torch.tensor([[False, True, False]])).expected[0])


def test_candidates_ignore_padding_and_the_target_itself():
    scores = torch.tensor([[9.0, 0.5, 0.6, 0.4, 0.5]])
    ranks = target_ranks(scores, torch.tensor([1]), candidates=torch.tensor([[2, 3, 4, 1, -1, -1]]))
    assert (ranks.above[0], ranks.ties[0]) == (1, 1)


def test_padded_candidate_may_point_at_a_nan_but_a_real_one_may_not():
    scores = torch.tensor([[float("nan"), 0.5, 0.6]])
    assert target_ranks(scores, torch.tensor([1]), candidates=torch.tensor([[2, -1]])).above[0] == 1
    with pytest.raises(PolicyError, match="got NaN for 1 of"):
        target_ranks(scores, torch.tensor([1]), candidates=torch.tensor([[2, 0]]))


@pytest.mark.parametrize("broken", ["all", "target", "rival"])
def test_nan_never_scores(broken: str):
    scores = torch.rand(3, 6, generator=torch.Generator().manual_seed(0))
    rows = {"all": slice(None), "target": 2, "rival": 4}[broken]
    scores[1, rows] = float("nan")
    targets = torch.tensor([2, 2, 2])
    for call in (
        lambda: target_ranks(scores, targets),
        lambda: top_k(scores, 2),
        lambda: multi_relevant_metrics(scores, scores > 0.5),
    ):
        with pytest.raises(PolicyError, match="got NaN"):
            call()


def test_infinite_scores_are_ordinary_values():
    scores = torch.tensor([[math.inf, -math.inf, 0.0, -math.inf]])
    assert target_ranks(scores, torch.tensor([0])).expected[0] == 0.0
    assert target_ranks(scores, torch.tensor([1])).expected[0] == 2.5


@pytest.mark.parametrize(
    ("targets", "excluded", "candidates", "message"),
    [
        (torch.tensor([0]), None, None, "one target a device"),
        (torch.tensor([0, 5]), None, None, "target rows below 3 items, got 5"),
        (torch.tensor([0, 1]), torch.zeros(2, 4, dtype=torch.bool), None, "exclusion mask"),
        (torch.tensor([0, 1]), None, torch.tensor([[1], [9]]), "candidate rows below 3"),
        (torch.tensor([0, 1]), None, torch.tensor([[1]]), r"candidates \[2, candidates\]"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(targets, excluded, candidates, message):
    with pytest.raises(PolicyError, match=message):
        target_ranks(torch.zeros(2, 3), targets, excluded, candidates)


def test_metrics_of_a_known_rank():
    values = ranking_metrics(Ranks(above=np.array([0, 2, 7, -1]), ties=np.array([0, 0, 0, 0])), ks=(5,))
    np.testing.assert_allclose(values["hr@5"], [1, 1, 0, np.nan])
    np.testing.assert_allclose(values["ndcg@5"], [1, 1 / math.log2(4), 0, np.nan])
    np.testing.assert_allclose(values["recall@5"], values["hr@5"])
    np.testing.assert_allclose(values["mrr"], [1, 1 / 3, 1 / 8, np.nan])


def test_a_constant_policy_scores_at_chance():
    ranks = target_ranks(torch.zeros(4, 100), torch.tensor([0, 17, 50, 99]))
    values = ranking_metrics(ranks, ks=(10,))
    np.testing.assert_allclose(values["hr@10"], 0.10)
    np.testing.assert_allclose(values["ndcg@10"], sum(1 / math.log2(place + 2) for place in range(10)) / 100)


small_scores = st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=2, max_size=6)


@settings(max_examples=40, deadline=None)
@given(scores=small_scores, target=st.integers(0, 5), k=st.integers(1, 7))
def test_ties_are_the_mean_over_every_order(scores: list[float], target: int, k: int):
    target %= len(scores)
    values = ranking_metrics(target_ranks(torch.tensor([scores]), torch.tensor([target])), ks=(k,))
    expected = _referee(scores, {target}, k)
    for name, key in (("hr", f"hr@{k}"), ("ndcg", f"ndcg@{k}"), ("mrr", "mrr")):
        assert values[key][0] == pytest.approx(expected[name])


@settings(max_examples=40, deadline=None)
@given(scores=small_scores, relevant=st.sets(st.integers(0, 5), min_size=1), k=st.integers(1, 5))
def test_several_relevant_items_are_the_mean_over_every_order(scores: list[float], relevant: set[int], k: int):
    relevant = {item % len(scores) for item in relevant}
    mask = torch.zeros(1, len(scores), dtype=torch.bool)
    mask[0, list(relevant)] = True
    values = multi_relevant_metrics(torch.tensor([scores]), mask, ks=(k,))
    expected = _referee(scores, relevant, k)
    assert values[f"ndcg@{k}"][0] == pytest.approx(expected["ndcg"])
    assert values[f"recall@{k}"][0] == pytest.approx(expected["recall"])
    assert values[f"precision@{k}"][0] == pytest.approx(expected["recall"] * len(relevant) / k)


def test_several_relevant_items_leave_out_excluded_ones_and_empty_devices():
    scores = torch.tensor([[5.0, 4.0, 3.0], [1.0, 2.0, 3.0]])
    relevant = torch.tensor([[True, False, True], [False, False, False]])
    excluded = torch.tensor([[True, False, False], [False, False, False]])
    values = multi_relevant_metrics(scores, relevant, excluded, ks=(1, 2))
    np.testing.assert_allclose(values["recall@1"], [0.0, np.nan])
    np.testing.assert_allclose(values["recall@2"], [1.0, np.nan])
    np.testing.assert_allclose(values["precision@2"], [0.5, np.nan])


def test_top_k_breaks_ties_by_row_and_pads():
    scores = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0], [5.0, 4.0, 3.0, 2.0, 1.0]])
    excluded = torch.tensor([[False] * 5, [True, False, True, True, True]])
    np.testing.assert_array_equal(top_k(scores, 2, excluded), [[1, 2], [1, -1]])
    np.testing.assert_array_equal(top_k(scores, 7)[1], [0, 1, 2, 3, 4, -1, -1])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 12))
def test_top_k_equals_a_stable_sort(seed: int, k: int):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 4, (5, 12), generator=generator).float()
    plain = np.argsort(-scores.numpy(), axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(top_k(scores, k), plain)


def test_list_metrics_by_hand():
    shown = exposure(torch.tensor([[0, 1], [0, 2], [0, -1]]), items=5)
    np.testing.assert_array_equal(shown, [3, 1, 1, 0, 0])
    values = list_metrics(shown, np.array([50, 20, 20, 5, 1]), k=2)
    assert values["coverage@2"] == pytest.approx(3 / 5)
    # percentiles of popularity: 1, 0.625, 0.625, 0.25, 0
    assert values["mean_popularity@2"] == pytest.approx((3 * 1 + 0.625 + 0.625) / 5)
    # mean absolute difference of [0, 0, 1, 1, 3] over twice the mean: 28 / (25 * 2)
    assert values["gini@2"] == pytest.approx(28 / 25 / 2)


def test_gini_and_percentiles_at_the_edges():
    assert gini(np.array([4, 4, 4])) == pytest.approx(0.0)
    assert gini(np.array([0, 0, 0, 9])) == pytest.approx(0.75)
    assert math.isnan(gini(np.zeros(3)))
    np.testing.assert_allclose(popularity_percentile(np.array([7, 7, 7])), 0.5)
    np.testing.assert_allclose(popularity_percentile(np.array([3, 1, 2])), [1.0, 0.0, 0.5])


def test_rating_errors_by_device():
    errors = rating_errors(np.array([1.0, 3.0, 5.0]), np.array([2.0, 3.0, 2.0]), np.array([0, 0, 2]), devices=3)
    np.testing.assert_allclose(errors["squared_error"], [0.5, np.nan, 9.0])
    np.testing.assert_allclose(errors["absolute_error"], [0.5, np.nan, 3.0])
    with pytest.raises(PolicyError, match="finite rating predictions"):
        rating_errors(np.array([math.nan]), np.array([1.0]), np.array([0]), devices=1)
