"""What a history of noisy releases costs: (epsilon, delta) through Opacus' accountants.

Every charge is a Poisson-subsampled Gaussian mechanism: ``steps`` releases whose noise has ``noise_multiplier`` times
the sensitivity, each over a sample that contains every unit independently with ``sample_rate``. Sampling rate 1 is the
plain Gaussian mechanism.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
import torch

from .._validate import at_least, positive, probability
from ..errors import PrivacyError
from ._prv import prv_epsilon
from ._rdp import convert

PrivacyUnit = Literal["none", "interaction", "user", "both"]
Accountant = Literal["rdp", "prv", "gdp", "gaussian"]

_ORDERS = (*(1 + 0.02 * 1.6**k for k in range(14)), *(float(round(14 * 1.3**k)) for k in range(17)))


@dataclass(frozen=True)
class Charge:
    """One debit: ``steps`` Poisson-subsampled Gaussian releases.

    Raises:
        ValueError: unless ``noise_multiplier`` > 0, 0 < ``sample_rate`` <= 1 and ``steps`` >= 1.
    """

    noise_multiplier: float
    """Standard deviation of the noise over the l2 sensitivity."""
    sample_rate: float
    """Probability with which each unit takes part in a release."""
    steps: int
    """Number of releases."""

    def __post_init__(self) -> None:
        positive("charge.noise_multiplier", self.noise_multiplier)
        probability("charge.sample_rate", self.sample_rate)
        at_least("charge.steps", self.steps, 1)
        object.__setattr__(self, "noise_multiplier", float(self.noise_multiplier))
        object.__setattr__(self, "sample_rate", float(self.sample_rate))

    def to_dict(self) -> dict[str, float | int]:
        """The charge as a JSON-able dictionary."""
        return {"noise_multiplier": self.noise_multiplier, "sample_rate": self.sample_rate, "steps": self.steps}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Charge:
        """Read what ``to_dict`` wrote; validates again, so an altered record (negative steps) is refused."""
        expected = {"noise_multiplier", "sample_rate", "steps"}
        if set(record) != expected:
            raise ValueError(f"expected a charge with the keys {sorted(expected)}, got {sorted(record)}")
        return cls(record["noise_multiplier"], record["sample_rate"], record["steps"])


History = tuple[Charge, ...]
"""A normalised history: one charge for each (noise, rate), in sorted order. Composition does not depend on order."""


def normalise(charges: Iterable[Charge | tuple[Charge, int]]) -> History:
    """Merge equal mechanisms and sort; a pair ``(charge, times)`` counts ``times`` over."""
    steps: dict[tuple[float, float], int] = {}
    for entry in charges:
        charge, times = entry if isinstance(entry, tuple) else (entry, 1)
        key = (charge.noise_multiplier, charge.sample_rate)
        steps[key] = steps.get(key, 0) + charge.steps * at_least("the number of times a charge is repeated", times, 1)
    return tuple(Charge(noise, rate, steps[noise, rate]) for noise, rate in sorted(steps))


def epsilon(
    charges: Iterable[Charge | tuple[Charge, int]], delta: float, accountant: Accountant | str = "rdp"
) -> float:
    """Epsilon of the composition of ``charges`` at ``delta``.

    Args:
        charges: charges, or pairs (charge, number of times). None at all cost 0.
        delta: in (0, 1).
        accountant: ``rdp`` (Mironov 2017, Mironov et al. 2019; an upper bound), ``prv`` (Gopi et al. 2021; a tighter
            upper bound, never looser than ``rdp``, which also stands in where the mesh would be too large; exact at
            sampling rate 1), ``gaussian`` (exact, Balle and Wang 2018; sampling rate 1 only) or ``gdp`` (a
            central-limit approximation: it may underestimate).

    Guarantee:
        Add-or-remove neighbouring relation of whatever unit the sensitivity was measured in. ``rdp``, ``prv`` and
        ``gaussian`` never report less than the true cost, up to the error that PRV adds to its own result.
    """
    probability("delta", delta, open_right=True)
    _known(accountant)
    return _epsilon(normalise(charges), float(delta), accountant)


@lru_cache(maxsize=65536)
def _epsilon(history: History, delta: float, accountant: str) -> float:
    if not history:
        return 0.0
    if accountant == "gaussian" or (accountant == "prv" and all(charge.sample_rate == 1 for charge in history)):
        return _gaussian_epsilon(history, delta)
    if accountant == "gdp":
        return _epsilon_of_mu(math.hypot(*(_gdp_mu(charge) for charge in history)), delta)
    bound = _rdp_epsilon(history, delta)
    if accountant == "prv":
        bound = min(bound, prv_epsilon(history, delta))
    return bound


def _rdp_epsilon(history: History, delta: float) -> float:
    """RDP at coarse orders, then at ever finer ones around the best: any order gives a valid bound."""
    orders = list(_ORDERS)
    bounds = []
    for _ in range(4):
        cost, best = convert(history, orders, delta)
        bounds.append(math.inf if math.isnan(cost) else cost)
        index = orders.index(best) if best in orders else 0
        orders = _finer(orders[max(index - 1, 0)], orders[min(index + 1, len(orders) - 1)])
    return max(0.0, min(bounds))


def _finer(low: float, high: float) -> list[float]:
    orders = [1 + (low - 1) * ((high - 1) / (low - 1)) ** (k / 6) for k in range(7)]
    return sorted({order if order < 12 else float(round(order)) for order in orders})


def _gaussian_epsilon(history: History, delta: float) -> float:
    if any(charge.sample_rate != 1 for charge in history):
        raise PrivacyError("the exact gaussian accountant covers sample_rate = 1 only: use accountant 'prv' or 'rdp'")
    return _epsilon_of_mu(math.hypot(*(math.sqrt(c.steps) / c.noise_multiplier for c in history)), delta)


def _gdp_mu(charge: Charge) -> float:
    if charge.sample_rate == 1:
        return math.sqrt(charge.steps) / charge.noise_multiplier
    from opacus.accountants.analysis import gdp

    with np.errstate(over="ignore"):
        mu = gdp.compute_mu_poisson(
            steps=charge.steps,
            noise_multiplier=np.float64(charge.noise_multiplier),
            sample_rate=charge.sample_rate,
        )
    return float(mu)


def _epsilon_of_mu(mu: float, delta: float) -> float:
    """Epsilon of a Gaussian mechanism whose sensitivity is ``mu`` standard deviations (Balle and Wang 2018, Thm 8)."""
    if not math.isfinite(mu):
        return math.inf
    if _gaussian_delta(0.0, mu) <= delta:
        return 0.0
    low, high = 0.0, mu * mu / 2 + mu * math.sqrt(2 * math.log(1 / delta))
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (low, middle) if _gaussian_delta(middle, mu) <= delta else (middle, high)
    return high


def _gaussian_delta(cost: float, mu: float) -> float:
    arguments = torch.tensor([mu / 2 - cost / mu, -mu / 2 - cost / mu], dtype=torch.float64)
    first, second = torch.special.log_ndtr(arguments).tolist()
    return math.exp(first) * -math.expm1(min(0.0, cost + second - first))


def find_noise_multiplier(
    epsilon: float, delta: float, sample_rate: float, steps: int, accountant: Accountant | str = "rdp"
) -> float:
    """The least noise (within 0.1 %) at which ``steps`` releases cost at most ``epsilon`` at ``delta``.

    Returns:
        A noise multiplier whose cost, by the same accountant, is at most the target.

    Raises:
        ValueError: epsilon <= 0, delta outside (0, 1), sample_rate outside (0, 1], steps < 1.
        PrivacyError: no noise multiplier below 1e6 is enough.
    """
    positive("privacy.epsilon", epsilon)
    probability("privacy.delta", delta, open_right=True)
    probability("privacy.sample_rate", sample_rate)
    at_least("privacy.steps", steps, 1)

    def cost(noise: float) -> float:
        return _epsilon((Charge(noise, sample_rate, steps),), float(delta), _known(accountant))

    low, high = _bracket(cost, epsilon, _first_guess(epsilon, float(delta), sample_rate, steps))
    while high > low * 1.001:
        for probe in _probes(low, high, cost(low), cost(high), epsilon):
            if low < probe < high and high > low * 1.001:
                low, high = (low, probe) if cost(probe) <= epsilon else (probe, high)
    return high


def _first_guess(target: float, delta: float, sample_rate: float, steps: int) -> float:
    """The noise by the central-limit formula, which costs nothing to evaluate."""
    low, high = -7.0, 14.0
    for _ in range(40):
        middle = (low + high) / 2
        history = (Charge(math.exp(middle), sample_rate, steps),)
        low, high = (low, middle) if _epsilon(history, delta, "gdp") <= target else (middle, high)
    return math.exp(high)


def _bracket(cost: Callable[[float], float], target: float, guess: float) -> tuple[float, float]:
    """Two noises around the target's: steps away from the guess that double each time."""
    factor = 1.03
    if cost(guess) > target:
        low, high = guess, guess * factor
        while cost(high) > target:
            factor *= factor
            low, high = high, high * factor
            if high > 1e6:
                raise PrivacyError(
                    f"no noise multiplier below 1e6 reaches epsilon {target!r}: allow fewer steps or a larger epsilon"
                )
        return low, high
    low, high = guess / factor, guess
    while low > 1e-3 and cost(low) <= target:
        factor *= factor
        low, high = low / factor, low
    return low, high


def _probes(low: float, high: float, low_cost: float, high_cost: float, target: float) -> list[float]:
    """Where to look next: just above and just below the secant's root in log-log, or else the middle."""
    middle = math.sqrt(low * high)
    if not (math.isfinite(low_cost) and low_cost > target >= high_cost > 0):
        return [middle]
    share = math.log(low_cost / target) / math.log(low_cost / high_cost)
    root = low * (high / low) ** share
    return [root * 1.0002, root * 0.9996, middle]


def _known(accountant: str) -> str:
    if accountant not in get_args(Accountant):
        raise ValueError(f"expected accountant to be one of {', '.join(get_args(Accountant))}, got {accountant!r}")
    return accountant
