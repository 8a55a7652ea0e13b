"""One wording for wrong values: ``expected privacy.epsilon > 0, got -1.0``."""

from __future__ import annotations

import math
from numbers import Real
from typing import TypeGuard

from .errors import ArgumentError

QUOTED = 60
"""Characters of a wrong value that its message shows."""


def shortened(text: str) -> str:
    """One line with the beginning of ``text``: what is wrong with a value shows in its first characters."""
    line = text.replace("\n", " ")
    return line if len(line) <= QUOTED else f"{line[: QUOTED - 3]}..."


def quoted(value: object) -> str:
    """``repr(value)`` for a message: short, on one line, whatever the value's own ``repr`` does."""
    try:
        return shortened(repr(value))
    except Exception:  # an integer of 5,000 digits has none
        return f"something of type {type(value).__name__}"


def is_number(value: object) -> TypeGuard[float]:
    """Whether ``value`` is a real number, numpy's included; ``True`` is none, nor is a text of digits."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_finite(value: object) -> TypeGuard[float]:
    """Whether ``value`` is a number that a float can hold; an integer of 400 digits is none."""
    try:
        return is_number(value) and math.isfinite(value)
    except OverflowError:
        return False


def positive(name: str, value: float) -> float:
    """Return ``value`` if it is a finite number above zero, else raise ``ArgumentError``."""
    if not (is_finite(value) and value > 0):
        raise ArgumentError(f"expected {name} > 0 and finite, got {quoted(value)}")
    return value


def non_negative(name: str, value: float) -> float:
    """Return ``value`` if it is a finite number of at least zero, else raise ``ArgumentError``."""
    if not (is_finite(value) and value >= 0):
        raise ArgumentError(f"expected {name} >= 0 and finite, got {quoted(value)}")
    return value


def at_least(name: str, value: int, least: int) -> int:
    """Return ``value`` if it is an integer of at least ``least``, else raise ``ArgumentError``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ArgumentError(f"expected {name} to be an integer >= {least}, got {quoted(value)}")
    return value


def probability(name: str, value: float, *, open_right: bool = False) -> float:
    """Return ``value`` if it lies in (0, 1] (or in (0, 1) with ``open_right``), else raise ``ArgumentError``."""
    inside = is_number(value) and (0 < value < 1 if open_right else 0 < value <= 1)
    if not inside:
        raise ArgumentError(f"expected 0 < {name} {'<' if open_right else '<='} 1, got {quoted(value)}")
    return value


def true_or_false(name: str, value: object) -> bool:
    """Return ``value`` if it is True or False, else raise ``ArgumentError``: a text such as "no" would count as yes."""
    if not isinstance(value, bool):
        raise ArgumentError(f"expected {name} as True or False, got {quoted(value)}")
    return value
