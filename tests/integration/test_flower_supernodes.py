"""A SuperLink and two SuperNodes, real processes: each hosts its half of the devices, and it is the same federation."""

import json
from collections import Counter

import fedrec
import pytest
from fedrec.privacy._accounts import AccountSet
from same_run import BOTH, CENTRAL, NODES, assert_a_whole_run, assert_the_same, ledgers, rows

pytestmark = pytest.mark.integration

PERSONAL = BOTH.updated(server__rounds=3)
ONE_ROUND = CENTRAL.updated(server__rounds=1, server__warm_start="none")
ORDER = ("Receiving: train message", "Start `flwr-clientapp` process", "Sending: train message")
"""What a SuperNode's log says of an order, from its arrival to its answer."""


def on_supernodes(deployment, config, run_dir, numbers):
    """A run on SuperNodes that are each told of a number of nodes."""
    deployment.start(*(f"partition-id={place} num-partitions={nodes}" for place, nodes in enumerate(numbers)))
    return deployment.run(config.flat() | {"fedrec-run-dir": str(run_dir)})


def debits(run_dir):
    """(Node directory, device) -> in how many rounds the device was debited there."""
    found = Counter()
    for path, entries in ledgers(run_dir).items():
        if path.startswith("nodes/"):
            bodies = [json.loads(body) for _, body, _ in entries]
            sets = [AccountSet.from_record(body["accounts"]) for body in bodies if body["kind"] == "reserve"]
            found.update((path.split("/")[1], name) for accounts in sets for name in accounts)
    return found


def test_two_supernodes_and_this_process_hold_the_same_federation(deployment, tmp_path):
    """Every order is a process of its own: accounts and personal parameters of the devices last between them."""
    here, there = fedrec.simulate(PERSONAL, out=tmp_path / "here"), tmp_path / "there"
    ended = on_supernodes(deployment, PERSONAL, there, (NODES, NODES))
    assert_a_whole_run(deployment, ended, there, here)
    logs = [deployment.log(f"supernode-{place}") for place in range(NODES)]
    assert [[log.count(step) for step in ORDER] for log in logs] == [[PERSONAL.server.rounds] * len(ORDER)] * NODES
    found = debits(there)
    halves = [{device for directory, device in found if directory == f"node-{place}-of-2"} for place in range(NODES)]
    assert all(halves)
    assert not set.intersection(*halves)
    assert found.total() == sum(row["participants"] for row in rows(there)[0])


def test_a_supernode_that_was_told_another_number_of_nodes_fails_alone(deployment, tmp_path):
    """Its log says why, its devices are missing, the other half counts; the comparison sees the difference."""
    here, there = fedrec.simulate(ONE_ROUND, out=tmp_path / "here"), tmp_path / "there"
    ended = on_supernodes(deployment, ONE_ROUND, there, (NODES, NODES + 1))
    assert ended.status == "finished:completed", ended.log
    assert deployment.settle() == []
    assert "expected an order for one of 3 nodes, got devices of 3 of them" in deployment.log("supernode-1")
    right, wrong = (deployment.node_id(f"supernode-{place}") for place in range(NODES))
    assert [path.name for path in there.glob("nodes/*")] == [f"node-{int(wrong < right)}-of-2"]
    (row,), (whole,) = rows(there)[0], rows(here.directory)[0]
    assert row["quarantined"] == {"error:WireError": 1}
    assert 0 < row["participants"] < whole["participants"]
    with pytest.raises(AssertionError, match="phi/"):
        assert_the_same(here.directory, there)
