"""Music: what was liked is played again, though not at once, and a style can be had enough of."""

from __future__ import annotations

from ..behaviour.options import Stage, UserOptions
from .schema import AGE_GROUP, MOOD, TOPIC, Domain, Label, Measure

MUSIC = Domain(
    name="music",
    title="tracks: play, listen to the end; repeats are welcome",
    item_labels=(
        TOPIC,
        MOOD,
        Label(name="style", values=("pop", "rock", "hip hop", "electronic", "jazz", "classical", "folk"), weight=0.25),
    ),
    item_measures=(Measure(name="tempo", typical=110.0, spread=0.25, effect=0.2),),
    user_labels=(AGE_GROUP, Label(name="setting", values=("home", "commute", "work", "gym"), weight=0.1)),
    behaviour=UserOptions(
        choice="logit",
        stages=(Stage(name="play", reward=0.3), Stage(name="full", reward=1.0, offset=0.8)),
        fatigue=3.0,
        recovery=0.7,
        familiarity=1.5,
        forgetting=0.99,
        satiation=0.2,
        memory=15,
        noise=0.02,
    ),
    base_rate=0.06,
)
