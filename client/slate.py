"""What a device shows and says: slates with exact propensities, and reasons. Plain values, without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .._validate import at_least, is_number, probability, quoted, shortened
from ..errors import ArgumentError
from .arguments import short, text


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One position of a slate.

    Attributes:
        item: the catalogue's own id.
        title: what to show.
        position: from 0, the top.
        propensity: probability of the item here, given the items above it; exact.
        first_draw: probability of the item at the first position: the logging policy's ``pi(a | s)``; exact.
    """

    item: str
    title: str
    position: int
    propensity: float
    first_draw: float

    def __post_init__(self) -> None:
        """Refuse propensities outside of (0, 1]: they would weigh what is learned."""
        text("the item of a slot", self.item)
        text("the title of a slot", self.title)
        at_least("position", self.position, 0)
        probability("propensity", self.propensity)
        if not (is_number(self.first_draw) and 0 <= self.first_draw <= 1):
            raise ArgumentError(f"expected 0 <= first_draw <= 1, got {quoted(self.first_draw)}")


@dataclass(frozen=True, kw_only=True)
class Slate:
    """What is shown; hand it back to ``record`` with what was done.

    Attributes:
        name: drawn at random: impressions and interactions of one slate bear it.
        at: seconds since 1970.
        version: of the package that drew it.
        slots: from the top; fewer than asked for where fewer were left.
        temperature: of the draw, see :class:`fedrec.meta.acting.Exploration`.
        epsilon: share of every position's draw that was uniform.
        diversity: weight of the likeness to what stands above.
    """

    name: str
    at: int
    version: int
    slots: tuple[Slot, ...]
    temperature: float
    epsilon: float
    diversity: float

    def __post_init__(self) -> None:
        """Refuse what ``recommend`` never gives: it would be logged as if it had been shown."""
        if not short("the name of a slate", text("the name of a slate", self.name)):
            raise ArgumentError("expected a slate with a name, got an empty one")
        at_least("the version of a slate", self.version, 1)
        if not is_number(self.at):
            raise ArgumentError(f"expected a slate's time in seconds since 1970, got {quoted(self.at)}")
        if not (isinstance(self.slots, tuple) and all(isinstance(slot, Slot) for slot in self.slots)):
            raise ArgumentError(f"expected the slots of a slate as a tuple of Slot, got {quoted(self.slots)}")
        places = [slot.position for slot in self.slots]
        if places != list(range(len(places))) or len(set(self.items)) != len(places):
            raise ArgumentError("expected the slots of a slate from the top, each with another item")

    @property
    def items(self) -> tuple[str, ...]:
        """Ids from the top."""
        return tuple(slot.item for slot in self.slots)

    @property
    def propensity(self) -> float:
        """Probability of the whole slate: the product of its positions'."""
        product = 1.0
        for slot in self.slots:
            product *= slot.propensity
        return product

    def __iter__(self) -> Iterator[Slot]:
        return iter(self.slots)

    def __len__(self) -> int:
        return len(self.slots)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return {**asdict(self), "slots": [asdict(slot) for slot in self.slots]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Slate:
        """The slate that :meth:`to_dict` wrote.

        Raises:
            ArgumentError: it is none.
        """
        try:
            return cls(**{**values, "slots": tuple(Slot(**slot) for slot in values["slots"])})
        except (TypeError, KeyError) as error:
            raise ArgumentError(
                f"expected a slate as recommend gave it, got something else ({shortened(str(error))})"
            ) from None


@dataclass(frozen=True, kw_only=True)
class Reasons:
    """Why an item gets its score.

    Attributes:
        item: the catalogue's own id.
        title: what to show.
        score: unnormalised log-probability.
        probability: softmax of the scores over everything not met yet, and this item.
        terms: contributions that add up to ``score``, see :class:`fedrec.meta.explain.Explanation`.
        because: (title, effect) of the logged items that raise the score, strongest first.
        features: (name, effect) of the item's content features, largest effect first.
    """

    item: str
    title: str
    score: float
    probability: float
    terms: Mapping[str, float] = field(default_factory=dict)
    because: tuple[tuple[str, float], ...] = ()
    features: tuple[tuple[str, float], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return asdict(self)
