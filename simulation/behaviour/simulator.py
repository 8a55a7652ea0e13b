"""Many users at once, without an interface: show slates to some of them, get clicks, the truth and the regret."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from .choice import best_order, expected_reward, sample_clicks, sample_stages
from .draws import uniforms
from .dynamics import UserState, advance, first_state
from .options import UserOptions
from .population import Population
from .utility import Utilities

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_SPARE = 4
"""Candidates beyond those needed, so that single precision can't push a best item out."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Feedback:
    """What came of one slate for each user.

    Attributes:
        clicks: which slots were clicked, bool ``[users, slots]``.
        stages: how far each slot got, -1 without a click, int64 ``[users, slots]``.
        rewards: what each slot brought, float64 ``[users, slots]``.
        expected: the slate's mean reward, float64 ``[users]``.
        best: mean reward of the best slate at that moment, float64 ``[users]``; NaN where regret is not tracked.
    """

    clicks: NDArray[np.bool_]
    stages: Ints
    rewards: Floats
    expected: Floats
    best: Floats

    @property
    def regret(self) -> Floats:
        """What the slate's mean reward lacks to that of the best one, ``[users]``; 0 but for rounding at the best."""
        return self.best - self.expected


class UserSimulator:
    """Simulated users with the truth about them.

    ``rows`` always means positions among the simulator's users, each once; without it all of them. A number depends on
    the seed, the user and how often that user was asked, not on who else is simulated. Regret is that of the moment:
    the best slate is best for the next step, not for the steps that follow on it. A user may be simulated more than
    once: the first copy has the user's own streams, the others have streams of theirs.
    """

    def __init__(self, population: Population, options: UserOptions | None = None, users: Ints | None = None) -> None:
        """Start everybody's first episode.

        Args:
            population: the truth.
            options: how users behave.
            users: rows of ``population`` that are simulated; by default all, once each.
        """
        self.population = population
        self.options = options if options is not None else UserOptions()
        self.users = np.arange(population.users) if users is None else np.asarray(users, dtype=np.int64)
        self._check()
        self._streams = self.users + population.users * _copy_numbers(self.users)
        self._truth = Utilities(population, self.options)
        self._moves = self.options.utilities_move or population.published is not None
        self.restart(self.options.seed)

    def _check(self) -> None:
        options, population = self.options, self.population
        if len(self.users) == 0 or self.users.min() < 0 or self.users.max() >= population.users:
            found = f"{self.users.min()} to {self.users.max()}" if len(self.users) else "none"
            raise DataError(f"expected users in [0, {population.users}), got {found}; ask for rows that exist")
        if options.slate > population.items or options.promoted >= population.items:
            wanted = f"slate <= {population.items} and promoted < {population.items}"
            raise DataError(f"expected {wanted}, got {options.slate} and {options.promoted}; enlarge the catalogue")

    def restart(self, seed: int) -> None:
        """Begin the streams of ``seed`` and everybody's first episode."""
        self.seed = seed
        start = np.zeros(len(self.users), dtype=np.int64)
        self.state = first_state(self.population, self.options, self.users, self._streams, start)
        drawn = uniforms(seed, "outlier", self.users, start, 1)[:, 0]
        self.outlier = drawn < self.options.outliers
        random = self.options.outlier_kind == "random"
        self.promotes = self.outlier & (not random)
        self.noise = np.where(self.outlier, 1.0 if random else 0.0, self.options.noise)
        self._forget()

    def resume(self, state: UserState) -> None:
        """Go on from where users were: a ``state`` that a simulator of the same seed and users had."""
        self.state = state
        self._forget()

    def new_episode(self, rows: Ints | None = None) -> None:
        """Put users back to the start of an episode; their streams go on."""
        rows = np.arange(len(self.users)) if rows is None else rows
        self.state.put(rows, self._start(rows))
        self._stale[rows] = self._unknown[rows] = True

    def _start(self, rows: Ints) -> UserState:
        users, streams, tick = self.users[rows], self._streams[rows], self.state.tick[rows]
        return first_state(self.population, self.options, users, streams, tick)

    def _forget(self) -> None:
        count, reach = len(self.users), self._reach(self.options.slate)
        self._candidates = np.zeros((count, reach), dtype=np.int64)
        self._stale = np.ones(count, dtype=bool)
        self._slates = np.zeros((count, self.options.slate), dtype=np.int64)
        self._values = np.zeros(count)
        self._unknown = np.ones(count, dtype=bool)

    def _reach(self, slots: int) -> int:
        tired = self.options.memory if self.options.repeats_matter else 0
        return min(self.population.items, slots + tired + _SPARE)

    def utilities(self, slates: Ints, rows: Ints | None = None) -> Floats:
        """Present utility of every slot, ``-inf`` where it is empty, float64 ``[users, slots]``."""
        rows = self._rows(rows)
        return self._truth.of_slates(self.state.take(rows), self.promotes[rows], self._checked(slates, rows))

    def expected_reward(self, slates: Ints, rows: Ints | None = None) -> Floats:
        """Mean reward that the slates would bring now, exact, float64 ``[users]``."""
        rows = self._rows(rows)
        return expected_reward(self.options, self.utilities(slates, rows), self.noise[rows])

    def oracle(self, slots: int | None = None, rows: Ints | None = None) -> tuple[Ints, Floats]:
        """The best slates of at most ``slots`` items now, and their mean reward.

        A slate that is best with fewer items repeats its first one, which leaves the slot empty.
        """
        rows = self._rows(rows)
        if slots is None or slots == self.options.slate:
            self._refresh(rows)
            return self._slates[rows].copy(), self._values[rows].copy()
        state, promotes = self.state.take(rows), self.promotes[rows]
        candidates = self._truth.candidates(state, promotes, self._reach(slots))
        return self._best(state, promotes, self.noise[rows], candidates, slots)

    def respond(self, slates: Ints, rows: Ints | None = None) -> Feedback:
        """Show a slate to each user: draw clicks and stages, tell truth and regret, and move on by one step."""
        everybody = rows is None
        rows = self._rows(rows)
        slates = self._checked(slates, rows)
        state = self.state if everybody else self.state.take(rows)
        utilities = self._truth.of_slates(state, self.promotes[rows], slates)
        best = self.oracle(rows=rows)[1] if self.options.track_regret else np.full(len(rows), np.nan)
        feedback = self._draw(state, self.noise[rows], utilities, best)
        after = advance(self.population, self.options, self.seed, state, slates, feedback.rewards, feedback.clicks)
        if everybody:
            self.state = after
        else:
            self.state.put(rows, after)
        jumped = self.options.shift_at is not None and bool((after.time == self.options.shift_at).any())
        self._stale[rows] |= self._moves or jumped
        self._unknown[rows] |= self._moves or jumped or self.options.repeats_matter
        return feedback

    def _draw(self, state: UserState, noise: Floats, utilities: Floats, best: Floats) -> Feedback:
        options, slots = self.options, utilities.shape[1]
        drawn = uniforms(self.seed, "choice", state.streams, state.tick, 2 * slots + 2)
        clicks = sample_clicks(options, utilities, noise, drawn[:, : slots + 2])
        by_accident = (drawn[:, 0] < noise)[:, None]
        further = np.where(by_accident, 1.0, drawn[:, slots + 2 :])
        stages = sample_stages(options, utilities, clicks, further)
        worth = np.array([stage.reward for stage in options.stages])
        return Feedback(
            clicks=clicks,
            stages=stages,
            rewards=np.where(clicks, worth[stages], 0.0),
            expected=expected_reward(options, utilities, noise),
            best=best,
        )

    def _refresh(self, rows: Ints) -> None:
        """Find the best slates anew where they may have changed."""
        stale = rows[self._stale[rows]]
        if len(stale):
            reach = self._candidates.shape[1]
            self._candidates[stale] = self._truth.candidates(self.state.take(stale), self.promotes[stale], reach)
            self._stale[stale] = False
        unknown = rows[self._unknown[rows]]
        if len(unknown):
            state, promotes = self.state.take(unknown), self.promotes[unknown]
            slots, candidates = self.options.slate, self._candidates[unknown]
            slates, values = self._best(state, promotes, self.noise[unknown], candidates, slots)
            self._slates[unknown], self._values[unknown], self._unknown[unknown] = slates, values, False

    def _best(
        self, state: UserState, promotes: NDArray[np.bool_], noise: Floats, candidates: Ints, slots: int
    ) -> tuple[Ints, Floats]:
        if self.options.familiarity and self.options.memory:
            known = np.where(state.clicked >= 0, state.clicked, candidates[:, :1])
            candidates = np.concatenate([candidates, known], axis=1)
        utilities = self._truth.of_slates(state, promotes, candidates)
        order = np.argsort(-utilities, axis=1, kind="stable")[:, :slots]
        values, lengths = best_order(self.options, np.take_along_axis(utilities, order, axis=1), noise, slots)
        slates = np.take_along_axis(candidates, order, axis=1)
        return np.where(np.arange(slates.shape[1]) < lengths[:, None], slates, slates[:, :1]), values

    def _rows(self, rows: Ints | None) -> Ints:
        return np.arange(len(self.users)) if rows is None else np.asarray(rows, dtype=np.int64)

    def _checked(self, slates: Ints, rows: Ints) -> Ints:
        slates = np.asarray(slates)
        if slates.ndim != 2 or len(slates) != len(rows) or not np.issubdtype(slates.dtype, np.integer):
            found = f"{slates.dtype} of shape {slates.shape}"
            raise DataError(f"expected slates as integers of shape ({len(rows)}, slots), got {found}; one row a user")
        if slates.size and (slates.min() < 0 or slates.max() >= self.population.items):
            wrong = int(slates.min()) if slates.min() < 0 else int(slates.max())
            raise DataError(f"expected items in [0, {self.population.items}), got {wrong}; show catalogue rows")
        return slates.astype(np.int64, copy=False)


def _copy_numbers(users: Ints) -> Ints:
    """How many earlier entries are equal to each entry, int64 ``[users]``."""
    order = np.argsort(users, kind="stable")
    ordered = users[order]
    found = np.empty_like(users)
    found[order] = np.arange(len(users)) - np.searchsorted(ordered, ordered)
    return found
