"""How a run draws its slates: what its configuration says, but for what somebody asks for."""

from __future__ import annotations

from ..config import Config
from ..meta.acting import Exploration


def exploration_of(
    config: Config,
    *,
    size: int | None = None,
    temperature: float | None = None,
    epsilon: float | None = None,
    diversity: float = 0.0,
) -> Exploration:
    """The ``exploration`` section of ``config`` with some values replaced; None replaces nothing.

    Diversity is no part of that section, because it has no propensity that training could divide by.

    Raises:
        ValueError: a value out of range.
    """
    own = config.exploration
    return Exploration(
        size=own.size if size is None else size,
        temperature=own.temperature if temperature is None else temperature,
        epsilon=own.epsilon if epsilon is None else epsilon,
        diversity=diversity,
    )
