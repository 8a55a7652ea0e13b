"""docs/deploy.md, done: a SuperLink with TLS, node authentication and a database, SuperNodes with a device each."""

import json

import pytest
from deploy_page import sections
from fedrec import Device
from fedrec.client.bundle import inspect_bundle
from fedrec.privacy.ledger import Ledger
from flower_processes import free_ports

pytestmark = pytest.mark.integration

DEVICES = (1, 2, 3)


def debits(path):
    """Keys of a ledger's debits, in their order; opening it verifies every hash."""
    with Ledger.open(path) as ledger:
        return [debit.key.split(":")[-1] for debit in ledger.debits()]


def spent(site, number):
    return debits(site.directory / f"device-{number}.sqlite.ledger")


def held_back(site, number):
    """What no log of the server may show: ids and titles of what a device has logged, and its slates' names."""
    with Device.open(site.directory / f"device-{number}.sqlite") as device:
        exported = device.export()
    slates = [one["slate"] for one in exported["impressions"]]
    paths = [f"device-{number}.sqlite"]
    return {*slates, *paths}


def assert_no_device_content(site, run="run"):
    server = site.log("superlink").encode()
    server += b"".join(
        path.read_bytes() for path in (site.directory / run).rglob("*") if path.is_file() and path.suffix != ".bundle"
    )
    server += b"".join(path.read_bytes() for path in site.directory.glob("superlink.db*"))
    for number in DEVICES:
        secrets = held_back(site, number)
        assert len(secrets) > 3
        assert [secret for secret in secrets if secret.encode() in server] == []


def test_the_page_from_the_first_command_to_the_last(site):
    pages = sections()
    *setup, run, update, broken = [heading for heading in pages if heading[0].isdigit() or "breaks" in heading]
    assert len(pages) == len(setup) + 3  # no command stands elsewhere
    for heading in setup:
        site.follow(heading)
    site.until(lambda: site.online() == len(DEVICES), "three SuperNodes")
    site.refused = [refused_node(site, **how) for how in (NO_KEY, OTHER_CA)]
    site.follow(run)
    assert_two_rounds(site)
    site.follow(update)
    for number in DEVICES:
        with Device.open(site.directory / f"device-{number}.sqlite") as device:
            assert device.status().versions == {"current": 2, "previous": 1}
            assert len(list(device.recommend(k=5))) == 5
    before = [spent(site, number) for number in DEVICES], debits(site.directory / "run" / "ledger.sqlite")
    assert "Successfully started run" in site.follow(broken)  # a finished run is not continued and costs nothing
    assert ([spent(site, number) for number in DEVICES], debits(site.directory / "run" / "ledger.sqlite")) == before
    assert_no_device_content(site)
    assert_devices_use_the_fleet_interface_only(site)
