"""Adaptive clipping and minimum separation in simulated federations: devices' bits, budgets, what a run shows."""

import json
from collections import Counter

import dp_accounting
import numpy as np
import pytest
import small_world as small
import torch
from dp_accounting.pld import PLDAccountant
from fedrec.client.app import make_client_app
from fedrec.client.wire import TrainOrder
from fedrec.errors import ConfigError, PrivacyError, WireError
from fedrec.privacy.accounting import epsilon
from fedrec.privacy.ledger import Ledger
from fedrec.server.budget import plan_budget
from fedrec.server.loop import run_federation
from fedrec.simulation.data.registry import load
from fedrec.simulation.federation import Cohorts, budget_of, check_plan, plan_of
from fedrec.simulation.grid import LocalGrid
from fedrec.simulation.participant import Cohort
from fedrec.simulation.run import simulate

ADAPTIVE = {"privacy__clipping": "adaptive", "privacy__bit_noise": 4.0}


def adapting(**changes):
    return small.world(**(ADAPTIVE | {"server__warm_start": "none"} | changes))


def order(world, number, clip, devices=None):
    devices = np.arange(len(world.roster)) if devices is None else np.array(devices)
    return TrainOrder(number, world.initialization(), world.policy.schema(), devices, "run", clip)


@pytest.mark.parametrize("engine", ["cohort", "reference"])
@pytest.mark.parametrize("unit", ["user", "both"])
def test_a_node_holds_its_devices_to_the_orders_clip_and_counts_those_within(tmp_path, unit, engine):
    """One by one the devices tell their norms under a clip out of reach; a small clip changes nothing below it."""
    world = adapting(privacy__unit=unit, privacy__scales={"bias": 2.0}, engine__kind=engine, server__rounds=20)
    node = Cohort(world, tmp_path, 1)
    replies = [node.train(order(world, 1, 1e6, [device])) for device in range(len(world.roster))]
    assert {reply.unclipped for reply in replies} == {1}
    norms = []
    for reply in replies:
        scaled = [v.double() / (2.0 if name == "bias" else 1.0) for name, v in reply.update.items()]
        norms.append(float(torch.cat([v.flatten() for v in scaled]).norm()))
    clip = float(np.quantile(norms, 0.4)) * 1.0001
    # a node answers the same round again with the same bits: its streams derive from the round
    for device, norm in enumerate(norms):
        reply = node.train(order(world, 1, clip, [device]))
        assert reply.unclipped == (norm <= clip)
    whole = node.train(order(world, 1, clip))
    assert whole.unclipped == sum(norm <= clip for norm in norms)
    assert 0 < whole.unclipped < whole.devices


def test_an_order_without_its_clip_is_no_order(tmp_path):
    with pytest.raises(WireError, match="expected a clip in the order of round 1, got None"):
        Cohort(adapting(), tmp_path / "a", 1).train(order(adapting(), 1, None))
    fixed = small.world(server__warm_start="none")
    with pytest.raises(WireError, match=r"expected no clip in the order of round 1, got 0\.5"):
        Cohort(fixed, tmp_path / "b", 1).train(order(fixed, 1, 0.5))
    warm = small.world(**ADAPTIVE)
    assert Cohort(warm, tmp_path / "c", 1).train(order(warm, 1, None)).unclipped is None


@pytest.mark.parametrize("factor", [0.01, 100.0])
def test_from_far_off_the_clip_finds_the_median_norm_of_real_adaptations(tmp_path, factor):
    """120 synthetic devices at an initialization that hardly moves: 46 rounds at full speed, then it wobbles.

    The true median is the reference engine's. The bits' noise is 1/20 of the cohort.
    """
    data = load("synthetic", devices=120, items=24, interactions=8, seed=1)
    still = {"server__outer_lr": 1e-9, "server__outer_optimizer": "sgd", "server__rounds": 75, "local__windows": 8}
    quick = {"evaluation__every": 80, "server__participation": 1.0, "server__nodes": 1, "privacy__epsilon": 50.0}
    changes = still | quick | {"privacy__bit_noise": None, "data__holdout": 0.0, "local__steps": 1}
    world = small.world(data, **(ADAPTIVE | {"server__warm_start": "none"} | changes))
    reference = small.world(data, **(changes | {"server__warm_start": "none", "privacy__unit": "none"}))
    node, norms = Cohort(reference, tmp_path / "reference", 1), []
    for device in range(120):
        update = node.train(order(reference, 1, None, [device])).update
        norms.append(float(torch.cat([value.flatten() for value in update.values()]).norm()))
    true = float(np.median(norms))
    world = small.world(
        data, **(ADAPTIVE | {"server__warm_start": "none"} | changes | {"privacy__clip": factor * true})
    )
    grid = LocalGrid(make_client_app(Cohorts(world, tmp_path / "run")), 1)
    plan = plan_of(world, tmp_path / "run")
    result = run_federation(grid, plan, world.config)
    clips = [row["clip"] for row in result.rows]
    assert clips[0] == pytest.approx(factor * true)
    assert float(np.exp(np.mean(np.log(clips[-15:])))) == pytest.approx(true, rel=0.3)


def test_a_run_tells_its_clips_and_what_they_cost(tmp_path):
    run = simulate(small.config(**ADAPTIVE, server__min_separation=2), out=tmp_path / "run", dataset=small.dataset())
    rows = small.rows_of(tmp_path / "run")
    assert "clip" not in rows[0]
    assert run.summary["clip_by_round"] == {"2": rows[1]["clip"], "3": rows[2]["clip"]}
    (statement,) = run.summary["privacy"]
    assert (
        "clip 0.5 at first, adaptive clip (quantile 0.5), its own noise sigma_b = 4 accounted" in statement["sentence"]
    )
    apart = "minimum separation 2, no amplification (a device takes part in at most 1 of 2 rounds of adaptation)"
    assert statement["sampler"] == apart
    report = (tmp_path / "run" / "report.html").read_text()
    assert "Clip over rounds" in report
    assert f"sampler: {apart}" in report
    with Ledger.open(tmp_path / "run" / "ledger.sqlite") as ledger:
        assert (
            ledger.settings.mechanism == f"adaptive clip (quantile 0.5), its own noise sigma_b = 4 accounted; {apart}"
        )
        spent = max(ledger.spent(account) for account in ledger.accounts())
    assert spent == pytest.approx(statement["epsilon"])
    assert rows[-1]["epsilon"]["user"] == spent <= 8.0
    plain = simulate(small.config(), out=tmp_path / "plain", dataset=small.dataset())
    assert "clip_by_round" not in json.loads((plain.directory / "summary.json").read_text())
    assert "Clip over rounds" not in (plain.directory / "report.html").read_text()


def test_a_cohort_too_small_for_its_noise_is_refused_before_anything_is_written(tmp_path):
    """A twentieth of the expected cohort is less than half the noise: the bits would cost more than the round."""
    with pytest.raises(PrivacyError, match="expected bit_noise > noise_multiplier / 2"):
        simulate(small.config(privacy__clipping="adaptive"), out=tmp_path / "run", dataset=small.dataset())
    assert not (tmp_path / "run").exists()
    check_plan(small.world(**ADAPTIVE))
    with pytest.raises(ConfigError, match="min_separation of at most"):
        check_plan(small.world(server__min_separation=100))


def referee(charges, delta=1e-5):
    """Google's PLD accountant over the same releases, like ones together; nothing is sampled."""
    accountant = PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    steps = Counter()
    for charge in charges:
        assert charge.sample_rate == 1
        steps[charge.noise_multiplier] += charge.steps
    for noise, count in steps.items():
        accountant.compose(dp_accounting.GaussianDpEvent(noise), count)
    return accountant.get_epsilon(delta)


@pytest.mark.parametrize("warm", ["none", "popularity"])
@pytest.mark.parametrize("participation", [1.0, 0.3])
def test_a_separated_device_pays_for_its_own_rounds_without_amplification(warm, participation):
    config = small.config(
        privacy__epsilon=2.0,
        server__participation=participation,
        server__rounds=10,
        server__min_separation=4,
        server__warm_start=warm,
    )
    plan = plan_budget(config)
    adaptations = [charge for charge in plan.user.charges if charge.noise_multiplier == plan.user.adapt]
    assert len(adaptations) == 3  # ceil(10 / 4) = ceil(9 / 4)
    assert 0.8 * 2.0 < referee(plan.user.charges) <= 2.0
    assert 0.99 * 2.0 < plan.statements[0].epsilon <= 2.0
    every = plan_budget(config.updated(server__min_separation=1, server__participation=1.0)).user.adapt
    assert plan.user.adapt < 0.75 * every


@pytest.mark.parametrize(("separation", "most"), [(1, 6), (2, 5), (4, 3), (20, 1)])
def test_a_separated_device_needs_less_noise_of_its_own(tmp_path, separation, most):
    """Unit interaction: ten rounds of adaptation, each device in every bth of them, never more than six."""
    changes = {"privacy__unit": "interaction", "privacy__max_participations": 6, "policy__state": "none"}
    changes |= {"server__rounds": 10, "server__warm_start": "none", "server__min_separation": separation}
    world = small.world(**changes)
    noise = budget_of(world).interaction
    assert len(noise.charges) == most
    assert referee(noise.charges) <= 8.0
    if separation < len(world.roster):
        spent = [plan_of(world, tmp_path).epsilon(number)["interaction"] for number in range(1, 11)]
        taken = [min(most, -(-number // separation)) for number in range(1, 11)]
        assert spent == [epsilon(noise.charges[:count], 1e-5) for count in taken]
        assert spent[-1] == pytest.approx(budget_of(world).statements[0].epsilon)


def test_separated_devices_pay_no_more_than_planned_and_none_is_refused(tmp_path):
    world = small.world(
        privacy__unit="both",
        server__rounds=6,
        server__min_separation=2,
        server__participation=1.0,
        policy__state="none",
    )
    result = run_federation(
        LocalGrid(make_client_app(Cohorts(world, tmp_path)), 2), plan_of(world, tmp_path), world.config
    )
    assert sum(row["refused"] for row in result.rows) == 0
    noise, found = budget_of(world).interaction, Counter()
    for path in tmp_path.rglob("devices.sqlite"):
        with Ledger.open(path) as ledger:
            for account in ledger.accounts():
                steps = sum(one.steps for one in ledger.history(account) if one.noise_multiplier == noise.adapt)
                found[steps // world.config.local.steps] += 1
                assert ledger.spent(account) <= result.epsilon["interaction"] * (1 + 1e-9)
    assert set(found) == {2, 3}
    assert found.total() == len(world.roster)
