"""Adaptive clipping through the real strategy and loop: orders, bits, the joint release, ledger, resuming."""

import math
from collections import Counter

import federation_world as world
import numpy as np
import pytest
import torch
from fedrec._streams import torch_stream
from fedrec.client.wire import TrainReply, decode_named, decode_order, encode_named
from fedrec.errors import ConfigError, PrivacyError
from fedrec.privacy.accounting import Charge
from fedrec.privacy.adaptive import split_noise
from fedrec.privacy.ledger import Ledger
from fedrec.privacy.mechanisms import clip_updates
from fedrec.server.loop import run_federation
from fedrec.server.strategy import MetaStrategy
from flwr.app import ConfigRecord

BITS = 0.8
EXPECTED = 0.5 * world.POPULATION
ADAPTIVE = {"privacy__clipping": "adaptive", "privacy__bit_noise": BITS}
SGD = {"server__outer_optimizer": "sgd", "server__decay": "none"}


def config(**changes):
    return world.config(**(ADAPTIVE | changes))


def strategy(tmp_path, clip=None, plan=None, **changes):
    return MetaStrategy(config(**(SGD | changes)), world.plan(tmp_path, **(plan or {})), clip=clip)


def hold(meta, grid, number=1, edit=lambda replies: replies):
    messages = list(meta.configure_train(number, encode_named(world.phi0()), ConfigRecord(), grid))
    arrays, _ = meta.aggregate_train(number, edit(list(grid.send_and_receive(messages))))
    return messages, decode_named(arrays)


def test_a_round_in_closed_form(tmp_path):
    """Updates clipped to the order's S, noise of z_delta S, and S moved by the noised share of unclipped devices."""
    meta, grid, start = strategy(tmp_path, clip=2.0), world.grid(), 2.0
    messages, phi = hold(meta, grid)
    devices = sorted(int(one) for message in messages for one in decode_order(message.content).devices)
    assert {decode_order(message.content).clip for message in messages} == {start}
    clipped = world.clipped(devices, 1, world.phi0(), start)
    unclipped = int((~clipped.was_clipped).sum())
    assert 0 < unclipped < len(devices)
    noise, deviation = torch_stream(3, 1, "server-noise"), (1.0**-2 - (2 * BITS) ** -2) ** -0.5
    for name in sorted(phi):
        drawn = torch.randn(world.SHAPES[name], generator=noise, dtype=torch.float64)
        noised = clipped.value[name] + drawn * deviation * start * world.SCALES.get(name, 1.0)
        torch.testing.assert_close(phi[name].double(), noised / EXPECTED, rtol=1e-5, atol=1e-6)
    bits = float(torch.randn((), generator=torch_stream(3, 1, "bit-noise"), dtype=torch.float64)) * BITS
    fraction = 0.5 + (unclipped - len(devices) / 2 + bits) / EXPECTED
    assert meta.clip == pytest.approx(start * math.exp(-0.2 * (min(1, max(0, fraction)) - 0.5)), rel=1e-6)


def test_off_equals_plain(tmp_path):
    """A fixed clip sends none; an adaptive one that does not move, under bits that cost nothing, is the fixed one."""
    fixed = MetaStrategy(world.config(**SGD), world.plan(tmp_path))
    messages, plain = hold(fixed, world.grid())
    assert {decode_order(message.content).clip for message in messages} == {None}
    assert fixed.clip is None
    still = strategy(tmp_path, privacy__clip_lr=1e-12, privacy__bit_noise=1e6)
    _, adapted = hold(still, world.grid())
    for name, value in plain.items():
        torch.testing.assert_close(adapted[name], value, rtol=1e-6, atol=1e-7)
    assert still.clip == pytest.approx(world.CLIP)


def test_devices_are_held_to_the_clip_of_the_order(tmp_path):
    meta = strategy(tmp_path, clip=0.01)

    class Deaf(world.Cohort):
        def train(self, order):
            total = world.clipped_sum(order.devices, order.round, order.phi)
            return TrainReply(order.round, order.schema, update=total, devices=len(order.devices), unclipped=0)

    hold(meta, world.grid(Deaf()))
    assert meta.verdict.quarantined == {"norm": 3}
    hold(meta, world.grid(), 2)
    assert meta.verdict.quarantined == {}


def test_missing_replies_lower_no_noise_and_move_the_clip_by_their_bits_alone(tmp_path):
    """Losing a reply of n devices, u unclipped, takes (u - n / 2) / expected off the fraction and nothing else."""
    lost, full, partial = [], strategy(tmp_path, clip=2.0), strategy(tmp_path, clip=2.0)
    hold(full, world.grid())

    def lose_one(replies):
        lost.append(replies.pop(1).content["fedrec"])
        return replies

    hold(partial, world.grid(), edit=lose_one)
    moved = -5 * (math.log(full.clip) - math.log(partial.clip))
    assert moved == pytest.approx((lost[0]["unclipped"] - lost[0]["devices"] / 2) / EXPECTED)


@pytest.mark.statistical
def test_the_noise_of_bits_and_updates_together_is_what_the_ledger_is_debited_for(tmp_path):
    """Over 400 seeds of rounds that hear nobody: sigma_b on the bits, z_delta S on the updates; not 2/3 or 3/2 of it.

    Tolerance 4.5 standard errors: a chance of 7e-6 to fail for each of the two when all is well.
    """
    clips, moves = [], []
    for seed in range(400):
        meta = strategy(tmp_path, seed=seed)
        _, phi = hold(meta, world.grid(), edit=lambda replies: [])
        clips.append(0.5 - math.log(meta.clip / world.CLIP) / 0.2 - 0.5)
        moves.append(phi["items"].double().numpy().ravel() * EXPECTED / world.CLIP)
    found = {}
    for name, values, wanted in (
        ("bits", np.array(clips) * EXPECTED, BITS),
        ("updates", np.concatenate(moves), split_noise(1.0, BITS)),
    ):
        found[name] = measured = math.sqrt((values**2).mean())
        tolerance = 4.5 * wanted / math.sqrt(2 * values.size)
        assert abs(measured - wanted) < tolerance, name
        assert abs(measured - 2 / 3 * wanted) > tolerance
        assert abs(measured - 3 / 2 * wanted) > tolerance
    result = run_federation(world.grid(), world.plan(tmp_path / "run"), config(server__rounds=2))
    with Ledger.open(tmp_path / "run" / "ledger.sqlite") as ledger:
        assert ledger.history("federation") == [Charge(1.0, 0.5, 2)]
        assert ledger.settings.mechanism == "adaptive clip (quantile 0.5), its own noise sigma_b = 0.8 accounted"
        debited = ledger.history("federation")[0].noise_multiplier
        assert result.epsilon["user"] == ledger.spent("federation")
    # a device moves the updates by S and the centred bits by 1/2: 1 / z^2 is the sum of both squares
    joint = found["updates"] ** -2 + (2 * found["bits"]) ** -2
    assert joint**-0.5 == pytest.approx(debited, rel=0.1)


class Norms:
    """Devices whose updates have log-normal norms (median 1, as skewed as those of real logs) and any direction."""

    count = 300
    lengths = torch.exp(0.8 * torch.randn(count, generator=torch_stream(1, "norms")))

    def train(self, order):
        directions = torch.randn(len(order.devices), 6, generator=torch_stream(2, order.round, int(order.devices[0])))
        updates = directions / directions.norm(dim=1, keepdim=True) * self.lengths[order.devices][:, None]
        held = clip_updates({"w": updates}, order.clip)
        total = {"w": held.value["w"].float()}
        unclipped = int((~held.was_clipped).sum())
        return TrainReply(order.round, order.schema, update=total, devices=len(order.devices), unclipped=unclipped)


@pytest.mark.parametrize("quantile", [0.5, 0.8])
@pytest.mark.parametrize("factor", [0.01, 100.0])
def test_from_far_off_the_clip_reaches_the_quantile(tmp_path, factor, quantile):
    """From 100 times too large or small: log S moves by 0.2 (1 - q) a round from above, by 0.2 q from below.

    That is 46 rounds at the median, 115 to the quantile 0.8 from above; a third more to settle. At the end S wobbles by
    the noise of the bits, 1/20 of the cohort; a wrong sign runs away from the first round on.
    """
    plan = world.plan(tmp_path, phi0={"w": torch.zeros(6)}, population=Norms.count, scales={})
    true = float(Norms.lengths.quantile(quantile))
    changes = {"privacy__clip": factor * true, "privacy__bit_noise": None, "privacy__clip_quantile": quantile}
    meta, grid = MetaStrategy(config(**changes), plan), world.grid(Norms(), 2)
    history = []
    rounds = int(1.33 * math.log(100) / (0.2 * min(quantile, 1 - quantile))) + 30
    for number in range(1, rounds + 1):
        phi = encode_named({"w": torch.zeros(6)})
        messages = list(meta.configure_train(number, phi, ConfigRecord(), grid))
        meta.aggregate_train(number, list(grid.send_and_receive(messages)))
        history.append(meta.clip)
    assert float(np.exp(np.mean(np.log(history[-30:])))) == pytest.approx(true, rel=0.25)
    assert abs(math.log(history[19] / true)) < abs(math.log(factor)) - 0.5


def test_a_run_shows_its_clips_and_resumes_to_the_bit(tmp_path):
    plain = run_federation(world.grid(), world.plan(tmp_path / "plain"), config())
    clips = [row["clip"] for row in plain.rows]
    assert clips[0] == world.CLIP
    assert len(set(clips)) == len(clips) == 6
    for stop in (1, 3, 5):

        def interrupt(report, stop=stop):
            assert report.clip == clips[report.round - 1]
            if report.round == stop:
                raise KeyboardInterrupt

        run_dir = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            run_federation(world.grid(), world.plan(run_dir, on_round=interrupt), config())
        again = run_federation(world.grid(), world.plan(run_dir, resume=True), config())
        assert world.outcome(run_dir, again) == world.outcome(tmp_path / "plain", plain)


def test_the_warm_start_has_its_own_bound_and_leaves_the_clip_alone(tmp_path):
    plan = {"warm_noise_multiplier": 1.0}
    meta = strategy(tmp_path, plan=plan, server__warm_start="popularity")

    class Voters(world.Cohort):
        def train(self, order):
            assert order.clip is None
            return TrainReply(order.round, order.schema, update={"bias": torch.zeros(5)}, devices=len(order.devices))

    hold(meta, world.grid(Voters()), 1)
    assert meta.clip == world.CLIP
    assert Counter(meta.verdict.quarantined) == {}
    hold(meta, world.grid(), 2)
    assert meta.clip != world.CLIP


def test_bits_that_cost_more_than_the_round_are_refused_before_it_begins(tmp_path):
    with pytest.raises(PrivacyError, match=r"bit_noise > noise_multiplier / 2 = 0\.5, got 0\.3; set privacy.bit_noise"):
        run_federation(world.grid(), world.plan(tmp_path / "run"), config(privacy__bit_noise=None))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("unit", ["none", "interaction"])
def test_units_without_a_central_clip_refuse(unit):
    with pytest.raises(ConfigError, match=f"privacy.clipping = fixed under unit {unit}.*; set privacy.unit to user"):
        config(privacy__unit=unit)


def test_the_summary_says_that_the_clip_adapts(tmp_path, caplog):
    with caplog.at_level("INFO", logger="fedrec"):
        strategy(tmp_path).summary()
    assert "unit user, clip 0.4 (adaptive), noise 1" in caplog.text
