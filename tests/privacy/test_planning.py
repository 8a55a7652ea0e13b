"""Plans and the sentence that goes with every epsilon."""

import pytest
from fedrec.errors import PrivacyError
from fedrec.privacy.accounting import Charge, epsilon
from fedrec.privacy.planning import Part, describe_sampler, plan, split_noise
from fedrec.privacy.statement import PrivacyStatement

USER = {"rounds": 60, "sample_rate": 0.5, "clip": 0.1, "delta": 1e-5}


def test_epsilon_given_noise_found_and_back():
    found = plan("user", target_epsilon=8.0, **USER)
    told = plan("user", noise_multiplier=found.noise_multiplier, **USER)
    assert told.statement == found.statement
    assert 7.98 < found.statement.epsilon <= 8.0
    assert found.per_round == Charge(found.noise_multiplier, 0.5, 1)


def test_interaction_plan_covers_the_whole_life_of_a_device():
    # 20 participations of 8 steps at q = 0.25 need sigma 2.07 for epsilon 8 (PLD); one participation needs 0.80.
    life = plan(
        "interaction", rounds=20, steps=8, sample_rate=0.25, clip=1.0, delta=1e-5, target_epsilon=8.0, accountant="prv"
    )
    assert life.noise_multiplier == pytest.approx(2.07, rel=0.01)
    assert life.per_round.steps == 8


def test_statement_says_everything():
    statement = plan("user", noise_multiplier=2.0, seeded=True, **USER).statement
    sentence = statement.sentence()
    for part in ("at delta = 1e-05", "unit user (add or remove one device (zero-out))", "RDP accountant",
                 "Poisson, rate 0.5", "noise multiplier 2", "clip 0.1", "60 rounds",
                 "simulation only: the noise was seeded"):  # fmt: skip
        assert part in sentence
    assert "\n" not in sentence
    record = statement.to_dict()
    assert record["sentence"] == sentence
    assert record["neighbours"] == "add or remove one device (zero-out)"
    assert "simulation only" not in plan("user", noise_multiplier=2.0, **USER).statement.sentence()


def test_interaction_neighbours_and_gdp_label():
    statement = plan("interaction", noise_multiplier=2.0, accountant="gdp", **(USER | {"rounds": 1})).statement
    assert "add or remove one interaction of one device" in statement.sentence()
    assert "approximation, may underestimate" in statement.sentence()
    assert "1 round" in statement.sentence()
    assert describe_sampler(1.0) == "everything, every time"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "either target_epsilon or noise_multiplier, got None and None"),
        ({"target_epsilon": 1.0, "noise_multiplier": 1.0}, "either target_epsilon or noise_multiplier"),
        ({"target_epsilon": -1.0}, "expected privacy.epsilon > 0 and finite, got -1.0"),
        ({"noise_multiplier": 0.0}, "charge.noise_multiplier > 0"),
        ({"target_epsilon": 1.0, "clip": 0.0}, "expected clip > 0"),
        ({"target_epsilon": 1.0, "rounds": 0}, "rounds to be an integer >= 1"),
        ({"target_epsilon": 1.0, "delta": 0.0}, "delta"),
    ],
)
def test_wrong_input_raises(changes, message):
    with pytest.raises(ValueError, match=message):
        plan("user", **(USER | changes))


def test_statement_refuses_a_unit_that_has_no_neighbours():
    statement = plan("user", noise_multiplier=2.0, **USER).statement
    fields = {k: v for k, v in statement.to_dict().items() if k not in ("sentence", "neighbours", "unit")}
    with pytest.raises(ValueError, match="state each unit by itself"):
        PrivacyStatement(unit="both", **fields)
    with pytest.raises(ValueError, match="expected epsilon >= 0"):
        PrivacyStatement(unit="user", **(fields | {"epsilon": float("nan")}))


@pytest.mark.parametrize("parts", [[Part(60, 0.5, 0.8), Part(1, 0.5, 0.2)], [Part(40, 1.0, 1.0)], [Part(1, 1.0, 0.01)]])
def test_parts_of_a_run_share_one_budget(parts):
    noises = split_noise(3.0, 1e-5, parts)

    def cost(factor):
        return epsilon(
            [Charge(z * factor, part.sample_rate, part.steps) for z, part in zip(noises, parts, strict=True)], 1e-5
        )

    assert cost(1.0) <= 3.0 < cost(1 / 1.002)
    # Each part's inverse variance over all its steps stands in the ratio of the shares.
    taken = [part.steps / z**2 / part.share for z, part in zip(noises, parts, strict=True)]
    assert taken == pytest.approx([taken[0]] * len(parts))


def test_a_budget_that_no_noise_reaches_raises():
    with pytest.raises(PrivacyError, match="no noise reaches epsilon 1e-09 for 1000000000 releases"):
        split_noise(1e-9, 1e-300, [Part(10**9, 1.0, 1.0)])
    with pytest.raises(ValueError, match="share"):
        split_noise(1.0, 1e-5, [Part(1, 1.0, 0.0)])
