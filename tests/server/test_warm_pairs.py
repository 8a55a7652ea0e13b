"""Round 2 may release what goes together: its own bound, its own noise, its own charge, and only the table moves."""

import federation_world as world
import numpy as np
import pytest
import torch
from fedrec._streams import torch_stream
from fedrec.client.wire import TrainReply, decode_named, encode_named
from fedrec.meta import pairs
from fedrec.meta.popularity import vote as popularity_vote
from fedrec.privacy.accounting import Charge, epsilon
from fedrec.privacy.audit import empirical_epsilon
from fedrec.privacy.ledger import Ledger
from fedrec.server.loop import run_federation
from fedrec.server.strategy import MetaStrategy
from flwr.app import ConfigRecord

COUNT, RANK, WINDOW, NOISE = 4, 2, 3, 1.5
SETTINGS = {
    "server__warm_start": "popularity",
    "server__warm_pairs": COUNT,
    "server__warm_window": WINDOW,
    "policy__affinity": True,
    "policy__pairs": RANK,
    "server__participation": 1.0,
}
BIAS = torch.log1p(torch.tensor([4.0, 1.0, 3.0, 0.0, 2.0]))


def log(device):
    return torch.tensor([device % 5, (device + 2) % 5, device % 5, (2 * device + 1) % 5])


def ballot(device):
    return pairs.vote(log(device), BIAS, COUNT, WINDOW)


class Voters(world.Cohort):
    """Votes in rounds 1 and 2, the usual updates afterwards; ``loud`` multiplies the votes on pairs."""

    loud = 1.0

    def train(self, order):
        if order.round > 2:
            return super().train(order)
        if order.round == 1:
            votes = [popularity_vote(log(int(device)), 5, unit_norm=True) for device in order.devices]
        else:
            votes = [self.loud * ballot(int(device)) for device in order.devices]
        name = "bias" if order.round == 1 else "pairs"
        return TrainReply(order.round, order.schema, update={name: torch.stack(votes).sum(0)}, devices=len(votes))


def phi0():
    return {**world.phi0(), "bias": BIAS.clone(), "pairs": torch.zeros(5, RANK)}


def plan(run_dir, **changes):
    values = {
        "phi0": phi0(),
        "trained": tuple(world.phi0()),
        "warm_noise_multiplier": 2.0,
        "pairs_noise_multiplier": NOISE,
        "warm_floor": 0.5,
    }
    return world.plan(run_dir, **(values | changes))


def hold(meta, grid, number, edit=lambda replies: replies):
    messages = list(meta.configure_train(number, encode_named(phi0()), ConfigRecord(), grid))
    arrays, _ = meta.aggregate_train(number, edit(list(grid.send_and_receive(messages))))
    return decode_named(arrays)


def test_the_table_is_made_of_the_noised_votes_and_nothing_else_moves(tmp_path):
    meta = MetaStrategy(world.config(**SETTINGS), plan(tmp_path))
    phi = hold(meta, world.grid(Voters()), 2)
    votes = torch.stack([ballot(device) for device in range(world.POPULATION)]).sum(0)
    noise = torch.randn(votes.shape, generator=torch_stream(3, 2, "server-noise"), dtype=torch.float64)
    expected = pairs.factorise(votes + noise * NOISE * pairs.VOTE_NORM, BIAS, COUNT, RANK)
    torch.testing.assert_close(phi["pairs"], expected, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(phi[name], phi0()[name]) for name in ("items", "temperature", "bias"))
    assert meta.outer.step == 0
    later = hold(meta, world.grid(Voters()), 3)
    assert meta.outer.step == 1
    assert torch.equal(later["pairs"], phi0()["pairs"])


@pytest.mark.parametrize(("loud", "reasons"), [(1.5, {"norm"}), (0.99, set())])
def test_votes_are_held_against_their_own_bound(tmp_path, loud, reasons):
    voters = Voters()
    voters.loud = loud
    meta = MetaStrategy(world.config(**SETTINGS), plan(tmp_path))
    hold(meta, world.grid(voters, nodes=12), 2)
    assert set(meta.verdict.quarantined) == reasons


def test_a_vote_of_another_size_does_not_pass(tmp_path):
    meta = MetaStrategy(world.config(**(SETTINGS | {"server__warm_pairs": 3})), plan(tmp_path))
    hold(meta, world.grid(Voters()), 2)
    assert set(meta.verdict.quarantined) == {"shapes"}


def test_every_round_is_debited_for_its_own_noise(tmp_path):
    config = world.config(**(SETTINGS | {"server__rounds": 4}))
    result = run_federation(world.grid(Voters()), plan(tmp_path / "run"), config)
    costs = [Charge(2.0, 1.0, 1), Charge(NOISE, 1.0, 1), Charge(1.0, 1.0, 1), Charge(1.0, 1.0, 1)]
    spent = [row["epsilon"]["user"] for row in result.rows]
    assert spent == pytest.approx([epsilon(costs[: number + 1], 1e-5) for number in range(4)])
    with Ledger.open(tmp_path / "run" / "ledger.sqlite") as ledger:
        assert sum(charge.steps for charge in ledger.history("federation")) == 4
        assert Charge(NOISE, 1.0, 1) in ledger.history("federation")


def test_pairs_need_their_noise(tmp_path):
    with pytest.raises(ValueError, match="expected pairs_noise_multiplier > 0"):
        plan(tmp_path, pairs_noise_multiplier=None).check(world.config(**SETTINGS))


RUNS, CELLS = 1500, pairs.cells(COUNT)
MUTANTS = {"honest": (1.0, 1.0), "no noise": (0.0, 1.0), "a third of the noise": (1 / 3, 1.0), "no clip": (1.0, 20.0)}


def released(logs, *, noise, loud):
    """Many noised sums of the votes of these devices, through the strategy's own release, ``[RUNS, CELLS]``."""
    votes = [loud * pairs.vote(torch.tensor(items), BIAS, COUNT, WINDOW).double() for items in logs]
    total = {"pairs": torch.stack(votes).sum(0)}
    seen = []
    for seed in range(RUNS):
        settings = world.config(**(SETTINGS | {"seed": seed + 1000 * len(logs)}))
        meta = MetaStrategy(settings, plan("unused", pairs_noise_multiplier=max(NOISE * noise, 1e-6)))
        seen.append(meta._released(2, meta._plan.sensitivity(meta._config, 2), total)["pairs"].numpy())
    return np.stack(seen)


@pytest.mark.statistical
@pytest.mark.parametrize("name", MUTANTS)
def test_one_device_more_can_not_be_told_and_planted_bugs_are_convicted(name):
    """The best statistic is the projection on the device's own vote; the bound has confidence 0.9999."""
    noise, loud = MUTANTS[name]
    one, delta = [0, 2, 0, 4], 0.01
    with_it, without = (released(logs, noise=noise, loud=loud) for logs in ([[4, 0], one], [[4, 0]]))
    direction = pairs.vote(torch.tensor(one), BIAS, COUNT, WINDOW).double().numpy()
    measured = empirical_epsilon(with_it @ direction, without @ direction, delta, 0.9999)
    assert (measured > epsilon([Charge(NOISE, 1.0, 1)], delta)) == (name != "honest")


@pytest.mark.statistical
def test_the_votes_have_the_noise_that_is_accounted():
    """Standard deviation z in every cell: the right scale is accepted, 2/3 and 3/2 of it are not (4.5 errors)."""
    values = released([[1, 3]], noise=1.0, loud=1.0)
    values = values - pairs.vote(torch.tensor([1, 3]), BIAS, COUNT, WINDOW).numpy()
    tolerance = 4.5 * NOISE / np.sqrt(2 * values.size)
    assert abs(float(np.sqrt((values**2).mean())) - NOISE) < tolerance < NOISE / 3 - tolerance
