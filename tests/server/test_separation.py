"""Minimum separation through the real strategy, loop and ledger: who is asked when, and what one device pays."""

import dp_accounting
import federation_world as world
import numpy as np
import pytest
import torch
from dp_accounting.pld import PLDAccountant
from fedrec.client.wire import TrainReply, decode_named, decode_order, encode_named
from fedrec.errors import ConfigError
from fedrec.privacy.accounting import Charge, epsilon
from fedrec.privacy.ledger import Ledger
from fedrec.privacy.mechanisms import clip_updates
from fedrec.privacy.separation import turns
from fedrec.server.loop import run_federation
from fedrec.server.strategy import MetaStrategy
from flwr.app import ConfigRecord

B = 4
SGD = {"server__outer_optimizer": "sgd", "server__decay": "none"}


def config(**changes):
    return world.config(**({"server__min_separation": B, "server__participation": 1.0} | changes))


def asked(meta, number, phi=None):
    messages = meta.configure_train(number, encode_named(phi or world.phi0()), ConfigRecord(), world.grid())
    return {int(one) for message in messages for one in decode_order(message.content).devices}


@pytest.mark.parametrize("participation", [1.0, 0.6])
@pytest.mark.parametrize("simulation", [True, False])
def test_nobody_is_asked_again_before_its_time(tmp_path, participation, simulation):
    plan = world.plan(tmp_path, simulation=simulation)
    meta = MetaStrategy(config(server__participation=participation), plan)
    rounds = [asked(meta, number) for number in range(1, 22)]
    for first in range(len(rounds)):
        for later in rounds[first + 1 : first + B]:
            assert not rounds[first] & later
    counts = [sum(device in one for one in rounds) for device in range(world.POPULATION)]
    assert max(counts) <= 6  # ceil(21 / 4)
    if participation == 1:
        assert [len(one) for one in rounds] == [3] * 21
        assert set().union(*rounds[:B]) == set(range(world.POPULATION))


def test_off_equals_plain(tmp_path):
    plain = MetaStrategy(world.config(), world.plan(tmp_path))
    one = MetaStrategy(world.config(server__min_separation=1), world.plan(tmp_path))
    assert all(asked(plain, number) == asked(one, number) for number in range(1, 10))


def test_the_divisor_is_the_expected_cohort_of_a_turn(tmp_path):
    """The seeded noise over population / b, whoever answered."""
    meta = MetaStrategy(config(**SGD), world.plan(tmp_path))
    asked(meta, 2)
    arrays, _ = meta.aggregate_train(2, [])
    plain = MetaStrategy(world.config(server__participation=1.0, **SGD), world.plan(tmp_path))
    asked(plain, 2)
    whole, _ = plain.aggregate_train(2, [])
    for name, step in decode_named(arrays).items():
        torch.testing.assert_close(step, B * decode_named(whole)[name])


def test_the_account_of_a_turn_holds_what_one_of_its_devices_took_part_in(tmp_path):
    """Six rounds: turns 1 and 2 had two, turns 3 and 4 one. The run costs what two plain Gaussians cost, not six."""
    result = run_federation(world.grid(), world.plan(tmp_path / "run"), config())
    referee = PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    referee.compose(dp_accounting.GaussianDpEvent(1.0), 2)
    with Ledger.open(tmp_path / "run" / "ledger.sqlite") as ledger:
        names = [f"federation:turn-{turn}-of-{B}" for turn in range(1, B + 1)]
        assert ledger.accounts() == names
        assert [ledger.history(name) for name in names] == [[Charge(1.0, 1.0, steps)] for steps in (2, 2, 1, 1)]
        assert ledger.settings.mechanism.startswith("minimum separation 4, no amplification (a device takes part in at")
        assert ledger.export()["settings"]["mechanism"] == ledger.settings.mechanism
        assert result.epsilon["user"] == max(ledger.spent(name) for name in names)
    assert result.epsilon["user"] >= referee.get_epsilon(1e-5)
    assert result.epsilon["user"] == pytest.approx(referee.get_epsilon(1e-5), rel=0.15)  # RDP is an upper bound
    one, two = (epsilon([Charge(1.0, 1.0, steps)], 1e-5) for steps in (1, 2))
    assert [row["epsilon"]["user"] for row in result.rows] == [one] * 4 + [two] * 2


def test_a_rate_below_one_within_a_turn_is_not_claimed_to_amplify(tmp_path):
    result = run_federation(world.grid(), world.plan(tmp_path / "run"), config(server__participation=0.25))
    assert result.epsilon["user"] == epsilon([Charge(1.0, 1.0, 2)], 1e-5)


def test_the_ledger_knows_each_devices_own_rounds(tmp_path):
    """Whoever is asked, however often: its account was debited at least as often, and by that round's key."""
    cohort = world.Cohort()
    run_federation(world.grid(cohort), world.plan(tmp_path / "run"), config(server__participation=0.7))
    own = turns(config().seed, world.POPULATION, B)
    with Ledger.open(tmp_path / "run" / "ledger.sqlite") as ledger:
        for device in range(world.POPULATION):
            taken = sum(device in order.devices for order in cohort.orders)
            account = f"federation:turn-{own[device] + 1}-of-{B}"
            assert taken <= ledger.history(account)[0].steps


def test_the_budget_counts_participations_too(tmp_path):
    """Two participations at z = 1 cost 7.5, three 9.6: with budget 8 each turn comes twice, 8 rounds in all."""
    budget = config(privacy__epsilon=8.0, privacy__noise_multiplier=None, server__rounds=20)
    result = run_federation(world.grid(), world.plan(tmp_path / "run"), budget)
    assert epsilon([Charge(1.0, 1.0, 2)], 1e-5) <= 8.0 < epsilon([Charge(1.0, 1.0, 3)], 1e-5)
    assert (result.stop, result.rounds) == ("budget", 2 * B)


def test_a_deployment_counts_what_it_repeats(tmp_path):
    def interrupt(order):
        if order.round == 2 and not (tmp_path / "crashed").exists():
            (tmp_path / "crashed").touch()
            raise KeyboardInterrupt

    grid = world.grid(world.Cohort(interrupt))
    changes = config(server__rounds=3)
    with pytest.raises(KeyboardInterrupt):
        run_federation(grid, world.plan(tmp_path / "run", simulation=False), changes)
    result = run_federation(grid, world.plan(tmp_path / "run", simulation=False, resume=True), changes)
    assert [row["epsilon"]["user"] for row in result.rows] == [
        epsilon([Charge(1.0, 1.0, steps)], 1e-5) for steps in (1, 2, 2)
    ]


class Voters(world.Cohort):
    """Votes in round 1."""

    def train(self, order):
        if order.round > 1:
            return super().train(order)
        self.orders.append(order)
        return TrainReply(1, order.schema, update={"bias": torch.zeros(5)}, devices=len(order.devices))


def test_the_warm_start_asks_everybody_once_and_every_account_pays(tmp_path):
    cohort, changes = Voters(), config(server__warm_start="popularity", server__rounds=B + 2)
    plan = world.plan(tmp_path / "run", warm_noise_multiplier=2.0)
    result = run_federation(world.grid(cohort), plan, changes)
    assert sum(len(order.devices) for order in cohort.orders if order.round == 1) == world.POPULATION
    with Ledger.open(tmp_path / "run" / "ledger.sqlite") as ledger:
        steps = {name: {one.noise_multiplier: one.steps for one in ledger.history(name)} for name in ledger.accounts()}
    assert list(steps.values()) == [{1.0: 2, 2.0: 1}] + [{1.0: 1, 2.0: 1}] * 3
    assert result.epsilon["user"] == epsilon([Charge(2.0, 1.0, 1), Charge(1.0, 1.0, 2)], 1e-5)


def test_interrupted_and_resumed_it_ends_alike(tmp_path):
    def interrupt(report):
        if report.round == 3:
            raise KeyboardInterrupt

    plain = run_federation(world.grid(), world.plan(tmp_path / "plain"), config())
    with pytest.raises(KeyboardInterrupt):
        run_federation(world.grid(), world.plan(tmp_path / "run", on_round=interrupt), config())
    again = run_federation(world.grid(), world.plan(tmp_path / "run", resume=True), config())
    assert world.outcome(tmp_path / "run", again) == world.outcome(tmp_path / "plain", plain)


def test_more_turns_than_devices_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="min_separation of at most the 12 devices there are, got 13"):
        world.plan(tmp_path).check(config(server__min_separation=13))
    with pytest.raises(ConfigError, match=r"expected server\.min_separation >= 1, got 0"):
        config(server__min_separation=0)


def test_a_device_moves_no_round_but_its_own(tmp_path):
    """With and without one device the other turns' rounds are the same to the bit: parallel composition."""
    own = turns(3, 8, B)

    class Target:
        def __init__(self, there):
            self.there = there

        def train(self, order):
            pulls = torch.ones(len(order.devices), 2)
            pulls[torch.from_numpy(order.devices == 0)] = 0.3 if self.there else 0.0
            total = clip_updates({"w": pulls}, 1.0).value["w"].float()
            return TrainReply(order.round, order.schema, update={"w": total}, devices=len(order.devices))

    released = []
    for there in (True, False):
        plan = world.plan(tmp_path, phi0={"w": torch.zeros(2)}, population=8, scales={})
        meta, grid = MetaStrategy(config(privacy__clip=1.0, **SGD), plan), world.grid(Target(there), 2)
        for number in range(1, 2 * B + 1):
            messages = list(meta.configure_train(number, encode_named({"w": torch.zeros(2)}), ConfigRecord(), grid))
            arrays, _ = meta.aggregate_train(number, list(grid.send_and_receive(messages)))
            released.append(decode_named(arrays)["w"].numpy())
    one, other = np.array(released[: 2 * B]), np.array(released[2 * B :])
    moved = np.flatnonzero((one != other).any(axis=1))
    assert moved.tolist() == [own[0], own[0] + B]
