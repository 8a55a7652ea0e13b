"""Matplotlib figures as inline SVG that follows the page: its fonts, its light or dark colours, nothing external.

Figures are drawn with stand-in colours; on export each stand-in becomes a CSS variable, so that one SVG is readable in
light and dark mode and in print.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK, MUTED, GRID = "#010101", "#020202", "#030303"
_SERIES = tuple(f"#0404{index:02x}" for index in range(16))
COLOURS: dict[str, str] = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    **{colour: f"--s{index}" for index, colour in enumerate(_SERIES)},
}
_FONT = re.compile(r"(font: [^;\"']*?\d[\d.]*px|font-family:)[^;\"]*")
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 9.0,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 8.5,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.xmargin": 0.02,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 3.0,
    "ytick.major.size": 0.0,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


def series(index: int) -> str:
    """Stand-in for the page's series colour ``index``."""
    return _SERIES[index % len(_SERIES)]


@contextmanager
def style(name: str) -> Iterator[None]:
    """Draw in the page's style; ``name`` keeps the ids of several figures on one page apart and reproducible."""
    with mpl.rc_context(_STYLE | {"svg.hashsalt": name}):
        yield


def figure(width: float = 5.1, height: float = 3.2) -> tuple[Figure, Any]:
    """A figure with one pair of axes, in inches; half the page's width unless told otherwise."""
    drawing = Figure(figsize=(width, height), layout="constrained")
    return drawing, drawing.add_subplot()


def inline(drawing: Figure, name: str, description: str) -> str:
    """``drawing`` as an ``<svg>`` element; ``description`` is what a screen reader says."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    FigureCanvasSVG(drawing).print_svg(buffer, metadata=nothing)  # savefig draws twice, the first time for the layout
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"\sxmlns(:\w+)?=\"[^\"]*\"", "", text).replace("xlink:href", "href")
    text = re.sub(r"(<svg[^>]*?) width=\"[^\"]*\"", r"\1", text, count=1)
    text = re.sub(r"(<svg[^>]*?) height=\"[^\"]*\"", r"\1", text, count=1)
    text = re.sub(r"\bid=\"", f'id="{name}-', text)
    text = re.sub(r"(href=\"#|url\(#)", rf"\g<1>{name}-", text)
    text = _FONT.sub(r"\1 var(--font)", text)
    for colour, variable in COLOURS.items():
        text = text.replace(colour, f"var({variable})")
    label = f'<svg role="img" aria-label="{escape(description, quote=True)}"'
    return re.sub(r"\n\s*", "\n", text.replace("<svg", label, 1))
