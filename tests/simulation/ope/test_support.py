"""Effective sample size, support, and each warning."""

from __future__ import annotations

import re

import numpy as np
import pytest
from fedrec.simulation.ope.support import check_support, effective_sample_size


def test_effective_sample_size_is_the_number_of_equal_weights():
    assert effective_sample_size(np.full(40, 0.3)) == pytest.approx(40)
    assert effective_sample_size(np.array([5.0, 0.0, 0.0])) == pytest.approx(1)
    assert effective_sample_size(np.array([3.0, 1.0])) == pytest.approx(16 / 10)
    assert effective_sample_size(np.zeros(3)) == 0.0


def support(weights, missing=0.0, clusters=None):
    weights = np.asarray(weights, dtype=np.float64)
    clusters = np.arange(len(weights)) if clusters is None else clusters
    return check_support(weights, clusters, np.full(len(weights), missing), "impression")


def test_weights_as_they_should_be_give_no_warning():
    weights = np.random.default_rng(0).gamma(4.0, 0.25, 5000)  # mean 1
    assert support(weights).warnings == ()
    assert support(np.ones(200)).warnings == ()


def test_the_standard_error_is_that_of_the_mean_over_clusters():
    weights = np.random.default_rng(1).gamma(2.0, 0.5, 1000)
    assert support(weights).standard_error == pytest.approx(weights.std() / np.sqrt(1000))
    doubled = support(np.repeat(weights, 2), clusters=np.repeat(np.arange(1000), 2))
    assert doubled.standard_error == pytest.approx(weights.std() / np.sqrt(1000))


@pytest.mark.parametrize(
    ("weights", "missing", "sentence"),
    [
        (np.random.default_rng(0).gamma(4.0, 0.2, 5000), 0.0, "the weights average 0.8.* where 1 is expected"),
        (np.ones(500), 0.25, "the policy shows items that the log never shows there 25.0% of the time"),
        (np.ones(50), 0.0, "50 impressions weigh as much as 50: the intervals are too narrow"),
        (np.r_[np.full(900, 0.5), 450.0], 0.0, "one user or impression carries 50% of all weight"),
        (np.zeros(30), 0.0, "the policy would show none of the 30 impressions"),
    ],
)
def test_what_is_wrong_is_warned_of(weights, missing, sentence):
    assert any(re.search(sentence, one) for one in support(weights, missing).warnings)
