"""The audit works: honest mechanisms are not refuted, and every planted bug is, through the real code.

A bug is planted by patching the mechanism itself (``planted.py``); the audit knows nothing of it. Sizes are small:
worst-case canaries make small worlds enough. Set FEDREC_TEST_SEED to run the suite with other seeds.
"""

import os

import planted
import pytest
from fedrec.config import Config
from fedrec.simulation.audit import Size, audit
from fedrec.simulation.audit_attacks import attacks_on

pytestmark = pytest.mark.statistical
SEED = int(os.environ.get("FEDREC_TEST_SEED", "0"))

USER = Config().updated(seed=SEED, server__rounds=2, server__warm_start="none", privacy__epsilon=4.0, privacy__clip=0.3)
STRICT = USER.updated(privacy__epsilon=1.0)
SAMPLED = USER.updated(server__participation=0.5, server__rounds=1, privacy__epsilon=8.0)
MANY = USER.updated(server__rounds=40, privacy__epsilon=None, privacy__noise_multiplier=4.0)
DEVICE = USER.updated(privacy__unit="interaction", policy__state="none", privacy__max_participations=2, local__steps=2)
HISTORY, PERSONAL = (DEVICE.updated(policy__state=state) for state in ("history", "personal"))
LIFE = DEVICE.updated(privacy__epsilon=None, privacy__noise_multiplier=6.0, privacy__max_participations=20)
EVERYTHING = Config().updated(
    seed=SEED,
    privacy__unit="both",
    server__participation=0.5,
    server__rounds=3,
    privacy__epsilon=3.0,
    privacy__max_participations=2,
    local__steps=2,
    privacy__scales={"bias": 3.0},
)

OFF = float("inf")
CASES = {
    "noise off (server)": (planted.server_noise_divided, {"by": OFF}, USER, "one round", 120),
    "noise / 3 (server)": (planted.server_noise_divided, {"by": 3}, USER, "one round", 400),
    "noise off (device)": (planted.device_noise_divided, {"by": OFF}, DEVICE, "one release, N = 3", 1500),
    "noise / 3 (device)": (planted.device_noise_divided, {"by": 3}, DEVICE, "one release, N = 3", 1500),
    "noise / 3 (device, history)": (planted.device_noise_divided, {"by": 3}, HISTORY, "one release, N = 3", 1500),
    "update clip off": (planted.update_clip_off, {}, STRICT, "canary devices", 600),
    "example clip off": (planted.example_clip_off, {}, DEVICE, "one release, N = 3", 1500),
    "example clip off (history)": (planted.example_clip_off, {}, HISTORY, "one release, N = 3", 1500),
    "divisor counts participants": (planted.divisor_of_participants, {}, USER, "one round", 160),
    "divisor counts examples": (planted.divisor_of_examples, {}, DEVICE, "one release, N = 3", 1500),
    "personal vector without noise": (
        planted.personal_vector_without_noise,
        {},
        PERSONAL,
        "one release, N = 30",
        1500,
    ),
    "overlapping history windows": (planted.overlapping_windows, {}, HISTORY, "one release, an entry before", 1500),
    "accountant reset (server)": (planted.accountant_reset, {}, MANY, "canary devices", 300),
    "accountant reset (device)": (planted.accountant_reset, {}, LIFE, "canary interactions", 1000),
    "weights by interactions": (planted.weighted_by_interactions, {}, STRICT, "canary devices", 300),
    "fixed-size sample": (planted.fixed_size_sample, {}, SAMPLED, "one round, with and without a device, others", 1200),
}
"""Name -> planted bug, its settings, the configuration, the attack that must refute it, and how much it computes."""
SLOW = {
    "accountant reset (device)",
    "fixed-size sample",
    "noise off (server)",
    "noise / 3 (server)",
    "divisor counts participants",
}


def attacked(config, attack, size):
    """The finding of one attack among all those of an audit, at the confidence it would have there."""
    attacks, _ = attacks_on(config, size, 20, size, size)
    (chosen,) = [one for one in attacks if one.title.startswith(attack)]
    return chosen.run(1 - 0.01 / len(attacks), lambda steps: None)


@pytest.mark.parametrize("name", CASES)
def test_a_planted_bug_is_refuted(name, monkeypatch):
    bug, settings, config, attack, size = CASES[name]
    seeds = range(1 if name in SLOW else 3)
    assert not attacked(config, attack, size).refuted
    bug(monkeypatch, **settings)
    for seed in seeds:
        assert attacked(config.updated(seed=SEED + seed), attack, size).refuted


HONEST = {"user": USER, "sampled": SAMPLED, "device": DEVICE, "history": HISTORY, "personal": PERSONAL}
SMALL = Size(rounds=60, plans=20, devices=600, canaries=300)


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_mechanism_is_not_refuted(name):
    """None of 8 seeds, of 40 in all: with 95 % confidence fewer than 8 % of audits at 0.99 refute an honest mechanism.

    An audit that keeps its word fails here with probability 0.08 at most, by far less as its bounds are loose.
    """
    for seed in range(8):
        report = audit(HONEST[name].updated(seed=SEED + 100 + seed), size=SMALL)
        assert not report.refuted, [finding.to_dict() for finding in report.findings if finding.refuted]


def test_every_mechanism_of_a_configuration_is_attacked():
    report = audit(EVERYTHING, size=SMALL)
    assert not report.refuted
    titles = [finding.attack for finding in report.findings]
    assert [title.split(",")[0] for title in titles] == [
        "one round",
        "one round",
        "warm start",
        "all rounds",
        "canary devices in one run",
        "one release",
        "one release",
        "warm start vote",
        "all participations",
        "canary interactions in one run",
    ]
    assert {finding.unit for finding in report.findings} == {"user", "interaction"}
    assert all(finding.confidence == pytest.approx(1 - 0.01 / 10) for finding in report.findings)
    assert [sentence[:16] for sentence in report.statements] == ["epsilon = 3 at d"] * 2


def test_what_is_claimed_is_what_was_stated():
    stated = {"user": {"epsilon": 0.2, "sentence": "epsilon = 0.2, says somebody"}}
    report = audit(
        USER.updated(privacy__epsilon=8.0), stated=stated, size=Size(rounds=40, plans=0, devices=20, canaries=600)
    )
    assert report.refuted
    assert report.statements == ("epsilon = 0.2, says somebody",)
    assert [finding.attack for finding in report.findings if finding.refuted] == [
        "canary devices in one run, all rounds"
    ]


def test_the_gate_sets_aside_what_no_device_clipped(monkeypatch):
    """A device that clips nothing is quarantined by the server: nothing of it shows, so there is nothing to refute."""
    from fedrec.client import adaptation

    original = adaptation.clip_update
    monkeypatch.setattr(adaptation, "clip_update", lambda update, clip, scales: original(update, 1e6, scales))
    assert not attacked(USER, "one round", 60).refuted


def test_an_audit_repeats_itself():
    first, second = (
        audit(DEVICE, size=Size(rounds=40, plans=0, devices=300, canaries=100)).to_dict() for _ in range(2)
    )
    for report in (first, second):
        report.pop("seconds")
        for finding in report["findings"]:
            finding.pop("seconds")
    assert first == second
