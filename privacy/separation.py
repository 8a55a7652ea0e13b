"""Minimum separation: a device that took part in a round sits out the next ``b - 1``. Its turns are public.

Every device of the roster has a turn among ``0 .. b - 1``, drawn once from the seed; turn t takes part in the rounds
t + 1, t + 1 + b, t + 1 + 2b, ... and in no other.

Guarantee:
    Unit user, add or remove one device (zero-out). The turns are a function of public numbers (seed, population, b), so
    neighbours have the same. A device of turn t enters the sums of its own rounds only; given what was released before,
    a release of any other round does not depend on it. The whole run is therefore, for this device, an adaptive
    composition of at most ``ceil(rounds / b)`` Gaussian mechanisms (Dwork and Roth 2014, theorem 3.16), and devices of
    different turns compose in parallel. An account for each turn holds exactly that, and the dearest is what the run
    costs. Where devices of a turn are drawn by a rate below 1, that is not claimed to amplify: each of a device's
    rounds is accounted as if it took part for certain, an upper bound because a device that is left out costs nothing
    (Choquette-Choo et al. 2023 prove more for such a cyclic Poisson sample).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .._streams import numpy_stream
from .._validate import at_least


def turns(seed: int, population: int, separation: int) -> npt.NDArray[np.int64]:
    """The turn of every device, int64 ``[population]`` in ``0 .. separation - 1``; their sizes differ by one at most.

    Args:
        seed: names the draw. It may be known: nothing rests on the turns being secret.
        population: number of devices of the federation, a public constant.
        separation: b >= 1.
    """
    at_least("population", population, 0)
    at_least("separation", separation, 1)
    return numpy_stream(seed, "turns").permutation(population).astype(np.int64) % separation


def turn_of(round_number: int, separation: int) -> int:
    """Whose turn a round is, rounds counted from 1."""
    return (at_least("round", round_number, 1) - 1) % at_least("separation", separation, 1)


def most_participations(rounds: int, separation: int) -> int:
    """Rounds of ``rounds`` that a device takes part in at most: ``ceil(rounds / separation)``."""
    return -(-at_least("rounds", rounds, 0) // at_least("separation", separation, 1))


def describe_separation(rounds: int, separation: int, most: int | None = None) -> str:
    """The sampler in the words of a statement and of a ledger; ``most``: rounds a device is held to, where fewer."""
    taken = most_participations(rounds, separation) if most is None else most
    often = f"at most {taken} of {rounds} rounds of adaptation"
    return f"minimum separation {separation}, no amplification (a device takes part in {often})"
