"""The frame of a report: style sheet and a few HTML helpers. No scripts, no fonts and no images from anywhere else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

STYLE = """
:root {
  color-scheme: light dark;
  --font: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif;
  --page: #f5f6f8; --card: #ffffff; --ink: #16202c; --muted: #5d6977; --grid: #e3e7ec; --edge: #dfe4ea;
  --accent: #1f63d6; --warn: #8a5300; --warn-bg: #fff5e2; --good-bg: #e9f2ff;
  --s0: #1f63d6; --s1: #6aa0f0; --s2: #d9622b; --s3: #17806d; --s4: #6b7684; --s5: #9a6fb8; --s6: #a9b1bb;
  --s7: #b8860b; --s8: #a23b72; --s9: #3f7d20; --s10: #5a4fcf; --s11: #7a5c3e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #10151b; --card: #18202a; --ink: #e8edf3; --muted: #9aa7b5; --grid: #2a3542; --edge: #2a3542;
    --accent: #7db0ff; --warn: #f3c77a; --warn-bg: #33280f; --good-bg: #15263f;
    --s0: #6ea8ff; --s1: #a9cbff; --s2: #ff9a66; --s3: #4fc9b0; --s4: #a3afbd; --s5: #c9a3e6; --s6: #66717e;
    --s7: #e6bb4a; --s8: #ec86b8; --s9: #8fd06a; --s10: #a79dff; --s11: #c9a57f;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.55 var(--font); }
main { max-width: 1120px; margin: 0 auto; padding: 36px 22px 60px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.01em; }
h2 { font-size: 19px; margin: 40px 0 4px; letter-spacing: -0.005em; }
h3 { font-size: 14px; margin: 0 0 8px; }
p { margin: 6px 0 12px; max-width: 92ch; }
.lead { color: var(--muted); font-size: 16px; }
.note { color: var(--muted); font-size: 13.5px; }
.tag { display: inline-block; font-size: 11.5px; font-weight: 600; padding: 1px 8px; border-radius: 9px;
  color: var(--warn); background: var(--warn-bg); vertical-align: 2px; margin-left: 8px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(205px, 1fr)); gap: 14px; margin: 22px 0 14px; }
.tile, .card { background: var(--card); border: 1px solid var(--edge); border-radius: 10px; padding: 16px 18px; }
.tile .name { color: var(--muted); font-size: 13px; }
.tile .value { font-size: 29px; font-weight: 650; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile .more { font-size: 13px; color: var(--muted); }
.tile .delta { font-size: 13.5px; font-weight: 600; color: var(--accent); }
.privacy { border-left: 4px solid var(--accent); background: var(--good-bg); padding: 12px 16px; border-radius: 6px;
  margin: 10px 0; }
.privacy.none { border-color: var(--warn); background: var(--warn-bg); }
.privacy p { margin: 2px 0; max-width: none; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); gap: 14px;
  margin-top: 12px; }
.card { margin: 0; break-inside: avoid; min-width: 0; }
.card figcaption { color: var(--muted); font-size: 13px; margin-top: 6px; }
.card svg { display: block; width: 100%; height: auto; overflow: visible; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--muted); padding: 5px 10px; border-bottom: 1px solid var(--edge);
  vertical-align: bottom; }
td { padding: 6px 10px; border-bottom: 1px solid var(--grid); vertical-align: top; }
tr:last-child td { border-bottom: 0; }
th.n, td.n { text-align: right; white-space: nowrap; }
td small, th small { color: var(--muted); font-weight: 400; display: block; font-size: 11.5px; }
#results td:first-child { min-width: 190px; }
tr.served td { background: var(--good-bg); font-weight: 600; }
tr.group td { color: var(--muted); font-size: 12px; padding-top: 12px; font-weight: 600; }
.card svg.strip { width: 160px; height: 18px; }
.strip path { stroke: var(--c); stroke-width: 2.4; stroke-linecap: round; fill: none; }
.strip path.level { stroke: var(--s4); stroke-width: 1.2; stroke-dasharray: 2 2; }
.strip circle { fill: var(--c); }
.settings { columns: 3 250px; column-gap: 14px; }
.settings .card { margin-bottom: 14px; padding: 12px 14px; }
.settings td { padding: 2px 0; border: 0; overflow-wrap: anywhere; }
.settings td + td { text-align: right; padding-left: 12px; }
ul { margin: 6px 0; padding-left: 20px; } li { margin: 4px 0; }
footer { margin-top: 44px; color: var(--muted); font-size: 12.5px; }
@media print {
  :root { color-scheme: light; }
  body { background: #fff; } main { max-width: none; padding: 0; zoom: 0.66; }
  h2, p { break-after: avoid; } h2 { margin-top: 26px; } tr { break-inside: avoid; }
  .tile, .card { border-color: #ccc; } .scroll { overflow: visible; }
  .pair { grid-template-columns: 1fr 1fr; } .tiles { grid-template-columns: repeat(4, 1fr); }
}
"""


def page(title: str, body: Iterable[str]) -> str:
    """A whole document."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def section(identifier: str, title: str, text: str, *parts: str, tag: str = "") -> str:
    """A headed section; ``text`` is trusted HTML, ``title`` and ``tag`` are plain."""
    mark = f'<span class="tag">{escape(tag)}</span>' if tag else ""
    intro = f"<p>{text}</p>" if text else ""
    return f'<section id="{identifier}">\n<h2>{escape(title)}{mark}</h2>\n{intro}\n' + "\n".join(parts) + "\n</section>"


def card(content: str, caption: str = "", heading: str = "") -> str:
    """A figure in a box."""
    head = f"<h3>{escape(heading)}</h3>" if heading else ""
    foot = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'<figure class="card">{head}{content}{foot}</figure>'


def pair(*cards: str) -> str:
    """Boxes side by side where there is room."""
    return '<div class="pair">' + "".join(cards) + "</div>"


def tile(name: str, value: str, more: Sequence[str], delta: str = "") -> str:
    """One headline number."""
    change = f'<div class="delta">{escape(delta)}</div>' if delta else ""
    return (
        f'<div class="tile"><div class="name">{escape(name)}</div><div class="value">{escape(value)}</div>'
        f'{change}<div class="more">{"<br>".join(map(escape, more))}</div></div>'
    )


def bullets(items: Iterable[str]) -> str:
    """A list of plain sentences."""
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def key_values(values: Mapping[str, Any]) -> str:
    """Two columns: name and value."""
    rows = "".join(
        f"<tr><td>{escape(str(key))}</td><td>{escape(text_of(value))}</td></tr>" for key, value in values.items()
    )
    return f"<table>{rows}</table>"


def text_of(value: Any) -> str:
    """A setting as text: whole numbers with separators, lists joined, None as "none"."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(text_of(each) for each in value) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {text_of(each)}" for key, each in value.items()) or "none"
    return str(value)
