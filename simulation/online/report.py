"""``report.html`` of an online run: one self-contained file."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from ...privacy.statement import NO_PRIVACY
from ..page import bullets, card, key_values, page, pair, section
from .plots import over_interactions

_DIAGNOSTIC = "not private: simulation-only diagnostic"


def render(summary: Mapping[str, Any]) -> str:
    """The report as HTML text."""
    body = [
        _head(summary),
        _table(summary),
        _figures(summary, "training", "Over a device's interactions", "Devices that train."),
        _figures(summary, "late", "Devices that join late", "Held out: they act and adapt, but never train."),
        _privacy(summary),
        _settings(summary),
        "<footer>Written by fedrec. Intervals are 95 % percentile bootstraps over devices, for one seed; they do not "
        "cover the spread between seeds.</footer>",
    ]
    return page(f"fedrec: {summary['name']}", body)


def _head(summary: Mapping[str, Any]) -> str:
    devices, config = summary["devices"], summary["config"]
    lead = (
        f"{devices['training']:,} devices train in {config['server']['rounds']:,} rounds; in each of its rounds a "
        f"device shows its user {config['online']['interactions']} slates of {config['exploration']['size']} from "
        f"{summary['items']:,} items, writes down what is clicked, adapts and sends its update. {devices['late']:,} "
        f"devices join in round {config['online']['late_round']:,} and never train. All arms meet the same users with "
        "the same streams."
    )
    return f"<h1>{escape(summary['name'])}</h1>\n<p class='lead'>{escape(lead)}</p>"


def _table(summary: Mapping[str, Any]) -> str:
    upto, window = summary["interactions"], summary["window"]
    heads = [f"{name} devices" for name in ("training", "late") if upto[name]]
    first = "".join(f"<th class='n'>CTR, {head}</th><th class='n'>regret</th>" for head in heads)
    rows = "".join(_row(name, arm) for name, arm in summary["arms"].items())
    text = (
        f"Means over the last {window} interactions up to interaction {upto['training']} of a training device"
        + (f" and {upto['late']} of a late one" if upto["late"] else "")
        + ". CTR: share of slates with a click. Regret: what the slate's mean reward lacks to that of the best slate "
        "of the moment, which is known here."
    )
    table = f"<div class='scroll'><table id='results'><tr><th>arm</th>{first}</tr>{rows}</table></div>"
    return section("results", "What every arm earned", text, table, tag=_DIAGNOSTIC)


def _row(name: str, arm: Mapping[str, Any]) -> str:
    cells = "".join(
        f"<td class='n'>{_value(point['ctr'])}</td><td class='n'>{_value(point['regret'])}</td>"
        for point in arm["headline"].values()
    )
    mark = " class='served'" if arm["kind"] == "meta" else ""
    return f"<tr{mark}><td>{escape(name)}<small>{escape(arm['note'])}</small></td>{cells}</tr>"


def _value(one: Mapping[str, float]) -> str:
    return f"{one['mean']:.4f}<small>{one['low']:.4f} to {one['high']:.4f}</small>"


def _figures(summary: Mapping[str, Any], group: str, title: str, text: str) -> str:
    if not summary["interactions"][group]:
        return ""
    cards = [
        card(over_interactions(summary, metric, group, f"{group}-{metric}"), caption)
        for metric, caption in (
            ("ctr", "Share of slates with a click."),
            ("regret", "Mean reward that the best slate of the moment would have brought more."),
        )
    ]
    return section(group, title, text, pair(*cards), tag=_DIAGNOSTIC)


def _privacy(summary: Mapping[str, Any]) -> str:
    parts = []
    for name, arm in summary["arms"].items():
        if arm["kind"] not in ("meta", "joint"):
            continue
        sentences = [one["sentence"] for one in arm["privacy"]]
        mark = "" if sentences else " none"
        lines = "".join(f"<p>{escape(name)}: {escape(line)}</p>" for line in sentences or [NO_PRIVACY])
        parts.append(f"<div class='privacy{mark}'>{lines}</div>")
    covered = [
        "Recommending costs no epsilon: the served policy is adapted without noise and never leaves its device. What "
        "leaves is the update, once a round.",
        "Under unit user a device's whole contribution to a round is clipped and hidden, whatever its propensities and "
        "its log were. Under unit interaction the trail that clicks leave in what is shown later is not hidden.",
        "Popularity counts everybody's clicks and is not private.",
        "This is a simulation: its noise comes from a seed.",
    ]
    return section("privacy", "What it cost", "", *parts, bullets(covered))


def _settings(summary: Mapping[str, Any]) -> str:
    cards = "".join(
        card(key_values(body), heading=name) for name, body in summary["config"].items() if isinstance(body, dict)
    )
    return section("settings", "Settings", "", f"<div class='settings'>{cards}</div>")
