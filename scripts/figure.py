"""Write one figure of a run as an SVG file that stands alone: ``python scripts/figure.py RUN docs/cold-start.svg``."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from fedrec import Run
from fedrec.simulation.page import page
from fedrec.simulation.plots import cold_start_curve


def standalone(inline: str) -> str:
    """Give an inline figure of a report the report's colours, light and dark, and a background."""
    light, dark = re.findall(r":root \{(.*?)\}", page("", []), re.DOTALL)[:2]
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', inline)
    if box is None:
        raise ValueError("expected an SVG with a viewBox, got one without; draw it with fedrec.simulation.plots")
    width, height = box.groups()
    colours = f"svg {{{light}}} @media (prefers-color-scheme: dark) {{ svg {{{dark}}} }}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
    ground = f'<style>{colours}</style><rect width="{width}" height="{height}" rx="6" fill="var(--card)"/>'
    return re.sub(r"<svg([^>]*)>", lambda found: f"{head}{found[1]}>{ground}", inline, count=1) + "\n"


if __name__ == "__main__":
    run_directory, target = sys.argv[1:]
    Path(target).write_text(standalone(cold_start_curve(Run.open(run_directory).summary["cold_start"])), "utf-8")
