"""What an evaluation is asked for, what it answers, and how sure the answer is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..._validate import at_least, positive
from ..intervals import LEVEL, RESAMPLES, bootstrap_means
from .items import Terms
from .support import Support


@dataclass(frozen=True, kw_only=True)
class OpeSettings:
    """How a log is read and how sure the answer has to be.

    Attributes:
        temperature: of the judged policy's softmax, > 0; 1 is the policy as trained.
        threshold: importance weight beyond which Switch-DR leaves a row to the model; None picks it from the log.
        keep_seen: let the judged policy show again what a user has met.
        resamples: of the bootstrap.
        seed: of folds and bootstrap.
    """

    temperature: float = 1.0
    threshold: float | None = None
    keep_seen: bool = False
    resamples: int = RESAMPLES
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        positive("temperature", self.temperature)
        at_least("resamples", self.resamples, 2)
        if self.threshold is not None and not self.threshold >= 0:
            raise ValueError(f"expected a switch threshold >= 0, got {self.threshold!r}")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The value of a policy: mean reward of an impression, or of a slate.

    Attributes:
        name: of the estimator.
        value: the estimate.
        low: lower end of the 95 % percentile bootstrap interval.
        high: upper end.
        effective_sample_size: of the weights that the estimator uses; the number of rows where it uses none.
    """

    name: str
    value: float
    low: float
    high: float
    effective_sample_size: float


@dataclass(frozen=True, kw_only=True)
class OpeReport:
    """What a log says about a policy.

    Attributes:
        log: name of the file.
        unit: ``impression`` or ``slate``: what the values are a mean over.
        rows: number of them.
        clusters: what the bootstrap resamples: users where the log has them, else impressions or slates.
        rewarded: how many of them earned anything.
        states: what the judged policy knew, in words.
        estimates: the mean of the log first, then the estimators.
        support: effective sample size, mean weight and warnings.
        warnings: everything that is to be known before a number is believed.
    """

    log: str
    unit: str
    rows: int
    clusters: int
    rewarded: int
    states: str
    estimates: tuple[Estimate, ...]
    support: Support
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        values = asdict(self)
        values["support"].pop("warnings")
        return values


def with_intervals(
    terms_of: Mapping[str, tuple[Terms, float]], clusters: NDArray[np.int64], settings: OpeSettings
) -> tuple[Estimate, ...]:
    """Percentile bootstrap over clusters (Efron 1979): every estimator on the same resamples, as a ratio of two sums.

    Args:
        terms_of: estimator -> its terms, ``[rows]``, and its effective sample size.
        clusters: numbers from 0 of what is resampled as a whole, ``[rows]``.
        settings: resamples and seed.
    """
    columns = [part for terms, _ in terms_of.values() for part in (terms.numerators, terms.denominators)]
    sums = np.stack([np.bincount(clusters, weights=column).astype(np.float64) for column in columns], axis=1)
    drawn = bootstrap_means(sums, settings.seed, settings.resamples)
    tail = (1.0 - LEVEL) / 2.0
    estimates = []
    for number, (name, (terms, size)) in enumerate(terms_of.items()):
        above, below = drawn[:, 2 * number], drawn[:, 2 * number + 1]
        ratios = above[below > 0] / below[below > 0]
        low, high = np.quantile(ratios, [tail, 1.0 - tail]).tolist() if len(ratios) else (float("nan"),) * 2
        estimates.append(Estimate(name=name, value=terms.value, low=low, high=high, effective_sample_size=size))
    return tuple(estimates)
