"""``report.html`` of a sweep: one self-contained file whose figures can be read without the text around them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..._durable import replace_file
from ..guarantees import covered, not_covered
from ..page import bullets, card, page, pair, section, text_of, tile
from ..plots import metric_name
from ..report import NOT_PRIVATE
from ..summary import DP_POPULARITY, POPULARITY, SERVED, IntervalDict
from . import figures
from .accountants import compare
from .groups import Group
from .spec import SweepSpec
from .tables import CEILING, Finished

_PRIVATE_AXES = ("privacy.epsilon", "privacy.noise_multiplier", "privacy.unit")
_POPULATION = "data.devices"
_INTERVALS = (
    "Intervals are 95 % percentile intervals of a bootstrap that resamples devices and seeds independently of each "
    "other (pigeonhole bootstrap, Owen 2007): they cover the draw of the devices and, roughly where seeds are few, "
    "what a seed changes (noise, initialization, held-out devices). Differences are paired: the same devices, the same "
    "seeds. The round that is served is chosen on validation data; that choice is not private: no epsilon covers it."
)
_GAP_NOTE = (
    "The same devices and seeds, subtracted one by one: a bar above 0 is a gain that other devices would show too, "
    "however much the bars beside it overlap."
)

Places = dict[tuple[Any, ...], list[Group]]


def write_report(
    path: Path,
    spec: SweepSpec,
    groups: Sequence[Group],
    finished: Sequence[Finished],
    failed: Mapping[str, str],
) -> None:
    """Write the report of a sweep, whatever of it is finished."""
    private = [group for group in groups if group.unit != "none" and SERVED in group.levels]
    body = [
        _headline(spec, groups, finished, failed),
        _failures(failed),
        _against_epsilon(private),
        _against_population(private),
        _cold_start(private),
        _accountants(private),
        _table(groups),
        _guarantees(private),
        f"<footer>Written by fedrec. {_INTERVALS}</footer>",
    ]
    replace_file(path, page(f"fedrec sweep: {spec.name}", [part for part in body if part]).encode())


def _headline(spec: SweepSpec, groups: Sequence[Group], finished: Sequence[Finished], failed: Mapping[str, str]) -> str:
    axes = "; ".join(f"{key}: {', '.join(map(str, values))}" for key, values in spec.axes.items())
    missing = f"; {len(failed)} failed, and what is shown lacks them" if failed else ""
    names = sorted({str(one.record.summary["dataset"]["name"]) for one in finished})
    sizes = sorted({int(one.record.summary["dataset"]["devices"]) for one in finished})
    of = f" on {', '.join(names)} ({_sizes(sizes)} devices)" if finished else ""
    lead = f"{len(finished)} runs{of}{missing}. Axes: {axes}."
    tiles = "".join(_tile(group) for group in groups if CEILING in group.shares and group.unit != "none")
    return (
        f'<header id="headline"><h1>{escape(spec.name)}</h1><p class="lead">{escape(lead)}</p>'
        f'<div class="tiles">{tiles}</div></header>'
    )


def _sizes(sizes: Sequence[int]) -> str:
    return f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"


def _tile(group: Group) -> str:
    share, gain = group.shares[CEILING], group.gaps.get(DP_POPULARITY)
    more = [f"of the score without privacy ({share['low'] * 100:.0f} to {share['high'] * 100:.0f} %)"]
    if gain is not None:
        verdict = "above" if gain["low"] > 0 else "below" if gain["high"] < 0 else "not told apart from"
        more.append(f"{verdict} DP popularity: {_signed(gain)}")
    return tile(_name(group), f"{share['mean'] * 100:.0f} %", more)


def _name(group: Group) -> str:
    rest = [f"{key.split('.')[-1]} {text_of(value)}" for key, value in group.axes.items() if key not in _PRIVATE_AXES]
    return ", ".join([f"epsilon {group.epsilon:.3g}, unit {group.unit}, delta {group.delta:g}", *rest])


def _failures(failed: Mapping[str, str]) -> str:
    if not failed:
        return ""
    sentences = bullets(f"{cell}: {error}" for cell, error in failed.items())
    return section("failures", "Cells that failed", "They are run again by the same command.", card(sentences))


def _against_epsilon(groups: Sequence[Group]) -> str:
    places = _places(groups, lambda group: (group.unit, *_rest(group)))
    shown = {place: some for place, some in places.items() if len({round(g.epsilon, 6) for g in some}) > 1}
    if not shown:
        return ""
    every = [group for some in shown.values() for group in some]
    top, ends = figures.greatest(every), figures.widest(every)
    cards = []
    for i, some in enumerate(shown.values()):
        heading = _heading(some, groups)
        cards += [
            card(figures.utility_against_epsilon(some, f"epsilon{i}", top), _floor_note(some), heading),
            card(figures.gaps_against_epsilon(some, f"gaps{i}", ends), _GAP_NOTE, f"{heading}: is it worth it?"),
        ]
    text = (
        "What a device is shown, ranked against the whole catalogue. The ceiling is this federation without privacy, "
        "the floors are one histogram. A private policy that is not above DP popularity has learned nothing worth its "
        "epsilon."
    )
    return section("epsilon", "Utility against epsilon", text, pair(*cards), tag=NOT_PRIVATE)


def _against_population(groups: Sequence[Group]) -> str:
    places = _places(groups, lambda group: (group.unit, round(group.epsilon, 1), *_rest(group, _POPULATION)))
    shown = {place: some for place, some in places.items() if len({group.population for group in some}) > 1}
    if not shown:
        return ""
    top = figures.greatest([group for some in shown.values() for group in some])
    cards = [
        card(
            figures.utility_against_population(some, f"population{i}", top),
            _floor_note(some),
            f"unit {some[0].unit}, epsilon {some[0].epsilon:.3g}, delta {some[0].delta:g}",
        )
        for i, some in enumerate(shown.values())
    ]
    text = (
        "The same epsilon in federations of different size: under unit user the noise is added once and shared by all, "
        "under unit interaction every device adds its own. Devices of each size are another draw of the same world."
    )
    return section("population", "Utility against population", text, pair(*cards), tag=NOT_PRIVATE)


def _cold_start(groups: Sequence[Group]) -> str:
    measured = [group for group in groups if group.cold_points and SERVED in group.cold]
    places = _places(measured, lambda group: (group.unit, *_rest(group)))
    cards = [
        card(figures.cold_start_by_epsilon(some, f"cold{i}"), "", _heading(some, groups))
        for i, some in enumerate(places.values())
    ]
    if not cards:
        return ""
    text = (
        "Devices that never trained adapt to their first interactions; all points rank the same later items. Fainter "
        "lines are more private."
    )
    return section("cold-start", "Cold start by epsilon", text, *map(pair, cards), tag=NOT_PRIVATE)


def _accountants(groups: Sequence[Group]) -> str:
    found: dict[tuple[str, float], dict[str, Mapping[str, float]]] = {}
    for group in groups:
        for unit, values in compare(group).items():
            asked = "given noise" if group.target is None else f"epsilon {group.target:g}"
            found.setdefault((unit, group.delta), {}).setdefault(f"noise for\n{asked}", values)
    cards = [
        card(
            figures.accountants(list(noises.items()), f"unit {unit}, delta = {delta:g}, whole run", f"accountant{i}"),
            "The noise is the same in each group of bars; only what is known about it differs.",
            f"unit {unit}",
        )
        for i, ((unit, delta), noises) in enumerate(found.items())
    ]
    text = "What the noise of these runs costs by other accountants: a tighter one states less for the same protection."
    return section("accountants", "Accountants compared", text, pair(*cards)) if cards else ""


def _table(groups: Sequence[Group]) -> str:
    if not groups:
        return section("table", "All results", "No cell is finished.")
    axes = list(groups[0].axes)
    heads = [*axes, "label", metric_name(groups[0].metric), "served minus this", "served / this", "what it cost"]
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    rows = "".join(_row(group, label, axes) for group in groups for label in group.levels)
    table = f'<div class="card scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    text = f"{_INTERVALS} Every number of every run is in cells.csv."
    return section("table", "All results", text, table)


def _row(group: Group, label: str, axes: Sequence[str]) -> str:
    cells = [escape(text_of(group.axes[key])) for key in axes] + [escape(label), _interval(group.levels[label])]
    cells += [_signed(group.gaps[label]) if label in group.gaps else ""]
    cells += [_percent(group.shares[label]) if label in group.shares else ""]
    mark = ' class="served"' if label == SERVED else ""
    return f"<tr{mark}>{''.join(f'<td>{cell}</td>' for cell in [*cells, escape(_cost(group, label))])}</tr>"


def _cost(group: Group, label: str) -> str:
    """The privacy sentence of a row."""
    first = group.cells[0].record
    if label == SERVED:
        return "; ".join(str(one["sentence"]) for one in first.summary["privacy"]) or "no privacy: epsilon is infinite"
    if label == DP_POPULARITY:
        return str(first.floors[label]["note"])
    return "not private: epsilon is infinite"


def _guarantees(groups: Sequence[Group]) -> str:
    units = list(dict.fromkeys(group.unit for group in groups))
    boxes = [card(bullets(covered(unit)), heading=f"Guaranteed under unit {unit}") for unit in units]
    boxes += [card(bullets(not_covered(unit)), heading=f"Not guaranteed under unit {unit}") for unit in units]
    return section("guarantees", "What is and is not guaranteed", "", pair(*boxes)) if boxes else ""


def _floor_note(groups: Sequence[Group]) -> str:
    note = (
        "Bars and bands are 95 % intervals. DP popularity spends the same epsilon on one histogram (exact Gaussian "
        "accountant)."
    )
    both = [group.levels for group in groups if {DP_POPULARITY, POPULARITY} <= group.levels.keys()]
    if any(levels[DP_POPULARITY]["mean"] > levels[POPULARITY]["mean"] for levels in both):
        note += " It can lie above popularity: it counts devices with many interactions less."
    return note


def _heading(some: Sequence[Group], groups: Sequence[Group]) -> str:
    """Unit, delta, and the axes that the figures of a section differ in."""
    values: dict[str, set[str]] = {}
    for group in groups:
        for key, value in group.axes.items():
            values.setdefault(key, set()).add(str(value))
    varied = {key for key, found in values.items() if len(found) > 1} - set(_PRIVATE_AXES)
    rest = [f"{key} {text_of(value)}" for key, value in some[0].axes.items() if key in varied]
    return ", ".join([f"unit {some[0].unit}, delta {some[0].delta:g}", *rest])


def _rest(group: Group, *but: str) -> tuple[Any, ...]:
    return tuple((key, value) for key, value in group.axes.items() if key not in (*_PRIVATE_AXES, *but))


def _places(groups: Sequence[Group], key: Callable[[Group], tuple[Any, ...]]) -> Places:
    found: Places = {}
    for group in groups:
        found.setdefault(key(group), []).append(group)
    return found


def _interval(value: IntervalDict) -> str:
    return f"{value['mean']:.4f}<small>{value['low']:.4f} to {value['high']:.4f}</small>"


def _signed(value: IntervalDict) -> str:
    return f"{value['mean']:+.4f} ({value['low']:+.4f} to {value['high']:+.4f})"


def _percent(value: IntervalDict) -> str:
    if not math.isfinite(value["mean"]):
        return ""
    return f"{value['mean'] * 100:.0f} % ({value['low'] * 100:.0f} to {value['high'] * 100:.0f} %)"
