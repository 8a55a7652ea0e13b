"""Epsilon given: the noise covers the whole life of a unit. Noise given: the epsilon is told. PLD is the judge."""

from collections import Counter

import dp_accounting
import pytest
import small_world as small
from dp_accounting.pld import PLDAccountant
from fedrec.errors import ConfigError, PrivacyError
from fedrec.privacy.planning import Part, split_noise
from fedrec.server.budget import plan_budget, warm_floor
from fedrec.simulation.federation import budget_of, plan_of


def referee(charges, delta=1e-5):
    """Google's PLD accountant over the same releases, like ones together."""
    neighbours = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    accountant = PLDAccountant(neighbours, value_discretization_interval=1e-3)
    steps = Counter()
    for charge in charges:
        steps[charge.noise_multiplier, charge.sample_rate] += charge.steps
    for (noise, rate), count in steps.items():
        event = dp_accounting.GaussianDpEvent(noise)
        accountant.compose(event if rate == 1 else dp_accounting.PoissonSampledDpEvent(rate, event), count)
    return accountant.get_epsilon(delta)


@pytest.mark.parametrize("warm", ["none", "popularity"])
@pytest.mark.parametrize("unit", ["user", "interaction", "both"])
@pytest.mark.parametrize(("rate", "target"), [(1.0, 8.0), (0.3, 2.0)])
def test_all_that_a_unit_pays_comes_to_the_target(warm, unit, rate, target):
    config = small.config(
        privacy__unit=unit,
        privacy__epsilon=target,
        privacy__sample_rate=rate,
        privacy__max_participations=4,
        server__participation=rate,
        server__rounds=6,
        server__warm_start=warm,
    )
    plan = plan_budget(config)
    assert (plan.user is not None, plan.interaction is not None) == (unit != "interaction", unit != "user")
    phases = {"user": (plan.user, 6 - (warm != "none")), "interaction": (plan.interaction, 4 * config.local.steps)}
    for name, (noise, steps) in phases.items():
        if noise is None:
            continue
        assert sum(charge.steps for charge in noise.charges) == steps + (warm != "none")
        assert (noise.warm is not None) == (warm != "none")
        assert 0.8 * target < referee(noise.charges) <= target
        statement = next(one for one in plan.statements if one.unit == name)
        assert 0.99 * target < statement.epsilon <= target
        assert statement.seeded


@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_the_pairs_take_their_share_and_all_comes_to_the_target(rate):
    config = small.config(
        policy__affinity=True,
        policy__pairs=2,
        privacy__epsilon=2.0,
        privacy__warm_share=0.3,
        privacy__pairs_share=0.5,
        server__participation=rate,
        server__rounds=6,
        server__warm_pairs=10,
    )
    noise = plan_budget(config).user
    parts = [1 / noise.warm**2, 1 / noise.pairs**2, 4 / noise.adapt**2]
    assert [part / sum(parts) for part in parts] == pytest.approx([0.3, 0.5, 0.2])
    assert [charge.noise_multiplier for charge in noise.charges] == [noise.warm, noise.pairs] + [noise.adapt] * 4
    assert {charge.sample_rate for charge in noise.charges} == {rate}
    assert 0.8 * 2.0 < referee(noise.charges) <= 2.0
    told = plan_budget(config.updated(privacy__epsilon=None, privacy__noise_multiplier=noise.adapt)).user
    assert (told.warm, told.pairs) == pytest.approx((noise.warm, noise.pairs))


def test_the_warm_start_takes_its_share_of_inverse_variance():
    for share in (0.2, 0.7):
        noise = plan_budget(small.config(privacy__warm_share=share, server__participation=1.0)).user
        adapt, warm = (3 - 1) / noise.adapt**2, 1 / noise.warm**2
        assert warm / (warm + adapt) == pytest.approx(share)


@pytest.mark.parametrize("unit", ["user", "interaction"])
@pytest.mark.parametrize("warm", ["none", "popularity"])
def test_noise_given_epsilon_told(unit, warm):
    config = small.config(
        privacy__unit=unit, privacy__epsilon=None, privacy__noise_multiplier=1.3, server__warm_start=warm
    )
    plan = plan_budget(config)
    noise = plan.user or plan.interaction
    assert noise.adapt == 1.3
    told = plan.statements[0].epsilon
    assert told >= referee(noise.charges)
    assert told == pytest.approx(referee(noise.charges), rel=0.35)  # what the RDP accountant gives away
    if warm != "none":
        steps = sum(charge.steps for charge in noise.charges[1:])
        share = 1 / noise.warm**2 / (1 / noise.warm**2 + steps / 1.3**2)
        assert share == pytest.approx(config.privacy.warm_share)


def test_sensitivity_counts_the_examples_that_an_entry_changes():
    for state, changes in (("history", 2), ("none", 1)):
        world = small.world(privacy__unit="interaction", policy__state=state, privacy__example_clip=0.4)
        assert budget_of(world).statements[0].clip == pytest.approx(changes * 0.4)


def test_poisson_batches_over_blocks_are_refused_before_the_run(tmp_path):
    """Else every device would answer with an error, and the run would train on nothing."""
    world = small.world(privacy__unit="interaction", privacy__sample_rate=0.5, policy__state="history")
    with pytest.raises(PrivacyError, match=r"expected privacy.sample_rate = 1"):
        plan_of(world, tmp_path)
    plan_of(small.world(privacy__unit="interaction", privacy__sample_rate=0.5, policy__state="none"), tmp_path)


def test_an_epsilon_that_no_noise_reaches_gets_a_sentence():
    with pytest.raises((ConfigError, PrivacyError), match="epsilon"):
        plan_budget(small.config(privacy__epsilon=1e-9))


def test_the_floor_of_the_warm_start_is_the_noise_of_its_counts():
    config = small.config(privacy__unit="both")
    plan = plan_budget(config)
    wanted = (plan.user.warm**2 + plan.interaction.warm**2 * 100 * 0.7) ** 0.5
    assert warm_floor(config, plan, 100) == pytest.approx(wanted)
    nothing = small.config(privacy__unit="none")
    assert warm_floor(nothing, plan_budget(nothing), 100) == 0.3


def test_the_plan_hands_each_side_its_noise(tmp_path):
    world = small.world(privacy__unit="both", privacy__scales={"bias": 2.0, "elsewhere": 3.0})
    plan, budget = plan_of(world, tmp_path), budget_of(world)
    assert (plan.noise_multiplier, plan.warm_noise_multiplier) == (budget.user.adapt, budget.user.warm)
    assert plan.scales == {"bias": 2.0}
    spent = [plan.epsilon(number)["interaction"] for number in range(1, 20)]
    assert spent == sorted(spent)
    assert spent[-1] == pytest.approx(budget.statements[1].epsilon)
    none = plan_of(small.world(privacy__unit="none"), tmp_path)
    assert (none.noise_multiplier, none.warm_noise_multiplier, none.epsilon) == (None, None, None)


def test_parts_of_one_budget_share_it_as_told():
    first, second = split_noise(3.0, 1e-5, [Part(1, 1.0, 0.25), Part(8, 1.0, 0.75)])
    assert (1 / first**2) / (8 / second**2) == pytest.approx(1 / 3)
