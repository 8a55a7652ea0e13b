"""How long nobody has touched the screen."""

from __future__ import annotations

import time
from collections.abc import Callable


class Idle:
    """A person counts as gone when ``seconds`` have passed since the last touch."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin as if somebody had just been here."""
        self.seconds = seconds
        self._clock = clock
        self.touch()

    def touch(self) -> None:
        """Somebody is here."""
        self._last = self._clock()

    def left(self) -> float:
        """Seconds until the person counts as gone; 0 when that is so."""
        return max(0.0, self._last + self.seconds - self._clock())
