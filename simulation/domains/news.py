"""News: read from the top, worth little when old; tastes follow events."""

from __future__ import annotations

from ..behaviour.options import Stage, UserOptions
from .schema import AGE_GROUP, MOOD, TOPIC, Domain, Label, Measure

NEWS = Domain(
    name="news",
    title="articles: click, read; fresh ones count",
    item_labels=(
        TOPIC,
        MOOD,
        Label(name="section", values=("world", "local", "business", "culture", "opinion"), weight=0.15),
    ),
    item_measures=(Measure(name="words", typical=600.0, spread=0.5, effect=-0.1),),
    user_labels=(AGE_GROUP, Label(name="region", values=("north", "south", "east", "west"), weight=0.15)),
    behaviour=UserOptions(
        choice="cascade",
        patience=0.85,
        stages=(Stage(name="click", reward=0.5), Stage(name="read", reward=1.0, offset=0.5)),
        fatigue=4.0,
        recovery=0.99,
        drift=0.08,
        freshness=0.03,
        noise=0.03,
    ),
    base_rate=0.08,
    lifetime=100,
)
