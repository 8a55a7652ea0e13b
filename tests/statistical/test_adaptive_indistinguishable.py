"""Adaptive clipping and neighbours: with or without a device nobody can tell beyond epsilon; planted bugs are caught.

One device whose update is exactly as long as the clip, present or not, in the joint release of updates and bits. Set
FEDREC_TEST_SEED to run with other seeds.
"""

import os

import numpy as np
import pytest
import torch
from fedrec._streams import torch_stream
from fedrec.privacy.accounting import Charge, epsilon
from fedrec.privacy.adaptive import joint_release, noisy_unclipped_fraction, split_noise
from fedrec.privacy.audit import empirical_epsilon
from fedrec.privacy.entropy import SeededNoise
from fedrec.privacy.mechanisms import clip_updates, gaussian_sum_noise

pytestmark = pytest.mark.statistical
SEED = int(os.environ.get("FEDREC_TEST_SEED", "0"))
DELTA, NOISE, BITS, CLIP, RUNS = 0.01, 1.0, 0.6, 0.5, 4000
CLAIM = epsilon([Charge(NOISE, 1.0, 1)], DELTA, "gaussian")


def scores(there, *, bits=BITS, bug=None):
    """The likelihood ratio of device or no device: nobody can tell them apart better."""
    held = clip_updates({"w": torch.tensor([[CLIP]])[: int(there)]}, CLIP)
    unclipped = int((~held.was_clipped).sum())
    noise, other = (SeededNoise(torch_stream(SEED, name, int(there), str(bug))) for name in ("updates", "bits"))
    deviation = NOISE if bug == "bits not accounted" else split_noise(NOISE, bits)
    found = np.zeros(RUNS)
    for run in range(RUNS):
        if bug is None:
            joint = joint_release(
                held.value,
                held.sensitivity,
                unclipped=unclipped,
                participants=int(there),
                expected_devices=1.0,
                noise_multiplier=NOISE,
                bit_noise=bits,
                noise=noise,
                bits=other,
            )
            update, fraction = float(joint.update["w"]), joint.fraction
        else:
            update = float(gaussian_sum_noise(held.value, held.sensitivity, deviation, noise)["w"])
            fraction = noisy_unclipped_fraction(unclipped, int(there), 1.0, 0.0 if bug == "bits bare" else bits, other)
        found[run] = update / (deviation**2 * CLIP) + (fraction - 0.5) / (2 * bits**2)
    return found


def convicted(**options):
    return empirical_epsilon(scores(True, **options), scores(False, **options), DELTA, 0.9999) > CLAIM


def test_updates_and_bits_together_tell_no_more_than_one_release():
    assert not convicted()


@pytest.mark.parametrize(("bug", "bits"), [("bits bare", BITS), ("bits not accounted", 0.15)])
def test_planted_bugs_are_convicted(bug, bits):
    """Noise left off the bits; noise on the bits that no larger noise on the updates makes up for."""
    assert convicted(bug=bug, bits=bits)
