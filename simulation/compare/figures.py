"""The figures of a comparison as inline SVG: what was known after each user, and how both arms fared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ..intervals import Interval
from ..plots import label_ends, label_line
from ..svg import INK, MUTED, figure, inline, series, style
from .judge import Comparison, stretches
from .verdict import METRIC_NAMES

A, B, BOTH = 4, 0, 3
"""Series colours of run A, run B and their difference."""
_EARLIEST = 10
"""Share of the users (one in so many) before which the interval is so wide that it would flatten the rest."""


def sequence(found: Comparison) -> str:
    """The confidence sequence over users as they arrived, and where the test stopped."""
    test, users = found.test, found.users
    shown = test.looks >= max(1, users // _EARLIEST)
    looks = test.looks[shown]
    with style("sequence"):
        drawing, axes = figure(height=3.5)
        axes.fill_between(looks, test.low[shown], test.high[shown], color=series(BOTH), alpha=0.16, linewidth=0)
        axes.plot(looks, test.means[shown], color=series(BOTH))
        axes.axhline(0.0, color=INK, linewidth=1.0)
        if test.stopped is not None:
            _mark_stop(axes, test.stopped, users)
        axes.set_xlabel("users that met both runs, in order of arrival")
        axes.set_ylabel(f"{METRIC_NAMES[found.settings.metric]}: B minus A")
        axes.yaxis.set_major_formatter(FuncFormatter(_signed))
        axes.set_xlim(min(int(looks[0]), test.stopped or users), users)
        end = "stops" if test.stopped else "does not stop"
        return inline(drawing, "sequence", f"Confidence sequence of the difference over {users} users; the test {end}")


def _mark_stop(axes: Any, stopped: int, users: int) -> None:
    axes.axvline(stopped, color=MUTED, linewidth=0.9, linestyle=(0, (1, 2)))
    label_line(axes, stopped, f"stops after {stopped:,} users", stopped > users / 2)


def p_values(found: Comparison) -> str:
    """The always-valid p-value over users, on a logarithmic axis, and the level."""
    with style("pvalues"):
        drawing, axes = figure(height=3.5)
        values = np.maximum(found.test.p_values, 1e-12)
        axes.plot(np.arange(1, found.users + 1), values, color=series(BOTH))
        axes.axhline(found.settings.alpha, color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
        axes.annotate(
            f"alpha {found.settings.alpha:g}",
            (1.0, found.settings.alpha),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 3),
            textcoords="offset points",
            ha="right",
            fontsize=8.5,
        )
        axes.set_yscale("log")
        axes.set_ylim(top=1.5, bottom=min(float(values[-1]), found.settings.alpha) / 2)
        axes.set_xlabel("users that met both runs, in order of arrival")
        axes.set_ylabel("always-valid p-value")
        return inline(drawing, "pvalues", f"Always-valid p-value over {found.users} users, {values[-1]:.2g} at the end")


def over_interactions(found: Comparison) -> str:
    """The deciding metric of both arms as a device gets to know its user."""
    name = METRIC_NAMES[found.settings.metric]
    with style("interactions"):
        drawing, axes = figure(height=3.5)
        ends = []
        for label, colour in (("a", A), ("b", B)):
            _band(axes, found, found.curves[label], series(colour))
            ends.append((found.curves[label][-1].mean, f"run {label.upper()}", series(colour)))
        axes.set_ylabel(name)
        axes.set_ylim(bottom=0)
        label_ends(axes, ends)
        return inline(drawing, "interactions", f"{name} of both runs over {found.settings.interactions} interactions")


def difference_over_interactions(found: Comparison) -> str:
    """The paired difference as a device gets to know its user."""
    name = METRIC_NAMES[found.settings.metric]
    with style("difference"):
        drawing, axes = figure(height=3.5)
        _band(axes, found, found.curves["difference"], series(BOTH))
        axes.axhline(0.0, color=INK, linewidth=1.0)
        axes.set_ylabel(f"{name}: B minus A")
        axes.yaxis.set_major_formatter(FuncFormatter(_signed))
        return inline(drawing, "difference", f"Paired difference in {name} over interactions")


def _band(axes: Any, found: Comparison, curve: Sequence[Interval], colour: str) -> None:
    places = [(first + last) / 2 for first, last in stretches(found.settings.interactions)]
    marker = "o" if len(places) <= 25 else None
    axes.fill_between(
        places, [one.low for one in curve], [one.high for one in curve], color=colour, alpha=0.13, linewidth=0
    )
    axes.plot(places, [one.mean for one in curve], color=colour, marker=marker, markersize=3.5)
    axes.set_xlabel("interactions of the device with its user")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))


def _signed(value: float, _: int) -> str:
    return f"{value:+.3g}" if abs(value) > 1e-9 else "0"
