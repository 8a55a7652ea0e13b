"""Does the log say anything about the policy that is judged? Effective sample size, support, and what to warn of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .items import Floats

LEAST_SAMPLES = 100.0
"""Effective sample size below which a warning is given: about +-20 % of a mean with spread 1."""
LARGEST_SHARE = 0.1
MISSING_MASS = 0.01
DEVIATIONS = 4.0
"""Standard errors from 1 at which the mean weight is called wrong: under full support by chance once in 16,000."""


@dataclass(frozen=True, kw_only=True)
class Support:
    """How the judged policy lies in what was logged.

    Attributes:
        effective_sample_size: Kish's, of the importance weights.
        mean_weight: its expectation is 1 where the log supports the policy and its propensities are right.
        standard_error: of ``mean_weight``, over clusters.
        largest_share: part of all weight that one cluster carries.
        missing_mass: mean probability that the judged policy shows an item that the log never shows at that place.
        warnings: what is wrong, one sentence each.
    """

    effective_sample_size: float
    mean_weight: float
    standard_error: float
    largest_share: float
    missing_mass: float
    warnings: tuple[str, ...] = ()


def effective_sample_size(weights: NDArray[Any]) -> float:
    """``(sum w)^2 / sum w^2`` (Kish 1965): as many unweighted rows would be as informative; 0 without any weight."""
    weights = np.asarray(weights, dtype=np.float64)
    squares = float((weights**2).sum())
    return float(weights.sum()) ** 2 / squares if squares > 0 else 0.0


def check_support(weights: Floats, clusters: NDArray[np.int64], missing: Floats, unit: str) -> Support:
    """Look at the weights and name what makes an estimate untrustworthy.

    Args:
        weights: importance weights, ``[rows]``.
        clusters: number from 0 of the user (or the row) that each weight belongs to, ``[rows]``.
        missing: probability of the judged policy for items that the log never shows at that place, ``[rows]``.
        unit: what a row is, for the sentences.
    """
    rows = len(weights)
    sums = np.bincount(clusters, weights=weights)
    total = float(sums.sum())
    mean = total / rows
    expected = np.bincount(clusters) * mean
    error = float(np.sqrt(((sums - expected) ** 2).sum())) / rows
    found = Support(
        effective_sample_size=effective_sample_size(weights),
        mean_weight=mean,
        standard_error=error,
        largest_share=float(sums.max()) / total if total > 0 else 0.0,
        missing_mass=float(missing.mean()),
    )
    return Support(**{**vars(found), "warnings": tuple(_warnings(found, rows, unit))})


def _warnings(found: Support, rows: int, unit: str) -> list[str]:
    said = []
    if found.mean_weight == 0:
        return [f"the policy would show none of the {rows} {unit}s of the log: nothing can be estimated but DM"]
    if abs(found.mean_weight - 1) > DEVIATIONS * found.standard_error + 1e-9:
        said.append(
            f"the weights average {found.mean_weight:.3f} +- {found.standard_error:.3f} where 1 is expected: "
            "the log lacks support for the policy, or its propensities are wrong; IPS is biased"
        )
    if found.missing_mass > MISSING_MASS:
        said.append(
            f"the policy shows items that the log never shows there {found.missing_mass:.1%} of the time: about these "
            "the log says nothing"
        )
    if found.effective_sample_size < LEAST_SAMPLES:
        said.append(
            f"{rows} {unit}s weigh as much as {found.effective_sample_size:.0f}: the intervals are too narrow; log "
            "more, or judge a policy closer to the one that logged (a higher --temperature)"
        )
    if found.largest_share > LARGEST_SHARE:
        said.append(f"one user or {unit} carries {found.largest_share:.0%} of all weight: the estimates hang on it")
    return said
