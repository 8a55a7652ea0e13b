"""A social feed: posts are passed or liked one by one, some are commented on, few are shared; bots promote one."""

from __future__ import annotations

from ..behaviour.options import Stage, UserOptions
from .schema import AGE_GROUP, MOOD, TOPIC, Domain, Label, Measure

SOCIAL = Domain(
    name="social",
    title="posts: like, comment, share; some accounts are bots",
    item_labels=(
        TOPIC,
        MOOD,
        Label(name="media", values=("photo", "text", "reel", "poll"), weight=0.1),
        Label(name="circle", values=("friends", "family", "work", "creators", "groups"), weight=0.15),
    ),
    item_measures=(Measure(name="followers", typical=300.0, spread=1.5, effect=0.4),),
    user_labels=(AGE_GROUP, Label(name="account", values=("reader", "poster", "creator"), weight=0.1)),
    behaviour=UserOptions(
        choice="position",
        examination=0.5,
        stages=(
            Stage(name="like", reward=0.2),
            Stage(name="comment", reward=0.6, offset=-1.0),
            Stage(name="share", reward=1.0, offset=-0.5),
        ),
        fatigue=5.0,
        recovery=0.99,
        drift=0.03,
        noise=0.05,
        outliers=0.03,
        outlier_kind="promote",
    ),
    base_rate=0.05,
    lifetime=60,
)
