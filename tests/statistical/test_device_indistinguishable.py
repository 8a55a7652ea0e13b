"""A device's release through its real path: neighbours can't be told apart beyond the claim, planted bugs are caught.

A judge with confidence 0.9999 bounds epsilon from below by what an observer of the update achieves. Set
FEDREC_TEST_SEED for other seeds.
"""

import os

import numpy as np
import pytest
import torch
from fedrec._streams import torch_stream
from fedrec.client.adaptation import LocalMechanism, adapt_privately
from fedrec.config import LocalConfig, PolicyConfig
from fedrec.meta.adapt import descend
from fedrec.meta.examples import build_examples
from fedrec.meta.interactions import Catalogue, Interactions
from fedrec.meta.policy import Policy
from fedrec.privacy.accounting import Charge, epsilon
from fedrec.privacy.audit import empirical_epsilon
from fedrec.privacy.entropy import SeededNoise

pytestmark = pytest.mark.statistical
SEED = int(os.environ.get("FEDREC_TEST_SEED", "0"))
DELTA, CLIP, SIGMA, RUNS, DIM = 0.01, 0.5, 3.0, 200, 64
LOCAL = LocalConfig(steps=2, lr=1.0, slow_lr=2.0)
CLAIMED = epsilon([Charge(SIGMA, 1.0, LOCAL.steps)], DELTA, "rdp")


def personal_policy():
    """Item embeddings and a personal vector, nothing else."""
    bare = Catalogue(features=np.zeros((4, 0), np.float32), feature_names=(), item_ids=tuple("abcd"))
    settings = PolicyConfig(state="personal", content=False, content_embedding=False, bias=False, dim=DIM, fast=())
    return Policy.for_catalogue(settings, bare)


POLICY = personal_policy()


def start():
    """Items a, b lie opposite each other, so do c, d: a log of as many a as b pulls the personal vector nowhere."""
    ids = torch.zeros(4, DIM)
    ids[0, 0], ids[1, 0], ids[2, 1], ids[3, 1] = 1.0, -1.0, 1.0, -1.0
    return {"ids": ids, "latent": torch.zeros(DIM), "personal": torch.zeros(DIM)}


def releases(items, *, bug=None):
    """Many devices with this log: what an observer sees of each update."""
    log = Interactions(items=torch.tensor(items), rewards=torch.ones(len(items)))
    built = build_examples(POLICY, log, torch.zeros(0), settings=LOCAL, unit="interaction", reward_range=(0, 1))
    begun = start()
    if bug == "personal vector without noise":
        greedy = LocalConfig(lr=1000.0)
        begun |= descend(POLICY, begun, built, greedy, steps=1, names=("personal",))
    divisor = float(len(items)) if bug == "private divisor" else 4.0
    noise = 0.0 if bug == "no noise" else SIGMA
    mechanism = LocalMechanism(noise_multiplier=noise, clip=CLIP, expected_batch=divisor)
    seen = []
    for run in range(RUNS):
        source = SeededNoise(torch_stream(SEED, "device", len(items), run, bug or "honest"))
        update = adapt_privately(POLICY, begun, built, LOCAL, mechanism, noise=source, batches=None).update
        ids, quiet = update["ids"], update["ids"][:, 2:]
        seen.append([float(ids[2, 1]), float(update["latent"][1]), float(quiet.square().mean().add(1e-30).log())])
    return np.array(seen)


def told_apart(one, other):
    bounds = [empirical_epsilon(one[:, place], other[:, place], DELTA, 0.9999) for place in range(one.shape[1])]
    return max(bounds) > CLAIMED


NEIGHBOURS = {"balanced": [0, 1] * 15, "three": [0, 1, 0]}


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_one_interaction_more_can_not_be_told(name):
    assert not told_apart(releases(NEIGHBOURS[name]), releases([*NEIGHBOURS[name], 2]))


@pytest.mark.parametrize(
    ("name", "bug"),
    [("balanced", "personal vector without noise"), ("three", "private divisor"), ("three", "no noise")],
)
def test_planted_bugs_are_convicted(name, bug):
    assert told_apart(releases(NEIGHBOURS[name], bug=bug), releases([*NEIGHBOURS[name], 2], bug=bug))
