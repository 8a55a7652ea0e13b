"""Videos on a home page: looked at from the top, started, half watched, finished."""

from __future__ import annotations

from ..behaviour.options import Stage, UserOptions
from .schema import AGE_GROUP, MOOD, TOPIC, Domain, Label, Measure

VIDEO = Domain(
    name="video",
    title="videos: start, half, finish",
    item_labels=(
        TOPIC,
        MOOD,
        Label(name="format", values=("clip", "episode", "film", "live"), weight=0.1),
        Label(name="language", values=("English", "Spanish", "Hindi", "French"), weight=0.1),
    ),
    item_measures=(Measure(name="minutes", typical=12.0, spread=1.0, effect=-0.3),),
    user_labels=(AGE_GROUP, Label(name="screen", values=("phone", "television", "tablet", "desktop"), weight=0.1)),
    behaviour=UserOptions(
        choice="position",
        examination=0.7,
        stages=(
            Stage(name="start", reward=0.2),
            Stage(name="half", reward=0.5, offset=0.5),
            Stage(name="finish", reward=1.0, offset=0.0),
        ),
        fatigue=4.0,
        recovery=0.98,
        satiation=0.3,
        noise=0.02,
    ),
    base_rate=0.06,
)
