"""CTR over a device's interactions, from the kept results: ``PYTHONPATH=scripts python benchmarks/online_plot.py``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from fedrec.simulation.svg import figure, inline, series, style
from figure import standalone

HERE = Path(__file__).parent
ARMS = {"meta": 0, "joint": 2, "meta@8": 3, "popularity": 4}
"""Arms that were measured on every seed, with their colours."""


def main() -> None:
    """Draw docs/online.svg: the mean over seeds, and from the least to the greatest shaded."""
    seeds = json.loads((HERE / "results" / "online.json").read_text())["seeds"].values()
    with style("online"):
        drawing, axes = figure(width=7.4, height=3.4)
        for name, colour in ARMS.items():
            points = np.array([arms[name]["curves"]["training"][:10] for arms in seeds])
            places, rates = points[0, :, 0] - 2, points[:, :, 2]
            axes.fill_between(places, rates.min(0), rates.max(0), color=series(colour), alpha=0.12, linewidth=0)
            axes.plot(places, rates.mean(0), color=series(colour), label=name)
        axes.set_xlabel("interactions of a training device")
        axes.set_ylabel("click-through rate")
        axes.set_ylim(bottom=0)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
        text = inline(drawing, "online", "click-through rate over interactions: meta, joint, meta@8, popularity")
    (HERE.parent / "docs" / "online.svg").write_text(standalone(text), encoding="utf-8")


if __name__ == "__main__":
    main()
