"""Round 1 may release a histogram instead of adapting: its own bound, its own noise, its own charge."""

import math

import federation_world as world
import numpy as np
import pytest
import torch
from fedrec._streams import torch_stream
from fedrec.client.wire import TrainReply, decode_named, encode_named
from fedrec.errors import ConfigError
from fedrec.meta.popularity import VOTE_NORM, log_popularity, vote
from fedrec.privacy.accounting import Charge, epsilon
from fedrec.privacy.ledger import Ledger
from fedrec.server.loop import run_federation
from fedrec.server.strategy import MetaStrategy
from flwr.app import ConfigRecord

WARM = {"server__warm_start": "popularity"}


def ballot(device):
    return vote(torch.tensor([device % 5, (device + 1) % 5]), 5, unit_norm=True)


class Voters(world.Cohort):
    """Votes in round 1, the usual updates afterwards; ``loud`` multiplies the votes."""

    loud = 1.0

    def train(self, order):
        if order.round > 1:
            return super().train(order)
        total = self.loud * torch.stack([ballot(int(device)) for device in order.devices]).sum(dim=0)
        return TrainReply(1, order.schema, update={"bias": total}, devices=len(order.devices))


def plan(run_dir, **changes):
    return world.plan(run_dir, **({"warm_noise_multiplier": 2.0, "warm_floor": 0.5} | changes))


def hold(meta, grid, number, edit=lambda replies: replies):
    messages = list(meta.configure_train(number, encode_named(world.phi0()), ConfigRecord(), grid))
    arrays, _ = meta.aggregate_train(number, edit(list(grid.send_and_receive(messages))))
    return decode_named(arrays)


def test_the_bias_is_the_log_of_the_noised_votes_and_nothing_else_moves(tmp_path):
    config = world.config(**(WARM | {"server__participation": 1.0}))
    meta = MetaStrategy(config, plan(tmp_path))
    phi = hold(meta, world.grid(Voters()), 1)
    votes = torch.stack([ballot(device) for device in range(world.POPULATION)]).sum(dim=0)
    noise = torch.randn((5,), generator=torch_stream(3, 1, "server-noise"), dtype=torch.float64) * 2.0 * VOTE_NORM
    torch.testing.assert_close(phi["bias"], log_popularity(votes + noise, 0.5), rtol=1e-5, atol=1e-6)
    assert all(torch.equal(phi[name], world.phi0()[name]) for name in ("items", "temperature"))
    assert meta.outer.step == 0
    hold(meta, world.grid(Voters()), 2)
    assert meta.outer.step == 1


@pytest.mark.parametrize(("loud", "reasons"), [(1.5, {"norm"}), (0.99, set())])
def test_votes_are_held_against_their_own_bound(tmp_path, loud, reasons):
    """The update clip (0.4) and the scale of the bias (1/2) play no part."""
    voters = Voters()
    voters.loud = loud
    meta = MetaStrategy(world.config(**WARM), plan(tmp_path))
    # one device a node: its vote has norm 1 exactly, a cohort's sum could hide a loud voter
    grid = world.grid(voters, nodes=12)
    hold(meta, grid, 1)
    assert set(meta.verdict.quarantined) == reasons
    assert (meta.verdict.devices == 0) == bool(reasons)


def test_other_tensors_do_not_pass_in_the_first_round(tmp_path):
    meta = MetaStrategy(world.config(**WARM), plan(tmp_path))
    hold(meta, world.grid(world.Cohort()), 1)
    assert meta.verdict.quarantined == {"names": 3}


def test_every_round_is_debited_for_its_own_noise(tmp_path):
    result = run_federation(
        world.grid(Voters()), plan(tmp_path / "run"), world.config(**(WARM | {"server__rounds": 3}))
    )
    costs = [
        [Charge(2.0, 0.5, 1)],
        [Charge(2.0, 0.5, 1), Charge(1.0, 0.5, 1)],
        [Charge(2.0, 0.5, 1), Charge(1.0, 0.5, 2)],
    ]
    assert [row["epsilon"]["user"] for row in result.rows] == [epsilon(cost, 1e-5) for cost in costs]
    with Ledger.open(tmp_path / "run" / "ledger.sqlite") as ledger:
        assert ledger.history("federation") == [Charge(1.0, 0.5, 2), Charge(2.0, 0.5, 1)]


@pytest.mark.parametrize("number", [1, 2])
def test_interrupted_and_resumed_it_ends_alike(tmp_path, number):
    def interrupt(report):
        if report.round == number:
            raise KeyboardInterrupt

    config = world.config(**(WARM | {"server__rounds": 3}))
    plain = run_federation(world.grid(Voters()), plan(tmp_path / "plain"), config)
    with pytest.raises(KeyboardInterrupt):
        run_federation(world.grid(Voters()), plan(tmp_path / "run", on_round=interrupt), config)
    resumed = run_federation(world.grid(Voters()), plan(tmp_path / "run", resume=True), config)
    assert world.outcome(tmp_path / "run", resumed) == world.outcome(tmp_path / "plain", plain)


def test_a_warm_start_needs_its_noise_and_its_parameter(tmp_path):
    with pytest.raises(ValueError, match="expected warm_noise_multiplier > 0"):
        plan(tmp_path, warm_noise_multiplier=None).check(world.config(**WARM))
    with pytest.raises(ConfigError, match="expected 'bias' among the shared parameters"):
        plan(tmp_path, phi0={"items": torch.zeros(5, 3)}, scales={}).check(world.config(**WARM))


@pytest.mark.statistical
def test_the_votes_have_the_noise_that_is_accounted(tmp_path):
    """Standard deviation z * 1 in every count: the right scale is accepted, 2/3 and 3/2 of it are not."""
    draws = []
    for seed in range(300):
        meta = MetaStrategy(world.config(**(WARM | {"seed": seed})), plan(tmp_path, warm_floor=1.0))
        bias = hold(meta, world.grid(Voters()), 1, edit=lambda replies: [])["bias"].double()
        draws.append(torch.expm1(bias).numpy())  # max(noise, 0)
    values = np.concatenate(draws)
    scale = 2.0 * VOTE_NORM
    measured = math.sqrt(2 * (values**2).mean())  # half of a normal's second moment lies above zero
    tolerance = 4.5 * scale * math.sqrt(5 / 4 / values.size)  # sd of the mean of 2 max(x, 0)^2 is scale^2 sqrt(5 / n)
    assert abs(measured - scale) < tolerance < scale / 3 - tolerance
