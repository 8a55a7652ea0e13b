"""How two runs are compared: whom they meet, how they act, what counts, and how sure the answer has to be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ..._validate import at_least, probability
from ...config import Config
from ...meta.acting import Exploration
from ..behaviour.options import Choice
from ..exploring import exploration_of
from ..intervals import RESAMPLES

Metric = Literal["ctr", "reward"]
Group = Literal["all", "held-out", "training"]
Start = Literal["new", "log"]
METRICS: tuple[str, ...] = get_args(Metric)


@dataclass(frozen=True, kw_only=True)
class CompareSettings:
    """Settings of an A/B test."""

    users: int | None = None
    """Users that meet both runs, drawn at random; none takes all there are."""
    interactions: int = 20
    """Slates that each run shows to each user."""
    alpha: float = 0.05
    """Probability that two equally good runs are ever told apart; intervals have level ``1 - alpha``."""
    metric: Metric = "ctr"
    """What decides: ``ctr``, the share of slates that are clicked, or ``reward``, what a slate brings."""
    group: Group = "all"
    """Who is asked: everybody, those that neither run trained on, or those that both did."""
    start: Start = "new"
    """What a device knows when it meets its user: nothing, or the user's log of the runs' data."""
    slate: int | None = None
    """Items shown at a time; none takes the runs' ``exploration.size``."""
    temperature: float | None = None
    """Of the policies' softmax, 0 shows the best; none takes each run's ``exploration.temperature``."""
    epsilon: float | None = None
    """Share of every slot that is drawn uniformly; none takes each run's ``exploration.epsilon``."""
    diversity: float = 0.0
    """Weight of the likeness to what stands above (maximal marginal relevance)."""
    choice: Choice | None = None
    """Choice model of the users; none takes what the runs' ``online.choice`` or their domain says."""
    resamples: int = RESAMPLES
    """Of the bootstrap of the intervals for a number of users that was fixed beforehand."""
    seed: int = 0
    """Root of all streams: users, arrival, clicks, draws of slates, bootstrap."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.users is not None:
            at_least("users", self.users, 2)
        at_least("interactions", self.interactions, 1)
        at_least("resamples", self.resamples, 2)
        at_least("seed", self.seed, 0)
        probability("alpha", self.alpha, open_right=True)

    def exploration(self, config: Config) -> Exploration:
        """How a run of ``config`` draws its slates here.

        Raises:
            ValueError: a value out of range.
        """
        return exploration_of(
            config, size=self.slate, temperature=self.temperature, epsilon=self.epsilon, diversity=self.diversity
        )
