"""A shop: what is viewed may go into the cart, and what is in the cart may be bought."""

from __future__ import annotations

from ..behaviour.options import Stage, UserOptions
from .schema import AGE_GROUP, MOOD, TOPIC, Domain, Label, Measure

SHOP = Domain(
    name="shop",
    title="products: view, cart, purchase",
    item_labels=(
        TOPIC,
        MOOD,
        Label(name="department", values=("clothing", "electronics", "kitchen", "garden", "toys", "books"), weight=0.15),
        Label(name="brand", values=tuple(f"brand {letter}" for letter in "ABCDEFGH"), weight=0.05),
    ),
    item_measures=(Measure(name="price", typical=25.0, spread=0.8, effect=-0.5),),
    user_labels=(AGE_GROUP, Label(name="membership", values=("guest", "regular", "premium"), weight=0.1)),
    behaviour=UserOptions(
        choice="logit",
        stages=(
            Stage(name="view", reward=0.1),
            Stage(name="cart", reward=0.3, offset=-0.5),
            Stage(name="purchase", reward=1.0, offset=-0.5),
        ),
        fatigue=2.0,
        recovery=0.95,
        noise=0.02,
    ),
    base_rate=0.05,
)
