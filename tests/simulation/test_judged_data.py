"""What a run is judged on and goes on with: its own data, as many rivals as there are, its own bootstrap."""

import json
import stat

import fedrec
import numpy as np
import pytest
import small_world
from fedrec.errors import ConfigError, RunError
from fedrec.simulation.baselines import RandomScores
from fedrec.simulation.data.split import leave_two_out, sample_negatives
from fedrec.simulation.evaluation import evaluate_scores
from fedrec.simulation.summary import DP_POPULARITY, POPULARITY, SERVED


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("judged") / "run"
    return fedrec.simulate(small_world.config(evaluation__resamples=100), out=directory, dataset=small_world.dataset())


def test_other_data_than_it_began_with_are_refused(run):
    other = small_world.dataset(seed=5)
    before = (run.directory / "summary.json").read_bytes()
    with pytest.raises(RunError, match=r"expected the data that .* began with, got another"):
        fedrec.simulate(out=run.directory, resume=True, dataset=other)
    assert (run.directory / "summary.json").read_bytes() == before
    fedrec.simulate(out=run.directory, resume=True, dataset=small_world.dataset())


def test_the_private_popularity_predicts_no_ratings(run):
    results = run.summary["results"]
    assert "ratings" in results[POPULARITY]
    assert "ratings" not in results[DP_POPULARITY]


def test_seconds_are_those_of_the_whole_run(run):
    rounds = [json.loads(line)["seconds"] for line in (run.directory / "metrics.jsonl").read_text().splitlines()]
    assert run.summary["seconds"] > sum(rounds)


def test_files_can_be_read_by_whom_the_user_lets(run):
    modes = {stat.S_IMODE((run.directory / name).stat().st_mode) for name in ("summary.json", "metrics.jsonl")}
    assert len(modes) == 1


def test_the_bootstrap_has_as_many_resamples_as_asked_for(run, tmp_path):
    config = small_world.config(evaluation__resamples=4000)
    finer = fedrec.simulate(config, out=tmp_path / "run", dataset=small_world.dataset())
    for protocol in ("full", "sampled"):
        coarse, fine = (one.summary["results"][SERVED][protocol]["metrics"]["mrr"] for one in (run, finer))
        assert coarse["mean"] == fine["mean"]
        assert (coarse["low"], coarse["high"]) != (fine["low"], fine["high"])


def test_fewer_negatives_than_asked_for_are_said():
    data = small_world.dataset()
    split = leave_two_out(data)
    scorer = RandomScores(data.items_count, 0)
    few = sample_negatives(data, split, 5, seed=0).test
    many = sample_negatives(data, split, 10 * data.items_count, seed=0).test
    assert evaluate_scores(scorer, data, split, negatives=few).protocol.startswith("5 sampled negatives")
    said = evaluate_scores(scorer, data, split, negatives=many).protocol
    there = (many[split.test >= 0] >= 0).sum(1)
    assert said.endswith(f", on average {np.mean(there):.0f} for want of more")


@pytest.mark.parametrize(
    ("key", "value", "bound"), [("privacy.scales.bias", 0.0, "> 0"), ("local.rates.bias", -1.0, ">= 0")]
)
def test_scales_and_rates_have_bounds(key, value, bound):
    section, name, parameter = key.split(".")
    with pytest.raises(ConfigError, match=rf"expected {key} {bound}, got"):
        fedrec.Config.from_mapping({section: {name: {parameter: value}}})
