"""What a domain is: the schema of its items and users, what a click is worth, how its users behave."""

from __future__ import annotations

from dataclasses import dataclass

from ..._validate import non_negative, positive, probability
from ..behaviour.options import UserOptions


@dataclass(frozen=True, kw_only=True)
class Label:
    """A feature with names for values; every value stands for a direction of taste.

    The directions of a ``shared`` label are the same in every domain drawn from the same seed: who likes ``Sport``
    among news likes it among videos.
    """

    name: str
    """The column."""
    values: tuple[str, ...]
    """What it can hold; the first ones are the more frequent ones."""
    weight: float
    """Part of the variance of an item's qualities (or a user's taste) that it carries."""
    most: int = 1
    """Values that one row can have: 1 or 2."""
    shared: bool = False
    """Whether its directions are those of all domains."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A number that makes items more or less wanted by everybody: log-normal around ``typical``."""

    name: str
    """The column."""
    typical: float
    """Median."""
    spread: float
    """Standard deviation of its logarithm."""
    effect: float
    """Utility that one standard deviation (of the logarithm) adds."""


@dataclass(frozen=True, kw_only=True)
class Domain:
    """A kind of world; sizes and seed make one of it."""

    name: str
    """What ``data.name`` and ``world`` take."""
    title: str
    """What it is, in a line."""
    item_labels: tuple[Label, ...]
    """Item schema: labels, the shared ones first."""
    item_measures: tuple[Measure, ...]
    """Item schema: numbers."""
    user_labels: tuple[Label, ...]
    """User schema."""
    behaviour: UserOptions
    """Reward and behaviour."""
    base_rate: float
    """Mean probability that a user clicks an item drawn at random."""
    taste_strength: float = 2.0
    """Standard deviation over users and items of the personal part of utility."""
    common_taste: float = 0.15
    """Part of the variance of tastes that all users share, which makes some topics popular."""
    popularity: float = 0.5
    """Standard deviation of an item's own appeal to everybody."""
    activity: float = 0.4
    """Standard deviation of how much users click at all."""
    lifetime: int = 0
    """Steps between the first and the last item to be published; 0: all items are there from the start."""

    def __post_init__(self) -> None:
        """Refuse domains that can't be drawn."""
        probability("base_rate", self.base_rate, open_right=True)
        positive("taste_strength", self.taste_strength)
        for name in ("popularity", "activity", "common_taste", "lifetime"):
            non_negative(name, getattr(self, name))
        for part, labels, besides in (("items", self.item_labels, 0.0), ("users", self.user_labels, self.common_taste)):
            told = besides + sum(label.weight for label in labels)
            if told > 1:
                raise ValueError(f"expected weights of the {part} of {self.name} of at most 1 in all, got {told:g}")


TOPIC = Label(
    name="topic",
    values=(
        "Sport",
        "Music",
        "Science",
        "Travel",
        "Food",
        "Fashion",
        "Games",
        "Politics",
        "Nature",
        "Art",
        "Money",
        "Home",
    ),
    weight=0.45,
    most=2,
    shared=True,
)
MOOD = Label(name="mood", values=("calm", "funny", "tense", "warm", "serious"), weight=0.15, shared=True)
AGE_GROUP = Label(name="age group", values=("25-39", "40-59", "under 25", "60+"), weight=0.2, shared=True)
