"""The Open Bandit quick start: the published numbers, and those of obp itself (benchmarks/peers/obp/reference.py).

The log is fetched into the user's cache the first time. The judged policy, Bernoulli Thompson sampling with the
production prior, is drawn with the generator of the quick start, ``RandomState(12345)``, and comes out bit for bit.
"""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from fedrec.simulation.data.bandit_log import read_bandit_log
from fedrec.simulation.data.open_bandit import directory, fetch_open_bandit, find_log
from fedrec.simulation.intervals import bootstrap_interval
from fedrec.simulation.ope.items import dm, dr, importance_weights, ips, snips, switch_dr
from fedrec.simulation.ope.logistic import Design, fit_logistic, sigmoid
from thompson_places import thompson_places

SEED, FOLDS, SLOTS, ITEMS = 12345, 3, 3, 80
PUBLISHED = {"ipw": 0.00455, "dm": 0.00355, "dr": 0.00473}


@pytest.fixture(scope="module")
def thompson():
    fetch_open_bandit(progress=lambda line: None)
    prior = json.loads((directory() / "prior-all.json").read_text(encoding="utf-8"))
    return thompson_places(prior["alpha"], prior["beta"], SLOTS, 100_000, np.random.RandomState(SEED))


def codes(values):
    return np.unique(np.array(values), return_inverse=True)[1]


def quick_start(policy):
    """The log and the features that obp's quick start gives its regression: dummies of the user, codes of the item."""
    path = find_log(f"open-bandit/{policy}-all", progress=lambda line: None)
    log, frame = read_bandit_log(path), pl.read_parquet(path)
    dummies = [np.eye(len(set(frame[f"user_feature_{n}"])))[codes(frame[f"user_feature_{n}"])][:, 1:] for n in range(4)]
    table = pl.read_parquet(directory() / f"{policy}-all-items.parquet")
    coded = np.c_[*(codes(table[f"item_feature_{n}"]) for n in (1, 2, 3)), table["item_feature_0"].to_numpy()]
    return log, np.array(log.item_ids, dtype=np.int64)[log.items], np.concatenate(dummies, axis=1), coded


def folds_of(rows):
    """scikit-learn's ``KFold(3, shuffle=True, random_state=12345)``."""
    order = np.arange(rows)
    np.random.RandomState(SEED).shuffle(order)
    return [np.sort(part) for part in np.array_split(order, FOLDS)]


def modelled(log, item, users, coded, coefficients):
    """``q`` for every row, slot and item, ``[rows, slots, items]``, from the coefficients of each fold and slot."""
    table = np.zeros((len(log), SLOTS, ITEMS))
    for number, fold in enumerate(folds_of(len(log))):
        for slot in range(SLOTS):
            found = np.array(coefficients(number, slot, fold))
            user, what = users[fold] @ found[: users.shape[1]], coded @ found[users.shape[1] : -1]
            table[fold, slot] = sigmoid(user[:, None] + what + found[-1])
    return table


def own_fit(log, item, users, coded):
    def fit(number, slot, fold):
        rows = np.setdiff1d(np.flatnonzero(log.positions == slot), fold)
        found = fit_logistic(Design(dense=np.c_[users[rows], coded[item[rows]]]), log.rewards[rows], 1.0)
        return [*found[1:], found[0]]

    return fit


def estimates(log, item, shown, table):
    rows = np.arange(len(log))
    weights = importance_weights(shown[log.positions, item], log.propensities)
    predicted = table[rows, log.positions, item]
    expected = (shown[log.positions] * table[rows, log.positions]).sum(axis=1) / shown[log.positions].sum(axis=1)
    values = (weights, log.rewards, predicted, expected)
    return {
        "ipw": ips(weights, log.rewards).value,
        "snipw": snips(weights, log.rewards).value,
        "dm": dm(expected).value,
        "dr": dr(*values).value,
        "switch_dr_1": switch_dr(*values, 1.0).value,
        "switch_dr_5": switch_dr(*values, 5.0).value,
    }


def test_the_estimators_give_the_numbers_of_obp_and_the_published_ones(thompson, obp):
    """With the coefficients that obp's own regression came to: nothing but the estimators is compared."""
    start = quick_start("random")
    log, item, _, _ = start
    table = modelled(*start, lambda number, slot, fold: obp["fits"][number * SLOTS + slot])
    found = estimates(log, item, thompson, table)
    assert found == pytest.approx(obp["quickstart"], abs=1e-12)
    assert {name: round(found[name], 5) for name in PUBLISHED} == PUBLISHED
    assert found["ipw"] / log.rewards.mean() == pytest.approx(1.198126, abs=1e-6)  # the figure of obp's README


def test_with_our_own_regression_the_numbers_are_those_of_obp_with_its_solved_to_the_end(thompson, obp):
    """obp's default stops its solver early: that moves DR by 1e-6 and DM by 4e-7."""
    start = quick_start("random")
    log, item, _, _ = start
    found = estimates(log, item, thompson, modelled(*start, own_fit(*start)))
    assert found == pytest.approx(obp["converged"], abs=1e-9)
    assert found == pytest.approx(obp["quickstart"], abs=2e-6)


def test_the_other_way_round_with_propensities_that_differ_by_row(obp):
    """The log of the Thompson sampler, and the uniform policy judged on it."""
    start = quick_start("bts")
    log, item, _, _ = start
    assert len(set(log.propensities)) > 5000
    found = estimates(log, item, np.full((SLOTS, ITEMS), 1 / ITEMS), modelled(*start, own_fit(*start)))
    assert found == pytest.approx(obp["reverse"], abs=1e-9)


def test_the_interval_is_the_published_one(thompson):
    """obp's notebook has [0.001531, 0.009254] for IPW: 10,000 resamples from another stream, so 5 % are allowed."""
    log, item, _, _ = quick_start("random")
    weights = importance_weights(thompson[log.positions, item], log.propensities)
    found = bootstrap_interval(ips(weights, log.rewards).numerators, seed=0, resamples=4000)
    assert (found.low, found.high) == pytest.approx((0.001531, 0.009254), rel=0.05)


def test_the_logs_are_what_facts_say():
    fetch_open_bandit(progress=lambda line: None)
    clicks = 0
    for policy in ("random", "bts"):
        for campaign in ("all", "men", "women"):
            log = read_bandit_log(directory() / f"{policy}-{campaign}.parquet")
            assert (len(log), log.users, log.slates, sorted(set(log.positions))) == (10_000, None, None, [0, 1, 2])
            clicks += int(log.rewards.sum())
    assert clicks == 287
