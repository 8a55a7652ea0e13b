"""Membership inference: the numbers of the attack, and that a policy that memorises is found out."""

import json

import numpy as np
import pytest
import small_world
from fedrec.simulation.audit import AUDIT, Size, audit_run
from fedrec.simulation.audit_membership import auc, membership, true_positives
from fedrec.simulation.run import simulate
from fedrec.simulation.serving import Served

TINY = Size(rounds=40, plans=0, devices=60, canaries=40)


def test_auc_and_true_positives_are_their_definitions():
    generator = np.random.default_rng(0)
    positive, negative = generator.integers(0, 30, 70).astype(float), generator.integers(0, 25, 90).astype(float)
    pairs = [(high > low) + (high == low) / 2 for high in positive for low in negative]
    assert auc(positive, negative) == pytest.approx(np.mean(pairs))
    for rate in (0.001, 0.05, 0.5):
        reached = [
            (positive > threshold).mean()
            for threshold in np.unique(np.concatenate([negative, [negative.min() - 1]]))
            if (negative > threshold).mean() <= rate
        ]
        assert true_positives(positive, negative, rate) == pytest.approx(max(reached))
    assert np.isnan(auc(positive, np.zeros(0)))
    assert np.isnan(true_positives(np.zeros(0), negative, 0.01))


def test_a_policy_that_memorises_its_log_shows_it():
    """Item tables that go far on the device's own log rank what it has met first; the initialization knows nothing."""
    world = small_world.world(small_world.dataset(), policy__state="none", policy__fast=["latent"])
    phi = world.initialization()
    phi["latent"] = phi["latent"] + 0.5
    learned = membership(Served(world=world, phi=phi, steps=60, everything=True), seed=1)
    seen = {one.seen_by: one for one in learned}
    assert list(seen) == ["served policy", "initialization", "popularity"]
    assert seen["served policy"].auc.low > 0.85
    assert seen["served policy"].auc.low > seen["initialization"].auc.value
    assert seen["served policy"].tpr[0.01].value > 0.3
    assert abs(seen["initialization"].auc.value - 0.5) < 0.2
    split, roster = world.split, world.roster
    asked = (split.valid >= 0) & (split.test >= 0) & (split.train_end - split.start >= 2)
    assert seen["served policy"].held_in == seen["served policy"].held_out == 2 * asked[roster].sum()
    json.dumps(seen["served policy"].to_dict())


@pytest.mark.parametrize("unit", ["user", "none"])
def test_a_run_is_audited_and_keeps_its_audit(unit, tmp_path):
    run = simulate(small_world.config(privacy__unit=unit, evaluation__baselines=False), out=tmp_path / "run")
    report = audit_run(run.directory, size=TINY)
    assert not report.refuted
    kept = json.loads((run.directory / AUDIT).read_text())
    assert kept == json.loads(json.dumps(report.to_dict()))
    assert [one["seen_by"] for one in kept["membership"]] == ["served policy", "initialization", "popularity"]
    assert bool(kept["findings"]) == (unit == "user")
    if unit == "user":
        assert kept["findings"][-1]["claimed_epsilon"] == run.summary["privacy"][0]["epsilon"]
        assert kept["statements"] == [run.summary["privacy"][0]["sentence"]]
