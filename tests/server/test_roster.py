import numpy as np
import pytest
from fedrec.errors import RunError
from fedrec.server.roster import Roster
from hypothesis import given
from hypothesis import strategies as st


@given(
    population=st.integers(2, 60),
    nodes=st.sets(st.integers(2, 10**9), min_size=1, max_size=9),
    data=st.data(),
)
def test_every_drawn_device_has_one_host_whatever_the_order_of_nodes(population, nodes, data):
    drawn = np.array(sorted(data.draw(st.sets(st.integers(0, population - 1)))), dtype=np.int64)
    shares = Roster(population).assign(drawn, data.draw(st.permutations(sorted(nodes))))
    assert list(shares) == sorted(shares)
    assert sorted(np.concatenate([*shares.values(), np.array([], int)]).tolist()) == drawn.tolist()
    for place, node in enumerate(sorted(nodes)):
        assert all(device % len(nodes) == place for device in shares.get(node, []))
        assert node not in shares or shares[node].size > 0


def test_a_single_device_a_node_and_missing_nodes():
    drawn = np.array([0, 2, 5])
    assert {node: share.tolist() for node, share in Roster(6, single=True).assign(drawn, [30, 10, 20]).items()} == {
        10: [0],
        30: [2],
    }
    assert Roster(6).assign(drawn, []) == {}


@pytest.mark.parametrize("population", [0, 1])
def test_a_federation_needs_two_devices(population):
    with pytest.raises(RunError, match=f"at least 2 devices, got {population}; use a larger data set"):
        Roster(population)
