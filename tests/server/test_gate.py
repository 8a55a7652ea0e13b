import itertools
from io import BytesIO

import federation_world as world
import numpy as np
import pytest
import torch
from fedrec.client import wire
from fedrec.client.compression import sent
from fedrec.client.wire import TrainReply, encode_reply
from fedrec.privacy.mechanisms import Sensitivity
from fedrec.server.gate import ReplyGate
from flwr.app import Array, ConfigRecord, Error, MetricRecord, RecordDict
from flwr.app.message.message import make_message
from flwr.app.metadata import Metadata

BOUND = Sensitivity(world.CLIP, world.SCALES)
ORDERED = {5: 4, 6: 3, 7: 1}


def gate(**changes):
    values = {"round": 3, "schema": "world-1", "phi": world.phi0(), "ordered": ORDERED, "bound": BOUND}
    return ReplyGate(**(values | changes))


def message(content, node=5):
    return make_message(Metadata(1, "m", node, 1, "o", "3", 0.0, 1e12, "train"), content)


def records(devices=4, **changes):
    values = {"update": world.clipped_sum(range(devices), 3, world.phi0()), "devices": devices}
    return encode_reply(TrainReply(**({"round": 3, "schema": "world-1"} | values | changes)))


def stack(places=(0, 1, 3), **changes):
    rows = [world.clipped_sum([place], 3, world.phi0()) for place in places]
    update = {name: torch.stack([row[name] for row in rows]) for name in world.SHAPES}
    values = {"update": update, "devices": len(places), "rows": np.array(places)}
    return records(**(values | changes))


def bad_row(**row):
    update = wire.decode_named(stack()["update"])
    for name, value in row.items():
        update[name].reshape(3, -1)[1] = value
    return stack(update=update)


def with_update(**tensors):
    return records(update=world.clipped_sum(range(4), 3, world.phi0()) | tensors)


def changed(content, change):
    change(content)
    return content


def double(content):
    old = content["update"]["bias"]
    content["update"]["bias"] = Array("float64", old.shape, old.stype, old.data)


def without(name):
    update = world.clipped_sum(range(4), 3, world.phi0())
    del update[name]
    return records(update=update)


def coded(encoding, **changes):
    """A single device's update in codes."""
    update, packed = sent(world.clipped_sum([1], 3, world.phi0()), encoding, BOUND)
    return records(update=update, packed=packed, devices=1, **changes)


def spoiled(content):
    """Codes whose scales are a hundred times too large."""
    for name, array in content["scales"].items():
        content["scales"][name] = Array(np.float32(100) * np.load(BytesIO(array.data)))


BAD = {
    "codes that nobody asked for": (coded("float16"), "encoding"),
    "NaN": (with_update(temperature=torch.tensor(float("nan"))), "non-finite"),
    "inf": (with_update(bias=torch.full((5,), float("-inf"))), "non-finite"),
    "wrong shape": (with_update(bias=torch.zeros(5, 1)), "shapes"),
    "wrong dtype": (changed(records(), double), "wire"),
    "extra name": (with_update(extra=torch.zeros(1)), "names"),
    "missing name": (without("bias"), "names"),
    "stale round": (records(round=2), "round"),
    "future round": (records(round=4), "round"),
    "100 x norm": (
        records(update={k: 100 * v for k, v in world.clipped_sum(range(4), 3, world.phi0()).items()}),
        "norm",
    ),
    "wrong schema": (records(schema="world-2"), "schema"),
    "wrong version": (changed(records(), lambda r: r["fedrec"].update(version=1)), "wire-version"),
    "too many devices": (records(devices=5), "devices"),
    "too many refused": (records(refused=1), "devices"),
    "an update of no devices": (records(devices=0, update=world.clipped_sum([1], 3, world.phi0())), "norm"),
    "num-examples": (changed(records(), lambda r: r["fedrec"].update({"num-examples": 10**9})), "wire"),
    "a metric record": (changed(records(), lambda r: r.update(m=MetricRecord({"loss": 0.1}))), "wire"),
    "nothing": (RecordDict(), "wire"),
    "something else": (RecordDict({"fedrec": ConfigRecord({"hello": 1})}), "wire-version"),
    "bits that nobody asked for": (records(unclipped=1), "unclipped"),
    "more bits than devices": (changed(records(unclipped=4), lambda r: r["fedrec"].update(unclipped=5)), "wire"),
    "client error": (
        encode_reply(TrainReply(3, "world-1", "error", reason="OSError")),
        "error:OSError",
    ),
    "client of another version": (
        encode_reply(TrainReply(3, "", "error", reason="wire-version")),
        "wire-version",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_reply_is_counted_and_the_others_go_on(name):
    content, reason = BAD[name]
    verdict = gate().inspect([message(content), message(records(3), node=6)])
    assert verdict.quarantined == {reason: 1}
    assert verdict.devices == 3
    assert len(verdict.admitted) == 1


def test_good_replies_pass():
    verdict = gate().inspect([message(records()), message(records(2, refused=1), node=6)])
    assert (verdict.devices, verdict.refused, verdict.quarantined) == (6, 1, {})


@pytest.mark.parametrize("encoding", ["float16", "int8"])
def test_codes_pass_where_they_were_asked_for(encoding):
    asked = gate(encoding=encoding)
    verdict = asked.inspect([message(coded(encoding)), message(records(2), node=6)])  # a cohort's sum is float32
    assert (verdict.devices, verdict.quarantined) == (3, {})
    other = "int8" if encoding == "float16" else "float16"
    assert asked.inspect([message(coded(other))]).quarantined == {"encoding": 1}


def test_what_codes_stand_for_is_held_to_the_clip():
    content = coded("int8")
    spoiled(content)
    assert gate(encoding="int8").inspect([message(content)]).quarantined == {"norm": 1}


def test_where_the_clip_adapts_a_reply_without_its_bits_does_not_count():
    verdict = gate(bits=True).inspect([message(records(unclipped=3)), message(records(2, unclipped=0), node=6)])
    assert (verdict.devices, verdict.unclipped, verdict.quarantined) == (6, 3, {})
    verdict = gate(bits=True).inspect([message(records()), message(records(2, unclipped=2), node=6)])
    assert (verdict.devices, verdict.unclipped, verdict.quarantined) == (2, 2, {"unclipped": 1})


def test_a_stack_passes_where_it_was_asked_for_and_says_who_sent_it():
    verdict = gate(stacked=True).inspect([message(stack()), message(stack((1, 2)), node=6)])
    assert (verdict.devices, verdict.nodes, verdict.quarantined) == (5, (5, 6), {})
    assert [reply.rows.tolist() for reply in verdict.admitted] == [[0, 1, 3], [1, 2]]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"temperature": float("nan")}, "row:non-finite"),
        ({"bias": float("inf")}, "row:non-finite"),
        ({"items": 100.0}, "row:norm"),
        ({"bias": 0.5 * world.CLIP * 1.0002}, "row:norm"),
    ],
)
def test_a_bad_row_is_left_out_and_its_neighbours_count(row, reason):
    good = wire.decode_named(stack()["update"])
    verdict = gate(stacked=True).inspect([message(bad_row(**row)), message(stack((0,)), node=7)])
    assert verdict.quarantined == {reason: 1}
    assert verdict.devices == 3
    kept = verdict.admitted[0]
    assert (kept.rows.tolist(), kept.devices) == ([0, 3], 2)
    for name, value in kept.update.items():
        assert torch.equal(value, good[name][[0, 2]])


def test_a_stack_without_a_good_row_is_not_admitted():
    nothing = {name: torch.full((1, *shape), float("nan")) for name, shape in world.SHAPES.items()}
    verdict = gate(stacked=True).inspect([message(stack((0,), update=nothing))])
    assert (verdict.admitted, verdict.nodes, verdict.quarantined) == ((), (), {"row:non-finite": 1})


STACK_FAULTS = {
    "a sum": (records(), "stacked"),
    "rows of devices that nobody ordered": (stack((0, 4)), "rows"),
    "more rows than were ordered": (stack((0, 1, 2, 3, 4)), "devices"),
    "rows of another shape": (
        stack((0,), update=wire.decode_named(stack((0,))["update"]) | {"bias": torch.zeros(1, 4)}),
        "shapes",
    ),
    "rows that do not go together": (changed(stack(), lambda r: r["fedrec"].update(devices=2)), "wire"),
}


@pytest.mark.parametrize("name", STACK_FAULTS)
def test_a_stack_that_does_not_fit_its_order_is_set_aside(name):
    content, reason = STACK_FAULTS[name]
    verdict = gate(stacked=True).inspect([message(content), message(stack((1,)), node=6)])
    assert (verdict.quarantined, verdict.devices) == ({reason: 1}, 1)


def test_a_stack_that_nobody_asked_for_is_set_aside():
    assert gate().inspect([message(stack())]).quarantined == {"stacked": 1}


def test_the_error_message_of_flower_is_set_aside():
    error = make_message(Metadata(1, "m", 5, 1, "o", "3", 0.0, 1e12, "train"), error=Error(2, "crash"))
    assert gate().inspect([error]).quarantined == {"flower-error": 1}


def test_a_node_without_an_order_is_not_heard():
    assert gate().inspect([message(records(1), node=99)]).quarantined == {"unordered-node": 1}


def test_a_node_that_answers_twice_counts_with_neither():
    verdict = gate().inspect([message(records()), message(records(1)), message(records(3), node=6)])
    assert verdict.quarantined == {"duplicate-node": 2}
    assert verdict.devices == 3


def test_a_replayed_reply_of_an_earlier_round_does_not_count():
    old = message(records())
    assert gate().inspect([old]).devices == 4
    assert gate(round=4).inspect([old]).quarantined == {"round": 1}


def test_a_refusal_is_no_fault():
    refusal = encode_reply(TrainReply(3, "world-1", "refused", refused=4))
    verdict = gate().inspect([message(refusal)])
    assert (verdict.refused, verdict.devices, verdict.quarantined, verdict.admitted) == (4, 0, {}, ())


def test_the_bound_is_measured_in_scaled_space_with_a_hair_of_slack():
    """bias has scale 1/2: an entry of 0.2 there is as long as 0.4 elsewhere, which is the clip."""
    for name, value, passes in (
        ("bias", 0.2, True),
        ("bias", 0.2001, False),
        ("temperature", 0.4, True),
        ("temperature", 0.4001, False),
    ):
        update = {key: torch.zeros_like(tensor) for key, tensor in world.phi0().items()}
        update[name].reshape(-1)[0] = value
        verdict = gate().inspect([message(records(1, update=update), node=7)])
        assert verdict.quarantined == ({} if passes else {"norm": 1}), (name, value)


def test_without_a_promise_no_norm_is_checked():
    update = {name: 1e6 * torch.ones_like(tensor) for name, tensor in world.phi0().items()}
    assert gate(bound=None).inspect([message(records(update=update))]).devices == 4


def test_the_order_of_arrival_does_not_matter():
    replies = [message(records()), message(records(3), node=6), message(records(1), node=7), message(RecordDict(), 8)]
    verdicts = [gate().inspect(order) for order in itertools.permutations(replies)]
    for verdict in verdicts:
        assert [reply.devices for reply in verdict.admitted] == [4, 3, 1]
        assert verdict.quarantined == {"unordered-node": 1}
