"""A cohort behind a node: accounts, personal parameters, refusals, and what a reply holds."""

import shutil

import numpy as np
import pytest
import small_world as small
import torch
from fedrec.client.wire import TrainOrder, decode_reply, encode_reply
from fedrec.errors import LedgerError, RunError, WireError
from fedrec.meta.popularity import vote
from fedrec.privacy.accounting import epsilon
from fedrec.privacy.ledger import Ledger
from fedrec.simulation.federation import budget_of
from fedrec.simulation.participant import Cohort, PersonalStore, personal_of


def order(world, number, devices=None, **changes):
    devices = np.arange(len(world.roster)) if devices is None else np.array(devices)
    values = {"round": number, "phi": world.initialization(), "schema": world.policy.schema(), "run": "run"}
    return TrainOrder(**(values | {"devices": devices} | changes))


def cohort(world, tmp_path, nodes=1):
    return Cohort(world, tmp_path / "nodes", nodes)


def ledger(tmp_path, node="node-0-of-1"):
    return Ledger.open(tmp_path / "nodes" / node / "devices.sqlite")


def adapting(unit="interaction", **changes):
    return small.world(**({"privacy__unit": unit, "server__warm_start": "none"} | changes))


@pytest.mark.parametrize("unit", ["interaction", "both"])
def test_every_device_pays_before_it_answers(unit, tmp_path):
    world = small.world(privacy__unit=unit)
    node = cohort(world, tmp_path)
    node.train(order(world, 1))
    node.train(order(world, 2, devices=[0, 4]))
    noise = budget_of(world).interaction
    with ledger(tmp_path) as opened:
        assert opened.settings.unit == "interaction"
        charged = {device: opened.history(f"device:{world.roster[device]}") for device in range(len(world.roster))}
        assert opened.is_settled("run:2")
    assert all(history[0].noise_multiplier == noise.warm for history in charged.values())
    assert {device for device, history in charged.items() if len(history) == 2} == {0, 4}
    assert charged[4][1] == noise.charges[1]
    assert charged[4][1].steps == world.config.local.steps


@pytest.mark.parametrize("unit", ["none", "user"])
def test_units_without_a_local_mechanism_keep_no_device_ledger(unit, tmp_path):
    world = small.world(privacy__unit=unit)
    cohort(world, tmp_path).train(order(world, 1))
    assert list((tmp_path / "nodes").rglob("*.sqlite")) == []


def test_an_exhausted_device_is_refused_and_the_others_go_on(tmp_path):
    world = adapting(privacy__max_participations=2, server__rounds=9)
    node = cohort(world, tmp_path)
    for number in (1, 2):
        assert node.train(order(world, number, devices=[0, 1, 2])).devices == 3
    mixed = node.train(order(world, 3, devices=[0, 1, 2, 5]))
    assert (mixed.status, mixed.devices, mixed.refused) == ("ok", 1, 3)
    alone = node.train(order(world, 3, devices=[5], run="another"))
    assert small.same(mixed.update, alone.update)
    nobody = node.train(order(world, 4, devices=[0, 2]))
    assert (nobody.status, nobody.reason, nobody.refused, nobody.update) == ("refused", "", 2, {})


def test_where_the_noise_is_given_nobody_spends_more_than_what_was_told(tmp_path):
    world = adapting(
        privacy__epsilon=None, privacy__noise_multiplier=2.0, privacy__max_participations=2, server__rounds=9
    )
    node = cohort(world, tmp_path)
    replies = [node.train(order(world, number, devices=[0])).status for number in range(1, 6)]
    assert replies == ["ok", "ok", "refused", "refused", "refused"]
    with ledger(tmp_path) as opened:
        told = budget_of(world).statements[0].epsilon
        assert opened.spent(f"device:{world.roster[0]}") == pytest.approx(told)


def test_a_round_that_is_held_again_after_a_crash_is_paid_once_and_gives_the_same_bits(tmp_path):
    world = adapting(policy__state="personal")
    node = cohort(world, tmp_path)
    node.train(order(world, 1, devices=[0, 1]))
    first = node.train(order(world, 2, devices=[0, 3]))
    personal = personal_of(world, tmp_path / "nodes", 2)
    node.close()
    again = cohort(world, tmp_path)
    assert small.same(again.train(order(world, 2, devices=[0, 3])).update, first.update)
    assert small.same(personal_of(world, tmp_path / "nodes", 2), personal)
    with ledger(tmp_path) as opened:
        names = [f"device:{world.roster[device]}" for device in (0, 1, 3)]
        steps = [sum(charge.steps for charge in opened.history(name)) for name in names]
    assert steps == [2 * world.config.local.steps, world.config.local.steps, world.config.local.steps]


def test_a_ledger_is_whole_or_not_there(tmp_path, monkeypatch):
    """Killed while its ledger was being created, a node finds none and begins anew."""
    world = adapting()
    create = Ledger.create

    def killed(path, **settings):
        create(path, **settings).close()
        raise KeyboardInterrupt

    monkeypatch.setattr(Ledger, "create", killed)
    with pytest.raises(KeyboardInterrupt):
        cohort(world, tmp_path).train(order(world, 1))
    assert not (tmp_path / "nodes" / "node-0-of-1" / "devices.sqlite").exists()
    monkeypatch.setattr(Ledger, "create", create)
    assert cohort(world, tmp_path).train(order(world, 1)).status == "ok"


def test_without_its_ledger_a_node_refuses_to_train(tmp_path):
    world = adapting()
    node = cohort(world, tmp_path)
    node.train(order(world, 1))
    node.close()
    for file in (tmp_path / "nodes" / "node-0-of-1").glob("devices.sqlite*"):
        file.unlink()
    with pytest.raises(LedgerError, match=r"expected the device ledger .* got none"):
        cohort(world, tmp_path).train(order(world, 2))


def test_a_node_whose_directory_was_restored_from_an_older_copy_refuses_to_train(tmp_path):
    """Ledger and witness agree, both are old: the counter that is kept elsewhere tells."""
    world = adapting()
    node = cohort(world, tmp_path)
    node.train(order(world, 1))
    node.close()
    directory = tmp_path / "nodes" / "node-0-of-1"
    shutil.copytree(directory, tmp_path / "backup")
    node = cohort(world, tmp_path)
    node.train(order(world, 2))
    node.close()
    shutil.copytree(directory, tmp_path / "today")
    for source, refused in (("backup", True), ("today", False)):
        shutil.rmtree(directory)
        shutil.copytree(tmp_path / source, directory)
        node = cohort(world, tmp_path)
        if refused:
            with pytest.raises(LedgerError, match=r"is older than .*devices-0-of-1.counter says"):
                node.train(order(world, 3))
        else:
            assert node.train(order(world, 3)).status == "ok"
        node.close()


def test_an_altered_ledger_is_refused(tmp_path):
    world = adapting()
    node = cohort(world, tmp_path)
    node.train(order(world, 1))
    node.close()
    path = tmp_path / "nodes" / "node-0-of-1" / "devices.sqlite"
    path.write_bytes(b"".join((path.read_bytes()[:-200], bytes(200))))
    with pytest.raises(LedgerError):
        cohort(world, tmp_path).train(order(world, 2))


def test_another_number_of_nodes_would_open_new_accounts_and_is_refused(tmp_path):
    world = adapting()
    node = cohort(world, tmp_path, nodes=2)
    node.train(order(world, 1, devices=[0, 2, 4]))
    with pytest.raises(LedgerError, match="expected 3 nodes as before, got node-0-of-2"):
        cohort(world, tmp_path, nodes=3).train(order(world, 2, devices=[0, 3]))


def test_an_order_for_another_world_is_refused(tmp_path):
    world = adapting()
    node = cohort(world, tmp_path, nodes=2)
    for wrong in ({"schema": "other"}, {"devices": None}, {"devices": [99]}, {"devices": [0, 1]}):
        devices = wrong.pop("devices", [0])
        bad = order(world, 1, devices=devices or [0], **wrong)
        bad = TrainOrder(1, bad.phi, bad.schema, None, "run") if devices is None else bad
        with pytest.raises(WireError):
            node.train(bad)
    assert not (tmp_path / "nodes").exists() or list((tmp_path / "nodes").rglob("*.sqlite")) == []


@pytest.mark.parametrize("engine", ["cohort", "reference"])
def test_stacked_updates_add_up_to_the_sum_that_was_not_asked_for(tmp_path, engine):
    """In the order's order, outliers' rows blown up among the others'."""
    shares = {"data__outliers": 0.25, "data__outlier_boost": 7.0, "engine__kind": engine}
    apart = adapting("none", **shares, server__aggregator="median")
    stack = cohort(apart, tmp_path / "apart").train(order(apart, 1, stacked=True))
    whole = cohort(adapting("none", **shares), tmp_path / "whole").train(order(apart, 1))
    assert stack.rows.tolist() == list(range(len(apart.roster)))
    for name, value in whole.update.items():
        assert stack.update[name].shape == (len(apart.roster), *value.shape)
        torch.testing.assert_close(stack.update[name].sum(0), value, rtol=1e-4, atol=1e-6)
    honest = adapting("none", **(shares | {"data__outlier_boost": 1.0}), server__aggregator="median")
    plain = cohort(honest, tmp_path / "honest").train(order(honest, 1, stacked=True))
    factors = torch.tensor([7.0 if device in apart.outliers else 1.0 for device in apart.roster])
    for name, value in plain.update.items():
        along = factors.reshape(-1, *[1] * (value.dim() - 1))
        torch.testing.assert_close(stack.update[name], value * along, rtol=1e-5, atol=1e-7)


def test_rows_of_those_who_paid_say_their_places_and_the_refused_have_none(tmp_path):
    world = adapting("interaction", server__aggregator="trimmed", privacy__max_participations=1)
    node = cohort(world, tmp_path)
    node.train(order(world, 1, devices=[1, 2], stacked=True))
    reply = node.train(order(world, 2, devices=[0, 1, 2, 3], stacked=True))
    assert (reply.devices, reply.refused, reply.rows.tolist()) == (2, 2, [0, 3])
    assert decode_reply(encode_reply(reply)).rows.tolist() == [0, 3]


@pytest.mark.parametrize("unit", small.UNITS)
def test_no_order_makes_a_node_send_what_its_configuration_keeps_in_a_sum(unit, tmp_path):
    world = adapting(unit)
    with pytest.raises(WireError, match="an order for a sum in round 1, got the other; give server and nodes the same"):
        cohort(world, tmp_path).train(order(world, 1, stacked=True))
    assert list(tmp_path.rglob("*.sqlite")) == []


@pytest.mark.parametrize("unit", small.UNITS)
def test_nothing_private_is_in_a_reply(unit, tmp_path):
    world = small.world(privacy__unit=unit, policy__state="personal")
    node = cohort(world, tmp_path)
    for number in (1, 2):
        reply = node.train(order(world, number))
        records = encode_reply(reply)
        assert set(records) == {"fedrec", "update"}
        assert set(records["fedrec"]) <= {"version", "kind", "round", "schema", "status", "devices", "refused"}
        names = {"bias"} if number == 1 else set(world.policy.released)
        assert set(records["update"]) == names
        assert "personal" not in names
        assert decode_reply(records).devices == len(world.roster)


# --- personal parameters ----------------------------------------------------------------------------------------------


def test_personal_parameters_last_from_round_to_round(tmp_path):
    world = adapting("none", policy__state="personal")
    node = cohort(world, tmp_path)
    node.train(order(world, 1, devices=[0, 1]))
    once = personal_of(world, tmp_path / "nodes", 1)["personal"]
    node.train(order(world, 2, devices=[1, 2]))
    twice = personal_of(world, tmp_path / "nodes", 2)["personal"]
    devices = world.roster[[0, 1, 2]]
    assert (once[devices].norm(dim=1) > 0).tolist() == [True, True, False]
    assert torch.equal(once[devices[0]], twice[devices[0]])
    assert not torch.equal(once[devices[1]], twice[devices[1]])
    assert float(twice[devices[2]].norm()) > 0
    assert small.same(personal_of(world, tmp_path / "nodes", 1), {"personal": once})


def test_a_round_without_an_order_for_a_node_keeps_its_personal_parameters(tmp_path):
    """Poisson sampling draws nobody of a small node now and then; an exhausted node answers without adapting."""
    world = adapting("none", policy__state="personal")
    node = cohort(world, tmp_path)
    node.train(order(world, 1, devices=[0]))
    after = personal_of(world, tmp_path / "nodes", 4)
    assert small.same(after, personal_of(world, tmp_path / "nodes", 1))
    node.train(order(world, 5, devices=[1]))
    row = world.roster[0]
    assert torch.equal(personal_of(world, tmp_path / "nodes", 5)["personal"][row], after["personal"][row])


@pytest.mark.parametrize("first", [2, 5])
def test_the_first_order_of_a_node_can_be_repeated_after_a_crash(tmp_path, first):
    """The warm start writes no personal parameters, and Poisson sampling may draw nobody of a node for some rounds."""
    world = adapting("none", policy__state="personal", server__rounds=9)
    once = cohort(world, tmp_path).train(order(world, first, devices=[0, 1]))
    again = cohort(world, tmp_path).train(order(world, first, devices=[0, 1]))
    assert small.same(once.update, again.update)
    before = personal_of(world, tmp_path / "nodes", first - 1)
    assert small.same(before, world.personal_start(world.dataset.devices))


def test_drafts_of_a_killed_process_are_swept(tmp_path):
    world = adapting("none", policy__state="personal")
    node = cohort(world, tmp_path)
    node.train(order(world, 1, devices=[0]))
    draft = tmp_path / "nodes" / "node-0-of-1" / ".personal-000002.safetensors.dead"
    draft.write_bytes(b"half")
    node.train(order(world, 2, devices=[0]))
    assert not draft.exists()


def test_personal_parameters_of_all_nodes_are_gathered(tmp_path):
    world = adapting("none", policy__state="personal")
    apart, whole = tmp_path / "apart", tmp_path / "whole"
    for place in range(3):
        share = [device for device in range(len(world.roster)) if device % 3 == place]
        cohort(world, apart, nodes=3).train(order(world, 1, devices=share))
    cohort(world, whole).train(order(world, 1))
    one, three = (personal_of(world, path / "nodes", 1)["personal"] for path in (whole, apart))
    torch.testing.assert_close(one, three, rtol=1e-5, atol=1e-6)
    assert float(one[world.roster].norm(dim=1).min()) > 0


def test_validated_rounds_and_the_last_ones_are_kept_the_rest_goes(tmp_path):
    world = adapting("none", policy__state="personal", evaluation__every=4, server__rounds=12)
    node = cohort(world, tmp_path)
    states = {}
    for number in range(1, 13):
        node.train(order(world, number, devices=[number % 3]))
        states[number] = personal_of(world, tmp_path / "nodes", number)
    files = sorted(path.name for path in (tmp_path / "nodes").rglob("personal-*"))
    assert files == [f"personal-{number:06d}.safetensors" for number in (4, 8, 9, 10, 11, 12)]
    for number in (4, 8, 9, 10, 11, 12):
        assert small.same(personal_of(world, tmp_path / "nodes", number), states[number])


def test_lost_personal_parameters_are_not_replaced_by_the_start(tmp_path):
    world = adapting("none", policy__state="personal")
    node = cohort(world, tmp_path)
    for number in range(1, 4):
        node.train(order(world, number, devices=[0]))
    for number in (0, 1, 2):
        (tmp_path / "nodes" / "node-0-of-1" / f"personal-{number:06d}.safetensors").unlink()
    with pytest.raises(RunError, match="personal parameters of round 2"):
        PersonalStore(tmp_path / "nodes" / "node-0-of-1", world).load(2)


def test_a_policy_without_personal_parameters_writes_none(tmp_path):
    world = adapting("none")
    cohort(world, tmp_path).train(order(world, 1))
    assert personal_of(world, tmp_path / "nodes", 1) is None
    assert list((tmp_path / "nodes").rglob("personal-*")) == []


# --- the warm start ---------------------------------------------------------------------------------------------------


def test_votes_are_of_training_rows_alone(tmp_path):
    world = small.world(privacy__unit="none")
    reply = cohort(world, tmp_path).train(order(world, 1))
    total = sum(
        vote(world.log(int(device), int(world.split.train_end[device])).items, 24, unit_norm=True)
        for device in world.roster
    )
    torch.testing.assert_close(reply.update["bias"], total)


def test_only_recent_items_vote_when_asked(tmp_path):
    world = small.world(privacy__unit="none", server__warm_recent=2)
    reply = cohort(world, tmp_path).train(order(world, 1))
    total = sum(
        vote(world.log(int(device), int(world.split.train_end[device])).items[-2:], 24, unit_norm=True)
        for device in world.roster
    )
    torch.testing.assert_close(reply.update["bias"], total)


@pytest.mark.parametrize("unit", ["interaction", "both"])
def test_votes_are_noised_on_the_device(unit, tmp_path):
    world = small.world(privacy__unit=unit)
    noise = budget_of(world).interaction.warm
    drawn, plain = [], []
    for device in range(len(world.roster)):
        reply = cohort(world, tmp_path).train(order(world, 1, devices=[device], run=f"run-{device}"))
        items = world.log(int(world.roster[device]), int(world.split.train_end[world.roster[device]])).items
        drawn.append(reply.update["bias"])
        plain.append(vote(items, 24, unit_norm=unit == "both"))
    if unit == "both":
        assert all(float(ballot.norm()) <= 1 + 1e-5 for ballot in drawn)
        return
    spread = float((torch.stack(drawn) - torch.stack(plain)).std())
    assert spread == pytest.approx(noise, rel=5 / (2 * 24 * len(drawn)) ** 0.5)
    assert epsilon([budget_of(world).interaction.charges[0]], 1e-5, "rdp") < 8
