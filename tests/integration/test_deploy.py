"""docs/deploy.md, done: a SuperLink with TLS, node authentication and a database, SuperNodes with a device each."""

import contextlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from deploy_page import sections
from fedrec import Device
from fedrec.client.bundle import inspect_bundle, load_bundle, make_bundle
from fedrec.client.bundle_file import sign
from fedrec.client.bundle_keys import load_private_key, load_public_key
from fedrec.client.package import PolicyPackage
from fedrec.errors import BudgetExhausted
from fedrec.meta.policy import Policy
from fedrec.privacy.accounting import Charge
from fedrec.privacy.ledger import Ledger
from flower_processes import free_ports
from site_of_page import Site

pytestmark = [pytest.mark.integration, pytest.mark.deployment]

DEVICES = (1, 2, 3)
POLICY, CERTIFICATES, SUPERLINK = "1. The policy", "2. Certificates", "3. The SuperLink"
NODES, RUN, UPDATE, BROKEN = "4. The devices", "5. The run", "6. The update", "When something breaks"
APP = Path(__file__).parent / "deployed_app" / "moods.py"


def test_the_page_from_the_first_command_to_the_last(site):
    assert list(sections()) == [POLICY, CERTIFICATES, SUPERLINK, NODES, RUN, UPDATE, BROKEN]
    for heading in (POLICY, CERTIFICATES, SUPERLINK, NODES):
        site.follow(heading)
    assert_refused(site, "another key", "Failed to activate SuperNode", key=4)
    assert_refused(site, "another CA", "certificate verify failed", key=3, ca="other.crt")
    run = site.follow(RUN).split("Successfully started run ")[1].split()[0]
    site.until(lambda: site.status(run).startswith("finished"), "the run to end")
    assert site.status(run) == "finished:completed"
    assert [(row["participants"], row["quarantined"], row["refused"]) for row in site.rows()] == [(3, {}, 0)] * 2
    assert debits(site, "run/ledger.sqlite") == ["1", "2"]
    site.follow(UPDATE)
    assert_adopted(site)
    before = {path: debits(site, path) for path in ledgers()}
    assert list(before.values()) == [["1", "2"]] * 4
    site.follow(BROKEN)  # a finished run is not continued and costs nothing
    assert {path: debits(site, path) for path in ledgers()} == before
    assert_no_device_content(site)


def ledgers():
    return ["run/ledger.sqlite", *(f"device-{number}.sqlite.ledger" for number in DEVICES)]


def debits(site, path):
    """Rounds of a ledger's debits, in their order; opening it verifies every hash."""
    with Ledger.open(site.directory / path) as ledger:
        return [debit.key.split(":")[-1] for debit in ledger.debits()]


def assert_refused(site, name, sentence, *, key, ca="ca.crt"):
    """A node that is not admitted ends with a sentence, and the SuperLink knows three nodes as before."""
    site.do('openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=x" -out other.crt')
    if key not in DEVICES:
        site.do(f'ssh-keygen -q -t ecdsa -b 384 -N "" -C "" -f device-{key}.key')
    site.supernode(9, *free_ports(1), key=key, ca=ca)
    assert site.ended("supernode-9") != 0
    assert sentence in site.log("supernode-9"), name
    assert site.online() == len(DEVICES)


def assert_adopted(site):
    """The update follows the bundle it came from, tells what was spent, and is what every device serves."""
    first, second = (inspect_bundle(site.directory / name) for name in ("policy.bundle", "policy-2.bundle"))
    assert (second.version, second.parent) == (2, first.digest)
    assert [one.seeded for one in second.privacy] == [True, True, False, False]
    assert {one.unit: one.rounds for one in second.privacy[2:]} == {"user": 2, "interaction": 4}
    assert max(one.epsilon for one in second.privacy) <= 8
    assert any(not first.package.phi[name].equal(value) for name, value in second.package.phi.items())
    for number in DEVICES:
        with Device.open(site.directory / f"device-{number}.sqlite") as device:
            assert device.status().versions == {"current": 2, "previous": 1}
            assert len(list(device.recommend(k=5))) == 5


def assert_no_device_content(site):
    """Neither the server's log nor its files tell an item that a device logged, a slate, or where a store lies."""
    files = [path for path in (site.directory / "run").rglob("*") if path.is_file() and path.suffix != ".bundle"]
    files += site.directory.glob("superlink.db*")
    seen = site.log("superlink").encode() + b"".join(path.read_bytes() for path in files)
    for number in DEVICES:
        with Device.open(site.directory / f"device-{number}.sqlite") as device:
            exported, catalogue = device.export(), device.package.catalogue
        rows = {str(item): row for row, item in enumerate(catalogue.item_ids)}
        held = {catalogue.title(rows[one["item"]]) for one in exported["interactions"]}
        held |= {one["slate"] for one in exported["impressions"]} | {f"device-{number}.sqlite"}
        assert len(held) > 5
        assert [one for one in held if one.encode() in seen] == []


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Policy, keys and certificates of the page, for the tests that break something."""
    place = Site(tmp_path_factory.mktemp("prepared"))
    for heading in (POLICY, CERTIFICATES):
        place.follow(heading)
    return place.directory


@pytest.fixture
def begin(site, prepared, tmp_path):
    """Start a SuperLink, register so many devices, and write the app folder with :mod:`moods` as its ClientApp."""

    def started(number, **changes):
        package = signed(site, prepared, **changes)
        site.follow(SUPERLINK)
        for one in range(1, number + 1):
            site.do(f'ssh-keygen -q -t ecdsa -b 384 -N "" -C "" -f device-{one}.key')
            site.do(f"flwr supernode register device-{one}.key.pub mine")
        site.do(
            f"fedrec deploy init federation --bundle policy.bundle --key maker.pub --out run --population {number} "
            f"--nodes {number}"
        )
        folder = site.directory / "federation"
        project = folder / "pyproject.toml"
        project.write_text(project.read_text().replace("fedrec.client.node:client_app", "moods:client_app"))
        shutil.copy(APP, folder)
        return package

    return started


def signed(site, prepared, **changes):
    """The page's bundle with some settings changed, signed by its maker; returns what is in it."""
    site.take_over(("maker", "maker.pub", "ca.crt", "ca.key", "server.crt", "server.key"), prepared)
    found = load_bundle(prepared / "policy.bundle", [load_public_key(prepared / "maker.pub")])
    package = replace(found.package, config=found.package.config.updated(**changes))
    content = sign(make_bundle(package, found.privacy), load_private_key(prepared / "maker"))
    (site.directory / "policy.bundle").write_bytes(content)
    return package


def create(site, number, package, *, consent=True):
    """A device with a few clicks."""
    with Device.create(site.directory / f"device-{number}.sqlite", package) as device:
        device.consent(consent)
        for _ in range(3):
            slate = device.recommend(k=2)
            device.record(slate, clicked=[next(iter(slate)).item])


def exhaust(site, number, package):
    """Spend all that the device's ledger allows."""
    settings = package.config
    charge = Charge(package.noise.adapt, settings.privacy.sample_rate, settings.local.steps)
    with Device.open(site.directory / f"device-{number}.sqlite") as device, contextlib.suppress(BudgetExhausted):
        for before in range(100):
            device.account.reserve(charge, f"run:{before}")


def other_policy(package):
    """The policy before it was given another width."""
    config = package.config.updated(policy__dim=package.config.policy.dim + 1)
    policy = Policy.for_catalogue(config.policy, package.catalogue, len(package.user_features))
    initial = policy.initial(torch.Generator().manual_seed(0))
    phi = {name: initial[name] for name in policy.names(scope="shared")}
    return replace(package, config=config, phi=phi)


def test_what_does_not_count_is_counted_and_the_round_goes_on(site, begin):
    """One device that is well, and everything that a node may be instead."""
    site.in_memory = True
    package: PolicyPackage = begin(6)
    for number in (1, 3, 5, 6):
        create(site, number, package)
    create(site, 2, package, consent=False)
    create(site, 4, other_policy(package))
    exhaust(site, 3, package)
    emptied = debits(site, "device-3.sqlite.ledger")
    moods = {5: "nan_then_replay", 6: "shape_then_large"}
    for number, port in zip(range(1, 7), free_ports(6), strict=True):
        site.supernode(number, port, mood=moods.get(number, "well"))
    ended = site.run("federation")
    assert ended.status == "finished:completed", ended.log
    first, second = site.rows()
    assert (first["participants"], first["refused"]) == (second["participants"], second["refused"]) == (1, 2)
    assert first["quarantined"] == {"error:schema": 1, "non-finite": 1, "shapes": 1}
    assert second["quarantined"] == {"error:schema": 1, "norm": 1, "round": 1}
    assert debits(site, "run/ledger.sqlite") == ["1", "2"]
    assert debits(site, "device-1.sqlite.ledger") == ["1", "2"]
    assert debits(site, "device-2.sqlite.ledger") == debits(site, "device-4.sqlite.ledger") == []
    assert debits(site, "device-3.sqlite.ledger") == emptied
    assert inspect_bundle(site.directory / "run" / "update.bundle").version == package.version + 1


def test_a_dead_superlink_and_a_dead_supernode_lose_nothing(site, begin):
    """Round 2 is held three times over: the SuperLink dies in it, then a SuperNode; round 4 can't be paid any more."""
    package = begin(3, server__rounds=4)
    ports = free_ports(3)
    for number, port in zip(DEVICES, ports, strict=True):
        create(site, number, package)
        site.supernode(number, port, mood="well" if number == 3 else "held")
    hold, held, other = (site.directory / f"device-{suffix}" for suffix in ("1.hold", "1.held-2", "2.hold"))
    hold.write_text("2")
    site.begin("federation")
    site.until(held.exists, "round 2 to be held back")
    site.crash("superlink")
    site.until(lambda: not any("serverapp" in one for one in site.processes().values()), "the ServerApp to end")
    assert [row["round"] for row in site.rows()] == [1]
    assert debits(site, "run/ledger.sqlite") == ["1", "2"]

    held.unlink()
    hold.unlink()
    site.serve("superlink")
    site.until(lambda: "Sending: train" in site.log("supernode-1").split("ROUND 2")[-1], "a reply that is too late")
    hold.write_text("2")
    other.write_text("2")
    patience = max(150.0, 5 * site.rows()[0]["seconds"])
    resumed = site.begin("federation", f"fedrec-resume=true fedrec-deadline={patience}")
    site.until(held.exists, "round 2 to be held back again")
    site.crash("supernode-1")
    hold.unlink()
    site.bring_back("supernode-1")
    other.unlink()
    site.until(lambda: site.status(resumed).startswith("finished"), "the run to end")
    assert site.status(resumed) == "finished:completed"
    assert [(row["round"], row["participants"]) for row in site.rows()] == [(1, 3), (2, 2), (3, 3)]
    assert debits(site, "run/ledger.sqlite") == ["1", "2", "2", "3"]
    assert [debits(site, f"device-{number}.sqlite.ledger") for number in DEVICES] == [["1", "2", "2", "3"]] * 3
    assert len(site.node_ids("supernode-1")) == 1
