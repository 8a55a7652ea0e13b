"""What an app hands to a device, checked before anything happens: each wrong value gets one sentence.

A value of another type must not pass as one that is meant: the letters of a text are no items, and "no" is not True.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from .._validate import is_finite, is_number, quoted
from ..errors import ArgumentError

LATEST = 2.0**62
"""Seconds, and rows, that SQLite's integers hold."""
LONGEST = 1000
"""Characters of an id that no catalogue vouches for, and of a slate's name."""
_FAR = 6e10
"""Seconds from 1970 to the years 68 and 3871: calendars know them, and a clock of milliseconds is beyond."""


def item_ids(name: str, items: object) -> list[str]:
    """Several ids.

    Raises:
        ArgumentError: one id (each of its characters would count as an item), or anything else than several texts.
    """
    if isinstance(items, str):
        raise ArgumentError(f"expected {name} as a list of item ids, got {quoted(items)}; write [{quoted(items)}]")
    if not isinstance(items, Iterable):
        raise ArgumentError(f"expected {name} as a list of item ids, got {quoted(items)}")
    found = list(items)
    with contextlib.suppress(TypeError):  # not all are texts: the loop says which
        if "".join(found).isascii():  # ten thousand ids at once
            return found
    return [item_id(name, item) for item in found]


def item_id(name: str, item: object) -> str:
    """One id: the catalogue's own, always text.

    Raises:
        ArgumentError: it is something else.
    """
    if not isinstance(item, str):
        raise ArgumentError(f"expected {name} by the catalogue's own ids, which are text, got {quoted(item)}")
    return text(name, item)


def text(name: str, value: object) -> str:
    """Text that a file can hold.

    Raises:
        ArgumentError: no text, or halves of characters, which UTF-8 does not know.
    """
    if not isinstance(value, str) or not _encodable(value):
        raise ArgumentError(f"expected {name} as text that UTF-8 can hold, got {quoted(value)}")
    return value


def ratings(rating: object, low: float, high: float) -> dict[str, float]:
    """Rewards by item id.

    Raises:
        ArgumentError: not by item, no numbers, or not from ``low`` to ``high``.
    """
    if not isinstance(rating, Mapping):
        raise ArgumentError(f"expected rating as a mapping of item ids to numbers, got {quoted(rating)}")
    for item, value in rating.items():
        item_id("rating", item)
        if not (is_number(value) and low <= value <= high):  # NaN too
            raise ArgumentError(f"expected a rating from {low:g} to {high:g}, got {quoted(value)} for {quoted(item)}")
    return {item: float(value) for item, value in rating.items()}


def features(values: object, names: Collection[str]) -> dict[str, float]:
    """A device's features by name.

    Raises:
        ArgumentError: not by name, a name that the policy does not know, or no finite number.
    """
    known = ", ".join(names) or "none"
    if not isinstance(values, Mapping):
        raise ArgumentError(f"expected features of this policy ({known}) by name, got {quoted(values)}")
    found: dict[str, float] = {}
    for name, value in values.items():
        if name not in names:
            raise ArgumentError(f"expected features of this policy ({known}), got {quoted(name)}")
        if not is_finite(value):
            raise ArgumentError(f"expected a finite number as feature {quoted(name)}, got {quoted(value)}")
        found[name] = float(value)
    return found


def seconds(before: object) -> int:
    """Whole seconds since 1970, rounded up.

    Raises:
        ArgumentError: no time that SQLite can hold.
    """
    value: Any = before
    if isinstance(before, datetime):
        with contextlib.suppress(ValueError, OverflowError):  # years at the ends of the calendar
            value = before.timestamp()
    if not (is_number(value) and -LATEST < value < LATEST):  # NaN too
        raise ArgumentError(f"expected before as a time, aware or local, or seconds since 1970, got {quoted(before)}")
    return math.ceil(value)


def path(value: object) -> Path:
    """Where a store lies.

    Raises:
        ArgumentError: no text or path, what no file system can name, or SQLite's name for memory.
    """
    try:
        name = os.fspath(value)  # type: ignore[call-overload]
        os.fsencode(name)
    except (TypeError, UnicodeEncodeError):
        name = None
    if not isinstance(name, str) or "\0" in name:
        raise ArgumentError(f"expected the path of a device store as text or a Path, got {quoted(value)}")
    if name == ":memory:":
        raise ArgumentError("expected the path of a file, got ':memory:'; a device remembers on the disk only")
    return Path(name)


def clock(read: object) -> Callable[[], float]:
    """The app's clock; what it tells is checked every time.

    Raises:
        ArgumentError: nothing that can be called; later, when it is read: no seconds since 1970.
    """
    if not callable(read):
        raise ArgumentError(f"expected clock as a function that gives seconds since 1970, got {quoted(read)}")

    def checked() -> float:
        now = read()
        if not (is_number(now) and -_FAR < now < _FAR):  # NaN too
            raise ArgumentError(f"expected a clock that gives seconds since 1970, got {quoted(now)}; set it right")
        return now

    return checked


def short(name: str, value: str) -> str:
    """Text that may be kept although no catalogue has it.

    Raises:
        ArgumentError: it is longer than :data:`LONGEST`.
    """
    if len(value) > LONGEST:
        raise ArgumentError(f"expected {name} of at most {LONGEST} characters, got {len(value)}: {quoted(value)}")
    return value


def _encodable(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
