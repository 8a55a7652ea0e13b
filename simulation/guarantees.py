"""What a report may claim and what it must not, for each privacy unit."""

from __future__ import annotations

_COVERED = {
    "user": (
        "Every initialization that the server released, all rounds together, is differentially private at the epsilon "
        "above: whether one device took part at all, with everything it has, changes the probability of any outcome "
        "by at most a factor exp(epsilon), but for probability delta."
    ),
    "interaction": (
        "Everything that a device ever sends is differentially private at the epsilon above before it leaves: whether "
        "one entry is in the device's log changes the probability of any message by at most a factor exp(epsilon), "
        "but for probability delta. The server need not be trusted with the updates."
    ),
}
_UNCOVERED = {
    "user": "The server sees clipped updates before it adds the noise: unit user trusts the server to add it.",
    "interaction": (
        "A device with many interactions is protected one entry at a time: its taste as a whole may show. That a "
        "device takes part, and user attributes that enter every example, are not covered by unit interaction."
    ),
}
_ALWAYS = (
    "This is a simulation: its noise comes from a seed, so whoever knows the seed can remove it. Only a deployment, "
    "whose noise comes from the operating system, protects anybody.",
    "Everything in this report that is measured on validation or test items (scores, curves, distributions) reads the "
    "devices' data directly. It is a diagnostic of the simulation, is not private and would not exist in a deployment.",
    "Choosing the round on validation is such a diagnostic too, and so is any setting that was tuned by looking at it.",
    "Floating-point effects of the noise, timing and other side channels, and proof that a device runs this code are "
    "outside the guarantee.",
)


def covered(unit: str) -> list[str]:
    """Sentences on what is guaranteed."""
    units = ("user", "interaction") if unit == "both" else (unit,)
    claims = [_COVERED[each] for each in units if each in _COVERED]
    if not claims:
        return ["Nothing: the unit is none. Updates are neither clipped nor noised, and they reveal what devices did."]
    return [
        *claims,
        "Each device's personal parameters and the policy it serves never leave it; fine-tuning them costs nothing.",
        "The budget lies in a ledger that is debited before anything leaves; a crash can waste it, never reset it.",
    ]


def not_covered(unit: str) -> list[str]:
    """Sentences on what is not guaranteed."""
    units = ("user", "interaction") if unit == "both" else (unit,)
    if unit == "none":
        return [*_ALWAYS[1:3]]
    if unit == "both":
        return [_UNCOVERED["interaction"], *_ALWAYS]
    return [*(_UNCOVERED[each] for each in units if each in _UNCOVERED), *_ALWAYS]
