"""A comparison on disk: ``comparison.json``, whose every number the report shows, and ``report.html``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..._durable import replace_file, storage_errors
from .judge import Comparison, stretches
from .report import report_page
from .verdict import remarks, verdict

RESULT = "comparison.json"
REPORT = "report.html"


def to_dict(found: Comparison) -> dict[str, Any]:
    """Plain values that JSON can hold; ``sequence`` is the test at some looks, all of them where users are few."""
    test, places = found.test, stretches(found.settings.interactions)
    return {
        "a": found.names[0],
        "b": found.names[1],
        "data": found.data,
        "users": found.users,
        "settings": asdict(found.settings),
        "exploration": {"a": asdict(found.how[0]), "b": asdict(found.how[1])},
        "behaviour": asdict(found.behaviour),
        "verdict": verdict(found),
        "remarks": remarks(found),
        "better": found.decided,
        "same": found.same,
        "metrics": {name: value.to_dict() for name, value in found.metrics.items()},
        "test": {
            "metric": found.settings.metric,
            "bound": test.bound,
            "stopped": test.stopped,
            "p_value": float(test.p_values[-1]),
            "low": test.interval[0],
            "high": test.interval[1],
            "sequence": {
                "users": test.looks.tolist(),
                "mean": test.means.tolist(),
                "low": test.low.tolist(),
                "high": test.high.tolist(),
                "p_value": test.p_values[test.looks - 1].tolist(),
            },
        },
        "groups": {kind: {**value.to_dict(), "users": value.devices} for kind, value in found.groups.items()},
        "curves": {
            "interactions": places,
            **{name: [value.to_dict() for value in curve] for name, curve in found.curves.items()},
        },
    }


def write(found: Comparison, directory: Path) -> Path:
    """Write both files and return the report's path.

    Raises:
        RunError: the directory can't be written.
    """
    with storage_errors(directory / RESULT, "neither run was touched"):
        directory.mkdir(parents=True, exist_ok=True)
        replace_file(directory / RESULT, json.dumps(to_dict(found), indent=1, ensure_ascii=False).encode())
        replace_file(directory / REPORT, report_page(found).encode())
    return directory / REPORT
