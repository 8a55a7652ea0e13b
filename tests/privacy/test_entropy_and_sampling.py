"""Noise sources and the Poisson sampler."""

import math
import os

import numpy as np
import pytest
import torch
from fedrec._streams import torch_stream
from fedrec.privacy.entropy import SeededNoise, SystemNoise, system_uniforms
from fedrec.privacy.sampling import poisson_batch, poisson_participants


def kolmogorov(sample):
    """Distance to the standard normal; above 1.95 / sqrt(n) has probability about 0.001."""
    ordered = np.sort(sample)
    cdf = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in ordered])
    steps = np.arange(len(ordered) + 1) / len(ordered)
    return max(np.abs(cdf - steps[1:]).max(), np.abs(cdf - steps[:-1]).max())


@pytest.mark.statistical
@pytest.mark.parametrize("source", [SystemNoise(), SeededNoise(torch_stream(1, "normal"))])
def test_noise_is_standard_normal_and_other_scales_are_told_apart(source):
    sample = source.normal((20_000,), 2.5, torch.float64).numpy() / 2.5
    limit = 2.3 / math.sqrt(len(sample))  # probability about 5e-5
    assert kolmogorov(sample) < limit
    assert kolmogorov(sample * 1.5) > limit
    assert kolmogorov(sample / 1.5) > limit
    assert abs(np.corrcoef(sample[:-1], sample[1:])[0, 1]) < 4.5 / math.sqrt(len(sample))
    assert abs(np.corrcoef(sample[:10_000], sample[10_000:])[0, 1]) < 4.5 / math.sqrt(10_000)


@pytest.mark.parametrize("source", [SystemNoise(), SeededNoise(torch_stream(1, "shape"))])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 2), (7,)])
def test_noise_shapes(source, shape):
    for dtype in (torch.float32, torch.float64):
        drawn = source.normal(shape, 1.0, dtype)
        assert (drawn.shape, drawn.dtype) == (torch.Size(shape), dtype)
        assert torch.isfinite(drawn).all()
    assert torch.equal(source.normal((4,), 0.0), torch.zeros(4))
    with pytest.raises(ValueError, match="std"):
        source.normal((4,), -1.0)


def test_seeded_noise_repeats_and_system_noise_does_not():
    draw = [SeededNoise(torch_stream(2, "x")).normal((9,), 1.0) for _ in range(2)]
    assert torch.equal(*draw)
    torch.manual_seed(0)
    first = SystemNoise().normal((9,), 1.0)
    torch.manual_seed(0)
    assert not torch.equal(first, SystemNoise().normal((9,), 1.0))
    assert SeededNoise(torch.Generator()).seeded
    assert not SystemNoise().seeded


def test_system_noise_takes_a_fresh_key_for_each_draw(monkeypatch):
    # The keystream depends on nothing but the key: equal keys would repeat, so each draw has to ask for a new one.
    asked = []
    monkeypatch.setattr(os, "urandom", lambda size: asked.append(size) or bytes(size))
    assert np.array_equal(system_uniforms(8), system_uniforms(8))
    assert asked == [32, 32]


@pytest.mark.statistical
@pytest.mark.parametrize("seed", [7, None])
def test_participation_is_poisson_with_the_public_rate(seed):
    # The number drawn is binomial: mean n q and, unlike a sample of fixed size, variance n q (1 - q).
    counts = np.array([len(poisson_participants(seed, r, 500, 0.3)) for r in range(400)])
    mean, variance = 500 * 0.3, 500 * 0.3 * 0.7
    assert abs(counts.mean() - mean) < 4.5 * math.sqrt(variance / 400)
    assert abs(counts.var() - variance) < 4.5 * variance * math.sqrt(2 / 400)


@pytest.mark.statistical
@pytest.mark.parametrize("generator", [torch_stream(3, "batch"), None])
def test_batches_are_poisson_with_the_public_rate(generator):
    counts = np.array([len(poisson_batch(40, 0.25, generator)) for _ in range(800)])
    assert abs(counts.mean() - 10) < 4.5 * math.sqrt(7.5 / 800)
    assert abs(counts.var() - 7.5) < 4.5 * 7.5 * math.sqrt(2 / 800)


def test_participants_depend_on_seed_and_round_only():
    first = poisson_participants(7, 1, 1000, 0.2)
    assert np.array_equal(first, poisson_participants(7, 1, 1000, 0.2))
    assert not np.array_equal(first, poisson_participants(7, 2, 1000, 0.2))
    assert not np.array_equal(first, poisson_participants(8, 1, 1000, 0.2))
    assert first.dtype == np.int64
    assert (np.diff(first) > 0).all()


def test_full_rate_takes_all_and_nobody_is_allowed():
    assert poisson_participants(7, 1, 5, 1.0).tolist() == [0, 1, 2, 3, 4]
    assert poisson_batch(3, 1.0, None).tolist() == [0, 1, 2]
    assert poisson_participants(7, 1, 0, 0.5).shape == (0,)
    assert poisson_batch(0, 0.5, torch_stream(1)).shape == (0,)


@pytest.mark.parametrize("rate", [0.0, 1.5, math.nan])
def test_wrong_rates_raise(rate):
    with pytest.raises(ValueError, match="participation rate"):
        poisson_participants(1, 1, 10, rate)
    with pytest.raises(ValueError, match="sampling rate"):
        poisson_batch(10, rate, None)
