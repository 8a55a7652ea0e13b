"""``report.html`` of a comparison: one self-contained page that begins with the answer."""

from __future__ import annotations

from html import escape

from ..intervals import Interval
from ..page import bullets, card, key_values, page, pair, section, tile
from ..report import NOT_PRIVATE
from . import figures
from .judge import Comparison
from .verdict import METRIC_NAMES, remarks, verdict

_SEQUENCE_NOTE = (
    "The band is a confidence sequence: it covers the true difference at all numbers of users at once, so the test may "
    "be looked at after every user and stopped whenever 0 leaves the band."
)
_P_NOTE = "The smallest level at which the test would have stopped by then. It never rises."
_CURVE_NOTE = "Bands are pointwise bootstrap intervals over users."
_ASSUMES = (
    "The sequential test bets on the differences of users before seeing them (Waudby-Smith and Ramdas 2023). It holds "
    "at any number of users, without a normal approximation, if users are independent draws and a difference can't be "
    "greater than {bound:g}. Intervals in the table are percentile bootstraps over users, for a number of users that "
    "was fixed beforehand. Both see other users like these; not another training seed of the runs."
)


def report_page(found: Comparison) -> str:
    """The whole document."""
    body = [_headline(found), _sequence(found), _table(found), _interactions(found), _groups(found), _settings(found)]
    footer = f"<footer>Written by fedrec. {escape(_ASSUMES.format(bound=found.test.bound))}</footer>"
    return page("fedrec compare: A and B", [*(part for part in body if part), footer])


def _headline(found: Comparison) -> str:
    tiles = "".join(_tile(found, name) for name in found.metrics)
    runs = f"A: {escape(found.names[0])}<br>B: {escape(found.names[1])}"
    return (
        f'<header id="headline"><h1>{escape(_title(found))}</h1><p class="lead">{escape(verdict(found))}</p>'
        f'<p class="note">{runs}</p><div class="tiles">{tiles}</div>{bullets(remarks(found))}</header>'
    )


def _title(found: Comparison) -> str:
    return {"a": "Run A is better", "b": "Run B is better"}.get(found.decided or "", "Not told apart")


def _tile(found: Comparison, name: str) -> str:
    measured = found.metrics[name]
    levels = f"A {measured.first.mean:.4f}, B {measured.second.mean:.4f}"
    return tile(
        f"{METRIC_NAMES[name]}: B minus A", f"{measured.difference.mean:+.4f}", [_ends(measured.difference), levels]
    )


def _ends(value: Interval) -> str:
    return f"{value.low:+.4f} to {value.high:+.4f}"


def _sequence(found: Comparison) -> str:
    stopped = found.test.stopped
    when = f"It stops after {stopped:,} users." if stopped else "It does not stop with these users."
    text = (
        f"Each of {found.users:,} users met both runs, with the same random numbers. {when} An always-valid test may "
        "be looked at after every user; a t-test that is looked at so often is wrong much more often than it says."
    )
    cards = (
        card(figures.sequence(found), _SEQUENCE_NOTE, "What was known after each user"),
        card(figures.p_values(found), _P_NOTE, "Evidence against no difference"),
    )
    return section("sequence", "The sequential test", text, pair(*cards), tag=NOT_PRIVATE)


def _table(found: Comparison) -> str:
    head = "".join(f'<th class="n">{name}</th>' for name in ("run A", "run B", "B minus A", "paired interval"))
    rows = "".join(
        f"<tr><td>{METRIC_NAMES[name]}</td>"
        f'<td class="n">{value.first.mean:.4f}</td><td class="n">{value.second.mean:.4f}</td>'
        f'<td class="n">{value.difference.mean:+.4f}</td><td class="n">{_ends(value.difference)}</td></tr>'
        for name, value in found.metrics.items()
    )
    text = (
        "CTR is the share of slates of which something was clicked. Reward and regret are exact means of the slates "
        "that were shown: what they bring on average, and what they lack to the best slate of that user at that moment."
    )
    table = f'<div class="scroll"><table><tr><th>mean over users</th>{head}</tr>{rows}</table></div>'
    return section("metrics", "What the runs brought", text, card(table), tag=NOT_PRIVATE)


def _interactions(found: Comparison) -> str:
    known = "nothing" if found.settings.start == "new" else "the user's log of the runs' data"
    text = f"A device knows {known} when it meets its user, writes down what is clicked, and adapts before every slate."
    cards = (
        card(figures.over_interactions(found), _CURVE_NOTE, "Both runs"),
        card(figures.difference_over_interactions(found), _CURVE_NOTE, "Their difference"),
    )
    return section("interactions", "While devices get to know their users", text, pair(*cards), tag=NOT_PRIVATE)


def _groups(found: Comparison) -> str:
    rows = "".join(
        f'<tr><td>{escape(kind)}</td><td class="n">{value.devices:,}</td><td class="n">{value.mean:+.4f}</td>'
        f'<td class="n">{_ends(value)}</td></tr>'
        for kind, value in found.groups.items()
    )
    head = '<th class="n">users</th><th class="n">B minus A</th><th class="n">paired interval</th>'
    text = f"{METRIC_NAMES[found.settings.metric]} by whether the runs trained on the log of the user's device."
    table = f'<div class="scroll"><table><tr><th>users</th>{head}</tr>{rows}</table></div>'
    return section("groups", "Trained on, or held out", text, card(table), tag=NOT_PRIVATE)


def _settings(found: Comparison) -> str:
    settings, behaviour = found.settings, found.behaviour
    users = {
        "data": found.data,
        "users": found.users,
        "group": settings.group,
        "choice": behaviour.choice,
        "start of a device": settings.start,
        "interactions": settings.interactions,
        "seed": settings.seed,
    }
    acting = {
        name: " | ".join(dict.fromkeys(f"{getattr(how, name):g}" for how in found.how))
        for name in ("size", "temperature", "epsilon", "diversity")
    }
    cards = (
        card(key_values(users), heading="users"),
        card(key_values(acting), heading="slates (A | B where they differ)"),
    )
    return section("settings", "Settings", "", pair(*cards))
