"""Simulated devices round their updates each by itself, before anything is summed."""

import json
from dataclasses import replace

import fedrec
import numpy as np
import policy_world as policies
import pytest
import torch
from fedrec._streams import torch_stream
from fedrec.client.compression import payload_bytes, rounded
from fedrec.client.wire import TrainOrder
from fedrec.config import Config, load_config
from fedrec.errors import WireError
from fedrec.meta.examples import stack_examples
from fedrec.privacy.mechanisms import Sensitivity
from fedrec.simulation import cohort as engine
from fedrec.simulation.cohort import Work, adapt_cohort
from fedrec.simulation.participant import Cohort
from small_world import world

LENGTHS = (5, 0, 13, 1)


def config(uplink, unit="user", **changes):
    values = {"privacy__unit": unit, "privacy__clip": 0.05, "local__steps": 3, "local__windows": 4}
    return Config().updated(server__uplink=uplink, **(values | changes))


def adapted(chosen, *, each=False):
    policy = policies.policy()
    built = [policies.examples(policy, length, seed=n, windows=4, stream=(0, 1, n)) for n, length in enumerate(LENGTHS)]
    work = Work(
        devices=np.arange(100, 100 + len(LENGTHS)),
        sizes=np.array(LENGTHS),
        examples=lambda places: stack_examples([built[place] for place in places]),
        personal={},
    )
    point = policies.parameters(policy)
    phi = {name: point[name] for name in policy.names(scope="shared")}
    return adapt_cohort(policy, phi, work, chosen, None, round_number=3, each=each)


def arrived(encoding, updates, bound):
    """The referee: every device's update for itself, from its own stream."""
    total = {name: torch.zeros(value.shape[1:], dtype=torch.float64) for name, value in updates.items()}
    for row in range(len(LENGTHS)):
        stream = torch_stream(0, 3, 100 + row, "rounding")
        own = rounded({name: value[row : row + 1] for name, value in updates.items()}, encoding, bound, stream)
        for name, value in own.items():
            total[name] += value[0].double()
    return total


@pytest.mark.parametrize("kind", ["cohort", "reference"])
@pytest.mark.parametrize("encoding", ["float16", "int8"])
def test_a_cohort_sums_what_arrives_of_each_device(encoding, kind):
    exact = adapted(config("float32", engine__kind=kind), each=True)
    expected = arrived(encoding, exact.each, Sensitivity(0.05))
    for chunk in (1, 3):
        found = adapted(config(encoding, engine__kind=kind, engine__chunk=chunk))
        assert found.each == {}
        assert found.unclipped == exact.unclipped
        for name, value in expected.items():
            step = 0.05 / 127 if encoding == "int8" else 0.05 / 1024
            assert float((found.total[name] - value).abs().amax()) <= step  # one number may fall the other way
            assert float((found.total[name] - value).abs().mean()) <= step / 50
        assert any(not torch.allclose(found.total[name], exact.total[name], rtol=0, atol=1e-7) for name in expected)


def test_each_devices_own_update_is_within_the_clip_when_it_arrives():
    found = adapted(config("int8", privacy__clip=0.01), each=True)
    norms = sum(value.double().flatten(1).square().sum(1) for value in found.each.values()).sqrt()
    assert float(norms.amax()) <= 0.01
    assert float(norms.amax()) > 0.0098


def test_under_unit_none_nothing_is_shrunk(monkeypatch):
    bounds = []
    plain = engine.rounded

    def watched(stacked, encoding, bound, generator):
        bounds.append(bound)
        return plain(stacked, encoding, bound, generator)

    monkeypatch.setattr(engine, "rounded", watched)
    adapted(config("int8", unit="none"))
    adapted(config("int8"))
    assert bounds == [None] * 4 + [Sensitivity(0.05)] * 4


def test_a_run_counts_its_bytes(tmp_path, small_overrides):
    for encoding in ("float32", "int8"):
        settings = load_config(None, [*small_overrides, f"server.uplink={encoding}", "server.rounds=2"])
        run = fedrec.simulate(settings, out=tmp_path / encoding)
        rows = [json.loads(line) for line in (run.directory / "metrics.jsonl").read_text().splitlines()]
        phi = {name: tuple(value.shape) for name, value in run.policy().items()}
        assert [row["bytes_down"] for row in rows] == [54 * payload_bytes(phi)] * 2
        vote = {"bias": phi["bias"]}
        assert rows[0]["bytes_up"] == 54 * payload_bytes(vote)  # a vote goes as it is
        assert rows[1]["bytes_up"] == 54 * payload_bytes(phi, encoding)
        assert run.summary["traffic"]["up"] == rows[0]["bytes_up"] + rows[1]["bytes_up"]


def test_an_order_for_another_encoding_is_refused(tmp_path):
    there = world(server__uplink="int8", server__warm_start="none")
    node = Cohort(there, tmp_path, nodes=1)
    order = TrainOrder(1, there.initialization(), there.policy.schema(), np.array([0]), "r", encoding="float16")
    with pytest.raises(WireError, match="expected an order for updates as int8 in round 1, got float16"):
        node.train(order)
    assert node.train(replace(order, encoding="int8")).devices == 1


def test_votes_are_not_rounded():
    assert [config("int8").uplink(number) for number in (1, 2)] == ["float32", "int8"]
