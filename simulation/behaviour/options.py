"""What a simulated user is like: how it chooses, what a click is worth, how it changes, how often it errs."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

from ..._validate import at_least, non_negative

Choice = Literal["logit", "position", "cascade"]
OutlierKind = Literal["random", "promote"]
CHOICES: tuple[str, ...] = get_args(Choice)
OUTLIERS: tuple[str, ...] = get_args(OutlierKind)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """How far a user goes with an item: a click is the first stage, others may follow it."""

    name: str
    """What it is called, such as ``cart``."""
    reward: float
    """What reaching it, and no stage after it, is worth."""
    offset: float = 0.0
    """The stage follows on the one before it with probability ``sigmoid(utility + offset)``; of no use in the first."""


@dataclass(frozen=True, kw_only=True)
class UserOptions:
    """How users behave. Everything beyond choice is a switch that is off at its default."""

    slate: int = 5
    """K, the number of items shown at a time."""
    horizon: int = 50
    """Slates shown to a user in an episode."""
    history: int = 20
    """Most recent (item, reward) pairs that an observation holds."""
    choice: Choice = "logit"
    """``logit``: one item or none; ``position``: every item alone, if examined; ``cascade``: the first that pleases."""
    examination: float = 1.0
    """Position-based choice: slot k (from 1) is examined with probability ``k ** -examination``."""
    patience: float = 0.9
    """Cascade: probability of going on to the next slot after one that did not please."""
    stages: tuple[Stage, ...] = (Stage(name="click", reward=1.0),)
    """What can follow a click, and what each is worth; rewards must not fall."""
    drift: float = 0.0
    """Part of a taste that is new after a step, in standard deviations over users: taste is a stationary AR(1)."""
    shift_at: int | None = None
    """Step of an episode before which tastes jump; none never."""
    shift_share: float = 1.0
    """Probability that a user takes part in the jump."""
    fatigue: float = 0.0
    """Utility that an item loses for who has just clicked it."""
    recovery: float = 0.8
    """Part of fatigue and satiation that is left after a step."""
    familiarity: float = 0.0
    """Utility that an item gains for who has clicked it: repeat consumption."""
    forgetting: float = 0.98
    """Part of familiarity that is left after a step."""
    satiation: float = 0.0
    """Utility that items like the one just clicked lose, in proportion to their likeness."""
    memory: int = 10
    """Most recent clicks that tire or are familiar."""
    freshness: float = 0.0
    """Utility that an item loses in each step after it was published; before, it can't be clicked."""
    noise: float = 0.0
    """Probability that a step's click is an accident: one of the items shown, all alike, first stage only."""
    outliers: float = 0.0
    """Probability that a user is an outlier."""
    outlier_kind: OutlierKind = "random"
    """``random``: every click is an accident; ``promote``: clicks ``promoted`` wherever it is shown, nothing else."""
    promoted: int = 0
    """The item that outliers promote."""
    track_regret: bool = True
    """Whether each step tells its regret, for which the best slate is found."""
    seed: int = 0
    """Root of the users' random streams."""

    def __post_init__(self) -> None:
        """Refuse users that can't exist."""
        for name in ("slate", "horizon", "history"):
            at_least(name, getattr(self, name), 1)
        for name in ("memory", "promoted", "seed"):
            at_least(name, getattr(self, name), 0)
        for name in ("examination", "fatigue", "familiarity", "satiation", "freshness"):
            non_negative(name, getattr(self, name))
        for name in ("patience", "shift_share", "recovery", "forgetting", "noise", "outliers", "drift"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"expected 0 <= {name} <= 1, got {getattr(self, name)!r}")
        if self.shift_at is not None:
            at_least("shift_at", self.shift_at, 1)
        _one_of("choice", self.choice, CHOICES)
        _one_of("outlier_kind", self.outlier_kind, OUTLIERS)
        self._check_stages()

    def _check_stages(self) -> None:
        if not self.stages:
            raise ValueError("expected one stage or more, got none; a click is the first")
        rewards = [non_negative(f"reward of {stage.name}", stage.reward) for stage in self.stages]
        if any(later < earlier for earlier, later in pairwise(rewards)):
            raise ValueError(f"expected rewards of stages that do not fall, got {rewards}; order them")

    @property
    def greatest_reward(self) -> float:
        """Most that one item can bring."""
        return self.stages[-1].reward

    @property
    def repeats_matter(self) -> bool:
        """Whether a click changes the utility of the very item."""
        return self.memory > 0 and (self.fatigue > 0 or self.familiarity > 0)

    @property
    def utilities_move(self) -> bool:
        """Whether the utilities of all items change from step to step."""
        return self.drift > 0 or self.satiation > 0 or self.freshness > 0


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"expected {name} to be one of {', '.join(known)}, got {value!r}")
