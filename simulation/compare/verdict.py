"""The answer in words: who is better, by how much, when that was known, and what would have to be said beside it."""

from __future__ import annotations

from .judge import Comparison

METRIC_NAMES = {"ctr": "CTR", "reward": "reward a slate", "regret": "regret a slate"}


def verdict(found: Comparison) -> str:
    """One sentence for the top of a report."""
    metric, level = METRIC_NAMES[found.settings.metric], f"{(1 - found.settings.alpha) * 100:g} %"
    if found.same:
        return f"The two runs brought the same to each of {found.users:,} users: there is no difference to test."
    if found.decided is None:
        low, high = found.test.interval
        return (
            f"The two runs are not told apart: after {found.users:,} users B minus A in {metric} lies between "
            f"{low:+.4f} and {high:+.4f} ({level}, at all times at once)."
        )
    stopped = found.test.stopped or found.users
    mean, low, high = found.test.at(stopped)
    return (
        f"Run {found.decided.upper()} is better: B minus A in {metric} is {mean:+.4f} ({low:+.4f} to {high:+.4f}, "
        f"{level}) when the test stops, after {stopped:,} of {found.users:,} users."
    )


def remarks(found: Comparison) -> list[str]:
    """What is to be known before the sentence is believed."""
    return [one for one in (_fixed(found), _groups_disagree(found), *found.remarks) if one]


def _fixed(found: Comparison) -> str:
    """Where the interval for a fixed number of users says more than the sequential test does."""
    planned = found.metrics[found.settings.metric].difference
    apart = planned.low > 0 or planned.high < 0
    if found.decided is not None or not apart:
        return ""
    return (
        f"Had {found.users:,} users been planned, and nobody looked before, the difference would be {planned}, which "
        "excludes 0: the price of being allowed to look at any time is a wider interval. More users would decide it."
    )


def _groups_disagree(found: Comparison) -> str:
    signs = {value.low > 0 for value in found.groups.values() if value.low > 0 or value.high < 0}
    if len(signs) < 2:
        return ""
    parts = ", ".join(f"{kind}: {value}" for kind, value in found.groups.items())
    return f"Users that a run trained on and users that it did not say opposite things ({parts}); ask one group alone."
