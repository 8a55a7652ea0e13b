import json
import os
import subprocess
import sys
from pathlib import Path

import fedrec
import pytest

WORKER = Path(__file__).with_name("crash_worker.py")


def outcomes(tmp_path, *arguments):
    paths = [str(Path(fedrec.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    command = [sys.executable, str(WORKER), str(tmp_path), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.integration
def test_killed_before_any_durable_step_and_resumed_a_run_ends_with_the_same_bits(tmp_path):
    """Parameters, metric rows (their seconds aside) and every row of the ledger."""
    ends = outcomes(tmp_path, "calls", "5")
    plain = ends.pop("plain")
    assert len(ends) >= 15
    assert [name for name, end in ends.items() if end != plain] == []
    accounts = plain["ledger"]["accounts"]
    assert {name: one["charges"][0]["steps"] for name, one in accounts.items()} == {
        "federation:turn-1-of-2": 2,
        "federation:turn-2-of-2": 1,
    }
    assert len({row["clip"] for row in plain["rows"]}) == 3


@pytest.mark.integration
def test_killed_at_random_moments_and_resumed_a_run_ends_with_the_same_bits(tmp_path):
    ends = outcomes(tmp_path, "random", "20")
    plain = ends.pop("plain")
    assert len(ends) == 2
    assert [name for name, end in ends.items() if end != plain] == []
