"""kill -9 at any moment: what was acknowledged is never forgotten. Several processes at once never overspend."""

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from fedrec.privacy.accounting import Charge, epsilon
from fedrec.privacy.ledger import Ledger

# One process imports the package, forks writers and kills them: starting an interpreter for each would take minutes.
CRASHES = """
import os, random, signal, sys, time
from fedrec.privacy.accounting import Charge
from fedrec.privacy.ledger import Ledger

path, acknowledged, kills, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
rng = random.Random(seed)
Ledger.create(path, unit="interaction", delta=1e-5, budget_epsilon=None).close()
open(acknowledged, "w").close()

def write_for_ever(number):
    out = os.open(acknowledged, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    with Ledger.open(path) as ledger:
        for step in range(100_000):
            key = f"{number}:{step}"
            ledger.reserve_many(["a", f"device:{number}"], Charge(50.0, 0.25, 1), key=key)
            os.write(out, (key + "\\n").encode())
            ledger.settle(key)

for number in range(kills):
    child = os.fork()
    if child == 0:
        write_for_ever(number)
        os._exit(0)
    before, wanted = os.path.getsize(acknowledged), rng.choice([0, 1, 1, 2, 4])  # 0: may die while opening
    while os.path.getsize(acknowledged) < before + 4 * wanted:
        time.sleep(0.001)
    time.sleep(rng.uniform(0.0, 0.03))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    Ledger.open(path).close()
"""

RIVALS = """
import os, sys
from fedrec.privacy.accounting import Charge, epsilon
from fedrec.privacy.ledger import Ledger

path, processes = sys.argv[1], int(sys.argv[2])
Ledger.create(path, unit="user", delta=1e-5, budget_epsilon=2.0).close()
epsilon([Charge(3.0, 0.5, 1)], 1e-5)  # imports what accounting needs, once for all children
children = []
for number in range(processes):
    child = os.fork()
    if child == 0:
        with Ledger.open(path) as ledger:
            for step in range(8):
                ledger.reserve_many(["federation"], Charge(3.0, 0.5, 1), key=f"{number}:{step}")
        os._exit(0)
    children.append(child)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


BOUNDARIES = Path(__file__).with_name("kill_at_boundaries.py")


def python(*arguments):
    command = [sys.executable, "-W", "ignore::DeprecationWarning", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run(script, *arguments):
    python("-c", script, *arguments)


@pytest.mark.integration
def test_no_acknowledged_debit_is_lost_to_kill_9(tmp_path):
    path, acknowledged, kills = tmp_path / "ledger.sqlite", tmp_path / "acknowledged", 30
    run(CRASHES, path, acknowledged, kills, 1)
    keys = acknowledged.read_text().split()
    assert len(set(keys)) == len(keys) > kills
    with Ledger.open(path) as ledger:
        written = ledger.history("a")[0].steps
        assert len(keys) <= written <= len(keys) + kills  # a crash may waste one debit each, never forget one
        assert ledger.spent("a") == epsilon([Charge(50.0, 0.25, written)], 1e-5)
        for number in range(kills):
            mine = sum(key.startswith(f"{number}:") for key in keys)
            steps = sum(charge.steps for charge in ledger.history(f"device:{number}"))
            assert mine <= steps <= mine + 1


@pytest.mark.integration
def test_rival_processes_never_overspend(tmp_path):
    path = tmp_path / "ledger.sqlite"
    run(RIVALS, path, 3)
    with Ledger.open(path) as ledger:
        steps = ledger.history("federation")[0].steps
        assert steps < 24
        assert epsilon([Charge(3.0, 0.5, steps)], 1e-5) <= 2.0 < epsilon([Charge(3.0, 0.5, steps + 1)], 1e-5)


@pytest.mark.integration
@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"), reason="traces with ptrace"
)
def test_killed_before_any_write_it_forgets_nothing_and_goes_on(tmp_path):
    """One kill for every system call that writes, syncs, creates, renames, truncates or deletes a file."""
    outcomes = json.loads(python(BOUNDARIES, tmp_path))
    if outcomes is None:
        pytest.skip("this system does not let a process trace its child")
    assert len(outcomes["spend"]) > 40
    for left in outcomes["spend"]:
        assert "error" not in left
        debits = [key for key in left["told"] if not key.startswith("settled")]
        # One is from before; what was told stands; what was not told may stand, and is then wasted.
        assert 1 + len(debits) <= left["steps"] <= 1 + len(debits) + 1
        assert set(left["settled"]) >= {"first", *(key.split()[1] for key in left["told"] if key.startswith("settled"))}
        assert left["after"] == left["steps"] + 1
    told = [len(left["told"]) for left in outcomes["spend"]]
    assert told == sorted(told)
    assert set(told) == {0, 1, 2, 3, 4}
    wasted = [left for left in outcomes["spend"] if "second" not in left["told"] and left["steps"] == 2]
    assert wasted  # the boundaries between the debit and its acknowledgement are among them
    created = [left["there"] for left in outcomes["create"]]
    assert len(created) > 30
    assert created == sorted(created)
    assert set(created) == {False, True}
    assert all({"ledger.sqlite", "ledger.sqlite.witness"} <= set(left["litter"]) for left in outcomes["create"])
