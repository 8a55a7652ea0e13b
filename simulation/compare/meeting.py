"""Where two runs meet: the same log, the same users, the same truth, and an order in which users arrive."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..._streams import numpy_stream
from ...config import Config
from ...errors import RunError
from ...meta.acting import Exploration
from ..behaviour.options import UserOptions
from ..behaviour.population import Population
from ..behaviour.taste import TasteOptions, fit_users
from ..data.dataset import Dataset
from ..domains import DOMAINS, domain_world
from ..online.users import behaviour_of
from ..serving import Served
from ..world import load_dataset
from .contender import Contender
from .settings import CompareSettings, Group

Ints = NDArray[np.int64]
HELD_OUT, TRAINING, MIXED = "held out by both", "trained both", "held out by one"
_CALIBRATING = 150
"""Cells of a log by which fitted users are calibrated at least, where it has twice as many."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Meeting:
    """Two policies and the users that both will meet.

    Attributes:
        served: what either run serves.
        how: how either draws its slates.
        population: the truth; user n is device n of the runs' data.
        behaviour: how users behave.
        rows: the users that take part, in the order in which they arrive, int64 ``[users]``.
        kinds: what each of them was to the runs: held out by both, training both, or one of each, ``[users]``.
        remarks: what is to be known about this meeting.
    """

    served: tuple[Served, Served]
    how: tuple[Exploration, Exploration]
    population: Population
    behaviour: UserOptions
    rows: Ints
    kinds: NDArray[np.str_]
    remarks: tuple[str, ...]


def meet(first: Contender, second: Contender, settings: CompareSettings) -> Meeting:
    """Bring two runs together.

    Raises:
        RunError: their data or the sizes of their slates differ, or too few users are left.
        PolicyError: a policy holds NaN.
    """
    how = _explorations(first.config, second.config, settings)
    data = load_dataset(first.config)
    made_alike = (first.config.data, first.config.seed) == (second.config.data, second.config.seed)
    check_same_log(data, data if made_alike else load_dataset(second.config))
    served = (first.served(), second.served())
    if settings.start == "log" and not all(one.world.dataset.interactions for one in served):
        raise RunError("expected start new with an arm of an online run, whose devices begin with nothing, got log")
    kinds = np.where(served[0].world.held_out, HELD_OUT, TRAINING)
    kinds = np.where(served[0].world.held_out == served[1].world.held_out, kinds, MIXED)
    rows = _arriving(kinds, settings)
    return Meeting(
        served=served,
        how=how,
        population=_population(first.config, data, settings),
        behaviour=_behaviour(first.config, settings, how[0].size),
        rows=rows,
        kinds=kinds[rows],
        remarks=_remarks(first.config, second.config, how),
    )


def check_same_log(first: Dataset, second: Dataset) -> None:
    """Refuse runs over different catalogues, users or logs; features may be encoded differently.

    Raises:
        RunError: what differs.
    """
    if first.name != second.name:
        found = f"{first.name} and {second.name}"
    elif list(first.catalogue.item_ids) != list(second.catalogue.item_ids):
        found = f"two catalogues of {first.name}, with {first.items_count:,} and {second.items_count:,} items"
    elif list(first.device_ids) != list(second.device_ids):
        found = f"two populations of {first.name}, with {first.devices:,} and {second.devices:,} users"
    elif not (np.array_equal(first.offsets, second.offsets) and np.array_equal(first.items, second.items)):
        found = f"two different logs of {first.name}"
    else:
        return
    raise RunError(
        f"expected two runs over the same data, got {found}; compare runs with the same data section (and, in a "
        "generated world, the same seed)"
    )


def _explorations(first: Config, second: Config, settings: CompareSettings) -> tuple[Exploration, Exploration]:
    how = settings.exploration(first), settings.exploration(second)
    if how[0].size != how[1].size:
        raise RunError(
            f"expected two runs that show as many items, got exploration.size {how[0].size} and {how[1].size}; choose "
            "one with --slate"
        )
    return how


def _population(config: Config, data: Dataset, settings: CompareSettings) -> Population:
    """The truth that belongs to a run's data: a domain's, or fitted, by a seed that is neither run's."""
    name, online = config.data.name, config.online
    if name in DOMAINS:
        return domain_world(name, users=config.data.devices, items=config.data.items, seed=config.seed).population
    options = TasteOptions(
        held_out=min(0.5, max(TasteOptions().held_out, _CALIBRATING / max(1, data.interactions))),
        base_rate=online.base_rate,
        taste_strength=online.taste_strength,
        seed=settings.seed,
    )
    return fit_users(data, options).population


def _behaviour(config: Config, settings: CompareSettings, slate: int) -> UserOptions:
    own = behaviour_of(config)
    choice = own.choice if settings.choice is None else settings.choice
    return replace(
        own, choice=choice, seed=settings.seed, slate=slate, horizon=settings.interactions, track_regret=True
    )


def _arriving(kinds: NDArray[np.str_], settings: CompareSettings) -> Ints:
    """Users of the group that is asked, in a random order, int64 ``[users]``."""
    asked: dict[Group, NDArray[np.bool_]] = {
        "all": np.ones(len(kinds), dtype=bool),
        "held-out": kinds == HELD_OUT,
        "training": kinds == TRAINING,
    }
    there = np.flatnonzero(asked[settings.group])
    wanted = len(there) if settings.users is None else settings.users
    if len(there) < max(2, wanted):
        who = "users" if settings.group == "all" else f"users that are {settings.group} in both runs"
        raise RunError(f"expected {max(2, wanted):,} {who}, got {len(there):,}; ask for fewer, or for all devices")
    return numpy_stream(settings.seed, "arrival").permutation(there)[:wanted].astype(np.int64)


def _remarks(first: Config, second: Config, how: tuple[Exploration, Exploration]) -> tuple[str, ...]:
    said = []
    if first.data.name in DOMAINS:
        said.append(f"Users are those of the domain {first.data.name}, drawn and not observed.")
    else:
        said.append(
            f"Users were fitted on {first.data.name}, where people chose what to meet: how they answer to what is "
            "shown is the choice model's assumption."
        )
    if behaviour_of(first) != replace(behaviour_of(second), seed=first.seed):
        said.append("The runs' online sections say different things about users: here they behave as run A has it.")
    if how[0] != how[1]:
        said.append("The runs explore differently, and that is part of what is compared.")
    return tuple(said)
