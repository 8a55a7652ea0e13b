"""The planner says what ``fedrec simulate`` will spend: the same noise, the same statements, the same ledgers."""

from pathlib import Path

import pytest
import small_world as small
from fedrec.config import load_config
from fedrec.errors import ConfigError
from fedrec.privacy.accounting import normalise
from fedrec.privacy.ledger import Ledger
from fedrec.privacy.scenario import solve
from fedrec.server.budget import plan_budget
from fedrec.simulation.accounts import ledgers_of
from fedrec.simulation.federation import budget_of
from fedrec.simulation.planner import scenarios_of, training_devices
from fedrec.simulation.run import simulate
from fedrec.simulation.world import World


@pytest.mark.parametrize("warm", ["none", "popularity"])
@pytest.mark.parametrize("unit", ["user", "interaction", "both"])
@pytest.mark.parametrize(("rate", "target", "noise"), [(1.0, 8.0, None), (0.3, 2.0, None), (0.4, None, 1.3)])
def test_a_plan_is_what_a_simulation_will_spend(warm, unit, rate, target, noise):
    config = small.config(
        privacy__unit=unit,
        privacy__epsilon=target,
        privacy__noise_multiplier=noise,
        privacy__sample_rate=rate,
        privacy__max_participations=4,
        server__participation=rate,
        server__rounds=6,
        server__warm_start=warm,
        policy__state="none",
    )
    budget = plan_budget(config)
    plans = [solve(scenario) for scenario in scenarios_of(config)]
    assert tuple(plan.statement for plan in plans) == budget.statements
    for plan, phases in zip(plans, filter(None, (budget.user, budget.interaction)), strict=True):
        assert (plan.noise_multiplier, plan.warm_noise_multiplier) == (phases.adapt, phases.warm)
        assert normalise(plan.charges) == normalise(phases.charges)


@pytest.mark.parametrize(("target", "noise"), [(8.0, None), (None, 1.37)])
def test_a_vote_on_pairs_is_planned_as_it_is_paid(target, noise):
    path = Path(__file__).parents[2] / "benchmarks" / "configs" / "user-pairs.toml"
    overrides = [f"privacy.epsilon={target or 'none'}", f"privacy.noise_multiplier={noise or 'none'}"]
    config = load_config(path, [*overrides, "data.name=synthetic"])
    (plan,), budget = (solve(scenario) for scenario in scenarios_of(config)), plan_budget(config)
    assert (plan.statement,) == budget.statements
    assert normalise(plan.charges) == normalise(budget.user.charges)
    assert plan.pairs_noise_multiplier == budget.user.pairs
    assert plan.statement.epsilon > (14 if noise else 7.9)


@pytest.mark.parametrize("state", ["none", "personal", "history", "gru", "transformer"])
@pytest.mark.parametrize("affinity", [False, True])
def test_the_sensitivity_of_a_policy_is_told_from_its_settings(state, affinity):
    world = small.world(privacy__unit="both", policy__state=state, policy__affinity=affinity)
    plans = [solve(scenario) for scenario in scenarios_of(world.config)]
    assert tuple(plan.statement for plan in plans) == budget_of(world).statements
    assert training_devices(world.config) == len(world.roster)


def test_what_a_run_has_spent_is_what_was_planned(tmp_path):
    config = small.config(
        privacy__unit="both",
        privacy__max_participations=2,
        server__participation=1.0,
        server__rounds=3,
        server__nodes=1,
    )
    run = simulate(config, out=tmp_path / "run")
    user, device = (solve(scenario) for scenario in scenarios_of(config))
    found = ledgers_of(run.directory)
    assert [name for name in found if not name.startswith("baseline")] == ["federation", "devices of node-0-of-1"]
    with Ledger.open(found["federation"]) as ledger:
        assert ledger.history("federation") == list(normalise(user.charges))
        assert ledger.spent("federation") == user.statement.epsilon
    with Ledger.open(found["devices of node-0-of-1"]) as ledger:
        (standing,) = ledger.standings()
        assert len(standing.accounts) == user.scenario.devices == len(World.build(config).roster)
        assert standing.charges == normalise(device.charges)
        assert standing.epsilon == device.statement.epsilon


@pytest.mark.parametrize("unit", ["user", "interaction", "both"])
@pytest.mark.parametrize(
    ("separation", "clipping", "bits"), [(2, "fixed", None), (1, "adaptive", None), (3, "adaptive", 9.0)]
)
def test_minimum_separation_and_the_adaptive_clip_are_planned_as_they_are_paid(unit, separation, clipping, bits):
    world = small.world(
        privacy__unit=unit,
        privacy__clipping="fixed" if unit == "interaction" else clipping,
        privacy__bit_noise=bits,
        privacy__epsilon=60.0,
        server__min_separation=separation,
        server__rounds=8,
    )
    plans = [solve(scenario) for scenario in scenarios_of(world.config)]
    budget = budget_of(world)
    assert tuple(plan.statement for plan in plans) == budget.statements
    for plan, phases in zip(plans, filter(None, (budget.user, budget.interaction)), strict=True):
        assert normalise(plan.charges) == normalise(phases.charges)
        assert plan.scenario.cohort == pytest.approx(world.config.expected_cohort(len(world.roster)))


def test_what_can_not_be_planned_gets_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDREC_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match="got none: it spends no budget"):
        scenarios_of(small.config(privacy__unit="none"))
    with pytest.raises(ConfigError, match="expected a data set that is here, got 'ml-1m'; fetch or import it"):
        scenarios_of(small.config(data__name="ml-1m"))
    assert scenarios_of(small.config(data__name="ml-1m"), 5436)[0].devices == 5436
