"""What an online run leaves behind: ``online.json``, ``curves.csv`` and ``report.html``."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..._durable import replace_file
from ...errors import RunError
from ...privacy.statement import NO_PRIVACY
from .arms import Arm
from .curves import WINDOW, Point, curve, differences, expected_interactions, headline, reached
from .report import render
from .session import Trace
from .users import Users

TRAINING, LATE = "training", "late"
NOTES = {
    "meta": "meta-initialized (K > 1), adapts on the device before it recommends",
    "joint": "jointly trained (K = 1), adapts alike before it recommends",
    "local": "never leaves the device: adapts everything from an untrained start",
    "popularity": "clicks of all devices so far; not private",
    "known-popularity": "the best fixed ranking, from the truth; not private",
    "random": "all items alike",
    "oracle": "the best slate of the moment, from the truth",
}


class Outcome(Protocol):
    """An arm that is over."""

    @property
    def trace(self) -> Trace:
        """What it brought."""

    @property
    def seconds(self) -> float:
        """How long it took."""

    @property
    def privacy(self) -> tuple[dict[str, Any], ...]:
        """What it cost."""


def write_results(run_dir: Path, users: Users, done: Mapping[Arm, Outcome]) -> dict[str, Any]:
    """Judge the arms and write everything down; ``online.json`` comes last, and says that the run is over."""
    summary = summarise(users, done)
    try:
        replace_file(run_dir / "curves.csv", tidy(summary).encode())
        replace_file(run_dir / "report.html", render(summary).encode())
        replace_file(run_dir / "online.json", (json.dumps(summary, indent=1) + "\n").encode())
    except OSError as error:
        raise RunError(
            f"can't write {run_dir}: {error.strerror or error}; the arms are safe, free some space and resume it"
        ) from None
    return summary


def summarise(users: Users, done: Mapping[Arm, Outcome]) -> dict[str, Any]:
    """Curves and headlines of every arm and group of devices."""
    config, world = users.config, users.world
    groups = {TRAINING: world.roster, LATE: np.flatnonzero(world.held_out)}
    upto = {TRAINING: expected_interactions(config), LATE: _late_interactions(users)}
    how = {"seed": config.seed, "resamples": config.evaluation.resamples}
    arms: dict[str, Any] = {}
    for arm, outcome in done.items():
        curves = {name: curve(outcome.trace, rows, upto[name], **how) for name, rows in groups.items() if upto[name]}
        arms[arm.name] = {
            "kind": arm.kind,
            "note": NOTES[arm.kind],
            "privacy": list(outcome.privacy),
            "seconds": outcome.seconds,
            "curves": curves,
            "headline": {name: headline(outcome.trace, groups[name], upto[name], **how) for name in curves},
            "reached": {name: reached(points) for name, points in curves.items()},
        }
    traces = {arm.name: outcome.trace for arm, outcome in done.items()}
    return {
        "name": f"online, users of {config.data.name}",
        "config": config.model_dump(mode="json"),
        "devices": {name: len(rows) for name, rows in groups.items()},
        "items": world.policy.items,
        "interactions": upto,
        "window": WINDOW,
        "arms": arms,
        "differences": differences(traces, groups[TRAINING], upto[TRAINING], **how),
        "seconds": sum(outcome.seconds for outcome in done.values()),
    }


def _late_interactions(users: Users) -> int:
    """Interactions of a late device; 0 where there is none."""
    config = users.config
    rounds = config.server.rounds - config.online.late_round + 1
    return max(0, rounds) * config.online.interactions if users.world.held_out.any() else 0


def tidy(summary: Mapping[str, Any]) -> str:
    """``curves.csv``: one row for each (arm, group, point, metric), with what the arm's epsilon means."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["arm", "devices_group", "first", "last", "devices", "metric", "mean", "low", "high", "privacy"])
    for name, arm in summary["arms"].items():
        cost = privacy_lines(arm)
        for group, points in arm["curves"].items():
            for point in points:
                writer.writerows(_rows(name, group, point, "; ".join(cost)))
    return text.getvalue()


def _rows(name: str, group: str, point: Point, cost: str) -> list[list[Any]]:
    values = {"ctr": point["ctr"], "reward": point["reward"], "regret": point["regret"]}
    place = [name, group, point["first"], point["last"], point["devices"]]
    return [[*place, metric, one["mean"], one["low"], one["high"], cost] for metric, one in values.items()]


def privacy_lines(arm: Mapping[str, Any]) -> list[str]:
    """The sentences that belong to an arm's epsilon."""
    if arm["kind"] in ("meta", "joint"):
        return [str(one["sentence"]) for one in arm["privacy"]] or [NO_PRIVACY]
    return ["nothing leaves the device"] if arm["kind"] == "local" else ["a yardstick, not private"]
