"""A device in a federation: what it answers equals what its cohort would, and it refuses where it must."""

import dataclasses
import subprocess
import sys

import device_world as one
import numpy as np
import pytest
import torch
from fedrec._streams import torch_stream
from fedrec.client import adaptation
from fedrec.client.app import _answer
from fedrec.client.conditions import Requirements
from fedrec.client.participant import DeviceParticipant
from fedrec.client.wire import TrainOrder, TrainReply, decode_reply, encode_order
from fedrec.errors import LedgerError, PrivacyError, WireError
from fedrec.privacy.entropy import SeededNoise
from fedrec.privacy.ledger import Ledger
from fedrec.simulation.participant import Cohort

PAIRS = {"policy__pairs": 3, "policy__affinity": True, "server__warm_pairs": 20, "server__rounds": 4}


def refusal(world, number=1):
    """What the server gets, whatever the reason: it says nothing about the owner."""
    return TrainReply(number, world.policy.schema(), "refused", refused=1)


def order(world, number, **changes):
    values = {"round": number, "phi": world.initialization(), "schema": world.policy.schema(), "run": "run"}
    return TrainOrder(**(values | {"devices": None} | changes))


@pytest.fixture
def seat(tmp_path):
    """A device with a log and consent, and its participant."""

    def sit(world, number=3, noise=None, **changes):
        place = int(world.roster[number])
        device = one.fill(one.device(tmp_path / "device.sqlite", world, **changes), world, place, stop(world, place))
        device.consent(True)
        opened.append(device)
        return device, DeviceParticipant(device, noise=noise, stream=(world.config.seed, place))

    opened = []
    yield sit
    for device in opened:
        device.close()


def stop(world, place):
    return int(world.split.train_end[place])


def seeded(world, number, place):
    return SeededNoise(torch_stream(world.config.seed, number, place, "local-noise"))


@pytest.mark.parametrize(
    ("changes", "number"),
    [
        ({"privacy__unit": "none"}, 2),
        ({"privacy__unit": "user"}, 1),
        ({"privacy__unit": "user"}, 2),
        ({"privacy__unit": "user", "policy__state": "personal"}, 2),
        ({"privacy__unit": "user", "local__episodes": True}, 2),
        ({"privacy__unit": "interaction"}, 1),
        ({"privacy__unit": "interaction", "server__warm_start": "none"}, 1),
        ({"privacy__unit": "both"}, 1),
        ({"privacy__unit": "both", "server__warm_start": "none"}, 1),
        ({"privacy__unit": "user", **PAIRS}, 2),
    ],
    ids=str,
)
def test_a_device_answers_what_its_cohort_would(changes, number, seat, tmp_path):
    world = one.world(**changes)
    place = int(world.roster[3])
    _, participant = seat(world, noise=seeded(world, number, place))
    phi = world.initialization()
    phi["bias"] = torch.linspace(0, 1, len(phi["bias"]))
    got = participant.train(order(world, number, phi=phi))
    cohort = Cohort(world, tmp_path / "nodes", 1).train(order(world, number, devices=np.array([3]), phi=phi))
    assert (got.status, got.devices, got.refused) == ("ok", 1, 0)
    assert got.update.keys() == cohort.update.keys()
    assert any(bool(value.abs().sum() > 0) for value in got.update.values())
    for name, value in cohort.update.items():
        torch.testing.assert_close(got.update[name], value, atol=2e-6, rtol=1e-4)


def test_personal_parameters_stay_and_are_the_start_of_the_next_round(seat, tmp_path):
    world = one.world(privacy__unit="user", policy__state="personal", server__warm_start="none")
    _, participant = seat(world)
    cohort = Cohort(world, tmp_path / "nodes", 1)
    for number in (1, 2):
        got = participant.train(order(world, number))
        wanted = cohort.train(order(world, number, devices=np.array([3])))
        assert "personal" not in got.update
        torch.testing.assert_close(got.update["ids"], wanted.update["ids"], atol=2e-6, rtol=1e-4)


def test_the_debit_is_on_disk_before_the_device_adapts(seat, monkeypatch):
    world = one.world(privacy__unit="interaction", server__warm_start="none")
    device, participant = seat(world)
    seen = []

    def look(*arguments, **settings):
        with Ledger.open(device.account.path) as ledger:
            seen.append((len(ledger.debits()), ledger.is_settled("run:1")))
        return adaptation.adapt_device(*arguments, **settings)

    monkeypatch.setattr("fedrec.client.participant.adapt_device", look)
    assert participant.train(order(world, 1)).status == "ok"
    assert seen == [(1, False)]
    with Ledger.open(device.account.path) as ledger:
        (debit,) = ledger.debits()
    assert (debit.charge.steps, debit.settled) == (world.config.local.steps, True)
    assert debit.charge.noise_multiplier == one.package(world).noise.adapt


def test_noise_is_not_the_same_twice_and_a_repeated_order_is_paid_again(seat):
    world = one.world(privacy__unit="interaction", server__warm_start="none")
    device, participant = seat(world)
    first, second = (participant.train(order(world, 1)).update["bias"] for _ in range(2))
    assert not torch.equal(first, second)
    assert device.status().budget.releases == 2


def test_without_consent_nothing_is_paid_and_nothing_leaves(seat):
    world = one.world(privacy__unit="interaction")
    device, participant = seat(world)
    device.consent(False)
    assert participant.train(order(world, 1)) == refusal(world)
    assert (device.status().refusal.reason, device.status().refusal.order) == ("consent", "run:1")
    assert (device.status().budget.spent, device.store.trainings()) == (0, [])
    device.forget(everything=True)
    assert device.status().refusal is None


def test_without_budget_the_device_refuses_and_the_ledger_stays(seat):
    world = one.world(
        privacy__unit="interaction", server__warm_start="none", privacy__max_participations=1, server__rounds=5
    )
    device, participant = seat(world)
    assert participant.train(order(world, 1)).status == "ok"
    spent = device.status().budget.spent
    assert device.status().refusal is None
    assert participant.train(order(world, 2)) == refusal(world, 2)
    assert device.status().refusal.reason == "budget"
    assert (device.status().budget.spent, device.status().releases) == (spent, 1)


def test_an_order_of_another_policy_is_answered_and_costs_nothing(seat):
    world = one.world(privacy__unit="interaction")
    device, participant = seat(world)
    reply = participant.train(order(world, 1, schema="0" * 16))
    assert (reply.status, reply.reason, reply.update) == ("error", "schema", {})
    assert device.status().budget.spent == 0


@pytest.mark.parametrize("change", ["shape", "name", "nan"])
def test_an_initialization_that_does_not_fit_costs_nothing(change, seat):
    world = one.world(privacy__unit="interaction")
    device, participant = seat(world)
    phi = world.initialization()
    if change == "shape":
        phi["bias"] = phi["bias"][:-1]
    elif change == "name":
        phi["more"] = phi["bias"]
    else:
        phi["bias"] = phi["bias"] * float("nan")
    with pytest.raises(WireError, match=r"bias|more"):
        participant.train(order(world, 1, phi=phi))
    assert device.status().budget.spent == 0


@pytest.mark.parametrize("missing", ["charging", "unmetered"])
def test_conditions_are_checked_before_anything_is_paid(missing, seat):
    world = one.world(privacy__unit="interaction")
    device, participant = seat(world)
    device.require(Requirements(charging=True, unmetered=True))
    device.conditions(**{"charging": True, "unmetered": True} | {missing: False})
    assert participant.train(order(world, 1)) == refusal(world)
    assert device.status().refusal.reason == "conditions"
    assert device.status().budget.spent == 0
    device.conditions(charging=True, unmetered=True)
    assert participant.train(order(world, 1)).status == "ok"


class Interrupting(SeededNoise):
    """Does something when the noise of a step is drawn: after the first step and before the second."""

    def __init__(self, action):
        super().__init__(torch_stream(0, "noise"))
        self.action, self.draws = action, 0

    def normal(self, shape, std, dtype=torch.float32):
        self.draws += 1
        self.action()
        return super().normal(shape, std, dtype)


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        (lambda device: device.conditions(charging=False), "conditions"),
        (lambda device: device.consent(False), "consent"),
        (lambda device: device.forget(everything=True), "forgotten"),
    ],
    ids=["conditions", "consent", "forgotten"],
)
def test_whatever_ends_an_adaptation_nothing_leaves_and_the_ledger_says_what_it_cost(action, reason, seat):
    world = one.world(privacy__unit="interaction", server__warm_start="none", local__steps=4)
    device, _ = seat(world)
    device.require(Requirements(charging=True))
    device.conditions(charging=True)
    noise = Interrupting(lambda: action(device))
    reply = DeviceParticipant(device, noise=noise).train(order(world, 1))
    assert reply == refusal(world)
    noted = device.status().refusal
    assert noted is None if reason == "forgotten" else noted.reason == reason, "what was forgotten leaves no trace"
    assert device.store.trainings() == []
    assert noise.draws == (4 if reason == "forgotten" else 1), "one draw a step: it stops before the next one"
    with Ledger.open(device.account.path) as ledger:
        (debit,) = ledger.debits()
    assert (debit.charge.steps, debit.settled) == (4, False)


def test_a_lost_or_rolled_back_ledger_stops_training_and_not_recommending(seat, tmp_path):
    world = one.world(privacy__unit="interaction", server__warm_start="none")
    device, participant = seat(world)
    names = [device.account.path, device.account.path.with_name(device.account.path.name + ".witness")]
    old = [path.read_bytes() for path in names]
    assert participant.train(order(world, 1)).status == "ok"
    for path, content in zip(names, old, strict=True):
        path.write_bytes(content)
    with pytest.raises(LedgerError, match="older than its device remembers"):
        participant.train(order(world, 2))
    device.account.path.unlink()
    with pytest.raises(LedgerError, match="missing"):
        participant.train(order(world, 2))
    assert "missing" in device.status().problem
    assert len(device.recommend(k=3)) == 3


def test_a_new_store_goes_on_with_the_ledger_that_lies_there(seat):
    world = one.world(privacy__unit="interaction", server__warm_start="none")
    device, participant = seat(world)
    participant.train(order(world, 1))
    device.close()
    spent = device_spent(device)
    for path in device.store.path.parent.glob("device.sqlite*"):
        if "ledger" not in path.name:
            path.unlink()
    with one.device(device.store.path, world) as again:
        assert again.status().budget.spent == spent > 0


def test_a_package_under_another_delta_does_not_fit_the_ledger(seat):
    device, _ = seat(one.world(privacy__unit="interaction"))
    other = one.package(one.world(privacy__unit="interaction", privacy__delta=1e-4), version=2)
    with pytest.raises(PrivacyError, match="a ledger is for life"):
        device.adopt(other)
    assert device.status().versions == {"current": 1}


def device_spent(device):
    with Ledger.open(device.account.path) as ledger:
        return ledger.spent("device")


def test_adaptive_clips_come_from_the_order(seat):
    world = one.world(privacy__unit="user", privacy__clipping="adaptive", server__warm_start="none")
    _, participant = seat(world)
    tight, wide = (participant.train(order(world, 1, clip=clip)) for clip in (1e-3, 1e3))
    assert (tight.unclipped, wide.unclipped) == (0, 1)
    norm = torch.cat([value.flatten() for value in tight.update.values()]).norm()
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)
    with pytest.raises(WireError, match="expected a clip"):
        participant.train(order(world, 1))


def test_a_device_travels_in_eight_bits_and_in_a_stack_where_the_order_says_so(seat):
    world = one.world(privacy__unit="user", server__warm_start="none", server__uplink="int8")
    _, participant = seat(world)
    asked = order(world, 1, encoding="int8")
    reply = decode_reply(_answer(encode_order(asked), participant.train))
    assert reply.packed.encoding == "int8"
    norm = torch.cat([value.flatten() for value in reply.update.values()]).norm()
    assert float(norm) <= world.config.privacy.clip
    with pytest.raises(WireError, match="expected an order for updates as int8"):
        participant.train(dataclasses.replace(asked, encoding="float32"))


def test_what_was_released_is_marked_when_something_of_it_is_forgotten(seat):
    world = one.world(privacy__unit="user", server__warm_start="none")
    device, participant = seat(world)
    items = [entry.item for entry in device.store.entries()]
    participant.train(order(world, 1))
    fresh = next(str(one_id) for one_id in world.dataset.catalogue.item_ids if str(one_id) not in items)
    device.record(clicked=[fresh])
    participant.train(order(world, 2))
    device.forget(item=fresh)
    assert [(one.name, one.forgotten) for one in device.store.trainings()] == [("run:1", 0), ("run:2", 1)]
    device.forget(item=items[0])
    assert [one.forgotten for one in device.store.trainings()] == [items.count(items[0]), 1 + items.count(items[0])]
    assert device.status().forgotten == 2


SMALL = """
import sys
from fedrec.client.device import Device
from fedrec.client.participant import DeviceParticipant
from fedrec.client.wire import TrainOrder
with Device.open(sys.argv[1]) as device:
    device.adapt()
    package = device.package
    order = TrainOrder(round=2, phi=package.phi, schema=package.schema, devices=None, run="run")
    print(DeviceParticipant(device).train(order).status)
print(sorted({"opacus", "scipy", "sympy", "torch._dynamo"} & set(sys.modules)))
"""


def test_a_device_that_only_clips_loads_neither_opacus_nor_a_compiler(tmp_path):
    world = one.world(privacy__unit="user")
    with one.fill(one.device(tmp_path / "device.sqlite", world), world, 0) as device:
        device.consent(True)
    command = [sys.executable, "-c", SMALL, str(tmp_path / "device.sqlite")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["ok", "[]"], "100 MB more than a device of 256 MB can spare"
