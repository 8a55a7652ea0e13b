"""The sentence that stands wherever an epsilon is printed, stored or plotted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from .._validate import non_negative, probability
from .accounting import Accountant

NEIGHBOURS: dict[str, str] = {
    "user": "add or remove one device (zero-out)",
    "interaction": "add or remove one interaction of one device",
}
_LABELS = {
    "rdp": "RDP accountant",
    "prv": "PRV accountant",
    "gdp": "GDP accountant (approximation, may underestimate)",
    "gaussian": "exact Gaussian accountant",
}


@dataclass(frozen=True, kw_only=True)
class PrivacyStatement:
    """An epsilon with all that gives it meaning."""

    epsilon: float
    """Cost over all the rounds stated."""
    delta: float
    unit: Literal["interaction", "user"]
    """What one neighbour differs in."""
    accountant: Accountant
    sampler: str
    """How a release's sample is drawn, in words ("Poisson, rate 0.25")."""
    noise_multiplier: float
    """Noise over sensitivity (0 when no noise was added: epsilon is then infinite)."""
    clip: float
    """The l2 bound on one unit's contribution."""
    rounds: int
    """Releases paid for: rounds of the federation, or of one device under unit ``interaction``."""
    seeded: bool
    """True if the noise came from a seeded stream: whoever knows the seed can remove it."""
    neighbours: str = ""
    """The neighbouring relation; filled in from the unit."""
    clipping: str = ""
    """How the clip moves from ``clip``, its start, in words; empty: it does not."""

    def __post_init__(self) -> None:
        if self.unit not in NEIGHBOURS:
            raise ValueError(f"expected unit 'interaction' or 'user', got {self.unit!r}; state each unit by itself")
        if math.isnan(self.epsilon) or self.epsilon < 0:
            raise ValueError(f"expected epsilon >= 0, got {self.epsilon!r}")
        probability("delta", self.delta, open_right=True)
        non_negative("noise_multiplier", self.noise_multiplier)
        object.__setattr__(self, "neighbours", self.neighbours or NEIGHBOURS[self.unit])

    def sentence(self) -> str:
        """One line for logs, tables and captions."""
        rounds = f"{self.rounds} round{'' if self.rounds == 1 else 's'}"
        moves = f" at first, {self.clipping}" if self.clipping else ""
        text = (
            f"epsilon = {self.epsilon:.4g} at delta = {self.delta:g}, unit {self.unit} ({self.neighbours}), "
            f"{accountant_label(self.accountant)}, sampler: {self.sampler}, "
            f"noise multiplier {self.noise_multiplier:.4g}, clip {self.clip:g}{moves}, {rounds}"
        )
        return text + ("; simulation only: the noise was seeded" if self.seeded else "")

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary: every field and the sentence."""
        return asdict(self) | {"sentence": self.sentence()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PrivacyStatement:
        """The statement that :meth:`to_dict` wrote down; its sentence is made anew.

        Raises:
            ValueError: a field is missing, unknown or wrong.
        """
        odd = sorted((set(values) - {"sentence"}) ^ {field.name for field in fields(cls)})
        if odd:
            raise ValueError(
                f"expected a privacy statement with all of its fields and no other, got a difference in {odd}"
            )
        return cls(**{name: value for name, value in values.items() if name != "sentence"})


NO_PRIVACY = "no privacy: unit none, nothing is clipped or noised and epsilon is infinite"
"""What is printed in place of a statement under unit ``none``."""


def accountant_label(accountant: Accountant) -> str:
    """An accountant in the words of a statement."""
    return _LABELS[accountant]
