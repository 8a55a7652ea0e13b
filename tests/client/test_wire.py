import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from fedrec._streams import torch_stream
from fedrec.client import compression, wire
from fedrec.client.app import make_client_app
from fedrec.client.compression import pack
from fedrec.client.wire import TrainOrder, TrainReply, WireVersionError
from fedrec.errors import PrivacyError, WireError
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.app.message.message import make_message
from flwr.app.metadata import Metadata
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from hypothesis import given, settings
from hypothesis import strategies as st

GOLDEN = Path(__file__).with_name("wire_v3.json")


def order(**changes):
    phi = {"items": torch.arange(6, dtype=torch.float32).reshape(2, 3), "temperature": torch.tensor(0.5)}
    values = {"round": 3, "phi": phi, "schema": "s1", "devices": np.array([0, 4, 9]), "run": "r1"}
    return TrainOrder(**(values | changes))


def reply(**changes):
    update = {"items": torch.full((2, 3), -1.5), "temperature": torch.tensor(2.0)}
    values = {"round": 3, "schema": "s1", "update": update, "devices": 2, "refused": 1}
    return TrainReply(**(values | changes))


def stack(**changes):
    update = {"items": torch.arange(12, dtype=torch.float32).reshape(2, 2, 3), "temperature": torch.tensor([0.5, 2.0])}
    return reply(**({"update": update, "rows": np.array([0, 2])} | changes))


def coded(encoding, *, stacked=False):
    """A reply of one device, or of a stack, whose numbers lie on the grid."""
    packed = pack(reply().update, encoding, None, torch_stream(0, "codes"))
    if not stacked:
        return reply(devices=1, packed=packed)
    return stack(devices=1, update=packed.stack().unpack(), packed=packed.stack(), rows=np.array([2]))


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def layout(records):
    """Every record, field and byte of a message, readable and exact."""
    shown = {}
    for name, record in records.items():
        if isinstance(record, ConfigRecord):
            shown[name] = {k: [type(v).__name__, v.hex() if isinstance(v, bytes) else v] for k, v in record.items()}
        else:
            shown[name] = {k: [a.dtype, list(a.shape), a.stype, a.data.hex()] for k, a in record.items()}
    return shown


def messages():
    return {
        "order": wire.encode_order(order()),
        "order to a single device": wire.encode_order(order(devices=None)),
        "order with a clip": wire.encode_order(order(clip=0.1)),
        "order of stacked updates": wire.encode_order(order(stacked=True)),
        "order of codes": wire.encode_order(order(devices=None, encoding="int8")),
        "reply": wire.encode_reply(reply()),
        "reply with bits": wire.encode_reply(reply(unclipped=1)),
        "reply of stacked updates": wire.encode_reply(stack()),
        "reply in 8 bits": wire.encode_reply(coded("int8")),
        "reply in 16 bits": wire.encode_reply(coded("float16")),
        "stacked reply in 8 bits": wire.encode_reply(coded("int8", stacked=True)),
        "refusal": wire.encode_reply(reply(status="refused", update={}, devices=0, refused=3)),
        "error": wire.encode_reply(TrainReply(0, "", "error", reason="wire-version")),
        "hello": wire.encode_hello(),
    }


def test_the_layout_is_the_golden_one():
    assert {name: layout(records) for name, records in messages().items()} == json.loads(GOLDEN.read_text())


def test_orders_and_replies_come_back_as_they_went():
    for sent in (order(), order(devices=None), order(clip=0.1), order(stacked=True), order(encoding="float16")):
        got = wire.decode_order(wire.encode_order(sent))
        assert same(got.phi, sent.phi)
        assert got.devices is None if sent.devices is None else got.devices.tolist() == [0, 4, 9]
        assert (got.round, got.schema, got.run, got.clip, got.stacked) == (3, "s1", "r1", sent.clip, sent.stacked)
        assert got.encoding == sent.encoding
    for sent in (
        reply(),
        reply(unclipped=0),
        stack(),
        reply(status="refused", update={}, devices=0),
        TrainReply(0, "", "error", reason="OSError"),
    ):
        got = wire.decode_reply(wire.encode_reply(sent))
        assert same(got.update, sent.update)
        assert replace(got, update={}, rows=None) == replace(sent, update={}, rows=None)
        assert got.rows is None if sent.rows is None else got.rows.tolist() == [0, 2]


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("encoding", ["float16", "int8"])
def test_codes_come_back_as_what_they_stand_for(encoding, stacked):
    sent = coded(encoding, stacked=stacked)
    got = wire.decode_reply(wire.encode_reply(sent))
    assert got.packed.encoding == encoding
    assert same(got.packed.codes, sent.packed.codes)
    assert same(got.packed.scales, sent.packed.scales)
    assert same(got.update, sent.packed.unpack())
    assert got.update["items"].shape == ((1, 2, 3) if stacked else (2, 3))
    expected = sent.update["items"].reshape(2, 3)
    torch.testing.assert_close(got.update["items"].reshape(2, 3), expected, rtol=1e-6, atol=0)


@settings(max_examples=30, deadline=None)
@given(
    shapes=st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=1, max_size=8),
        st.lists(st.integers(0, 4), max_size=3),
        max_size=4,
    ),
    seed=st.integers(0, 1000),
)
def test_any_named_tensors_come_back_to_the_bit(shapes, seed):
    generator = torch_stream(seed, "wire")
    named = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    assert same(wire.decode_named(wire.encode_named(named)), named)


def test_non_finite_numbers_travel_for_the_gate_to_see():
    got = wire.decode_named(wire.encode_named({"w": torch.tensor([float("nan"), float("inf")])}))
    assert got["w"].isnan().tolist() == [True, False]


def test_a_message_survives_flowers_own_serialisation():
    records = wire.encode_order(order())
    contents = {key: item.deflate() for key, item in get_all_nested_objects(records).items()}
    back = inflate_object_from_contents(records.object_id, contents)
    assert same(wire.decode_order(back).phi, order().phi)


def test_decoded_tensors_share_no_memory_with_the_message():
    records = wire.encode_order(order())
    wire.decode_order(records).phi["items"].fill_(7.0)
    assert same(wire.decode_order(records).phi, order().phi)


def test_a_reply_says_nothing_private():
    fields = wire.encode_reply(reply())
    assert sorted(fields) == ["fedrec", "update"]
    named = ["devices", "kind", "refused", "round", "schema", "status", "version"]
    assert sorted(fields["fedrec"]) == named
    assert sorted(wire.encode_reply(reply(unclipped=1))["fedrec"]) == sorted([*named, "unclipped"])
    assert sorted(wire.encode_reply(stack())["fedrec"]) == sorted([*named, "rows"])


def broken(encode, change):
    records = encode()
    change(records)
    return records


def raw(name, value):
    def change(records):
        records[name] = value

    return change


def array(records, name="items", **fields):
    record = next(value for value in records.values() if isinstance(value, ArrayRecord))
    old = record[name]
    values = {"dtype": old.dtype, "shape": old.shape, "stype": old.stype, "data": old.data} | fields
    record[name] = Array(**values)


def npy(values, **options):
    stream = BytesIO()
    np.lib.format.write_array(stream, values, allow_pickle=False, **options)
    return stream.getvalue()


HUGE = npy(np.zeros((2, 3), np.float32)).replace(b"(2, 3), }", b"(1<<40,)}"[:9])
LYING = npy(np.zeros((2, 3), np.float32)).replace(b"(2, 3), } ", b"(2, 300),}")
REPLY_FAULTS = {
    "no fields": (lambda r: r.pop("fedrec"), "expected a config record 'fedrec'"),
    "fields of another kind": (raw("fedrec", MetricRecord({"version": 3})), "expected a config record"),
    "an order": (lambda r: r["fedrec"].update(kind="order"), "of kind 'reply', got 'order'"),
    "an extra record": (raw("metrics", MetricRecord({"loss": 1.0})), r"got \['metrics'\]"),
    "an extra field": (lambda r: r["fedrec"].update({"num-examples": 7}), "'num-examples' unknown"),
    "a missing field": (lambda r: r["fedrec"].pop("devices"), "'devices' missing"),
    "a float count": (lambda r: r["fedrec"].update(devices=2.0), "expected devices to be int, got float"),
    "a bool count": (lambda r: r["fedrec"].update(devices=True), "expected devices to be int, got bool"),
    "a negative count": (lambda r: r["fedrec"].update(devices=-2), "expected devices >= 0, got -2"),
    "more unclipped than devices": (lambda r: r["fedrec"].update(unclipped=3), "from 0 to 2 devices, got 3"),
    "fewer unclipped than none": (lambda r: r["fedrec"].update(unclipped=-1), "from 0 to 2 devices, got -1"),
    "a fraction unclipped": (lambda r: r["fedrec"].update(unclipped=0.5), "expected unclipped to be int, got float"),
    "rows of fewer devices than the sum has": (lambda r: r["fedrec"].update(rows=bytes(8)), "of 2 devices, got 1"),
    "rows out of order": (lambda r: r["fedrec"].update(rows=bytes(16)), r"increasing device indices.*\[0, 0\]"),
    "half a row": (lambda r: r["fedrec"].update(rows=bytes(9)), "got 9 bytes"),
    "rows of a sum of another size": (
        lambda r: r["fedrec"].update(rows=np.arange(3).tobytes(), devices=3),
        "expected 3 rows of 'items', got shape",
    ),
    "rows of a number": (
        lambda r: r["fedrec"].update(rows=np.arange(2).tobytes()),
        r"expected 2 rows of 'temperature', got shape \(\)",
    ),
    "an unknown status": (lambda r: r["fedrec"].update(status="fine"), "no other, got status 'fine'"),
    "a chatty reason": (lambda r: r["fedrec"].update(reason="user 7 watched X"), "one word"),
    "an update with an error": (lambda r: r["fedrec"].update(status="error"), "no other, got status 'error'"),
    "no update with ok": (lambda r: r.pop("update"), "with status ok"),
    "an update of another kind": (raw("update", ConfigRecord({"items": 1})), "expected an array record 'update'"),
    "doubles": (lambda r: array(r, dtype="float64", data=npy(np.zeros((2, 3)))), "got float64"),
    "hidden doubles": (lambda r: array(r, data=npy(np.zeros((2, 3)))), "to be float32"),
    "pickle": (lambda r: array(r, stype="pickle"), "as pickle"),
    "another shape inside": (lambda r: array(r, data=npy(np.zeros((3, 2), np.float32))), r"float32 \(2, 3\), got"),
    "a truncated array": (lambda r: array(r, data=r["update"]["items"].data[:-1]), "hold 6 numbers, got 23 bytes"),
    "an empty array": (lambda r: array(r, data=b""), "in numpy's file format, got ValueError"),
    "a header that is code": (lambda r: array(r, data=HUGE), "in numpy's file format, got"),
    "a header that lies": (lambda r: array(r, shape=(2, 300), data=LYING), "hold 600 numbers, got 24 bytes"),
    "Fortran order": (lambda r: array(r, data=npy(np.asfortranarray(np.ones((2, 3), np.float32)))), "float32"),
    "numpy format 2": (lambda r: array(r, data=npy(np.ones((2, 3), np.float32), version=(2, 0))), "numpy"),
}


@pytest.mark.parametrize("name", REPLY_FAULTS)
def test_a_broken_reply_is_one_sentence(name):
    change, sentence = REPLY_FAULTS[name]
    with pytest.raises(WireError, match=sentence) as caught:
        wire.decode_reply(broken(lambda: wire.encode_reply(reply()), change))
    assert "\n" not in str(caught.value)


CODE_FAULTS = {
    "no scales": (lambda r: r.pop("scales"), "scales with codes and with nothing else"),
    "scales of no codes": (lambda r: r["fedrec"].pop("encoding"), "scales with codes and with nothing else"),
    "codes of another encoding": (lambda r: r["fedrec"].update(encoding="float16"), "to be float16.*got int8"),
    "an unknown encoding": (lambda r: r["fedrec"].update(encoding="pickle"), "got 'pickle'"),
    "a scale too few": (lambda r: r["scales"].pop("items"), "a scale for each block of 64 codes"),
    "a scale too many": (
        lambda r: r["scales"].update(items=Array(np.ones(2, np.float32))),
        "a scale for each block of 64 codes",
    ),
    "codes of a sum": (lambda r: r["fedrec"].update(devices=2), "codes of one device's update, got.* a sum over 2"),
    "a refusal with codes": (lambda r: r["fedrec"].update(status="refused", devices=0), "no other, got status"),
}


@pytest.mark.parametrize("name", CODE_FAULTS)
def test_broken_codes_are_one_sentence(name):
    change, sentence = CODE_FAULTS[name]
    with pytest.raises(WireError, match=sentence):
        wire.decode_reply(broken(lambda: wire.encode_reply(coded("int8")), change))


ORDER_FAULTS = {
    "round 0": (lambda r: r["fedrec"].update(round=0), "expected round >= 1, got 0"),
    "clip 0": (lambda r: r["fedrec"].update(clip=0.0), "finite clip > 0, got 0.0"),
    "clip NaN": (lambda r: r["fedrec"].update(clip=float("nan")), "finite clip > 0, got nan"),
    "a clip that is no number": (lambda r: r["fedrec"].update(clip="1"), "expected clip to be float, got str"),
    "stacked that is false": (lambda r: r["fedrec"].update(stacked=False), "true or left out, got false"),
    "an unknown encoding": (lambda r: r["fedrec"].update(encoding="int4"), "float16 or int8, or none.*got 'int4'"),
    "an encoding that says nothing": (lambda r: r["fedrec"].update(encoding="float32"), "none for float32, got"),
    "stacked that is a number": (lambda r: r["fedrec"].update(stacked=1), "expected stacked to be bool, got int"),
    "no phi": (lambda r: r.pop("phi"), "expected an array record 'phi'"),
    "half an index": (lambda r: r["fedrec"].update(devices=b"1234567"), "got 7 bytes"),
    "a device twice": (lambda r: r["fedrec"].update(devices=bytes(16)), r"increasing device indices.*\[0, 0\]"),
    "no device": (lambda r: r["fedrec"].update(devices=b""), "at least one"),
    "a negative device": (lambda r: r["fedrec"].update(devices=b"\xff" * 8), r"got \[-1\]"),
}


@pytest.mark.parametrize("name", ORDER_FAULTS)
def test_a_broken_order_is_one_sentence(name):
    change, sentence = ORDER_FAULTS[name]
    with pytest.raises(WireError, match=sentence):
        wire.decode_order(broken(lambda: wire.encode_order(order()), change))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: wire.encode_order(order(phi={"w": torch.zeros(2, dtype=torch.float64)})), "float64 for 'w'"),
        (lambda: wire.encode_order(order(devices=np.array([3, 1]))), "increasing"),
        (lambda: wire.encode_order(order(run="")), "expected run to be set"),
        (lambda: wire.encode_reply(reply(status="refused")), "nothing to be summed"),
        (lambda: wire.encode_reply(reply(reason="no, because")), "one word"),
        (lambda: wire.encode_reply(TrainReply(3, "s1", "refused", reason="consent")), "status error only"),
        (lambda: wire.encode_reply(reply(devices=-1)), ">= 0"),
        (lambda: wire.encode_reply(reply(status="late")), "got 'late'"),
        (lambda: wire.encode_reply(reply(unclipped=3)), "from 0 to 2 devices, got 3"),
        (lambda: wire.encode_reply(reply(unclipped=True)), "got True"),
        (lambda: wire.encode_reply(TrainReply(3, "s1", "refused", unclipped=0)), "nothing to be summed"),
        (lambda: wire.encode_order(order(clip=float("inf"))), "finite clip > 0, got inf"),
        (lambda: wire.encode_reply(stack(rows=np.array([2, 0]))), "increasing"),
        (lambda: wire.encode_reply(stack(devices=3)), "each of 3 devices, got 2"),
        (lambda: wire.encode_reply(reply(rows=np.array([0, 1]))), "got shape ()"),
        (lambda: wire.encode_reply(TrainReply(3, "s1", "refused", rows=np.array([0]))), "nothing to be summed"),
    ],
)
def test_nothing_malformed_is_sent(make, sentence):
    with pytest.raises(WireError, match=sentence):
        make()


def test_another_version_is_told_apart():
    records = wire.encode_reply(reply())
    records["fedrec"]["version"] = 4
    records["from the future"] = MetricRecord({"x": 1})
    with pytest.raises(WireVersionError, match="expected wire version 3, got 4; update the older side"):
        wire.decode_reply(records)
    hello = wire.encode_hello()
    assert wire.decode_hello(hello) == 3
    hello["fedrec"]["version"] = 9
    assert wire.decode_hello(hello) == 9
    with pytest.raises(WireError, match="expected a handshake"):
        wire.decode_hello(wire.encode_reply(reply()))


class Echo:
    def __init__(self):
        self.rounds = []

    def train(self, order):
        self.rounds.append(order.round)
        if order.round == 13:
            raise PrivacyError("device 7 of Ada Lovelace")
        return TrainReply(order.round, order.schema, update=order.phi, devices=1)


def ask(app, records, node=5, kind="train"):
    metadata = Metadata(1, "m1", 1, node, "", "3", 0.0, 1e12, kind)
    context = Context(1, node, {}, RecordDict(), {})
    return app(make_message(metadata, records), context)


def test_the_client_app_answers_orders_and_keeps_its_participant():
    built = []

    def factory(context):
        built.append((context.node_id, Echo()))
        return built[-1][1]

    app = make_client_app(factory)
    for number in (1, 2):
        answer = ask(app, wire.encode_order(order(round=number)))
        assert isinstance(answer, Message)
        got = wire.decode_reply(answer.content)
        assert (got.round, got.status, got.devices) == (number, "ok", 1)
        assert same(got.update, order().phi)
    ask(app, wire.encode_order(order()), node=6)
    assert [node for node, _ in built] == [5, 6]
    assert built[0][1].rounds == [1, 2]


def test_a_single_device_is_a_stack_of_one_where_a_stack_is_asked_for():
    app = make_client_app(lambda context: Echo())
    got = wire.decode_reply(ask(app, wire.encode_order(order(stacked=True, devices=None))).content)
    assert (got.status, got.devices, got.rows.tolist()) == ("ok", 1, [0])
    assert same(got.update, {name: tensor[None] for name, tensor in order().phi.items()})


def test_codes_of_a_single_device_are_stacked_too():
    class Coded(Echo):
        def train(self, order):
            update, packed = compression.sent(order.phi, order.encoding, None, torch_stream(0, "codes"))
            return TrainReply(order.round, order.schema, update=update, packed=packed, devices=1)

    app = make_client_app(lambda context: Coded())
    asked = order(stacked=True, devices=None, encoding="int8")
    got = wire.decode_reply(ask(app, wire.encode_order(asked)).content)
    assert (got.packed.encoding, got.rows.tolist()) == ("int8", [0])
    torch.testing.assert_close(got.update["items"][0], order().phi["items"], rtol=0, atol=5 / 127)


@pytest.mark.parametrize(("asked", "answer"), [(True, reply()), (False, stack())])
def test_a_cohort_that_answers_with_the_other_kind_is_an_error(asked, answer, caplog):
    class Other:
        def train(self, order):
            return answer

    app = make_client_app(lambda context: Other())
    got = wire.decode_reply(ask(app, wire.encode_order(order(stacked=asked))).content)
    assert (got.status, got.reason) == ("error", "WireError")
    assert f"expected {'stacked updates' if asked else 'a sum'}, got an answer of 2 devices" in caplog.text


def test_a_failure_on_the_device_is_told_by_class_name_only(caplog):
    got = wire.decode_reply(ask(make_client_app(lambda context: Echo()), wire.encode_order(order(round=13))).content)
    assert (got.round, got.schema, got.status, got.reason) == (13, "s1", "error", "PrivacyError")
    assert got.update == {}
    assert "Ada" in caplog.text


def test_a_failing_factory_and_a_bad_reply_are_errors_too():
    def failing(context):
        raise OSError("store")

    class Mute:
        def train(self, order):
            return TrainReply(order.round, order.schema, update={"w": torch.zeros(1, dtype=torch.float64)})

    for factory, reason in ((failing, "OSError"), (lambda context: Mute(), "WireError")):
        got = wire.decode_reply(ask(make_client_app(factory), wire.encode_order(order())).content)
        assert (got.status, got.reason) == ("error", reason)


def test_an_order_of_another_version_gets_a_typed_answer():
    records = wire.encode_order(order())
    records["fedrec"]["version"] = 2
    got = wire.decode_reply(ask(make_client_app(lambda context: Echo()), records).content)
    assert (got.round, got.status, got.reason) == (3, "error", "wire-version")


@pytest.mark.parametrize("kind", ["query", "evaluate"])
def test_the_handshake_is_answered(kind):
    answer = ask(make_client_app(lambda context: Echo()), wire.encode_hello(), kind=kind)
    assert wire.decode_hello(answer.content) == wire.WIRE_VERSION
