"""When a device may adapt: what the app requires, what it last reported, and the hours.

The app feeds reports (``device.conditions(charging=True, ...)``); they are kept in the store, so that they reach the
process that takes part in the federation, too. What was never reported, or too long ago, counts as not met.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from .._validate import positive, quoted, true_or_false
from ..errors import ArgumentError, StoreError

NAMES = ("charging", "unmetered", "idle")
_LOCAL = ("charging", "idle")
"""What matters to an adaptation of which nothing is sent."""


@dataclass(frozen=True, kw_only=True)
class Requirements:
    """What must hold while the device adapts.

    Attributes:
        charging: on external power.
        unmetered: on a network that costs nothing; asked for only where something is to be sent.
        idle: nobody uses the device.
        hours: from and to, whole hours of local time in [0, 24]; ``(22, 6)`` goes past midnight. None: always.
        fresh: seconds for which a report holds.
    """

    charging: bool = False
    unmetered: bool = False
    idle: bool = False
    hours: tuple[int, int] | None = None
    fresh: float = 900.0

    def __post_init__(self) -> None:
        """Check the conditions, the hours and the age of reports."""
        for name in NAMES:
            true_or_false(name, getattr(self, name))
        positive("fresh", self.fresh)
        if not (self.hours is None or _hours(self.hours)):
            raise ArgumentError(
                f"expected hours as two whole numbers in [0, 24], got {quoted(self.hours)}; such as (22, 6)"
            )

    def missing(self, report: Mapping[str, Any], now: float, *, sends: bool) -> tuple[str, ...]:
        """Names of the requirements that are not met, in a fixed order.

        Args:
            report: the last one, its time under ``at``; empty where there is none.
            now: seconds since 1970.
            sends: whether anything is to leave the device.
        """
        known = 0 <= now - float(report.get("at", -self.fresh)) <= self.fresh
        asked = [name for name in NAMES if getattr(self, name) and (sends or name in _LOCAL)]
        lacking = [name for name in asked if not (known and report.get(name))]
        return (*lacking, *(() if self._within(now) else ("hours",)))

    def _within(self, now: float) -> bool:
        if self.hours is None:
            return True
        start, end = self.hours
        hour = datetime.fromtimestamp(now).hour
        return start <= hour < end if start <= end else hour >= start or hour < end

    def to_json(self) -> str:
        """As text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Requirements:
        """What :meth:`to_json` wrote, read; none at all gives the defaults, which require nothing.

        Raises:
            StoreError: they are something else by now.
        """
        hours = values.get("hours")
        try:
            return cls(**{**values, "hours": tuple(hours) if isinstance(hours, list) else hours})
        except (TypeError, ArgumentError) as error:
            raise StoreError(f"the conditions in the device's store are damaged ({error}); set them again") from None


def _hours(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(type(hour) is int and 0 <= hour <= 24 for hour in value)
