"""A device's bundles: forward only, one step back when asked, and whole whenever the process dies."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from bundle_world import OTHER, PINNED, bundle
from fedrec.client.bundle_store import BundleStore
from fedrec.errors import BundleError

ONE, TWO, THREE = (bundle(version) for version in (1, 2, 3))
SCRIPT = Path(__file__).with_name("kill_bundle_store.py")


@pytest.fixture
def store(tmp_path):
    return BundleStore(tmp_path / "bundles", PINNED)


def served(store):
    found = store.current()
    return 0 if found is None else found.version


def test_versions_go_forward_and_the_one_before_is_kept(store):
    assert served(store) == 0
    for version, content in ((1, ONE), (2, TWO), (3, THREE)):
        assert store.adopt(content).version == version == served(store)
    assert len(list(store._directory.glob("*.bundle"))) == 2
    assert store.rollback().version == 2 == served(store)
    with pytest.raises(BundleError, match="only the last one before is kept"):
        store.rollback()
    assert served(store) == 2


def test_an_older_bundle_can_not_be_played_back(store):
    store.adopt(TWO)
    for replayed in (ONE, TWO):
        with pytest.raises(
            BundleError, match=r"above version 2, got version .; older ones come back by a rollback only"
        ):
            store.adopt(replayed)
    store.adopt(THREE)
    store.rollback()
    with pytest.raises(BundleError, match="above version 3, got version 3"):
        store.adopt(THREE)  # a rollback leaves it for good
    assert served(store) == 2


def test_what_is_not_trusted_changes_nothing(store, tmp_path):
    store.adopt(ONE)
    path = tmp_path / "new.bundle"
    path.write_bytes(bundle(2, OTHER))
    for wrong in (path, TWO[:-1], b"", tmp_path / "none"):
        with pytest.raises(BundleError):
            store.adopt(wrong)
    assert served(store) == 1
    path.write_bytes(TWO)
    assert store.adopt(path).version == 2


def test_a_damaged_bundle_is_told_and_the_one_before_comes_back(store):
    store.adopt(ONE)
    store.adopt(TWO)
    state = json.loads((store._directory / "state.json").read_text())
    (store._directory / f"{state['current']}.bundle").write_bytes(TWO[:500])
    with pytest.raises(BundleError, match=r"can't be served .*; roll back or adopt a newer one"):
        store.current()
    assert store.rollback().version == 1 == served(store)


def test_another_bundle_under_the_name_of_the_current_one_is_found(store):
    store.adopt(ONE)
    state = json.loads((store._directory / "state.json").read_text())
    (store._directory / f"{state['current']}.bundle").write_bytes(TWO)
    with pytest.raises(BundleError, match="is not the one that was adopted"):
        store.current()


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"current": "../x", "previous": "", "highest": 1}', '{"highest": "1"}', '{"highest": -1}', "[" * 9000],
)
def test_a_state_that_is_none_is_refused(store, text):
    store.adopt(ONE)
    (store._directory / "state.json").write_text(text)
    with pytest.raises(BundleError, match="expected the state of a bundle store"):
        store.current()


def test_without_its_state_a_store_does_not_forget_which_versions_came(store):
    store.adopt(TWO)
    (store._directory / "state.json").unlink()
    for action in (store.current, lambda: store.adopt(ONE), store.rollback):
        with pytest.raises(BundleError, match="which versions came is not known"):
            action()


def test_a_full_disk_is_a_sentence_and_changes_nothing(store, monkeypatch):
    store.adopt(ONE)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("fedrec._durable.os.write", full)
        with pytest.raises(BundleError, match="No space left on device; the bundle that is served stays"):
            store.adopt(TWO)
    assert served(store) == 1
    assert store.adopt(TWO).version == 2


@pytest.mark.integration
@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"), reason="traces with ptrace"
)
def test_killed_before_any_write_it_serves_the_old_or_the_new_one(tmp_path):
    command = [sys.executable, "-W", "ignore::DeprecationWarning", str(SCRIPT), str(tmp_path)]
    rooms = [str(SCRIPT.parents[1] / room) for room in ("meta", "client", "privacy")]
    there = os.environ | {"PYTHONPATH": os.pathsep.join([*rooms, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=there)
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    if outcomes is None:
        pytest.skip("this system does not let a process trace its child")
    for kind, old, new in (("first", 0, 1), ("next", 1, 2)):
        found = [left["served"] for left in outcomes[kind]]
        assert len(found) > 8
        assert found == sorted(found)
        assert set(found) == {old, new}
        assert all(left["back"] == left["served"] for left in outcomes[kind])
        # Nothing of the killed process is left lying about after the next adoption.
        assert all(len([one for one in left["files"] if one.endswith(".bundle")]) <= 1 for left in outcomes[kind])
