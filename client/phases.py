"""What every participant does with an order before it adapts: check it, price it, and vote where a round is a vote.

One device and a simulated cohort call the same functions here.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ..config import Config
from ..errors import WireError
from ..meta.popularity import VOTE_NORM, vote
from ..privacy.accounting import Charge
from ..privacy.entropy import NoiseSource
from .wire import TrainOrder


class LocalNoise(Protocol):
    """Noise multipliers of what one device releases under units ``interaction`` and ``both``."""

    @property
    def adapt(self) -> float:
        """Of a local step."""

    @property
    def warm(self) -> float | None:
        """Of its vote in the warm start; none where there is none."""


def release_key(order: TrainOrder) -> str:
    """What the order's release is called in a ledger."""
    return f"{order.run}:{order.round}"


def charge_of(round_number: int, config: Config, noise: LocalNoise) -> Charge:
    """What one device pays for a round."""
    if config.phase(round_number) == "popularity":
        return Charge(noise.warm or 0.0, 1.0, 1)
    return Charge(noise.adapt, config.privacy.sample_rate, config.local.steps)


def round_config(order: TrainOrder, config: Config) -> Config:
    """The configuration of the order's round, with the clip that the order names where clipping is adaptive.

    Raises:
        WireError: the order asks for what the participant's own configuration does not do: another clip, updates
            outside of a sum, another encoding.
    """
    adapts = config.phase(order.round) == "adapt"
    if (config.privacy.clipping == "adaptive" and adapts) != (order.clip is not None):
        wanted = "no clip" if order.clip is not None else "a clip"
        raise WireError(f"expected {wanted} in the order of round {order.round}, got {order.clip}")
    if (config.server.stacked and adapts) != order.stacked:
        raise WireError(
            f"expected an order for {'a sum' if order.stacked else 'stacked updates'} in round {order.round}, got the "
            "other; give server and nodes the same configuration"
        )
    if order.encoding != config.uplink(order.round):
        raise WireError(
            f"expected an order for updates as {config.uplink(order.round)} in round {order.round}, got "
            f"{order.encoding}; give server and nodes the same configuration"
        )
    return config if order.clip is None else config.updated(privacy__clip=order.clip)


def ballot(
    items: Tensor, catalogue: int, config: Config, noise: LocalNoise | None, source: NoiseSource | None
) -> Tensor:
    """What one device releases in the warm start: its histogram, noised by itself under unit ``interaction``.

    Args:
        items: catalogue rows of its log, int64 ``[n]``.
        catalogue: number of items.
        config: unit and rules of the vote.
        noise: of unit ``interaction``; none under the others.
        source: where the device's noise comes from; needed where there is some.

    Raises:
        ValueError: noise without a source.

    Guarantee:
        Unit ``interaction``: one entry moves the histogram by ``VOTE_NORM``, to which ``noise.warm`` is relative.
    """
    unit, server = config.privacy.unit, config.server
    recent = 0 if noise is not None else server.warm_recent or 0  # an entry must not displace another
    votes = vote(items[-recent:], catalogue, unit_norm=unit != "interaction", full=server.warm_items)
    if noise is None or noise.warm is None:
        return votes
    if source is None:
        raise ValueError("expected a source of noise for a vote that is noised on the device, got none; pass one")
    votes = votes + source.normal(votes.shape, noise.warm * VOTE_NORM)
    return votes * (VOTE_NORM / votes.norm().clamp(min=VOTE_NORM)) if unit == "both" else votes
