"""Outliers in a small world: how much harm they do, and that each defence does what the guide says of it."""

import functools
from dataclasses import replace

import pytest
from fedrec.client.app import make_client_app
from fedrec.config import Config
from fedrec.server.loop import run_federation
from fedrec.simulation.evaluation import evaluate_scores
from fedrec.simulation.federation import Cohorts, plan_of
from fedrec.simulation.grid import LocalGrid
from fedrec.simulation.outliers import promoted_item
from fedrec.simulation.serving import Served
from fedrec.simulation.world import World, load_dataset

SMALL = {
    "data": {"name": "synthetic", "devices": 240, "items": 60, "interactions": 12, "holdout": 0.0},
    "policy": {"state": "none", "ids": False, "fast": ["taste"], "bias_scale": 2.0},
    "local": {"steps": 2, "lr": 0.1},
    "privacy": {"unit": "none"},
    "server": {"warm_start": "none", "rounds": 8, "byzantine": 0.25},
    "evaluation": {"serve_steps": 0, "ks": [10], "resamples": 100},
}
PROMOTE = {"data__outliers": 0.2, "data__outlier_kind": "promote", "data__outlier_boost": 10.0}
DEFENCES = {
    "clip": {"server__robust_clip": 0.2},
    "trimmed": {"server__aggregator": "trimmed"},
    "median": {"server__aggregator": "median"},
    "multi-Krum": {"server__aggregator": "multi_krum"},
    "anomaly": {"server__anomaly": "exclude"},
    "user": {"privacy__unit": "user", "privacy__epsilon": 8.0, "privacy__clip": 0.2},
}


@functools.cache
def data():
    return load_dataset(Config.from_mapping(SMALL))


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """NDCG@10 of honest devices and how many of them are shown the promoted item; every run is held once."""

    @functools.cache
    def measured(**changes):
        config = Config.from_mapping(SMALL).updated(**changes)
        world = World.build(config, data())
        path = tmp_path_factory.mktemp("run")
        cohorts = Cohorts(world, path)
        result = run_federation(
            LocalGrid(make_client_app(cohorts), 1), replace(plan_of(world, path), validate=None), config
        )
        cohorts.close()
        found = evaluate_scores(
            Served(world=world, phi=result.phi),
            world.dataset,
            world.split,
            devices=world.roster,
            ks=(10,),
            resamples=100,
        )
        return found.aggregate["ndcg@10"].mean, found.exposures[10][promoted_item(config, data())] / found.counted

    return measured


def test_undefended_the_attack_ruins_what_honest_devices_are_served(served):
    (clean, rarely), (spoiled, shown) = served(), served(**PROMOTE)
    assert rarely < 0.05
    assert shown > 0.9
    assert spoiled < clean - 0.1


@pytest.mark.parametrize("name", ["multi-Krum", "anomaly"])
def test_what_tells_blown_up_rows_from_others_undoes_it(served, name):
    found, shown = served(**PROMOTE, **DEFENCES[name])
    assert found > served()[0] - 0.04
    assert shown < 0.05


@pytest.mark.parametrize("name", ["clip", "user"])
def test_a_clip_bounds_the_damage_and_does_not_undo_it(served, name):
    """With or without noise: the clip of unit user is a defence of its own."""
    found, shown = served(**PROMOTE, **DEFENCES[name])
    assert served(**PROMOTE)[0] + 0.06 < found < served()[0] - 0.04
    assert shown > 0.5


@pytest.mark.parametrize("name", ["clip", "multi-Krum", "anomaly", "user"])
def test_without_an_attack_these_cost_little(served, name):
    assert served(**DEFENCES[name])[0] > served()[0] - 0.04


def test_the_median_costs_most_because_few_devices_hold_any_one_item(served):
    clean = served()[0]
    assert served(**DEFENCES["median"])[0] < served(**DEFENCES["trimmed"])[0] - 0.03 < clean - 0.05
