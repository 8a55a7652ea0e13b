"""Who is which device, in a deployment: decided once, kept on disk."""

import json
import logging

import federation_world as world
import numpy as np
import pytest
from fedrec.client.wire import encode_named
from fedrec.errors import RunError
from fedrec.server import strategy
from fedrec.server.places import Places
from fedrec.server.strategy import MetaStrategy
from flwr.app import ConfigRecord


def test_places_are_given_in_order_of_arrival_and_last(tmp_path):
    assert Places(tmp_path, 3).of([70, 30]) == {0: 30, 1: 70}
    again = Places(tmp_path, 3)
    assert again.of([10, 70]) == {1: 70, 2: 10}
    assert again.of([10, 30, 70]) == {0: 30, 1: 70, 2: 10}
    assert json.loads((tmp_path / "nodes.json").read_text()) == [30, 70, 10]


def test_nodes_beyond_the_population_take_no_part(tmp_path, caplog):
    places = Places(tmp_path, 2)
    places.of([5, 6])
    with caplog.at_level(logging.WARNING):
        assert places.of([4, 6, 7]) == {1: 6}
    assert caplog.messages == [
        "2 nodes take no part: all 2 places of this federation are taken; begin another with a larger population"
    ]
    assert json.loads((tmp_path / "nodes.json").read_text()) == [5, 6]


@pytest.mark.parametrize("content", ["[1, 1]", "[1, true]", '["1"]', "{}", "[1", ""])
def test_a_damaged_file_is_a_sentence(tmp_path, content):
    (tmp_path / "nodes.json").write_text(content)
    with pytest.raises(RunError, match=r"expected a list of node ids in .*nodes\.json, got something else"):
        Places(tmp_path, 2)


def test_an_order_goes_to_the_node_that_has_the_drawn_place(tmp_path, monkeypatch):
    """By their sorted ids, node 2 would be device 0 as soon as it is there."""
    there = []
    grid = world.grid(nodes=1)
    monkeypatch.setattr(grid, "get_node_ids", lambda: list(there))
    monkeypatch.setattr(strategy, "poisson_participants", lambda *_: np.array([0]))
    plan = world.plan(tmp_path, single=True, simulation=False, population=3)
    meta = MetaStrategy(world.config(), plan)
    phi = encode_named(world.phi0())
    asked = []
    for nodes in ([5], [2, 5], [2]):
        there[:] = nodes
        asked.append([message.metadata.dst_node_id for message in meta.configure_train(1, phi, ConfigRecord(), grid)])
    assert asked == [[5], [5], []]
