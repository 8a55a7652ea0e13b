"""The figures of an online run, as inline SVG."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..svg import MUTED, figure, inline, series, style

_COLOURS = {"meta": 0, "joint": 2, "local": 3, "popularity": 4, "known-popularity": 8, "random": 6, "oracle": 5}
_DASHES = {0: "-", 1: (0, (5, 2)), 2: (0, (2, 2)), 3: (0, (1, 1))}
_TITLES = {"ctr": "click-through rate", "reward": "mean reward of a slate", "regret": "regret of a slate"}


def over_interactions(summary: Mapping[str, Any], metric: str, group: str, name: str) -> str:
    """A metric of every arm over a device's interactions, 95 % intervals over devices shaded."""
    arms = {label: arm for label, arm in summary["arms"].items() if arm["curves"].get(group)}
    with style(name):
        drawing, axes = figure(width=7.4, height=3.8)
        for label, arm in arms.items():
            points = arm["curves"][group]
            places = np.array([(point["first"] + point["last"]) / 2 for point in points])
            mean, low, high = (np.array([point[metric][end] for point in points]) for end in ("mean", "low", "high"))
            colour = series(_COLOURS[arm["kind"]])
            axes.fill_between(places, low, high, color=colour, alpha=0.12, linewidth=0)
            axes.plot(places, mean, color=colour, linestyle=_dash(label, arms), label=label)
        shift = summary["config"]["online"]["shift_at"]
        if shift is not None:
            axes.axvline(shift, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
            axes.annotate("tastes jump", (shift, 1.0), xycoords=("data", "axes fraction"), fontsize=8.5, color=MUTED)
        axes.set_xlabel("interactions of a device")
        axes.set_ylabel(_TITLES[metric])
        axes.set_ylim(bottom=0)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8.5)
        return inline(drawing, name, f"{_TITLES[metric]} over interactions, {group} devices")


def _dash(label: str, arms: Mapping[str, Any]) -> Any:
    """Arms of one kind share a colour and differ by their dashes."""
    kind = arms[label]["kind"]
    alike = [other for other, arm in arms.items() if arm["kind"] == kind]
    return _DASHES[alike.index(label) % len(_DASHES)]
