"""What changes in users: drifting and jumping tastes, items that tire or become familiar, satiation, freshness."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from .draws import normals, uniforms
from .options import UserOptions
from .population import Population

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class UserState:
    """Where users are in their episodes; one row each.

    Attributes:
        users: row in the population, int64 ``[users]``.
        streams: number of the random streams; that of the user, but for further copies of one, int64 ``[users]``.
        time: steps of the episode so far, int64 ``[users]``.
        tick: steps since the streams began, int64 ``[users]``; goes on from episode to episode.
        taste: float64 ``[users, latent]``.
        sated: directions of what was clicked lately, float64 ``[users, latent]``.
        clicked: items of the latest clicks, the latest last, -1 pads on the left, int64 ``[users, memory]``.
        since: steps since each of those clicks, int64 ``[users, memory]``.
        items: items of the latest slates, -1 pads on the left, int64 ``[users, history]``.
        rewards: what each of them brought, float32 ``[users, history]``.
    """

    users: Ints
    streams: Ints
    time: Ints
    tick: Ints
    taste: Floats
    sated: Floats
    clicked: Ints
    since: Ints
    items: Ints
    rewards: NDArray[np.float32]

    def take(self, rows: Ints) -> UserState:
        """The state of some users (a copy)."""
        return UserState(**{one.name: getattr(self, one.name)[rows] for one in fields(self)})

    def put(self, rows: Ints, part: UserState) -> None:
        """Write the state of some users back."""
        for one in fields(self):
            getattr(self, one.name)[rows] = getattr(part, one.name)


def first_state(population: Population, options: UserOptions, users: Ints, streams: Ints, tick: Ints) -> UserState:
    """The state at the start of an episode."""
    count = len(users)
    return UserState(
        users=users.copy(),
        streams=streams.copy(),
        time=np.zeros(count, dtype=np.int64),
        tick=tick.copy(),
        taste=population.tastes[users].copy(),
        sated=np.zeros((count, population.tastes.shape[1])),
        clicked=np.full((count, options.memory), -1, dtype=np.int64),
        since=np.zeros((count, options.memory), dtype=np.int64),
        items=np.full((count, options.history), -1, dtype=np.int64),
        rewards=np.zeros((count, options.history), dtype=np.float32),
    )


def effective_taste(options: UserOptions, state: UserState) -> Floats:
    """Taste less satiation, float64 ``[users, latent]``."""
    return state.taste - options.satiation * state.sated if options.satiation else state.taste


def repeat_effects(options: UserOptions, state: UserState) -> Floats:
    """What each remembered click adds to the utility of its item, float64 ``[users, memory]``.

    ``familiarity * forgetting ** age - fatigue * recovery ** age`` at age ``since``. Of several clicks on an item each
    one tires, but only the latest one counts as familiar.
    """
    age = state.since.astype(np.float64)
    effect = -options.fatigue * options.recovery**age
    if options.familiarity:
        effect += np.where(_latest(state.clicked), options.familiarity * options.forgetting**age, 0.0)
    return np.where(state.clicked >= 0, effect, 0.0)


def _latest(clicked: Ints) -> NDArray[np.bool_]:
    """Which remembered clicks are the last on their item."""
    latest = np.ones(clicked.shape, dtype=bool)
    for place in range(clicked.shape[1] - 1):
        latest[:, place] = (clicked[:, place + 1 :] != clicked[:, place, None]).all(axis=1)
    return latest


def freshness_effects(population: Population, options: UserOptions, items: Ints, time: Ints) -> Floats:
    """What age adds to the utility of ``items`` at ``time`` (shapes broadcast); ``-inf`` before they are published."""
    if population.published is None:
        return np.zeros(np.broadcast_shapes(items.shape, time.shape))
    age = time - population.published[items]
    return np.where(age >= 0, -options.freshness * age, -np.inf)


def advance(
    population: Population,
    options: UserOptions,
    seed: int,
    state: UserState,
    slates: Ints,
    rewards: Floats,
    clicks: NDArray[np.bool_],
) -> UserState:
    """The state after a step: remember, tire, drift, and jump where the next step is the one for it."""
    clicked, since = _remember(state, slates, clicks)
    sated = options.recovery * state.sated
    if options.satiation:
        for slot in range(slates.shape[1]):
            sated = sated + np.where(clicks[:, slot, None], population.directions[slates[:, slot]], 0.0)
    length = options.history
    return UserState(
        users=state.users,
        streams=state.streams,
        time=state.time + 1,
        tick=state.tick + 1,
        taste=_jumped(population, options, seed, state, _drifted(population, options, seed, state)),
        sated=sated,
        clicked=clicked,
        since=since,
        items=np.concatenate([state.items, slates], axis=1)[:, -length:],
        rewards=np.concatenate([state.rewards, rewards.astype(np.float32)], axis=1)[:, -length:],
    )


def _remember(state: UserState, slates: Ints, clicks: NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """Latest clicks and steps since them; one clicked just now will be 0 steps old when the next slate is shown."""
    clicked, since = state.clicked, state.since + 1
    if not clicked.shape[1]:
        return clicked, since
    for slot in range(slates.shape[1]):
        hit = clicks[:, slot, None]
        pushed = np.concatenate([clicked[:, 1:], slates[:, slot, None]], axis=1)
        aged = np.concatenate([since[:, 1:], np.zeros_like(slates[:, slot, None])], axis=1)
        clicked, since = np.where(hit, pushed, clicked), np.where(hit, aged, since)
    return clicked, since


def _drifted(population: Population, options: UserOptions, seed: int, state: UserState) -> Floats:
    """``mean + sqrt(1 - drift^2) (taste - mean) + drift * std * z``: mean and variance over users stay."""
    if not options.drift:
        return state.taste
    mean, std = population.spread
    fresh = normals(seed, "drift", state.streams, state.tick, len(mean))
    return np.asarray(mean + np.sqrt(1 - options.drift**2) * (state.taste - mean) + options.drift * std * fresh)


def _jumped(population: Population, options: UserOptions, seed: int, state: UserState, taste: Floats) -> Floats:
    """Tastes of those whose next step is ``shift_at``, exchanged for those of users drawn at random."""
    if options.shift_at is None:
        return taste
    drawn = uniforms(seed, "shift", state.streams, np.zeros_like(state.tick), 2)
    jumps = (state.time + 1 == options.shift_at) & (drawn[:, 0] < options.shift_share)
    partner = np.minimum((drawn[:, 1] * population.users).astype(np.int64), population.users - 1)
    return np.where(jumps[:, None], population.tastes[partner], taste)
