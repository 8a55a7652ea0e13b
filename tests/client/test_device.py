"""The device an app holds: what it shows, logs, learns and drops."""

import contextlib
import datetime
import json
import threading
from dataclasses import replace

import device_world as one
import numpy as np
import pytest
import torch
from fedrec.client.conditions import Requirements
from fedrec.client.device import Device
from fedrec.client.slate import Slate
from fedrec.errors import ArgumentError, NotAllowed, PolicyError, PrivacyError, StoreError
from fedrec.meta.acting import Exploration, act, propensities
from fedrec.simulation.serving import Served


@pytest.fixture(scope="module")
def world():
    return one.world(evaluation__serve_steps=3)


@pytest.fixture(scope="module")
def phi(world):
    """An initialization under which items differ."""
    generator = torch.Generator().manual_seed(3)
    return {
        name: value + torch.randn(value.shape, generator=generator) for name, value in world.initialization().items()
    }


@pytest.fixture
def device(tmp_path, world, phi):
    with one.device(tmp_path / "device.sqlite", world, phi=phi) as opened:
        yield opened


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def ids(device):
    return [str(item) for item in device.package.catalogue.item_ids]


@pytest.mark.parametrize("settings", [{}, {"epsilon": 0.3}, {"diversity": 0.4, "epsilon": 0.1}, {"temperature": 0.0}])
def test_propensities_are_those_of_the_draw(settings, device, world):
    one.fill(device, world, 2)
    slate = device.recommend(k=4, generator=stream(), **settings)
    seat = device.seated()
    scores = world.policy.scores(seat._parameters, seat.state(None)).detach()
    allowed = (~seat._seen)[None]
    rows = seat.rows(slate.items)[None]
    how = Exploration(size=4, **({"temperature": 0.3} | settings))
    wanted = propensities(rows, scores, allowed, how, world.policy.features)[0]
    assert [slot.propensity for slot in slate] == pytest.approx(wanted.tolist(), rel=1e-12)
    for slot, row in zip(slate, rows[0].tolist(), strict=True):
        first = propensities(torch.tensor([[row]]), scores, allowed, replace(how, size=1), world.policy.features)
        assert slot.first_draw == pytest.approx(float(first), rel=1e-12)
    assert slate.propensity == pytest.approx(float(wanted.prod()))
    assert Slate.from_dict(json.loads(json.dumps(slate.to_dict()))) == slate


def test_draws_differ_and_follow_their_propensities(device):
    shown = [device.recommend(k=1).items[0] for _ in range(600)]
    one_slate = device.recommend(k=24, temperature=0.3, again=True)
    wanted = {slot.item: slot.first_draw for slot in one_slate}
    for item, chance in wanted.items():
        error = (chance * (1 - chance) / 600) ** 0.5
        assert abs(shown.count(item) / 600 - chance) < 4.5 * error + 1e-3


def test_what_is_served_is_what_the_simulation_serves(device, world, phi):
    one.fill(device, world, 0)
    device.consent(True)
    device.adapt()
    served = Served(world=world, phi=phi)
    places, stops = np.array([0]), world.dataset.offsets[[1]]
    scores = served.score_until(places, stops)[0].clone()
    scores[world.dataset.log(0).items] = -torch.inf
    order = scores.argsort(descending=True)[:5].tolist()
    assert device.recommend(k=5, temperature=0).items == tuple(ids(device)[row] for row in order)
    reasons = device.explain(ids(device)[order[0]])
    assert reasons.score == pytest.approx(float(scores[order[0]]), abs=1e-4)
    assert sum(reasons.terms.values()) == pytest.approx(reasons.score, abs=1e-4)


def test_filters_keep_out_what_was_met_what_is_blocked_and_what_is_no_candidate(device):
    every = ids(device)
    device.record(clicked=every[:2])
    assert set(device.recommend(k=100).items) == set(every[2:])
    assert set(device.recommend(every[1:6], k=9, blocked=every[4:]).items) == set(every[2:4])
    assert set(device.recommend(every[:2], k=9, again=True).items) == set(every[:2])
    assert len(device.recommend(every[:2])) == 0


def test_a_record_keeps_the_strongest_of_what_was_done_and_everything_shown(device):
    slate = device.recommend(k=4)
    a, b, c, d = slate.items
    assert device.record(slate, clicked=[a, b, c], purchase=[b], rating={c: 2.0}) == 3
    found = {entry.item: entry for entry in device.store.entries()}
    assert {item: (entry.kind, entry.reward) for item, entry in found.items()} == {
        a: ("click", 5.0),
        b: ("purchase", 5.0),
        c: ("rating", 2.0),
    }
    for slot in slate.slots[:3]:
        entry = found[slot.item]
        assert (entry.propensity, entry.first_draw) == (slot.propensity, slot.first_draw)
        assert (entry.position, entry.slate) == (slot.position, slate.name)
    assert [(s.item, s.propensity, s.first_draw) for s in device.store.impressions()] == [
        (slot.item, slot.propensity, slot.first_draw) for slot in slate
    ]
    log, _ = device.log()
    assert log.interactions.propensities.tolist() == pytest.approx([slate.slots[i].first_draw for i in (0, 1, 2)])
    device.record(clicked=[d])
    assert device.log()[0].interactions.propensities.tolist()[-1] == 0, "without a slate none is known"


def test_a_slate_that_is_recorded_again_adds_only_what_is_new(device):
    slate = device.recommend(k=4)
    a, b, *_ = slate.items
    assert device.record(slate) == 0
    assert device.record(slate, clicked=[a]) == 1
    assert device.record(slate, clicked=[a, b]) == 1
    assert device.record(Slate.from_dict(json.loads(json.dumps(slate.to_dict()))), clicked=[a, b]) == 0
    assert [entry.item for entry in device.store.entries()] == [a, b]
    assert [shown.item for shown in device.store.impressions()] == list(slate.items)
    device.forget(item=a)
    device.record(slate)
    assert a not in [shown.item for shown in device.store.impressions()], "forgotten is not shown anew"


def test_a_creation_that_fails_leaves_no_store(tmp_path, world, monkeypatch):
    path = tmp_path / "device.sqlite"
    local = one.world(privacy__unit="interaction")
    one.device(path, local).close()
    path.unlink()
    ledger = sorted(tmp_path.iterdir())
    other = one.package(one.world(privacy__unit="interaction", privacy__delta=1e-4))
    with pytest.raises(PrivacyError, match="a ledger is for life"):
        Device.create(path, other)
    assert sorted(tmp_path.iterdir()) == ledger, "and the ledger stays"
    monkeypatch.setattr("fedrec.client.store.Store.adopt", lambda *_: (_ for _ in ()).throw(StoreError("no space")))
    with pytest.raises(StoreError, match="no space"):
        one.device(path, local)
    assert sorted(tmp_path.iterdir()) == ledger
    monkeypatch.undo()
    one.device(path, local).close()


def slot_of(device, **changes):
    values = device.recommend(k=1).to_dict()
    return Slate.from_dict(values | {"slots": [values["slots"][0] | changes]})


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda d: d.record(clicked=["nowhere"]), "expected items of the catalogue, got 'nowhere'"),
        (lambda d: d.record(d.recommend(["1", "2"]), clicked=["3"]), "expected items of the slate, got '3'"),
        (lambda d: d.record(rating={"1": 6.0}), "expected a rating from 1 to 5, got 6.0"),
        (lambda d: d.record(rating={"1": float("nan")}), "expected a rating from 1 to 5, got nan"),
        (lambda d: d.record(rating={"1": "4"}), "expected a rating from 1 to 5, got '4'"),
        (lambda d: d.record(rating={"1": True}), "expected a rating from 1 to 5, got True"),
        (lambda d: d.record(rating={"1": None}), "expected a rating from 1 to 5, got None"),
        (lambda d: d.record(rating={1: 4.0}), "ids, which are text, got 1"),
        (lambda d: d.record(rating=[("1", 4.0)]), "expected rating as a mapping"),
        (lambda d: d.record(clicked=1), "expected clicked as a list of item ids, got 1"),
        (lambda d: d.record(clicked=[1]), "expected clicked by the catalogue's own ids, which are text, got 1"),
        (lambda d: d.record(clicked=[["1"]]), "expected clicked by the catalogue's own ids"),
        (lambda d: d.record(clicked=None), "expected clicked as a list of item ids, got None"),
        (lambda d: d.record(purchase={"1": object()}.values()), "expected purchase"),
        (lambda d: d.record("slate"), "expected a slate as recommend gave it, got 'slate'"),
        (lambda d: d.record(d.recommend().to_dict()), "expected a slate as recommend gave it, got {"),
        (lambda d: d.recommend(5), "expected candidates as a list of item ids, got 5"),
        (lambda d: d.recommend([["1"]]), "expected candidates by the catalogue's own ids"),
        (lambda d: d.recommend(blocked=None), "expected blocked as a list of item ids, got None"),
        (lambda d: d.recommend(k="5"), "expected k to be an integer"),
        (lambda d: d.recommend(temperature="hot"), "expected temperature >= 0 and finite, got 'hot'"),
        (lambda d: d.recommend(epsilon="a"), "expected 0 <= epsilon <= 1, got 'a'"),
        (lambda d: d.recommend(diversity=None), "expected 0 <= diversity < 1, got None"),
        (lambda d: d.recommend(context=3), r"expected features of this policy \(.*\) by name, got 3"),
        (lambda d: d.profile([1.0]), "by name, got"),
        (lambda d: d.explain(["1"]), "expected item by the catalogue's own ids"),
        (lambda d: d.forget(before="2024-01-01"), "expected before as a time, aware or local"),
        (lambda d: d.forget(before=datetime.datetime.min), "expected before as a time, aware or local"),
        (lambda d: d.forget(before=True), "expected before as a time, aware or local"),
        (lambda d: d.forget(item=1), "ids, which are text, got 1"),
        (lambda d: d.forget(everything="yes"), "expected everything as True or False, got 'yes'"),
        (lambda d: d.limit(days="1"), "expected days > 0 and finite, got '1'"),
        (lambda d: d.conditions(charging="no"), "expected charging as True or False, got 'no'"),
        (lambda d: d.require("charging"), r"expected Requirements\(charging"),
        (lambda d: Requirements(charging="no"), "expected charging as True or False"),
        (lambda d: Requirements(hours=5), "expected hours as two whole numbers"),
        (lambda d: d.adopt("policy.bundle"), r"load_bundle\(path, keys\).package is one"),
        (lambda d: Slate.from_dict({**d.recommend().to_dict(), "name": 3}), "expected the name of a slate as text"),
        (lambda d: Slate.from_dict({**d.recommend().to_dict(), "name": ""}), "expected a slate with a name"),
        (lambda d: Slate.from_dict({**d.recommend().to_dict(), "at": "now"}), "expected a slate's time in seconds"),
        (lambda d: Slate.from_dict({**d.recommend().to_dict(), "version": None}), "expected the version of a slate"),
        (lambda d: d.record(clicked=["\ud800"]), "expected clicked as text that UTF-8 can hold"),
        (lambda d: d.forget(item="\ud800"), "expected item as text that UTF-8 can hold"),
        (lambda d: slot_of(d, item=3), "expected the item of a slot as text that UTF-8 can hold, got 3"),
        (lambda d: slot_of(d, position=10**30), "expected the slots of a slate from the top"),
        (lambda d: slot_of(d, propensity="0.5"), "expected 0 < propensity <= 1, got '0.5'"),
        (lambda d: slot_of(d, first_draw=None), "expected 0 <= first_draw <= 1, got None"),
        (lambda d: d.record(clicked="12"), "expected clicked as a list of item ids, got '12'"),
        (lambda d: d.record(purchase="12"), "expected purchase as a list of item ids"),
        (lambda d: d.recommend("12"), "expected candidates as a list of item ids"),
        (lambda d: d.recommend(blocked="12"), "expected blocked as a list of item ids"),
        (lambda d: d.forget(before=float("nan")), "expected before as a time"),
        (lambda d: d.forget(before=float("inf")), "expected before as a time"),
        (lambda d: d.forget(before=1e300), "expected before as a time"),
        (lambda d: d.consent("no"), "expected consent as True or False, got 'no'"),
        (lambda d: d.limit(interactions=10**30), "expected interactions of at most"),
        (lambda d: d.limit(days=1e300), "expected days of at most"),
        (lambda d: d.recommend(k=0), "expected k to be an integer >= 1"),
        (lambda d: d.recommend(["nowhere"]), "expected items of the catalogue, got 'nowhere'"),
        (lambda d: d.recommend(context={"age": 3}), "expected features of this policy"),
        (lambda d: d.explain("nowhere"), "expected items of the catalogue"),
        (lambda d: d.forget(), "expected exactly one of before, item and everything"),
        (lambda d: d.forget(item="1", everything=True), "expected exactly one of"),
        (lambda d: d.limit(interactions=0), "expected interactions to be an integer >= 1"),
        (lambda d: d.conditions(sunny=True), "expected charging, unmetered, idle, got 'sunny'"),
        (lambda d: d.rollback(), "expected a previous package"),
        (lambda d: Slate.from_dict({"slots": []}), "expected a slate as recommend gave it"),
        (lambda d: Slate.from_dict({**d.recommend().to_dict(), "x" * 10**6: 1}), "expected a slate as recommend gave"),
        (lambda d: d.recommend(generator=7), "expected generator as a torch.Generator of the CPU, got 7"),
        (lambda d: d.recommend(generator=0), "expected generator as a torch.Generator of the CPU, got 0"),
        (lambda d: d.recommend(generator=""), "expected generator as a torch.Generator"),
        (lambda d: d.recommend(generator=[]), "expected generator as a torch.Generator"),
        (lambda d: d.recommend(generator=False), "expected generator as a torch.Generator"),
        (lambda d: replace(d.recommend(), slots=None), "expected the slots of a slate as a tuple of Slot, got None"),
        (lambda d: replace(d.recommend(), slots=("1",)), "expected the slots of a slate as a tuple of Slot"),
        (lambda d: d.record(slot_of(d, item="nowhere")), "expected items of the catalogue, got 'nowhere'"),
        (lambda d: d.record(slot_of(d, item="i" * 10**6)), r"expected items of the catalogue, got 'i+\.\.\.;"),
        (lambda d: d.record(replace(d.recommend(), version=2)), "expected a slate of a package up to version 1, got 2"),
        (lambda d: replace(d.recommend(), name="n" * 10**6), "expected the name of a slate of at most 1000 characters"),
        (lambda d: d.record(clicked="1" * 10**6), r"as a list of item ids, got '1+\.\.\.; write"),
        (lambda d: d.record(clicked=["1" * 10**6]), "expected items of the catalogue, got '1"),
        (lambda d: d.record(d.recommend(), clicked=["1" * 10**6]), "expected items of the slate, got '1"),
        (lambda d: d.record(clicked=["\ud800" * 10**6]), "expected clicked as text that UTF-8 can hold"),
        (lambda d: d.record(clicked=[b"1" * 10**6]), "expected clicked by the catalogue's own ids"),
        (lambda d: d.record(clicked=torch.zeros(9, 9)), "expected clicked by the catalogue's own ids"),
        (lambda d: d.record(rating={"1": "4" * 10**6}), "expected a rating from 1 to 5"),
        (lambda d: d.record(rating={"1": 10**5000}), "got something of type int for '1'"),
        (lambda d: d.record(rating=["1"] * 10**6), "expected rating as a mapping"),
        (lambda d: d.recommend(["1" * 10**6]), "expected items of the catalogue, got '1"),
        (lambda d: d.recommend(temperature="h" * 10**6), "expected temperature >= 0 and finite"),
        (lambda d: d.recommend(temperature=10**400), "expected temperature >= 0 and finite"),
        (lambda d: d.recommend(context={"a" * 10**6: 1}), "expected features of this policy"),
        (lambda d: d.explain("1" * 10**6), "expected items of the catalogue"),
        (lambda d: d.forget(before="2" * 10**6), "expected before as a time"),
        (lambda d: d.consent("n" * 10**6), "expected consent as True or False"),
        (lambda d: d.limit(days=10**400), "expected days > 0 and finite"),
        (lambda d: d.require("c" * 10**6), r"expected Requirements\(charging"),
        (lambda d: d.conditions(**{"c" * 10**6: True}), "expected charging, unmetered, idle"),
        (lambda d: Requirements(hours="h" * 10**6), "expected hours as two whole numbers"),
        (lambda d: d.adopt("p" * 10**6), "expected a PolicyPackage, got 'p"),
    ],
)
def test_wrong_calls_get_a_sentence_and_change_nothing(call, sentence, device):
    with pytest.raises((ArgumentError, PolicyError), match=sentence) as caught:
        call(device)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300, "a value is quoted, not repeated"
    assert (device.store.count("interactions"), device.store.count("impressions")) == (0, 0)
    assert not device.consented
    assert device.record(clicked=["1"]) == 1


@pytest.mark.parametrize("way", [Device.open, Device.create])
@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        (None, "expected the path of a device store as text or a Path, got None"),
        (5, "expected the path of a device store as text or a Path, got 5"),
        (b"x", "expected the path of a device store as text or a Path, got b'x'"),
        ("a\0b", r"expected the path of a device store as text or a Path, got 'a\\x00b'"),
        ("\ud800", r"expected the path of a device store as text or a Path, got '\\ud800'"),
        (":memory:", "expected the path of a file, got ':memory:'; a device remembers on the disk only"),
        ("n" * 300, "can't .* the device store n+: File name too long; "),
    ],
)
def test_a_path_that_names_no_file_gets_a_sentence(path, sentence, way, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ArgumentError, StoreError), match=f"^{sentence}"):
        way(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("way", [Device.open, Device.create])
def test_a_key_of_halves_of_characters_is_told_and_not_shown(way, tmp_path):
    pytest.importorskip("apsw")
    path = tmp_path / "device.sqlite"
    if way == Device.open:
        Device.create(path, key="whole").close()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(StoreError, match=r"^expected a key of text that UTF-8 can hold, got halves of characters"):
        way(path, key="secret\ud800")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("now", [float("nan"), float("inf"), "noon", None, 1.7e12])
def test_a_clock_that_tells_no_time_gets_a_sentence_and_nothing_is_logged(now, device):
    with Device.open(device.store.path, clock=lambda: now) as wrong:
        calls = (wrong.recommend, lambda: wrong.record(clicked=["1"]), lambda: wrong.consent(True), wrong.status)
        for call in (*calls, lambda: wrong.conditions(charging=True)):
            with pytest.raises(ArgumentError, match=r"^expected a clock that gives seconds since 1970, got "):
                call()
    state = device.status()
    assert (state.interactions, state.consent, device.store.values("report")) == (0, False, {})


def test_a_clock_is_a_function(tmp_path):
    with pytest.raises(ArgumentError, match="expected clock as a function that gives seconds since 1970, got 5"):
        Device.create(tmp_path / "device.sqlite", clock=5)
    assert list(tmp_path.iterdir()) == []


def test_a_slate_of_the_package_before_may_show_what_has_left_the_catalogue(device, world, phi):
    slate = slot_of(device, item="gone")
    with pytest.raises(ArgumentError, match="expected items of the catalogue, got 'gone'"):
        device.record(slate)
    device.adopt(one.package(world, 2, phi))
    with pytest.raises(ArgumentError, match="expected the item of a slot of at most 1000 characters, got 1001: 'iii"):
        device.record(replace(slate, slots=(replace(slate.slots[0], item="i" * 1001),)))
    assert device.record(slate, clicked=["gone"]) == 1
    assert [shown.item for shown in device.store.impressions()] == ["gone"]


def test_every_item_of_a_long_list_is_looked_up(device):
    many = ids(device) * 40
    assert len(many) > 500, "more than one look-up takes"
    assert device.store.unknown(many) is None
    assert device.store.unknown([*many, "late", "later"]) == "late"
    assert device.store.unknown([]) is None


def test_without_consent_nothing_is_trained_and_withdrawing_drops_what_was(device, world):
    one.fill(device, world, 0)
    plain = device.explain("3").score
    with pytest.raises(NotAllowed, match="expected consent"):
        device.adapt()
    device.consent(True)
    device.adapt()
    assert device.explain("3").score != plain
    device.consent(False)
    assert device.explain("3").score == plain
    assert not device.status().adapted


def test_a_local_adaptation_stops_between_steps_and_the_old_policy_serves_on(device, world, monkeypatch):
    one.fill(device, world, 0)
    device.consent(True)
    device.require(Requirements(charging=True, unmetered=True, idle=True))
    device.conditions(charging=True, idle=True)
    device.adapt()
    served = device.store.parameters("served")
    device.record(clicked=["3"])
    calls = []
    original = device.missing

    def missing(*, sends):
        calls.append(sends)
        if len(calls) == 3:
            device.conditions(charging=False, idle=True)
        return original(sends=sends)

    monkeypatch.setattr(device, "missing", missing)
    with pytest.raises(NotAllowed, match="expected charging while the device adapts"):
        device.adapt()
    assert calls == [False] * 3, "once before, then before every step until it stops"
    assert device.store.parameters("served") == served
    assert len(device.store.trainings()) == 1


@pytest.mark.parametrize(
    ("hours", "hour", "met"), [((9, 17), 9, True), ((9, 17), 17, False), ((22, 6), 3, True), ((22, 6), 12, False)]
)
def test_hours_and_age_of_reports(hours, hour, met):
    now = datetime.datetime(2026, 5, 4, hour, 30).timestamp()
    assert Requirements(hours=hours).missing({}, now, sends=True) == (() if met else ("hours",))
    wanted = Requirements(charging=True, fresh=60)
    assert wanted.missing({"charging": True, "at": now - 59}, now, sends=True) == ()
    assert wanted.missing({"charging": True, "at": now - 61}, now, sends=True) == ("charging",)
    assert wanted.missing({"charging": True, "at": now + 1}, now, sends=True) == ("charging",), "a clock went back"
    assert Requirements.from_values(json.loads(replace(wanted, hours=hours).to_json())) == replace(wanted, hours=hours)
    assert Requirements.from_values({}) == Requirements()


def test_what_was_adapted_from_a_package_that_no_longer_serves_is_thrown_away(device, world, phi):
    one.fill(device, world, 0)
    device.consent(True)
    newer = one.package(world, 2, phi)
    before = device.log()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "log", lambda: (device.adopt(newer), before)[1])
        with pytest.raises(NotAllowed, match="another package was adopted"):
            device.adapt()
    assert not device.status().adapted
    assert device.adapt().version == 2


def test_a_slate_longer_than_the_catalogue_is_the_catalogue_and_costs_no_more(device, monkeypatch):
    asked = []
    monkeypatch.setattr("fedrec.client.seat.act", lambda *a: (asked.append(a[2].size), act(*a))[1])
    assert sorted(device.recommend(k=10**9).items) == sorted(ids(device))
    assert asked == [len(ids(device))]


def test_what_was_forgotten_has_left_no_trace_in_what_is_served(device, world, tmp_path, phi):
    one.fill(device, world, 0)
    device.consent(True)
    device.adapt()
    gone = device.store.entries()[1].item
    device.forget(item=gone)
    assert not device.status().adapted
    device.adapt()
    with one.device(tmp_path / "other.sqlite", world, phi=phi) as never:
        for entry in device.store.entries():
            never.record(rating={entry.item: entry.reward})
        never.consent(True)
        never.adapt()
        assert never.explain("3").score == device.explain("3").score


def drawn(device, k=3):
    slate = device.recommend(k=k)
    device.record(slate, clicked=slate.items[:2])
    return slate


def probabilities(device):
    """Of what is left in the file, by slate: interactions' and impressions'."""
    found = device.export()
    rows = [row for row in found["interactions"] if row["slate"]] + found["impressions"]
    told = {row["slate"] for row in rows if (row["propensity"], row["first_draw"], row["position"]) != (None,) * 3}
    return told, {row["slate"] for row in found["impressions"]}


def test_what_is_left_does_not_tell_what_was_forgotten(tmp_path, world, phi):
    clock = one.Clock(1000.0)
    with one.device(tmp_path / "device.sqlite", world, phi=phi, clock=clock) as device:
        slates = []
        for _ in range(3):
            slates.append(drawn(device))
            clock.now += 10
        first = slates[0].name
        gone = slates[1].items[1]
        assert device.forget(item=gone) == 1 + 6  # what was shown with it and since: drawn knowing it
        assert probabilities(device) == ({first}, {first})
        left = [(row["slate"], row["item"]) for row in device.export()["interactions"]]
        assert left == [(slate.name, item) for slate in slates for item in slate.items[:2] if item != gone], (
            "what was done with the others stays"
        )
        late = device.record(slates[2], purchase=slates[2].items[2:])
        assert late == 1
        assert probabilities(device) == ({first}, {first}), "a slate of before that is recorded later tells nothing"
        clock.now += 10
        fresh = drawn(device)
        assert probabilities(device) == ({first, fresh.name},) * 2
        assert device.forget(before=clock.now - 5) > 0
        assert probabilities(device) == (set(), set())


def test_an_item_that_was_only_shown_takes_its_slate_along(tmp_path, world, phi):
    clock = one.Clock(1000.0)
    with one.device(tmp_path / "device.sqlite", world, phi=phi, clock=clock) as device:
        slates = [drawn(device, k=4)]
        clock.now += 10
        slates.append(drawn(device, k=2))
        shown = slates[0].items[3]
        device.forget(item=shown)
        assert slates[0].name not in probabilities(device)[1]
        assert len(device.store.entries()) == 4 - (shown in slates[1].items), "the second slate may hold it, too"


def test_a_limit_in_days_of_numpy_is_one(device):
    device.limit(interactions=5, days=np.float32(3))
    assert device.store.values("limits") == {"interactions": 5, "days": 3.0}


@pytest.mark.parametrize("how", [{"item": "1"}, {"before": 500.0}, {"everything": True}], ids=["item", "before", "all"])
def test_what_a_limit_dropped_counts_as_forgotten_with_what_was_trained_on_it(how, device):
    device.limit(interactions=2)
    device.consent(True)
    device.record(clicked=["1"])
    device.adapt()
    device.record(clicked=["2"])
    assert [one.forgotten for one in device.store.trainings()] == [0]
    for item in ("3", "4"):
        device.record(clicked=[item])
    device.forget(**how)
    assert not device.status().adapted
    assert [one.forgotten for one in device.store.trainings()] == [1]
    device.adapt()
    device.forget(item="9")
    assert device.status().adapted, "what was trained since saw nothing that is gone"


def test_before_takes_times_and_everything_takes_the_profile_and_leaves_consent_and_policy(tmp_path, world):
    clock = one.Clock(1000.0)
    with one.device(tmp_path / "device.sqlite", world, clock=clock) as device:
        device.consent(True)
        device.record(clicked=["1"])
        clock.now = 2000.0
        device.record(clicked=["2"])
        assert device.forget(before=1000.0) == 0
        assert device.forget(before=1999.5) == 1
        assert [entry.item for entry in device.store.entries()] == ["2"]
        device.store.put("profile", "{}")
        assert device.forget(everything=True) == 1
        state = device.status()
        assert (state.interactions, state.consent, state.versions) == (0, True, {"current": 1})
        assert device.store.setting("profile") is None


def test_an_export_holds_everything_in_json(device, world):
    one.fill(device, world, 0)
    slate = device.recommend(k=3)
    device.record(slate, clicked=slate.items[:1])
    device.consent(True)
    device.adapt()
    found = json.loads(json.dumps(device.export()))
    assert found["format"] == 1
    assert found["consent"]["given"]
    assert len(found["interactions"]) == device.status().interactions
    assert [shown["item"] for shown in found["impressions"]] == list(slate.items)
    assert found["trainings"][0]["used"] == len(found["interactions"])
    assert len(found["adapted"]["served"]["taste"]) == world.policy.features.shape[1]
    assert (found["refusal"], found["forgot"]) == (None, None)
    device.refused("run:1", "consent")
    device.forget(item=slate.items[0])
    found = device.export()
    assert found["refusal"]["reason"] == "consent"
    assert found["forgot"] == int(device._now())


def test_versions_only_grow_and_a_rollback_serves_the_one_before(device, world, phi):
    first = device.explain("3").score
    device.consent(True)
    other = {name: value * 0.5 for name, value in phi.items()}
    device.adopt(one.package(world, version=3, phi=other))
    assert device.status().versions == {"current": 3, "previous": 1}
    assert device.explain("3").score != first
    for version in (3, 2):
        with pytest.raises(PolicyError, match=f"expected a package newer than version 3, got {version}"):
            device.adopt(one.package(world, version=version, phi=phi))
    assert device.rollback() == 1
    assert device.explain("3").score == first
    with pytest.raises(PolicyError, match="newer than version 3"):
        device.adopt(one.package(world, version=3, phi=phi))


def test_two_who_have_the_file_open_see_what_the_other_did(device):
    other = Device.open(device.store.path, clock=one.Clock())
    item = device.recommend(k=1, temperature=0).items[0]
    other.recommend(k=1)
    other.record(clicked=[item])
    assert item not in device.recommend(k=100).items
    device.forget(item=item)
    assert item in other.recommend(k=100).items
    other.close()


def test_a_closed_device_says_so(device):
    device.close()
    for call in (device.status, device.recommend, lambda: device.record(clicked=["1"])):
        with pytest.raises(StoreError, match="was closed; open it again"):
            call()
    device.close()


def test_items_may_come_from_anything_that_gives_them(device):
    every = ids(device)
    assert set(device.recommend((item for item in every[:3]), k=9, blocked=iter(every[:1])).items) == set(every[1:3])
    assert device.record(clicked=(item for item in every[:2])) == 2


def test_threads_share_a_device(device, world):
    every, failures = ids(device), []
    device.consent(True)

    def work(number):
        try:
            for item in every[number::4]:
                device.record(clicked=[item])
                device.recommend(k=3, again=True)
                if number == 0:
                    device.adapt()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sorted(entry.item for entry in device.store.entries()) == sorted(every)


def test_the_newest_are_kept(device):
    device.limit(interactions=3)
    for item in ids(device)[:6]:
        device.record(clicked=[item])
    assert [entry.item for entry in device.store.entries()] == ids(device)[3:6]


@pytest.mark.parametrize("text", ["{broken", "[]", "[" * 100_000, '{"hours": 5}', '{"charging": "no"}', '{"other": 1}'])
@pytest.mark.parametrize("name", ["limits", "profile", "consent", "about", "requirements", "report", "refusal"])
def test_a_damaged_setting_is_told_and_is_no_consent(name, text, device, world):
    one.fill(device, world, 0)
    device.store.put(name, text)
    device.renew()
    calls = (device.status, device.adapt, device.recommend, device.export, lambda: device.record(clicked=["3"]))
    for call in calls:
        with contextlib.suppress(StoreError, NotAllowed, PolicyError):
            call()
    assert not device.store.trainings()


def test_damaged_weights_are_passed_over_and_adapted_again(device, world, caplog):
    one.fill(device, world, 0)
    plain = device.explain("3").score
    device.consent(True)
    device.adapt()
    adapted = device.explain("3").score
    good = device.store.parameters("served")
    wrong = good[:-4] + b"\x00\x00\xc0\x7f"  # one NaN
    for damaged in (b"\x00\xff", b"", good[:-1], wrong):
        device.store._connection.rows("UPDATE parameters SET tensors = ?", (damaged,))
        device.renew()
        assert device.explain("3").score == plain
        json.dumps(device.export())
    assert "damaged and passed over" in caplog.text
    device.adapt()
    assert device.explain("3").score == adapted


@pytest.mark.parametrize("column", ["tensors", "manifest"])
def test_a_damaged_package_is_told(column, device):
    device.store._connection.rows(f"UPDATE packages SET {column} = ?", (b"\x00\xff" if column == "tensors" else "[",))
    with (
        Device.open(device.store.path) as again,
        pytest.raises(PolicyError, match=r"expected a policy package, got something else .* adopt one again"),
    ):
        again.recommend()
