"""One wording for wrong values: ``expected privacy.epsilon > 0, got -1.0``."""

from __future__ import annotations

import math


def positive(name: str, value: float) -> float:
    """Return ``value`` if it is a finite number above zero, else raise ``ValueError``."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"expected {name} > 0 and finite, got {value!r}")
    return value


def non_negative(name: str, value: float) -> float:
    """Return ``value`` if it is a finite number of at least zero, else raise ``ValueError``."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"expected {name} >= 0 and finite, got {value!r}")
    return value


def at_least(name: str, value: int, least: int) -> int:
    """Return ``value`` if it is an integer of at least ``least``, else raise ``ValueError``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"expected {name} to be an integer >= {least}, got {value!r}")
    return value


def probability(name: str, value: float, *, open_right: bool = False) -> float:
    """Return ``value`` if it lies in (0, 1] (or in (0, 1) with ``open_right``), else raise ``ValueError``."""
    inside = 0 < value < 1 if open_right else 0 < value <= 1
    if not inside:
        raise ValueError(f"expected 0 < {name} {'<' if open_right else '<='} 1, got {value!r}")
    return value
