"""The figures of a sweep as inline SVG. Each says its unit, its delta, its accountant and over how much it is a mean.

Series differ in marker and line as well as in colour, and carry their names, so that no colour has to be told apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...privacy.statement import NEIGHBOURS
from ..plots import label_ends, metric_name
from ..summary import DP_POPULARITY, POPULARITY, SERVED, IntervalDict
from ..svg import INK, MUTED, figure, inline, series, style
from .groups import Group
from .tables import CEILING


@dataclass(frozen=True, kw_only=True)
class _Look:
    """How a label is drawn."""

    name: str
    colour: str
    marker: str
    line: Any = "-"
    width: float = 1.4


_LOOKS = {
    CEILING: _Look(name="no privacy", colour=INK, marker="D", line=(0, (6, 2))),
    SERVED: _Look(name="served policy", colour=series(0), marker="o", width=2.2),
    DP_POPULARITY: _Look(name="DP popularity", colour=series(2), marker="s"),
    POPULARITY: _Look(name="popularity (not private)", colour=series(4), marker="^", line=(0, (2, 2))),
}
_LEVELS = (CEILING, POPULARITY)
"""Labels that no epsilon changes: drawn as a level with a band."""
_FLOORS = (DP_POPULARITY, POPULARITY)


def greatest(groups: Sequence[Group]) -> float:
    """The highest end of an interval, so that figures side by side share their axis."""
    ends = [value["high"] for group in groups for value in group.levels.values() if math.isfinite(value["high"])]
    return max(ends, default=1.0) * 1.06


def widest(groups: Sequence[Group]) -> tuple[float, float]:
    """The lowest and the highest end of a difference to a floor, and 0."""
    ends = [
        value[end] for group in groups for label in _FLOORS for value in _known(group, label) for end in ("low", "high")
    ]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    margin = 0.08 * max(high - low, 1e-6)
    return low - margin, high + margin


def _known(group: Group, label: str) -> list[IntervalDict]:
    return [group.gaps[label]] if label in group.gaps else []


def unit_line(groups: Sequence[Group]) -> str:
    """Unit and neighbouring relation of all of ``groups``."""
    unit = groups[0].unit
    parts = ("user", "interaction") if unit == "both" else (unit,)
    return f"unit {unit}: {' and '.join(NEIGHBOURS.get(part, 'no privacy') for part in parts)}"


def delta_line(groups: Sequence[Group]) -> str:
    """Delta and accountant of all of ``groups``."""
    names = sorted({str(row["accountant"]).upper() for group in groups for row in group.costs if row["delta"]})
    return f"delta = {groups[0].delta:g}, {' and '.join(names)} accountant" if names else "nothing is noised"


def amount_line(groups: Sequence[Group], pairs: str = "") -> str:
    """Over how much the means are taken."""
    devices, seeds = sorted({group.devices for group in groups}), sorted({group.seeds for group in groups})
    several = "" if seeds == [1] else "s"
    return f"{_range(devices)} devices x {_range(seeds)} seed{several}, 95 % intervals{pairs}"


def utility_against_epsilon(groups: Sequence[Group], name: str, top: float) -> str:
    """The headline metric against the epsilon that was spent, with ceiling, popularity and DP popularity.

    Args:
        groups: of one unit, different in epsilon only.
        name: of the figure on its page.
        top: upper end of the axis.
    """
    ordered = sorted(groups, key=lambda group: group.epsilon)
    places = np.array([group.epsilon for group in ordered])
    with style(name):
        drawing, axes = figure(height=3.7)
        ends = _curves(axes, ordered, places, flat=_LEVELS)
        _epsilon_axis(axes, places)
        _finish(axes, ordered, ends, top)
        return inline(drawing, name, f"{_metric(ordered)} against epsilon, {unit_line(ordered)}, {delta_line(ordered)}")


def gaps_against_epsilon(groups: Sequence[Group], name: str, ends: tuple[float, float]) -> str:
    """The served policy minus DP popularity and minus popularity, paired, against epsilon.

    Args:
        groups: of one unit, different in epsilon only.
        name: of the figure on its page.
        ends: of the axis.
    """
    ordered = sorted(groups, key=lambda group: group.epsilon)
    places = np.array([group.epsilon for group in ordered])
    with style(name):
        drawing, axes = figure(height=3.7)
        labels = []
        for label, shift in zip(_FLOORS, (1.018, 0.982), strict=True):
            values = [value for group in ordered for value in _known(group, label)]
            if len(values) == len(ordered):
                _points(axes, places * shift, values, _LOOKS[label])
                labels.append((values[-1]["mean"], f"minus {_LOOKS[label].name}", _LOOKS[label].colour))
        axes.axhline(0.0, color=INK, linewidth=1.2)
        _epsilon_axis(axes, places)
        axes.set_ylim(*ends)
        axes.set_ylabel(f"{_metric(ordered)}: served policy minus a floor")
        _headed(axes, unit_line(ordered), f"{delta_line(ordered)}; {amount_line(ordered, ', paired')}")
        label_ends(axes, labels)
        return inline(
            drawing, name, f"Served minus floors against epsilon, {unit_line(ordered)}, {delta_line(ordered)}"
        )


def _epsilon_axis(axes: Any, places: Any) -> None:
    axes.set_xscale("log")
    axes.set_xticks(places, [f"{place:.3g}" for place in places])
    axes.set_xlim(places[0] / 1.12, places[-1] * 1.12)
    axes.minorticks_off()
    axes.set_xlabel("epsilon spent by the whole run (left: more private)")


def utility_against_population(groups: Sequence[Group], name: str, top: float) -> str:
    """The headline metric against the number of devices that train, at one epsilon."""
    ordered = sorted(groups, key=lambda group: group.population)
    places = np.array([float(group.population) for group in ordered])
    with style(name):
        drawing, axes = figure(height=3.7)
        ends = _curves(axes, ordered, places, flat=())
        axes.set_xscale("log")
        axes.set_xticks(places, [f"{place:,.0f}" for place in places])
        axes.set_xlim(places[0] / 1.25, places[-1] * 1.25)
        axes.set_xlabel(f"devices that train; epsilon {_range([g.epsilon for g in ordered])} for each")
        _finish(axes, ordered, ends, top)
        return inline(
            drawing, name, f"{_metric(ordered)} against population, {unit_line(ordered)}, {delta_line(ordered)}"
        )


def _curves(axes: Any, groups: Sequence[Group], places: Any, flat: Sequence[str]) -> list[tuple[float, str, str]]:
    """Draw every label; returns what stands at its right end."""
    ends = []
    shifts = dict(zip((POPULARITY, CEILING, DP_POPULARITY, SERVED), (1.0, 1.0, 1.018, 0.982), strict=True))
    for label, look in _LOOKS.items():
        values = [group.levels.get(label) for group in groups]
        if any(value is None for value in values):
            continue
        known = [value for value in values if value is not None]
        if label in flat:
            _level(axes, known[-1], look)
        else:
            _points(axes, places * shifts[label], known, look)
        ends.append((known[-1]["mean"], f"{look.name} {known[-1]['mean']:.3f}", look.colour))
    return ends


def _level(axes: Any, value: IntervalDict, look: _Look) -> None:
    axes.axhspan(value["low"], value["high"], color=look.colour, alpha=0.08, linewidth=0)
    axes.axhline(value["mean"], color=look.colour, linewidth=look.width, linestyle=look.line)


def _points(axes: Any, places: Any, values: Sequence[IntervalDict], look: _Look, alpha: float = 1.0) -> None:
    mean, low, high = (np.array([value[end] for value in values]) for end in ("mean", "low", "high"))
    axes.errorbar(
        places,
        mean,
        yerr=[np.maximum(mean - low, 0), np.maximum(high - mean, 0)],
        color=look.colour,
        marker=look.marker,
        markersize=5,
        linestyle=look.line,
        linewidth=look.width,
        elinewidth=1.1,
        capsize=2.5,
        alpha=alpha,
    )


def _finish(axes: Any, groups: Sequence[Group], ends: list[tuple[float, str, str]], top: float) -> None:
    axes.minorticks_off()
    axes.set_ylim(0, top)
    axes.set_ylabel(f"{_metric(groups)} on test items, full ranking")
    _headed(axes, unit_line(groups), f"{delta_line(groups)}; {amount_line(groups)}")
    label_ends(axes, ends)


def _headed(axes: Any, *lines: str) -> None:
    axes.set_title("\n".join(lines), loc="left", fontsize=7.4, color=MUTED, linespacing=1.35)


def cold_start_by_epsilon(groups: Sequence[Group], name: str) -> str:
    """Metric on devices that never trained against interactions seen, one line an epsilon; fainter is more private."""
    ordered = sorted(groups, key=lambda group: -group.epsilon)
    last, steps = ordered[0], np.arange(len(ordered[0].cold_points))
    drawn = [(label, last.cold[label], _LOOKS[label].name, 1.0) for label in _LEVELS if label in last.cold]
    if DP_POPULARITY in last.cold:
        drawn.append((DP_POPULARITY, last.cold[DP_POPULARITY], f"DP popularity, epsilon {last.epsilon:.3g}", 1.0))
    shades = np.linspace(1.0, 0.42, max(len(ordered), 2))
    drawn += [
        (SERVED, group.cold[SERVED], f"served, epsilon {group.epsilon:.3g}", float(shade))
        for group, shade in zip(ordered, shades, strict=False)
    ]
    with style(name):
        drawing, axes = figure(width=10.4, height=4.0)
        ends = []
        for index, (label, values, text, alpha) in enumerate(drawn):
            look = _LOOKS[label]
            marker = "oshvPX"[max(index - len(drawn) + len(ordered), 0) % 6] if label == SERVED else look.marker
            places = steps + (index - (len(drawn) - 1) / 2) * 0.055
            _points(axes, places, values, _Look(name=text, colour=look.colour, marker=marker, line=look.line), alpha)
            ends.append((values[-1]["mean"], text, look.colour))
        axes.set_xticks(steps, [str(point) for point in last.cold_points])
        axes.set_xlabel("interactions that the device has seen (not to scale; no device here ever trained)")
        axes.set_ylabel(f"{_metric(ordered)} on later items")
        axes.set_xlim(-0.3, len(steps) - 0.7)
        axes.set_ylim(bottom=0)
        amount = f"{last.cold_devices} held-out devices of {last.seeds} seeds, 95 % intervals"
        _headed(axes, unit_line(ordered), f"{delta_line(ordered)}; {amount}")
        label_ends(axes, ends)
        return inline(drawing, name, f"Cold start by epsilon, {unit_line(ordered)}, {delta_line(ordered)}")


def accountants(found: Sequence[tuple[str, Mapping[str, float]]], heading: str, name: str) -> str:
    """Bars: the epsilon that each accountant states for the same noise.

    Args:
        found: name of a noise -> accountant -> epsilon.
        heading: unit and delta.
        name: of the figure on its page.
    """
    bars = sum(len(values) for _, values in found) + len(found)
    with style(name):
        drawing, axes = figure(height=0.8 + 0.17 * bars)
        height, longest, ticks = 0.0, max(max(values.values()) for _, values in found), []
        for noise, values in found:
            ticks.append((height + (len(values) - 1) / 2, noise))
            for index, (accountant, cost) in enumerate(values.items()):
                approximate = "APPROXIMATION" in accountant
                colour = (series(0), series(3), series(4), series(2))[index % 4]
                axes.barh(height, cost, 0.8, color=colour, alpha=0.85, linewidth=0, hatch="////" * approximate)
                axes.annotate(
                    f"{cost:.3g}  {accountant}",
                    (cost, height),
                    (4, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=7.5,
                )
                height += 1
            height += 0.8
        axes.set_yticks([place for place, _ in ticks], [text for _, text in ticks])
        axes.set_ylim(height - 0.6, -0.8)
        axes.set_xlim(0, longest * 1.75)
        axes.grid(visible=False)
        axes.set_xlabel("epsilon stated for the same noise (computed, no sampling error)")
        _headed(axes, heading)
        return inline(drawing, name, f"Epsilon by accountant, {heading}")


def _metric(groups: Sequence[Group]) -> str:
    return metric_name(groups[0].metric)


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):,.4g}", f"{max(values):,.4g}"
    if all(isinstance(value, int) for value in values):
        low, high = f"{min(values):,}", f"{max(values):,}"
    return low if low == high else f"{low} to {high}"
