"""The figures of a report. Each function reads one section of a summary and returns inline SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator

from .summary import (
    DP_POPULARITY,
    JOINT,
    LOCAL_ONLY,
    POPULARITY,
    RANDOM,
    SERVED,
    UNADAPTED,
    ColdStartCurves,
    DeviceDistribution,
    IntervalDict,
    MetricsRow,
    PopularityBias,
)
from .svg import INK, MUTED, figure, inline, series, style

_COLOUR_OF = {SERVED: 0, UNADAPTED: 1, JOINT: 2, LOCAL_ONLY: 3, POPULARITY: 4, DP_POPULARITY: 5, RANDOM: 6}
_OTHERS = tuple(range(7, 12))
SCROLLED = 100
"""Longest list in the figure of how far down the list items are found."""
_UPPER = ("hr", "ndcg", "mrr", "rmse", "mae")


def metric_name(metric: str) -> str:
    """``ndcg@10`` as people write it: ``NDCG@10``."""
    return metric.upper() if metric.split("@", maxsplit=1)[0] in _UPPER else metric.capitalize()


def colour_index(label: str, labels: Sequence[str] = ()) -> int:
    """Series number of a label: fixed for the labels of a summary, in order of appearance for any other."""
    if label in _COLOUR_OF:
        return _COLOUR_OF[label]
    others = [other for other in labels if other not in _COLOUR_OF]
    return _OTHERS[others.index(label) % len(_OTHERS)] if label in others else _OTHERS[0]


def learning_curve(
    rows: Sequence[MetricsRow], chosen_round: int, metric: str, levels: Mapping[str, float] | None = None
) -> str:
    """Validation metric over rounds, the chosen round marked, baselines as levels."""
    measured = [(row["round"], row["validation"]) for row in rows]
    points = [(number, found[metric]) for number, found in measured if found and metric in found]
    rounds, values = (np.array(column, dtype=float) for column in zip(*points, strict=True))
    with style("learning"):
        drawing, axes = figure()
        for label, level in (levels or {}).items():
            colour = series(colour_index(label, list(levels or {})))
            axes.axhline(level, color=colour, linewidth=1.2, linestyle=(0, (4, 3)))
            axes.annotate(
                f"{label} {level:.3f}",
                (1.0, level),
                xycoords=("axes fraction", "data"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="right",
                va="bottom",
                fontsize=8.5,
                color=colour,
            )
        marker = "o" if len(rounds) < 40 else None
        axes.plot(rounds, values, color=series(0), marker=marker, markersize=3)
        _round_axis(axes, rows)
        _mark_chosen(axes, rounds, values, chosen_round)
        axes.set_xlabel("round")
        axes.set_ylabel(f"validation {metric_name(metric)}, full ranking")
        low, high = min(values.min(), *(levels or {}).values(), 0.0), max(values.max(), *(levels or {}).values(), 1e-6)
        axes.set_ylim(low, high + 0.22 * (high - low))
        return inline(drawing, "learning", f"Validation {metric_name(metric)} over {len(points)} rounds")


def _round_axis(axes: Any, rows: Sequence[MetricsRow]) -> None:
    """All rounds that were held, whole numbers only, with room for a single one."""
    first, last = rows[0]["round"], rows[-1]["round"]
    margin = max(0.02 * (last - first), 0.1 if last > first else 0.5)
    axes.set_xlim(first - margin, last + margin)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))


def _mark_chosen(axes: Any, rounds: Any, values: Any, chosen_round: int) -> None:
    nearest = int(np.abs(rounds - chosen_round).argmin())
    place = (rounds[nearest], values[nearest])
    axes.axvline(place[0], color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
    axes.plot(*place, marker="o", markersize=6.5, color=series(0), markeredgecolor=INK, markeredgewidth=1.0)
    label_line(axes, place[0], f"round {chosen_round} served: {place[1]:.4f}", place[0] > sum(axes.get_xlim()) / 2)


def label_line(axes: Any, place: float, text: str, right: bool) -> None:
    """Say at the top of a vertical line what it is; ``right``: it stands in the right half, the text left of it."""
    axes.annotate(
        text,
        (place, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(-5 if right else 5, -2),
        textcoords="offset points",
        ha="right" if right else "left",
        va="top",
        fontsize=8.5,
        fontweight="bold",
    )


def epsilon_curve(rows: Sequence[MetricsRow], chosen_round: int, budget: float | None) -> str:
    """Epsilon spent over rounds, one line a privacy unit, and the budget."""
    units = sorted({unit for row in rows for unit in row["epsilon"]})
    with style("epsilon"):
        drawing, axes = figure()
        greatest = 0.0
        for index, unit in enumerate(units):
            spent = [(row["round"], row["epsilon"][unit]) for row in rows if unit in row["epsilon"]]
            rounds, values = (np.array(column, dtype=float) for column in zip(*spent, strict=True))
            colour = series(0 if index == 0 else 2)
            step: Any = "post" if len(rounds) < 80 else None
            axes.plot(rounds, values, color=colour, drawstyle="steps-post" if step else "default")
            axes.fill_between(rounds, 0, values, step=step, color=colour, alpha=0.10, linewidth=0)
            _corner_label(axes, index, f"unit {unit}: {values[-1]:.2f} spent", colour)
            greatest = max(greatest, float(values.max()))
        if budget is not None:
            axes.axhline(budget, color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
            _level_label(axes, budget, f"budget {budget:g}")
            greatest = max(greatest, budget)
        axes.axvline(chosen_round, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
        axes.set_xlabel("round")
        axes.set_ylabel("epsilon spent so far")
        _round_axis(axes, rows)
        axes.set_ylim(0, greatest * 1.18)
        return inline(drawing, "epsilon", f"Epsilon over rounds for unit {', '.join(units)}")


def clip_curve(rows: Sequence[MetricsRow], chosen_round: int) -> str:
    """The adaptive clip over rounds, on a logarithmic axis."""
    with style("clip"):
        drawing, axes = figure()
        found = [(row["round"], row["clip"]) for row in rows if "clip" in row]
        rounds, values = (np.array(column, dtype=float) for column in zip(*found, strict=True))
        axes.plot(rounds, values, color=series(0), drawstyle="steps-post")
        axes.axvline(chosen_round, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
        axes.set_yscale("log")
        _corner_label(axes, 0, f"round {rounds[-1]:.0f}: {values[-1]:.3g}", series(0))
        axes.set_xlabel("round")
        axes.set_ylabel("clip of the update's norm")
        _round_axis(axes, rows)
        return inline(drawing, "clip", f"Clip over {len(found)} rounds, from {values[0]:.3g} to {values[-1]:.3g}")


def _corner_label(axes: Any, row: int, text: str, colour: str) -> None:
    axes.annotate(
        text,
        (0.985, 0.04),
        xycoords="axes fraction",
        xytext=(0, 12 * row),
        textcoords="offset points",
        ha="right",
        fontsize=8.5,
        fontweight="bold",
        color=colour,
    )


def _level_label(axes: Any, level: float, text: str) -> None:
    axes.annotate(
        text,
        (0.0, level),
        xycoords=("axes fraction", "data"),
        xytext=(4, 3),
        textcoords="offset points",
        va="bottom",
        fontsize=8.5,
    )


def cold_start_curve(section: ColdStartCurves) -> str:
    """Metric against interactions seen, one line a policy, bands for intervals."""
    name = metric_name(section["metric"])
    with style("cold"):
        drawing, axes = figure(height=3.5)
        _banded(axes, section["curves"], section["points"])
        axes.set_ylabel(f"{name} on held-out devices")
        axes.set_ylim(bottom=0)
        return inline(drawing, "cold", f"{name} against interactions seen: {', '.join(section['curves'])}")


def cold_start_differences(section: ColdStartCurves) -> str:
    """The reference minus every other policy on the same devices, with intervals; above 0 the reference is better."""
    name = metric_name(section["metric"])
    with style("colddiff"):
        drawing, axes = figure(height=3.5)
        _banded(axes, section["differences"], section["points"], "vs ")
        axes.axhline(0.0, color=INK, linewidth=1.0)
        axes.set_ylabel(f"{name}: {section['reference']} minus the other")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+.2f}" if abs(value) > 1e-9 else "0"))
        return inline(drawing, "colddiff", f"Paired difference in {name} of {section['reference']}")


def _banded(axes: Any, curves: Mapping[str, Sequence[IntervalDict]], points: Sequence[int], prefix: str = "") -> None:
    """Lines with bands over equally spaced ``points``, labelled at the right end without overlaps."""
    places = np.arange(len(points))
    labels = list(curves)
    ends = []
    for label, values in curves.items():
        colour = series(colour_index(label, labels))
        mean, low, high = (np.array([value[end] for value in values]) for end in ("mean", "low", "high"))
        axes.fill_between(places, low, high, color=colour, alpha=0.13, linewidth=0)
        axes.plot(places, mean, color=colour, marker="o", markersize=3.5)
        ends.append((float(mean[-1]), f"{prefix}{label}", colour))
    axes.set_xticks(places, [str(point) for point in points])
    axes.set_xlabel("interactions seen by the device")
    axes.set_xlim(-0.2, len(points) - 0.85)
    label_ends(axes, ends)


def label_ends(axes: Any, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write each label right of the axes at its line's end, pushed apart where they would touch."""
    if not ends:
        return
    bottom, top = axes.get_ylim()
    bottom = min(bottom, 0.0)
    gap = 0.062 * (top - bottom)
    ordered = sorted(ends)
    heights = [ordered[0][0]]
    for value, _, _ in ordered[1:]:
        heights.append(max(value, heights[-1] + gap))
    excess = max(0.0, heights[-1] - top)
    heights = [height - excess for height in heights] if excess else heights
    for height, (_, text, colour) in zip(heights, ordered, strict=True):
        axes.annotate(
            text,
            (1.0, height),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=colour,
        )


def found_within(section: DeviceDistribution) -> str:
    """Share of devices whose held-out item is among the first k, for lists that somebody might scroll through."""
    data = section["found_within"]
    labels = list(data["curves"])
    shown = np.array(data["k"]) <= SCROLLED
    with style("found"):
        drawing, axes = figure()
        for label in labels:
            share = np.array(data["curves"][label])[shown] * 100
            axes.plot(np.array(data["k"])[shown], share, color=series(colour_index(label, labels)))
        axes.set_xscale("log")
        ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100) if tick <= max(data["k"])]
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("list length k (logarithmic)")
        axes.set_ylabel("devices whose test item is in the first k")
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
        axes.set_ylim(bottom=0)
        axes.axvline(10, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
        _legend(axes, labels)
        return inline(drawing, "found", "Share of devices whose test item is found within the first k")


def by_activity(section: DeviceDistribution) -> str:
    """The metric by how much a device has to learn from."""
    data = section["activity"]
    labels = list(data["curves"])
    places = np.arange(len(data["groups"]))
    with style("activity"):
        drawing, axes = figure()
        for index, label in enumerate(labels):
            _intervals(axes, places + _shift(index, len(labels)), data["curves"][label], colour_index(label, labels))
        ticks = [f"{group}\n{count} dev." for group, count in zip(data["groups"], data["devices"], strict=True)]
        axes.set_xticks(places, ticks)
        axes.set_xlabel("training interactions of the device")
        axes.set_ylabel(f"mean {metric_name(section['metric'])}, 95 % interval")
        highest = max(value["high"] for values in data["curves"].values() for value in values)
        axes.set_ylim(0, max(highest, 1e-6) * (1.1 + 0.07 * len(labels)))
        _legend(axes, labels)
        return inline(drawing, "activity", f"{metric_name(section['metric'])} by activity of the device")


def _intervals(axes: Any, places: Any, values: Sequence[IntervalDict], colour: int) -> None:
    mean = np.array([value["mean"] for value in values])
    below = mean - np.array([value["low"] for value in values])
    above = np.array([value["high"] for value in values]) - mean
    axes.errorbar(
        places, mean, yerr=[below, above], fmt="o", markersize=5, color=series(colour), elinewidth=1.6, capsize=0
    )


def _shift(index: int, count: int, width: float = 0.17) -> float:
    return (index - (count - 1) / 2) * width


def popularity_bars(section: PopularityBias) -> str:
    """Share of recommendations by popularity decile against the share of training interactions."""
    series_of = {"training interactions": section["train"], **section["recommended"]}
    labels = list(series_of)
    places = np.arange(len(section["train"]))
    width = 0.8 / len(labels)
    with style("bias"):
        drawing, axes = figure()
        for index, label in enumerate(labels):
            colour = series(colour_index(label, labels))
            shift = _shift(index, len(labels), width)
            axes.bar(places + shift, np.array(series_of[label]) * 100, width * 0.92, color=colour, linewidth=0)
        axes.set_xticks(places, [str(place + 1) for place in places])
        axes.set_xlabel("popularity decile of the catalogue (10 = most popular items)")
        axes.set_ylabel("share")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} %"))
        highest = max(max(values) for values in series_of.values()) * 100
        axes.set_ylim(0, min(102.0, highest * (1.1 + 0.1 * len(labels))) or 102.0)
        _legend(axes, labels)
        return inline(drawing, "bias", "Share of recommendations by popularity decile")


def _legend(axes: Any, labels: Sequence[str]) -> None:
    """Coloured names in the upper left corner instead of a box."""
    for row, label in enumerate(labels):
        axes.annotate(
            label,
            (0.02, 0.98),
            xycoords="axes fraction",
            xytext=(0, -12 * row),
            textcoords="offset points",
            va="top",
            fontsize=8.5,
            fontweight="bold",
            color=series(colour_index(label, labels)),
        )


def interval_strip(value: IntervalDict, low: float, high: float, level: float | None, colour: int) -> str:
    """A small bar for a table cell: mean as a dot, interval as a line, ``level`` (popularity) as a tick."""

    def place(number: float) -> float:
        return 4 + 152 * (min(max(number, low), high) - low) / max(high - low, 1e-12)

    parts = [f'<path d="M{place(value["low"]):.1f} 9H{place(value["high"]):.1f}"/>']
    parts.append(f'<circle cx="{place(value["mean"]):.1f}" cy="9" r="3.6"/>')
    if level is not None:
        parts.insert(0, f'<path class="level" d="M{place(level):.1f} 1V17"/>')
    return f'<svg class="strip" viewBox="0 0 160 18" style="--c: var(--s{colour})">{"".join(parts)}</svg>'
