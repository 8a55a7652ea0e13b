"""What an A/B test says: means of both arms, paired differences with intervals, and the sequential test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...meta.acting import Exploration
from ..behaviour.options import UserOptions
from ..intervals import Interval, bootstrap_intervals, paired_interval
from .meeting import HELD_OUT, MIXED, TRAINING, Meeting
from .sequential import SequentialTest, sequential_test
from .settings import CompareSettings

Floats = NDArray[np.float64]

TRACE_OF = {"ctr": "clicked", "reward": "reward", "regret": "regret"}
"""Metric of a user -> what its mean over interactions is taken of."""
STRETCHES = 20
"""Points of a curve over interactions at most."""
_FEWEST = 2
"""Groups of fewer users than this have no interval."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One metric: mean over users of the mean over their interactions.

    Attributes:
        first: of run A.
        second: of run B.
        difference: B minus A user by user, with a paired interval for a number of users fixed beforehand.
    """

    first: Interval
    second: Interval
    difference: Interval

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return {"a": self.first.to_dict(), "b": self.second.to_dict(), "difference": self.difference.to_dict()}


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """An A/B test of two runs over the same simulated users. A simulation's diagnostic: not private.

    Attributes:
        names: run A and run B.
        data: name of the data set.
        settings: how it was made.
        behaviour: how users behaved.
        how: how either run drew its slates.
        remarks: what is to be known about users and runs.
        metrics: ``ctr``, ``reward`` and ``regret`` a slate.
        test: of the deciding metric, user by user as they arrived.
        groups: the deciding metric among users that trained or were held out: kind -> its paired difference.
        curves: means over users of the deciding metric in each stretch of interactions: ``a``, ``b``, ``difference``.
        per_user: the deciding metric of each user as they arrived, float64 ``[users]`` for ``a`` and ``b``.
        same: whether both arms got the same from every user.
    """

    names: tuple[str, str]
    data: str
    settings: CompareSettings
    behaviour: UserOptions
    how: tuple[Exploration, Exploration]
    remarks: tuple[str, ...]
    metrics: Mapping[str, Measured]
    test: SequentialTest
    groups: Mapping[str, Interval]
    curves: Mapping[str, Sequence[Interval]]
    per_user: Mapping[str, Floats]
    same: bool

    @property
    def users(self) -> int:
        """How many users met both runs."""
        return len(self.test.p_values)

    @property
    def decided(self) -> str | None:
        """``a`` or ``b``, whichever the sequential test found better; none if it did not stop."""
        if self.test.stopped is None:
            return None
        return "b" if self.test.at(self.test.stopped)[1] > 0 else "a"


def judge(
    names: tuple[str, str],
    meeting: Meeting,
    first: Mapping[str, Floats],
    second: Mapping[str, Floats],
    *,
    settings: CompareSettings,
) -> Comparison:
    """Turn what two arms brought, ``[users, interactions]`` each in order of arrival, into an answer."""
    deciding = TRACE_OF[settings.metric]
    ours, theirs = first[deciding].mean(axis=1), second[deciding].mean(axis=1)
    return Comparison(
        names=names,
        data=meeting.served[0].world.dataset.name,
        settings=settings,
        behaviour=meeting.behaviour,
        how=meeting.how,
        remarks=meeting.remarks,
        metrics={
            name: _measured(first[trace].mean(axis=1), second[trace].mean(axis=1), settings)
            for name, trace in TRACE_OF.items()
        },
        test=sequential_test(theirs - ours, bound=greatest(settings.metric, meeting.behaviour), alpha=settings.alpha),
        groups=_groups(meeting, theirs, ours, settings),
        curves=_curves(first[deciding], second[deciding], settings),
        per_user={"a": ours, "b": theirs},
        same=all(bool((first[name] == second[name]).all()) for name in first),
    )


def greatest(metric: str, behaviour: UserOptions) -> float:
    """Most that a slate can bring, by the choice model and the rewards alone: what bounds a difference of users."""
    if metric == "ctr":
        return 1.0
    clicks = behaviour.slate if behaviour.choice == "position" else 1
    return clicks * max(behaviour.greatest_reward, 1e-12)


def _measured(ours: Floats, theirs: Floats, settings: CompareSettings) -> Measured:
    level = 1 - settings.alpha
    both = bootstrap_intervals({"a": ours, "b": theirs}, settings.seed, settings.resamples, level)
    difference = paired_interval(theirs, ours, settings.seed, settings.resamples, level)
    return Measured(first=both["a"], second=both["b"], difference=difference)


def _groups(meeting: Meeting, theirs: Floats, ours: Floats, settings: CompareSettings) -> dict[str, Interval]:
    found = {}
    for kind in (TRAINING, HELD_OUT, MIXED):
        some = meeting.kinds == kind
        if some.sum() >= _FEWEST:
            level = 1 - settings.alpha
            found[kind] = paired_interval(theirs[some], ours[some], settings.seed, settings.resamples, level)
    return found


def _curves(ours: Floats, theirs: Floats, settings: CompareSettings) -> dict[str, list[Interval]]:
    """Means over users of each stretch of interactions (:func:`stretches`), with pointwise intervals."""
    starts = [first - 1 for first, _ in stretches(ours.shape[1])]
    lengths = np.diff([*starts, ours.shape[1]])
    arms = {name: np.add.reduceat(value, starts, axis=1) / lengths for name, value in (("a", ours), ("b", theirs))}
    columns = {**arms, "difference": arms["b"] - arms["a"]}
    wanted = {f"{name} {place}": value[:, place] for name, value in columns.items() for place in range(len(starts))}
    found = bootstrap_intervals(wanted, settings.seed, settings.resamples, 1 - settings.alpha)
    return {name: [found[f"{name} {place}"] for place in range(len(starts))] for name in columns}


def stretches(interactions: int) -> list[tuple[int, int]]:
    """First and last interaction, from 1, of the parts whose means a curve shows: single ones where there are few."""
    ends = np.unique(np.linspace(0, interactions, min(interactions, STRETCHES) + 1).round().astype(int)).tolist()
    return [(first + 1, last) for first, last in pairwise(ends)]
