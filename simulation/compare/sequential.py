"""Always-valid inference for a mean of bounded differences: look after every user, stop whenever it is decided.

A gambler who believes that the mean is above ``m`` stakes a share of the wealth on every difference before it is seen.
If the mean *is* ``m`` the game is fair, and wealth that starts at 1 ever reaches ``c`` with probability ``1 / c`` at
most (Ville 1939), however often and for whatever reason somebody looks. The means that no gambler became rich against
form a **confidence sequence**: it covers the mean at all times at once with probability ``1 - alpha``.

This is the hedged capital of Waudby-Smith and Ramdas (2023, JRSS-B 86:1, section 4.2) with the predictable plug-in
bets of their section 3.2. It holds at any number of users, without a normal approximation. What it assumes: the
differences are independent draws of one distribution (or at least have one mean, whatever came before), and lie in
``[-bound, bound]``, a bound known before any is seen.

Formulas are in ``y = difference / bound``, which lies in ``[-1, 1]``, and for either side alike: the gambler who bets
on a smaller mean is the one who bets on a greater mean of ``-y``, to the bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..._validate import positive, probability

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LARGEST_STAKE = 0.75
"""Share of the wealth that the worst possible difference can take: the paper's ``c``, which names 1/2 and 3/4."""
LOOKS = 400
"""Looks at which the interval is worked out, spread over the users; the test itself looks after every one."""
_HALVINGS = 40


@dataclass(frozen=True, kw_only=True, eq=False)
class SequentialTest:
    """What was known after each user, and when the test of "the mean is 0" would have stopped.

    Attributes:
        alpha: probability that the sequence ever misses the mean, and that the test ever stops where it is 0.
        bound: what the differences were known to lie within.
        p_values: after every user the smallest level at which the test would have stopped by then, ``[users]``.
        looks: numbers of users at which the interval is told, ascending, the last and the stop among them.
        means: of the differences up to each look.
        low: lower end of the confidence sequence at each look; it never falls.
        high: its upper end; it never rises.
        stopped: number of users after which the test stops; none if it does not.
    """

    alpha: float
    bound: float
    p_values: Floats
    looks: Ints
    means: Floats
    low: Floats
    high: Floats
    stopped: int | None

    @property
    def interval(self) -> tuple[float, float]:
        """The confidence sequence after everybody."""
        return float(self.low[-1]), float(self.high[-1])

    def at(self, users: int) -> tuple[float, float, float]:
        """Mean, lower and upper end at the last look at ``users`` users or fewer."""
        look = int(np.searchsorted(self.looks, users, side="right")) - 1
        return float(self.means[look]), float(self.low[look]), float(self.high[look])


def sequential_test(
    differences: Floats, *, bound: float = 1.0, alpha: float = 0.05, looks: int = LOOKS
) -> SequentialTest:
    """Test whether the mean of paired differences is 0, user by user in the order given.

    Args:
        differences: one for each user, float64 ``[users]``, in an order that has nothing to do with their values.
        bound: greatest absolute value that a difference can have, by its meaning and not by these data.
        alpha: level, in (0, 1).
        looks: how many intervals are worked out at most; the test looks after every user in any case.

    Raises:
        ValueError: no differences, one that is NaN or beyond the bound, or a level or bound out of range.
    """
    positive("bound", bound)
    probability("alpha", alpha, open_right=True)
    scaled = _scaled(differences, bound)
    p_values = p_process(scaled, alpha)
    crossed = np.flatnonzero(p_values <= alpha)
    stopped = int(crossed[0]) + 1 if len(crossed) else None
    places = _looks(len(scaled), looks, stopped)
    return SequentialTest(
        alpha=alpha,
        bound=bound,
        p_values=p_values,
        looks=places,
        means=np.cumsum(scaled)[places - 1] / places * bound,
        low=_lower_ends(scaled, alpha, places) * bound,
        high=-_lower_ends(-scaled, alpha, places) * bound,
        stopped=stopped,
    )


def p_process(scaled: Floats, alpha: float) -> Floats:
    """Always-valid p-values of "the mean is 0", float64 ``[..., users]``; they never rise.

    ``p_t = min(1, 1 / max over s <= t of max(up_s, down_s) / 2)`` with the wealths of the two gamblers, each of whom
    has half of the stake. ``P(p_t <= a for any t) <= a`` for every ``a``; ``alpha`` only tunes the bets.

    Args:
        scaled: differences in ``[-1, 1]``, float64 ``[..., users]``; the last axis is the order.
        alpha: level at which the bets are meant to be good.
    """
    stakes = bets(scaled, alpha)
    up, down = log_wealth(scaled, stakes, 0.0), log_wealth(-scaled, stakes, 0.0)
    best = np.maximum.accumulate(np.maximum(up, down), axis=-1) - math.log(2.0)
    return np.asarray(np.exp(-np.maximum(best, 0.0)))


def bets(scaled: Floats, alpha: float) -> Floats:
    """Predictable plug-in bets, float64 ``[..., users]``: that on a difference depends on those before it only.

    ``b_t = sqrt(2 log(2 / alpha) / (v_{t-1} t log(1 + t)))`` with ``v_t = (1 + sum (y_i - m_i)^2) / (t + 1)`` and
    ``m_t = sum y_i / (t + 1)`` (equation 26 of the paper, in ``y``).
    """
    number = np.arange(1, scaled.shape[-1] + 1)
    mean = np.cumsum(scaled, axis=-1) / (number + 1)
    variance = (1.0 + np.cumsum((scaled - mean) ** 2, axis=-1)) / (number + 1)
    before = np.concatenate([np.ones_like(variance[..., :1]), variance[..., :-1]], axis=-1)
    return np.asarray(np.sqrt(2.0 * math.log(2.0 / alpha) / (before * number * np.log1p(number))))


def log_wealth(scaled: Floats, stakes: Floats, mean: float) -> Floats:
    """Log wealth after each difference of who bets on a mean above ``mean``, float64 ``[..., users]``.

    ``sum log(1 + min(b_i, c / (1 + mean)) (y_i - mean))``. It falls in ``mean``, so what it refutes is an interval.
    """
    return np.asarray(np.cumsum(_log_gains(scaled, stakes, mean), axis=-1))


def _log_gains(scaled: Floats, stakes: Floats, mean: float) -> Floats:
    most = LARGEST_STAKE / (1.0 + mean) if mean > -1.0 else math.inf  # no difference is below -1: nothing is at stake
    return np.asarray(np.log1p(np.minimum(stakes, most) * (scaled - mean)))


def _lower_ends(scaled: Floats, alpha: float, looks: Ints) -> Floats:
    """Greatest mean that is refuted from below by each look, ``[looks]``; -1 where none is."""
    stakes, enough, low = bets(scaled, alpha), math.log(2.0 / alpha), -1.0
    ends = np.empty(len(looks))
    for place, look in enumerate(looks):
        low = _lower_end(scaled[:look], stakes[:look], enough, low)
        ends[place] = low
    return ends


def _lower_end(scaled: Floats, stakes: Floats, enough: float, low: float) -> float:
    """The same by bisection, from ``low``, which an earlier look refuted; errs to the side of a wider interval."""

    def refuted(mean: float) -> bool:
        return float(_log_gains(scaled, stakes, mean).sum()) >= enough

    high = 1.0
    for _ in range(_HALVINGS if refuted(low) else 0):
        middle = (low + high) / 2
        if refuted(middle):
            low = middle
        else:
            high = middle
    return low


def _scaled(differences: Floats, bound: float) -> Floats:
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"expected one difference or more in a row, got shape {values.shape}")
    wrong = ~(np.abs(values) <= bound)
    if wrong.any():
        raise ValueError(
            f"expected differences in [-{bound:g}, {bound:g}], got {float(values[wrong][0]):g}; name a bound that holds"
        )
    return values / bound


def _looks(users: int, looks: int, stopped: int | None) -> Ints:
    spread = np.linspace(1, users, min(looks, users)).round().astype(np.int64)
    return np.unique(np.concatenate([spread, [users], [] if stopped is None else [stopped]])).astype(np.int64)
