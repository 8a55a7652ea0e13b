"""Rounds of stacked updates: what the strategy makes of them, who is left out, and what a resumed run remembers."""

import federation_world as world
import numpy as np
import pytest
import torch
from fedrec._streams import torch_stream
from fedrec.errors import ConfigError
from fedrec.privacy.sampling import poisson_participants
from fedrec.server.anomaly import Scores, anomaly_scores
from fedrec.server.checkpoint import CheckpointStore
from fedrec.server.loop import run_federation

BAD = (2, 7, 11)


def config(**changes):
    none = {"privacy__unit": "none", "server__participation": 0.8, "server__outer_optimizer": "sgd"}
    return world.config(**(none | changes))


def run(path, settings, cohort=None, **changes):
    plan = world.plan(path, noise_multiplier=None, scales={}, **changes)
    return run_federation(world.grid(cohort), plan, settings)


def test_one_round_of_stacks_is_the_aggregate_times_the_devices_over_the_fixed_divisor(tmp_path):
    settings = config(server__rounds=1, server__aggregator="median", server__average=0.0, server__decay="none")
    cohort = world.Cohort()
    result = run(tmp_path, settings, cohort)
    drawn = poisson_participants(settings.seed, 1, world.POPULATION, 0.8)
    assert all(order.stacked for order in cohort.orders)
    assert len(drawn) != round(0.8 * world.POPULATION)
    rows = world.stacked(drawn, 1, world.phi0())
    for name, value in rows.items():
        middle = np.median(value.double().numpy(), axis=0)
        expected = middle * len(drawn) / (0.8 * world.POPULATION)
        np.testing.assert_allclose(result.phi[name].numpy(), expected, rtol=1e-5, atol=1e-7)


def test_a_mean_of_stacks_is_the_sum(tmp_path):
    """A clip that nobody reaches asks for stacks and changes nothing: the sum of the rows, by another way."""
    apart = run(tmp_path / "a", config(server__robust_clip=1e6))
    names = sorted(apart.phi)
    drawn = [poisson_participants(3, number, world.POPULATION, 0.8) for number in range(1, 7)]
    assert [row["participants"] for row in apart.rows] == [len(some) for some in drawn]
    phi, settings = world.phi0(), config()
    for number, some in enumerate(drawn, 1):
        lr = 1 - (number - 1) / settings.server.rounds
        step = {
            name: value.double().sum(0) / (0.8 * world.POPULATION)
            for name, value in world.stacked(some, number, phi).items()
        }
        phi = {name: phi[name] + lr * step[name].float() for name in names}
    for name in names:
        torch.testing.assert_close(apart.phi[name], phi[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"server__aggregator": "trimmed"},
        {"server__aggregator": "multi_krum"},
        {"server__robust_clip": 1.0},
        {"server__anomaly": "exclude"},
    ],
)
def test_bad_devices_do_less_harm_with_a_defence(tmp_path, options):
    honest = run(tmp_path / "honest", config()).phi
    cohort = world.Cohort(bad=BAD)
    spread = {}
    for label, extra in {"none": {"server__robust_clip": 1e6}, "defence": options}.items():
        found = run(tmp_path / label, config(server__byzantine=0.3, **extra), cohort).phi
        spread[label] = sum(float((found[name] - honest[name]).square().sum()) for name in honest) ** 0.5
    assert spread["defence"] < spread["none"] / 3


@pytest.mark.parametrize("options", ["report", "exclude"])
def test_who_sticks_out_is_counted_and_kept_through_a_resume_to_the_bit(tmp_path, options):
    settings = config(server__anomaly=options, server__anomaly_threshold=3.0)
    whole = run(tmp_path / "whole", settings, world.Cohort(bad=BAD))

    class Stop(Exception):
        pass

    def stop(order):
        if order.round == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", settings, world.Cohort(bad=BAD, before=stop))
    kept = CheckpointStore(tmp_path / "parts").load()
    assert (kept.round, int(kept.scores.rounds.max())) == (3, 3)
    parts = run(tmp_path / "parts", settings, world.Cohort(bad=BAD), resume=True)
    assert world.outcome(tmp_path / "whole", whole) == world.outcome(tmp_path / "parts", parts)
    first, second = (CheckpointStore(tmp_path / name).load().scores for name in ("whole", "parts"))
    assert torch.equal(first.total, second.total)
    assert torch.equal(first.rounds, second.rounds)
    assert set(first.mean.topk(3).indices.tolist()) == set(BAD)
    assert [row["flagged"] for row in whole.rows] == [
        len(np.intersect1d(poisson_participants(3, number, world.POPULATION, 0.8), BAD)) for number in range(1, 7)
    ]


def test_reporting_changes_no_step_and_leaving_out_does(tmp_path):
    cohort = world.Cohort(bad=BAD)
    plain, report, exclude = (
        run(tmp_path / name, config(**options), cohort).phi
        for name, options in {
            "plain": {"server__robust_clip": 1e6},
            "report": {"server__robust_clip": 1e6, "server__anomaly": "report"},
            "exclude": {"server__robust_clip": 1e6, "server__anomaly": "exclude"},
        }.items()
    )
    assert world.same(plain, report)
    assert not world.same(plain, exclude)


def test_without_scores_a_checkpoint_holds_none_and_a_row_counts_nothing(tmp_path):
    result = run(tmp_path, config(server__aggregator="median"))
    assert CheckpointStore(tmp_path).load().scores is None
    assert all("flagged" not in row for row in result.rows)


def test_a_round_that_reaches_nobody_moves_nothing(tmp_path):
    result = run(tmp_path, config(server__aggregator="krum", server__participation=1e-9, server__rounds=1))
    assert world.same(result.phi, world.phi0())


def test_stacks_that_memory_would_not_hold_are_refused_before_anything_is_written(tmp_path):
    """21 numbers of 4 bytes a device: 12.8 million devices are just over 1 GiB."""
    settings = config(server__aggregator="median", server__participation=0.5)
    wide = {"noise_multiplier": None, "scales": {}}
    world.plan(tmp_path, population=25_000_000, **wide).check(settings)
    with pytest.raises(ConfigError, match=r"take 1 GiB at most, got 12800000 devices of 21 numbers \(1 GiB\); lower"):
        world.plan(tmp_path, population=25_600_000, **wide).check(settings)
    world.plan(tmp_path, population=25_600_000, **wide).check(config(server__participation=0.5))


@pytest.mark.parametrize("unit", ["user", "both"])
@pytest.mark.parametrize("key", ["aggregator", "robust_clip", "anomaly"])
def test_where_noise_covers_a_clipped_sum_robust_options_are_refused(unit, key):
    value = {"aggregator": "trimmed", "robust_clip": 0.1, "anomaly": "report"}[key]
    with pytest.raises(
        ConfigError, match=rf"server.aggregator = sum.* under unit {unit}, .*rely on privacy.clip"
    ) as caught:
        world.config(**{"privacy__unit": unit, f"server__{key}": value})
    assert "\n" not in str(caught.value)


def test_scores_are_robust_standard_deviations_of_distance_and_cosine():
    generator = torch_stream(5, "scores")
    rows = {"w": 1 + 0.2 * torch.randn(200, 20, generator=generator), "b": 0.1 * torch.randn(200, generator=generator)}
    rows["w"][0] *= 8  # too far
    rows["w"][1] *= -1  # against
    scores = anomaly_scores(rows)
    assert set(scores.topk(2).indices.tolist()) == {0, 1}
    assert scores[:2].min() > 10
    assert scores[2:].quantile(0.95) < 3
    assert torch.equal(
        anomaly_scores({name: value[:1].expand(4, *value.shape[1:]) for name, value in rows.items()}),
        torch.zeros(4, dtype=torch.float64),
    )


def test_a_device_is_known_by_its_place_in_the_roster_over_rounds():
    scores = (
        Scores.of(5)
        .after(np.array([1, 4]), torch.tensor([2.0, 9.0], dtype=torch.float64))
        .after(np.array([0, 1]), torch.tensor([1.0, 4.0], dtype=torch.float64))
    )
    assert scores.mean.tolist() == [1.0, 3.0, 0.0, 0.0, 9.0]
    assert scores.above(np.array([0, 1, 4]), 2.5).tolist() == [False, False, True]
    assert scores.above(np.array([0, 1, 2, 4]), 2.5).tolist() == [False, True, False, True]
