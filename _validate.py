"""One wording for wrong values: ``expected privacy.epsilon > 0, got -1.0``."""

from __future__ import annotations

import math
from numbers import Real
from typing import TypeGuard

from .errors import ArgumentError


def is_number(value: object) -> TypeGuard[float]:
    """Whether ``value`` is a real number, numpy's included; ``True`` is none, nor is a text of digits."""
    return isinstance(value, Real) and not isinstance(value, bool)


def positive(name: str, value: float) -> float:
    """Return ``value`` if it is a finite number above zero, else raise ``ArgumentError``."""
    if not (is_number(value) and math.isfinite(value) and value > 0):
        raise ArgumentError(f"expected {name} > 0 and finite, got {value!r}")
    return value


def non_negative(name: str, value: float) -> float:
    """Return ``value`` if it is a finite number of at least zero, else raise ``ArgumentError``."""
    if not (is_number(value) and math.isfinite(value) and value >= 0):
        raise ArgumentError(f"expected {name} >= 0 and finite, got {value!r}")
    return value


def at_least(name: str, value: int, least: int) -> int:
    """Return ``value`` if it is an integer of at least ``least``, else raise ``ArgumentError``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ArgumentError(f"expected {name} to be an integer >= {least}, got {value!r}")
    return value


def probability(name: str, value: float, *, open_right: bool = False) -> float:
    """Return ``value`` if it lies in (0, 1] (or in (0, 1) with ``open_right``), else raise ``ArgumentError``."""
    inside = is_number(value) and (0 < value < 1 if open_right else 0 < value <= 1)
    if not inside:
        raise ArgumentError(f"expected 0 < {name} {'<' if open_right else '<='} 1, got {value!r}")
    return value


def true_or_false(name: str, value: object) -> bool:
    """Return ``value`` if it is True or False, else raise ``ArgumentError``: a text such as "no" would count as yes."""
    if not isinstance(value, bool):
        raise ArgumentError(f"expected {name} as True or False, got {value!r}")
    return value
