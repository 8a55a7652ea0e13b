"""The deployed ServerApp: everything from a signed bundle, noise from the system, an update as the next bundle."""

import json
from dataclasses import replace

import deployed_world as deployed
import pytest
from fedrec.client.bundle import inspect_bundle
from fedrec.errors import BundleError, ConfigError, RunError
from fedrec.privacy.accounting import Charge, epsilon
from fedrec.privacy.ledger import Ledger
from fedrec.server.deployment import Deployment


def debits(path):
    with Ledger.open(path) as ledger:
        return [debit.key.split(":")[-1] for debit in ledger.debits()]


def rows(root):
    return [json.loads(line) for line in (root / "run" / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def federation(tmp_path):
    found = deployed.deployment(tmp_path)
    deployed.devices(tmp_path)
    return found


def test_a_federation_ends_with_the_next_bundle(tmp_path, federation):
    deployed.hold(tmp_path, federation)
    assert [(row["participants"], row["refused"], row["quarantined"]) for row in rows(tmp_path)] == [(3, 0, {})] * 2
    assert all(row["validation"] is None for row in rows(tmp_path))
    base, update = federation.load(), inspect_bundle(tmp_path / "run" / "update.bundle")
    assert (update.version, update.parent, update.signer) == (2, base.digest, b"")
    assert update.package.schema == base.package.schema
    assert update.package.config == base.package.config
    assert any(not base.package.phi[name].equal(value) for name, value in update.package.phi.items())
    told = [(one.unit, one.seeded, one.rounds) for one in update.privacy]
    assert told == [("user", False, 2), ("interaction", False, 10)]
    with Ledger.open(tmp_path / "run" / "ledger.sqlite") as ledger:
        paid = ledger.history("federation")
    assert update.privacy[0].epsilon == pytest.approx(epsilon(paid, 1e-5, "rdp"))
    assert [debits(tmp_path / f"device-{number}.sqlite.ledger") for number in range(3)] == [["1", "2"]] * 3


def test_noise_can_not_be_repeated(tmp_path):
    """The same seed, the same devices, empty logs even: the system's entropy makes another policy of them."""
    learned = []
    for name in ("one", "other"):
        root = tmp_path / name
        root.mkdir()
        federation = deployed.deployment(root, privacy__unit="user", server__rounds=1)
        deployed.hold(root, federation, deployed.LocalGrid(deployed.make_client_app(None), 3))
        learned.append(inspect_bundle(root / "run" / "update.bundle").package.phi)
    assert not any(learned[0][name].equal(learned[1][name]) for name in federation.load().package.policy.released)


def interrupt(root, federation, monkeypatch):
    """Let the server die when the replies of round 2 are there."""
    grid = deployed.local_grid(root)
    send = grid.send_and_receive
    rounds = iter([1, 2])

    def dying(messages, *, timeout):
        replies = list(send(messages, timeout=timeout))
        if next(rounds) == 2:
            raise KeyboardInterrupt
        return replies

    monkeypatch.setattr(grid, "send_and_receive", dying)
    with pytest.raises(KeyboardInterrupt):
        deployed.hold(root, federation, grid)


def test_a_round_that_is_held_again_is_paid_again(tmp_path, federation, monkeypatch):
    """It was debited before its orders left: nothing is left for holding it again, and the run ends there."""
    interrupt(tmp_path, federation, monkeypatch)
    assert not (tmp_path / "run" / "update.bundle").exists()
    with pytest.raises(RunError, match="resume it or choose another directory"):
        deployed.hold(tmp_path, federation)
    deployed.hold(tmp_path, federation, resume=True, deadline=50.0)
    assert [(row["round"], row["epsilon"]["interaction"]) for row in rows(tmp_path)] == [(1, 8.0)]
    assert debits(tmp_path / "run" / "ledger.sqlite") == ["1", "2"]
    assert [debits(tmp_path / f"device-{number}.sqlite.ledger") for number in range(3)] == [["1", "2"]] * 3


def test_an_update_says_what_was_spent_and_not_what_was_planned(tmp_path, monkeypatch):
    """Without a limit the interrupted round is held again, and three releases are two rounds."""
    federation = deployed.deployment(
        tmp_path, privacy__unit="user", privacy__epsilon=None, privacy__noise_multiplier=2.0
    )
    deployed.devices(tmp_path)
    interrupt(tmp_path, federation, monkeypatch)
    deployed.hold(tmp_path, federation, resume=True)
    assert [row["round"] for row in rows(tmp_path)] == [1, 2]
    (statement,) = inspect_bundle(tmp_path / "run" / "update.bundle").privacy
    assert statement.rounds == 3
    assert statement.epsilon == pytest.approx(epsilon([Charge(2.0, 1.0, 3)], 1e-5, "rdp"))
    assert rows(tmp_path)[-1]["epsilon"] == {"user": pytest.approx(statement.epsilon)}


def test_the_run_config_comes_back(federation):
    values = {key: value for key, (value, _) in federation.run_config().items()}
    assert Deployment.of(values) == federation
    assert list(values)[:2] == ["fedrec-bundle", "fedrec-key"]
    assert all(told for _, told in federation.run_config().values())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"fedrec-bundle": "policy.bundle"}, "expected fedrec-bundle to be an absolute path, got 'policy.bundle'"),
        ({"fedrec-population": 1}, "expected fedrec-population to be an integer >= 2, got 1"),
        ({"fedrec-population": True}, "expected fedrec-population to be an integer >= 2, got True"),
        ({"fedrec-nodes": 4}, "expected fedrec-nodes of at most the population, 3, got 4"),
        ({"fedrec-deadline": 0.0}, "expected fedrec-deadline > 0, got 0.0"),
        ({"fedrec-deadline": "soon"}, "expected fedrec-deadline > 0, got 'soon'"),
        ({"fedrec-resume": 1}, "expected fedrec-resume to be true or false, got 1"),
        ({"privacy.epsilon": 100.0}, "got 'privacy.epsilon' unknown"),
    ],
)
def test_a_wrong_run_config_is_a_sentence(federation, change, sentence):
    values = {key: value for key, (value, _) in federation.run_config().items()}
    with pytest.raises(ConfigError) as raised:
        Deployment.of(values | change)
    assert sentence in str(raised.value)


def test_a_key_that_is_missing_is_a_sentence(federation):
    values = {key: value for key, (value, _) in federation.run_config().items() if key != "fedrec-key"}
    with pytest.raises(ConfigError, match="got 'fedrec-key' missing"):
        Deployment.of(values)


def test_only_the_makers_bundle_is_deployed(tmp_path, federation):
    content = bytearray(federation.bundle.read_bytes())
    content[-1] ^= 1
    federation.bundle.write_bytes(content)
    with pytest.raises(BundleError):
        deployed.hold(tmp_path, federation)
    (tmp_path / "other").mkdir()
    other = deployed.deployment(tmp_path / "other")
    with pytest.raises(BundleError, match="signed by"):
        deployed.hold(tmp_path, replace(other, key=federation.key))
    assert not (tmp_path / "run").exists()


def test_a_server_has_nothing_to_lose_patience_over(tmp_path):
    federation = deployed.deployment(tmp_path, server__patience=1)
    assert federation.config(federation.load()).server.patience is None
