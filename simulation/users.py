"""Simulated users behind Gymnasium's interface, one at a time or thousands at once; the truth about them is known.

The public door: environments, their options, and the ways to a population (fitted on a log, or of a domain).

    env = UsersEnv(world="shop", users=200, items=300)                 # one user an episode
    env = UsersVectorEnv(fit_users(load("ml-100k")).population)         # every user at once
    env = gymnasium.make("fedrec.simulation.users:fedrec/Users-v0", world="news")
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from ..errors import DataError
from .behaviour.dynamics import UserState
from .behaviour.options import Stage, UserOptions
from .behaviour.population import Population
from .behaviour.simulator import Feedback, UserSimulator
from .behaviour.taste import FittedUsers, TasteOptions, fit_users

__all__ = [
    "FittedUsers",
    "Population",
    "Stage",
    "TasteOptions",
    "UserOptions",
    "UserSimulator",
    "UsersEnv",
    "UsersVectorEnv",
    "fit_users",
    "population_of",
]

ID = "fedrec/Users-v0"
"""The name under which Gymnasium knows the environments."""

Observation = dict[str, Any]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def population_of(
    world: str, *, users: int = 1000, items: int = 500, seed: int = 0, options: UserOptions | None = None
) -> tuple[Population, UserOptions]:
    """Users by name, and how they behave.

    Args:
        world: a domain (``shop``, ``video``, ``news``, ``music``, ``social``), whose users are drawn, or a data set, on
            which they are fitted.
        users: how many are drawn; a data set brings its own.
        items: how many items a domain has; a data set brings its own.
        seed: what the domain is drawn from, or the fit begins with.
        options: how they behave; by default as their domain says.
    """
    from .data import load
    from .domains import DOMAINS, domain_world

    if world in DOMAINS:
        drawn = domain_world(world, users=users, items=items, seed=seed)
        return drawn.population, options if options is not None else replace(drawn.domain.behaviour, seed=seed)
    fitted = fit_users(load(world), TasteOptions(seed=seed))
    return fitted.population, options if options is not None else UserOptions(seed=seed)


def observation_space(population: Population, options: UserOptions) -> spaces.Dict:
    """What an agent sees of one user.

    ``items`` and ``rewards``: the latest items shown and what they brought, the latest last, -1 and 0 where there were
    none yet; ``time``: steps of the episode; ``user``: the user's features, where there are any.
    """
    length, count = options.history, population.items
    known: dict[str, spaces.Space[Any]] = {
        "items": spaces.MultiDiscrete(np.full(length, count + 1), start=np.full(length, -1)),
        "rewards": spaces.Box(0.0, max(options.greatest_reward, 1e-6), (length,), np.float32),
        "time": spaces.Discrete(options.horizon + 1),
    }
    width = population.user_features.shape[1]
    if width:
        bound = max(1.0, float(np.abs(population.user_features).max()))
        known["user"] = spaces.Box(-bound, bound, (width,), np.float32)
    return spaces.Dict(known)


def _observe(population: Population, state: UserState) -> Observation:
    seen = {"items": state.items.copy(), "rewards": state.rewards.copy(), "time": state.time.copy()}
    if population.user_features.shape[1]:
        seen["user"] = population.user_features[state.users]
    return seen


def _explain(simulator: UserSimulator, feedback: Feedback) -> dict[str, Any]:
    found = {
        "user": simulator.users.copy(),
        "clicks": feedback.clicks,
        "stages": feedback.stages,
        "expected_reward": feedback.expected,
    }
    if simulator.options.track_regret:
        found |= {"best_reward": feedback.best, "regret": feedback.regret}
    return found


def _resolve(
    world: Population | str, options: UserOptions | None, sizes: Mapping[str, int]
) -> tuple[Population, UserOptions]:
    if isinstance(world, str):
        return population_of(world, options=options, **sizes)
    if sizes:
        raise DataError(f"expected no {', '.join(sizes)} beside a population, got some; it brings its own")
    return world, options if options is not None else UserOptions()


class UsersEnv(gymnasium.Env[Observation, Ints]):
    """One simulated user; an action is a slate of K catalogue rows, a reward what its clicks brought.

    A repeated item is an empty slot. ``info`` holds ``user``, ``clicks``, ``stages``, ``expected_reward``, and with
    ``options.track_regret`` ``best_reward`` and ``regret``: truths that no agent may learn from. Episodes are cut
    (truncated) after ``options.horizon`` steps and never end by themselves.

    ``reset(seed=...)`` begins the streams of that seed anew (the first reset without one takes ``options.seed``); a
    later reset goes on with them. ``reset(options={"user": 7})`` chooses the user, who otherwise is drawn.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012

    def __init__(
        self,
        world: Population | str = "shop",
        options: UserOptions | None = None,
        *,
        user: int | None = None,
        render_mode: str | None = None,
        **sizes: int,
    ) -> None:
        """Lay out the spaces.

        Args:
            world: the truth, or a name that ``population_of`` takes.
            options: how users behave.
            user: the user of all episodes; none draws one at each reset.
            render_mode: ``ansi`` lets ``render`` tell the last slate in a line.
            sizes: ``users``, ``items`` and ``seed`` of a world by name.
        """
        self.population, self.options = _resolve(world, options, sizes)
        self.render_mode, self._user = render_mode, user
        self.observation_space = observation_space(self.population, self.options)
        self.action_space = spaces.MultiDiscrete(np.full(self.options.slate, self.population.items))
        self._streams: tuple[int, int] = (self.options.seed, 0)
        self.simulator = self._simulate(0 if user is None else user)
        self._last = ""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode, with another user unless one was asked for."""
        first = self._np_random is None
        super().reset(seed=self.options.seed if seed is None and first else seed)
        tick = int(self.simulator.state.tick[0])
        self._streams = (seed, 0) if seed is not None else (self._streams[0], tick)
        drawn = int(self.np_random.integers(self.population.users))
        asked = (options or {}).get("user", self._user)
        self.simulator = self._simulate(drawn if asked is None else int(asked))
        self._last = ""
        return self._seen(), {"user": int(self.simulator.users[0])}

    def _simulate(self, user: int) -> UserSimulator:
        simulator = UserSimulator(self.population, self.options, np.array([user]))
        seed, tick = self._streams
        simulator.restart(seed)
        simulator.state.tick[:] = tick
        return simulator

    def _seen(self) -> Observation:
        seen = {name: value[0] for name, value in _observe(self.population, self.simulator.state).items()}
        return seen | {"time": np.int64(seen["time"])}

    def step(self, action: Ints) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Show a slate."""
        feedback = self.simulator.respond(np.asarray(action)[None])
        told = {name: value[0] for name, value in _explain(self.simulator, feedback).items()}
        self._last = self._line(np.asarray(action), told)
        over = int(self.simulator.state.time[0]) >= self.options.horizon
        return self._seen(), float(feedback.rewards.sum()), False, over, told

    def expected_reward(self, slate: Ints) -> float:
        """Mean reward that ``slate`` would bring now, exact."""
        return float(self.simulator.expected_reward(np.asarray(slate)[None])[0])

    def oracle(self, slots: int | None = None) -> Ints:
        """The slate of at most ``slots`` items (K by default) that is best now; a repeated item is an empty slot."""
        return np.asarray(self.simulator.oracle(slots)[0][0])

    def render(self) -> str | None:
        """The last slate in a line, under render mode ``ansi``."""
        return self._last if self.render_mode == "ansi" else None

    def _line(self, slate: Ints, told: Mapping[str, Any]) -> str:
        names = [stage.name for stage in self.options.stages]
        shown = [
            self.population.catalogue.title(int(item)) + (f" [{names[stage]}]" if stage >= 0 else "")
            for item, stage in zip(slate, told["stages"], strict=True)
        ]
        return f"user {told['user']}: " + " | ".join(shown)


class UsersVectorEnv(VectorEnv[Observation, Ints, NDArray[Any]]):
    """Many simulated users at once; user by user the same numbers as :class:`UsersEnv` with the same seed and user.

    All episodes have the same length, so all end in the same step. The next call of ``step`` begins them anew and
    ignores its action (``AutoresetMode.NEXT_STEP``); the streams go on.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP, "render_modes": []}  # noqa: RUF012

    def __init__(
        self,
        world: Population | str = "shop",
        options: UserOptions | None = None,
        *,
        who: Ints | None = None,
        num_envs: int | None = None,
        **sizes: int,
    ) -> None:
        """Lay out the spaces.

        Args:
            world: the truth, or a name that ``population_of`` takes.
            options: how users behave.
            who: the user of each environment, rows of the population; by default all in turn.
            num_envs: number of environments where ``who`` is not given; by default one for each user.
            sizes: ``users``, ``items`` and ``seed`` of a world by name.
        """
        self.population, self.options = _resolve(world, options, sizes)
        if who is None:
            who = np.arange(self.population.users if num_envs is None else num_envs) % self.population.users
        self.simulator = UserSimulator(self.population, self.options, who)
        self.num_envs = len(who)
        self.single_observation_space = observation_space(self.population, self.options)
        self.single_action_space = spaces.MultiDiscrete(np.full(self.options.slate, self.population.items))
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._over = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin all episodes; with a seed, begin its streams too."""
        super().reset(seed=seed)
        if seed is None:
            self.simulator.new_episode()
        else:
            self.simulator.restart(seed)
        self._over = False
        return _observe(self.population, self.simulator.state), {"user": self.simulator.users.copy()}

    def step(self, actions: Ints) -> tuple[Observation, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Show a slate to every user."""
        none = np.zeros(self.num_envs, dtype=bool)
        if self._over:
            seen, told = self.reset()
            return seen, np.zeros(self.num_envs), none, none.copy(), told
        feedback = self.simulator.respond(np.asarray(actions))
        self._over = bool(self.simulator.state.time[0] >= self.options.horizon)
        told = _explain(self.simulator, feedback)
        seen = _observe(self.population, self.simulator.state)
        return seen, feedback.rewards.sum(axis=1), none, np.full(self.num_envs, self._over), told

    def expected_reward(self, slates: Ints) -> Floats:
        """Mean reward that the slates, int64 ``[users, slots]``, would bring now, exact, float64 ``[users]``."""
        return self.simulator.expected_reward(slates)

    def oracle(self, slots: int | None = None) -> Ints:
        """The slates that are best now, int64 ``[users, slots]``; they repeat an item for an empty slot."""
        return self.simulator.oracle(slots)[0]


if ID not in gymnasium.registry:
    gymnasium.register(ID, entry_point=f"{__name__}:UsersEnv", vector_entry_point=f"{__name__}:UsersVectorEnv")
