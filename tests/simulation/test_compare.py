"""An A/B test of two policies: who is better where that is known, and nothing where there is nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from compare_world import FEW, Fake
from fedrec.errors import DataError, PolicyError, RunError
from fedrec.simulation.behaviour.choice import sigmoid
from fedrec.simulation.compare import arms
from fedrec.simulation.compare.arms import LoggedLike, play
from fedrec.simulation.compare.judge import greatest, judge, stretches
from fedrec.simulation.compare.meeting import HELD_OUT, MIXED, TRAINING, meet
from fedrec.simulation.compare.verdict import remarks, verdict
from fedrec.simulation.data.registry import load
from fedrec.simulation.domains import DOMAINS, domain_world


def loved():
    """Log odds of a click on every item, over all users, centred: what popularity would know if it knew the truth."""
    population = domain_world("shop", users=60, items=40, seed=0).population
    utilities = population.tastes @ population.qualities.T + population.item_bias + population.user_bias[:, None]
    mean = np.log(sigmoid(utilities).mean(axis=0))
    return 4 * (mean - mean.mean())


def compared(first, second, settings=FEW):
    meeting = meet(first, second, settings)
    brought = [play(place, meeting, settings, lambda steps: None) for place in (0, 1)]
    return judge(("a", "b"), meeting, brought[0], brought[1], settings=settings)


@pytest.fixture(scope="module")
def good_against_bad():
    return compared(Fake("bad", -loved()), Fake("good", loved()), replace(FEW, interactions=12, slate=6))


def test_a_run_against_itself_differs_by_nothing_at_all():
    for settings in (FEW, replace(FEW, start="log"), replace(FEW, temperature=0.0, slate=1)):
        found = compared(Fake("a", loved()), Fake("b", loved()), settings)
        assert found.same
        assert found.metrics["ctr"].first.mean > 0
        assert {value.difference.mean for value in found.metrics.values()} == {0.0}
        assert found.test.stopped is None
        assert verdict(found).startswith("The two runs brought the same to each of 60 users")


def test_the_better_policy_is_found(good_against_bad):
    found = good_against_bad
    assert found.decided == "b"
    assert found.test.stopped < 45  # 29 to 34 with other seeds
    assert found.metrics["ctr"].difference.low > 0
    assert found.metrics["reward"].difference.low > 0
    assert found.metrics["regret"].difference.high < 0
    assert verdict(found).startswith("Run B is better: B minus A in CTR is +0.")
    assert f"after {found.test.stopped} of 60 users" in verdict(found)


def test_swapping_the_runs_turns_every_sign(good_against_bad):
    mirrored = compared(Fake("good", loved()), Fake("bad", -loved()), replace(FEW, interactions=12, slate=6))
    assert mirrored.decided == "a"
    assert mirrored.test.stopped == good_against_bad.test.stopped
    assert (mirrored.test.low == -good_against_bad.test.high).all()
    for name, value in good_against_bad.metrics.items():
        other = mirrored.metrics[name]
        assert other.difference.mean == -value.difference.mean
        assert (other.first, other.second) == (value.second, value.first)


def test_every_slate_is_judged_by_the_truth_and_the_two_share_it(good_against_bad):
    """Reward and regret of either arm add up to the best slate, whatever the policy; nothing moves in this domain."""
    settings = replace(FEW, interactions=1)
    meeting = meet(Fake("bad", -loved()), Fake("good", loved()), settings)
    first, second = (play(place, meeting, settings, lambda steps: None) for place in (0, 1))
    assert first["reward"] + first["regret"] == pytest.approx(second["reward"] + second["regret"])
    assert (first["regret"] >= -1e-12).all()
    assert set(np.unique(first["clicked"])) <= {0.0, 1.0}


def test_asking_fewer_users_changes_nothing_for_those_who_are_asked():
    settings = replace(FEW, users=25)
    every, some = (compared(Fake("a", -loved()), Fake("b", loved()), one) for one in (FEW, settings))
    assert some.users == 25
    assert (some.per_user["b"] == every.per_user["b"][:25]).all()
    assert (some.per_user["a"] == every.per_user["a"][:25]).all()


def test_users_arrive_in_an_order_that_the_seed_draws():
    rows = [meet(Fake("a"), Fake("b"), replace(FEW, seed=seed)).rows for seed in (0, 0, 1)]
    assert (rows[0] == rows[1]).all()
    assert (rows[0] != rows[2]).any()
    assert sorted(rows[0]) == sorted(rows[2]) == list(range(60))
    assert list(rows[0]) != list(range(60))


def test_devices_are_those_that_trained_or_never_did():
    first, second = Fake("a"), Fake("b", data__holdout=0.5)
    held = [run.served().world.held_out for run in (first, second)]
    both, neither = held[0] & held[1], ~held[0] & ~held[1]
    assert min(both.sum(), neither.sum(), (~both & ~neither).sum()) > 0
    asked = {group: meet(first, second, replace(FEW, group=group)) for group in ("all", "held-out", "training")}
    assert sorted(asked["held-out"].rows) == np.flatnonzero(both).tolist()
    assert sorted(asked["training"].rows) == np.flatnonzero(neither).tolist()
    expected = np.where(both, HELD_OUT, np.where(neither, TRAINING, MIXED))
    assert (asked["all"].kinds == expected[asked["all"].rows]).all()
    assert set(compared(first, second).groups) == {HELD_OUT, TRAINING, MIXED}


@pytest.mark.parametrize(
    ("changes", "settings", "said"),
    [
        ({"data__items": 41}, FEW, "got two catalogues of shop, with 40 and 41 items"),
        ({"data__devices": 61}, FEW, "got two populations of shop, with 60 and 61 users"),
        ({"seed": 1}, FEW, "got two different logs of shop"),
        ({"data__name": "news"}, FEW, "expected two runs over the same data, got shop and news"),
        ({"exploration__size": 3}, FEW, "got exploration.size 2 and 3; choose one with --slate"),
        ({}, replace(FEW, users=61), "expected 61 users, got 60"),
        ({"data__holdout": 0.0}, replace(FEW, group="held-out"), "users that are held-out in both runs, got 0"),
    ],
)
def test_runs_that_cannot_meet(changes, settings, said):
    with pytest.raises(RunError, match=said):
        meet(Fake("a"), Fake("b", **changes), settings)


def test_a_policy_with_nan_is_refused():
    with pytest.raises(PolicyError, match="expected finite parameters, got NaN or infinity in bias"):
        meet(Fake("a"), Fake("b", np.full(40, np.nan)), FEW)


def test_slates_without_exact_propensities_are_refused_where_devices_learn_from_them():
    with pytest.raises(PolicyError, match="expected temperature > 0, epsilon = 0 and diversity = 0"):
        compared(Fake("a"), Fake("b"), replace(FEW, epsilon=0.1))
    compared(Fake("a"), Fake("b"), replace(FEW, epsilon=0.1, slate=1))


def test_a_run_of_another_exploration_is_met_as_it_is():
    meeting = meet(Fake("a"), Fake("b", exploration__temperature=0.5), FEW)
    assert [how.temperature for how in meeting.how] == [1.0, 0.5]
    assert any("explore differently" in one for one in meeting.remarks)
    asked = meet(Fake("a"), Fake("b", exploration__temperature=0.5), replace(FEW, temperature=2.0))
    assert [how.temperature for how in asked.how] == [2.0, 2.0]


def test_users_behave_as_their_domain_says_but_for_what_is_asked():
    own = meet(Fake("a"), Fake("b"), FEW).behaviour
    assert own.stages == DOMAINS["shop"].behaviour.stages
    assert (own.choice, own.slate, own.horizon) == (DOMAINS["shop"].behaviour.choice, 2, 4)
    assert meet(Fake("a"), Fake("b"), replace(FEW, choice="position")).behaviour.choice == "position"


def test_users_of_a_small_log_are_fitted_on_it():
    shape = {"data__name": "synthetic", "data__devices": 60, "data__interactions": 10}
    found = compared(Fake("a", **shape), Fake("b", **shape))
    assert found.users == 60
    assert any("fitted on synthetic" in one for one in remarks(found))
    with pytest.raises(DataError, match="100"):
        meet(Fake("a", **shape | {"data__devices": 14}), Fake("b", **shape | {"data__devices": 14}), FEW)


def test_what_is_written_down_looks_like_the_log():
    ratings = load("synthetic", devices=14, items=24, interactions=8)
    journal = LoggedLike(ratings, greatest_reward=2.0)
    rows, slates = np.array([3, 5]), np.array([[1, 2], [4, 5]])
    clicks = np.array([[True, False], [False, True]])
    journal.append(rows, slates, np.array([[2.0, 0.0], [0.0, 1.0]]), clicks, np.full((2, 2), 0.5), np.zeros(2, int))
    kept = journal.dataset(ratings)
    assert kept.rewards.tolist() == [5.0, 3.0]  # the best of a scale from 1 to 5, and its middle
    assert kept.items.tolist() == [1, 5]
    assert kept.propensities is None
    shop = load("shop", devices=14, items=24, interactions=3)
    of_shop = LoggedLike(shop, greatest_reward=1.0)
    of_shop.append(rows, slates, np.array([[1.0, 0.0], [0.0, 0.1]]), clicks, np.full((2, 2), 0.5), np.zeros(2, int))
    kept = of_shop.dataset(shop)
    assert kept.propensities.tolist() == [0.5, 0.5]
    assert kept.rewards == pytest.approx([1.0, 0.1])


def test_a_device_that_begins_with_its_log_knows_it_and_shows_none_of_it():
    shop = load("shop", devices=14, items=24, interactions=3)
    journal = LoggedLike(shop, greatest_reward=1.0)
    journal.remember(shop)
    kept = journal.dataset(shop)
    for name in ("items", "rewards", "propensities", "offsets"):
        assert (getattr(kept, name) == getattr(shop, name)).all()
    device = int(shop.lengths.argmax())
    assert set(journal.clicked(np.array([device]))[0].tolist()) - {-1} == set(shop.items[shop.rows(device)].tolist())


def test_personal_parameters_are_those_of_the_log_or_none(monkeypatch):
    met = []
    monkeypatch.setattr(arms, "PolicyAgent", lambda *args, **keywords: met.append(keywords["personal"]) or 1 / 0)
    meeting = meet(Fake("a"), Fake("b"), FEW)
    own = {"latent": torch.ones(60, 3)}
    meeting = replace(meeting, served=(replace(meeting.served[0], personal=own), meeting.served[1]))
    for start in ("new", "log"):
        with pytest.raises(ZeroDivisionError):
            play(0, meeting, replace(FEW, start=start), lambda steps: None)
    assert met == [None, own]


def test_bounds_are_what_a_slate_can_bring():
    shop = replace(DOMAINS["shop"].behaviour, slate=4)
    assert greatest("ctr", shop) == 1.0
    assert greatest("reward", shop) == 1.0  # one purchase
    assert greatest("reward", replace(shop, choice="position")) == 4.0


def test_stretches_cover_every_interaction_once():
    assert stretches(3) == [(1, 1), (2, 2), (3, 3)]
    many = stretches(207)
    assert len(many) == 20
    assert [step for first, last in many for step in range(first, last + 1)] == list(range(1, 208))


def test_curves_are_means_of_their_stretches():
    settings = replace(FEW, interactions=40)
    meeting = meet(Fake("a"), Fake("b"), settings)
    arms_brought = []
    for shift in (0, 1):
        values = np.tile(np.arange(40.0), (60, 1)) / 100 + shift * 0.1
        arms_brought.append(dict.fromkeys(("clicked", "reward", "regret"), values))
    found = judge(("a", "b"), meeting, *arms_brought, settings=settings)
    assert [one.mean for one in found.curves["a"]] == pytest.approx([(2 * step + 0.5) / 100 for step in range(20)])
    assert [one.mean for one in found.curves["difference"]] == pytest.approx([0.1] * 20)


def test_a_difference_that_only_a_planned_test_would_find_is_said_so():
    meeting = meet(Fake("a"), Fake("b"), FEW)
    draw = np.random.default_rng(0)
    ours = np.full((60, 1), 0.4)
    theirs = np.clip(ours + 0.05 + 0.1 * draw.standard_normal((60, 1)), 0, 1)
    found = judge(
        ("a", "b"),
        meeting,
        dict.fromkeys(("clicked", "reward", "regret"), ours),
        dict.fromkeys(("clicked", "reward", "regret"), theirs),
        settings=replace(FEW, interactions=1),
    )
    assert found.decided is None
    assert "are not told apart: after 60 users" in verdict(found)
    assert remarks(found)[0].startswith("Had 60 users been planned")
