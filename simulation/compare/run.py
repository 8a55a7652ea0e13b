"""An A/B test from end to end: two run directories, the same users, an answer. The public face."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .arms import play
from .contender import open_contender
from .judge import Comparison, judge
from .meeting import Meeting, meet
from .settings import CompareSettings


class Listener(Protocol):
    """Follows a comparison."""

    def begin(self, title: str, steps: int) -> None:
        """Something begins that takes so many steps."""

    def advance(self, steps: int) -> None:
        """Some steps are done."""


class Quiet:
    """Says nothing."""

    def begin(self, title: str, steps: int) -> None:
        """Something begins."""

    def advance(self, steps: int) -> None:
        """Some steps are done."""


def compare(
    run_a: str | Path,
    run_b: str | Path,
    *,
    settings: CompareSettings | None = None,
    listener: Listener | None = None,
) -> Comparison:
    """Let two finished runs act for the same simulated users, and test whether one is better.

    Args:
        run_a: directory of the run that is compared with, or ``arms/NAME`` in that of an online run.
        run_b: directory of the run that is judged: differences are B minus A.
        settings: whom they meet, how they act, what counts.
        listener: follows it.

    Raises:
        RunError: a directory holds no finished run or trained arm, or the runs' data differ.
        PolicyError: a policy holds or gives NaN.
    """
    settings, listener = settings or CompareSettings(), listener or Quiet()
    first, second = open_contender(run_a), open_contender(run_b)
    listener.begin("meeting: the runs' data, the users and their tastes", 1)
    meeting = meet(first, second, settings)
    brought = [_arm(label, place, meeting, settings, listener) for place, label in enumerate(("run A", "run B"))]
    listener.begin("judging: intervals and the sequential test", 1)
    names = (str(run_a), str(run_b))
    return judge(names, meeting, brought[0], brought[1], settings=settings)


def _arm(
    label: str, place: int, meeting: Meeting, settings: CompareSettings, listener: Listener
) -> Mapping[str, NDArray[np.float64]]:
    listener.begin(f"{label}: {len(meeting.rows):,} users, {settings.interactions} interactions", settings.interactions)
    return play(place, meeting, settings, listener.advance)
