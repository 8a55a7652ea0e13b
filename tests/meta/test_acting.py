"""Slates: what is drawn is what the propensities say, and nothing else is ever drawn.

Statistical tests compare all cells of a table with their expectations by a chi-square at level 1e-6; streams are
seeded, so they pass or fail for good.
"""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from fedrec._streams import torch_stream
from fedrec.errors import PolicyError
from fedrec.meta.acting import Exploration, act, first_draw, propensities, slate_log_propensity
from fedrec.meta.eligibility import allowed_items
from fedrec.meta.marginals import every_slate, position_marginals
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

SCORES = torch.tensor([1.2, 0.3, 0.3, -0.5, 2.0])
FEATURES = torch.tensor([[1.0, 0], [1, 0.2], [0, 1], [0.5, 0.5], [1, 0.1]])
ALLOWED = torch.tensor([True, True, True, False, True])
LEVEL = 1e-6
WAYS = [
    Exploration(size=2),
    Exploration(size=3, temperature=0.5),
    Exploration(size=2, temperature=0, epsilon=0.3),
    Exploration(size=2, temperature=2.0, epsilon=0.2, diversity=0.4),
    Exploration(size=2, temperature=0.7, diversity=0.6),
    Exploration(size=1, temperature=0.8),
]
MANY = 20_000


def drawn(how, count=MANY, seed=0, scores=SCORES, allowed=ALLOWED):
    return act(scores.expand(count, -1), allowed.expand(count, -1), how, torch_stream(seed, "act"), features=FEATURES)


def plackett_luce(slate, scores, allowed, temperature=1.0):
    """Six lines of numpy: the product of softmaxes over what is left."""
    left, total = [item for item in range(len(scores)) if allowed[item]], 1.0
    for item in slate:
        weights = np.exp([scores[other] / temperature for other in left])
        total *= weights[left.index(item)] / weights.sum()
        left.remove(item)
    return total


@pytest.mark.parametrize("how", WAYS)
def test_slates_are_drawn_as_often_as_their_propensities_say(how):
    slates, chances = every_slate(SCORES, ALLOWED, how, FEATURES)
    keys = {tuple(slate): place for place, slate in enumerate(slates.tolist())}
    counts = np.zeros(len(keys))
    for slate in drawn(how).items.tolist():
        counts[keys[tuple(slate)]] += 1
    expected = chances.numpy() * MANY
    assert counts[expected == 0].sum() == 0
    there = expected > 0
    assert stats.chisquare(counts[there], expected[there]).pvalue > LEVEL


def test_the_chi_square_finds_another_temperature():
    slates, chances = every_slate(SCORES, ALLOWED, Exploration(size=2, temperature=1.1))
    keys = {tuple(slate): place for place, slate in enumerate(slates.tolist())}
    counts = np.bincount([keys[tuple(slate)] for slate in drawn(WAYS[0]).items.tolist()], minlength=len(keys))
    assert stats.chisquare(counts, chances.numpy() * MANY).pvalue < LEVEL


@pytest.mark.parametrize("how", WAYS)
def test_logged_propensities_are_those_of_the_enumeration_and_sum_to_one(how):
    slates, chances = every_slate(SCORES, ALLOWED, how, FEATURES)
    assert float(chances.sum()) == pytest.approx(1, abs=1e-12)
    wide = SCORES.expand(len(slates), -1), ALLOWED.expand(len(slates), -1)
    told = propensities(slates, *wide, how, FEATURES)
    torch.testing.assert_close(slate_log_propensity(told).exp(), chances)
    slate = drawn(how, 50)
    wide = SCORES.expand(50, -1), ALLOWED.expand(50, -1)
    torch.testing.assert_close(slate.propensities, propensities(slate.items, *wide, how, FEATURES))


@pytest.mark.parametrize("how", WAYS[:2])
def test_plain_slates_are_plackett_luce(how):
    slates, chances = every_slate(SCORES, ALLOWED, how)
    assert len(slates) == math.perm(4, how.size)
    wanted = [plackett_luce(slate, SCORES.tolist(), ALLOWED, how.temperature) for slate in slates.tolist()]
    np.testing.assert_allclose(chances, wanted, rtol=1e-6)


@pytest.mark.parametrize("how", WAYS)
def test_marginals_are_the_sums_over_all_slates(how):
    slates, chances = every_slate(SCORES, ALLOWED, how, FEATURES)
    wanted = torch.zeros(how.size, len(SCORES), dtype=torch.float64)
    for slate, chance in zip(slates.tolist(), chances, strict=True):
        for position, item in enumerate(slate):
            wanted[position, item] += chance
    torch.testing.assert_close(position_marginals(SCORES, ALLOWED, how, FEATURES), wanted)


def test_the_marginals_of_a_pair_are_the_closed_form():
    """P(a second) = sum over b != a of p_b p_a / (1 - p_b)."""
    found = position_marginals(SCORES, ALLOWED, Exploration(size=2))[1]
    chance = torch.softmax(SCORES.double().masked_fill(~ALLOWED, -torch.inf), 0)
    odds = chance / (1 - chance)
    torch.testing.assert_close(found, chance * (odds.sum() - odds))


def test_too_many_slates_are_refused():
    wide = torch.zeros(3000)
    with pytest.raises(PolicyError, match=r"got size 3 over 3000 candidates; use the conditional propensities"):
        position_marginals(wide, wide == 0, Exploration(size=3))


def test_greedy_ties_share_alike_and_epsilon_is_spread_over_what_is_left():
    scores, allowed = torch.tensor([[1.0, 3.0, 3.0, 5.0]]), torch.tensor([[True, True, True, False]])
    how = Exploration(size=2, temperature=0, epsilon=0.3)
    told = propensities(torch.tensor([[1, 2]]), scores, allowed, how)
    assert told.tolist() == [[pytest.approx(0.7 / 2 + 0.3 / 3), pytest.approx(0.7 + 0.3 / 2)]]
    assert propensities(torch.tensor([[3, 1]]), scores, allowed, how)[0, 0] == 0


def test_first_draw_inverts_the_conditionals():
    how = Exploration(size=3, temperature=0.3)
    slate = drawn(how, 20)
    single = torch.softmax((SCORES.double() / 0.3).masked_fill(~ALLOWED, -torch.inf), 0)
    torch.testing.assert_close(first_draw(slate.propensities), single[slate.items])


def test_diversity_moves_likeness_down_and_its_limits_are_greedy_and_plain():
    how = Exploration(size=2, temperature=0, diversity=0.9)
    assert drawn(how, 1).items.tolist() == [[4, 2]]  # after (1, 0.1) comes (0, 1), not the nearly parallel (1, 0)
    assert drawn(Exploration(size=2, temperature=0), 1).items.tolist() == [[4, 0]]
    almost = Exploration(size=2, diversity=1e-12)
    slate = drawn(Exploration(size=2), 30)
    wide = SCORES.expand(30, -1), ALLOWED.expand(30, -1)
    torch.testing.assert_close(propensities(slate.items, *wide, almost, FEATURES), slate.propensities)


def test_a_cold_and_lopsided_policy_keeps_its_propensities():
    """A softmax of 1 - 1e-13 at the top: what is left has mass that 1 - p can't tell from nothing."""
    scores = torch.tensor([[30.0, 0.0, 0.0, -1.0]])
    told = propensities(torch.tensor([[0, 1]]), scores, scores > -2, Exploration(size=2))
    assert float(told[0, 1]) == pytest.approx(1 / (2 + math.exp(-1)), rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    users=st.integers(1, 4),
    items=st.integers(1, 7),
    size=st.integers(1, 9),
    temperature=st.sampled_from([0.0, 1e-6, 0.5, 3.0]),
    epsilon=st.sampled_from([0.0, 0.1, 1.0]),
    diversity=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 10_000),
)
def test_filters_are_never_violated_and_nothing_comes_twice(users, items, size, temperature, epsilon, diversity, seed):
    rng = np.random.default_rng(seed)
    seen = torch.from_numpy(rng.integers(-1, items, (users, 3)))
    blocked = torch.from_numpy(rng.random((users, items)) < 0.3)
    allowed = allowed_items(items, seen, blocked)
    scores = torch.from_numpy(rng.normal(size=(users, items)) * 5).masked_fill(~allowed, torch.nan)
    how = Exploration(size=size, temperature=temperature, epsilon=epsilon, diversity=diversity)
    features = torch.from_numpy(rng.normal(size=(items, 2)))
    slate = act(scores, allowed, how, torch_stream(seed, "act"), features)
    assert slate.items.shape == slate.propensities.shape == (users, size)
    for user, row in enumerate(slate.items.tolist()):
        shown = [item for item in row if item >= 0]
        assert not set(shown) & set(seen[user].tolist())
        assert not any(blocked[user, item] for item in shown)
        assert len(set(shown)) == len(shown) == min(size, int(allowed[user].sum()))
        assert all(item == -1 for item in row[len(shown) :])
    assert bool(((slate.propensities > 0) & (slate.propensities <= 1 + 1e-12)).all())
    assert bool((slate.propensities[slate.items < 0] == 1).all())


def test_one_stream_gives_one_slate():
    first, again, other = drawn(WAYS[3], 9, 1), drawn(WAYS[3], 9, 1), drawn(WAYS[3], 9, 2)
    assert torch.equal(first.items, again.items)
    assert not torch.equal(first.items, other.items)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": 0}, "expected size to be an integer >= 1, got 0"),
        ({"temperature": -1.0}, "expected temperature >= 0 and finite, got -1"),
        ({"temperature": 1e-9}, "expected temperature 0 or >= 1e-06, got 1e-09"),
        ({"epsilon": 1.5}, "expected 0 <= epsilon <= 1, got 1.5"),
        ({"diversity": 1.0}, "expected 0 <= diversity < 1, got 1.0"),
    ],
)
def test_wrong_explorations_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Exploration(**wrong)


def test_nan_is_never_shown_and_diversity_needs_features():
    with pytest.raises(PolicyError, match="expected finite scores of the candidates, got NaN"):
        act(torch.full((1, 2), math.nan), torch.ones(1, 2, dtype=torch.bool), WAYS[0], torch_stream(0))
    with pytest.raises(PolicyError, match="expected content features for diversity"):
        act(torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool), Exploration(diversity=0.5), torch_stream(0))
    with pytest.raises(PolicyError, match="of one shape"):
        act(torch.zeros(1, 2), torch.ones(1, 3, dtype=torch.bool), WAYS[0], torch_stream(0))


def test_wrong_filters_are_refused():
    with pytest.raises(PolicyError, match=r"expected seen rows in \[-1, 3\), got 3"):
        allowed_items(3, torch.tensor([[3]]))
    with pytest.raises(PolicyError, match="expected ineligible items of shape"):
        allowed_items(3, torch.tensor([[0]]), torch.ones(2))
    assert allowed_items(3, torch.tensor([[0], [-1]]), torch.tensor([False, True, False])).tolist() == [
        [False, False, True],
        [True, False, True],
    ]


def test_the_python_of_the_guide_runs(capsys):
    guide = Path(__file__).parents[2] / "docs" / "policy-gradient.md"
    (block,) = re.findall(r"```python\n(.*?)```", guide.read_text(encoding="utf-8"), re.DOTALL)
    exec(block, {})
    assert "tensor" in capsys.readouterr().out
