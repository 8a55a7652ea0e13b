"""Five domains: what their schema says is so, propensities are exact, what is shared is shared, each config runs."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fedrec.cli import invoke
from fedrec.errors import DataError
from fedrec.meta.interactions import FeatureGroup
from fedrec.simulation.data import describe, list_datasets, load
from fedrec.simulation.data.registry import GENERATED
from fedrec.simulation.data.split import met_before
from fedrec.simulation.domains import DOMAINS, Domain, Label, domain_world, logged_dataset
from fedrec.simulation.domains.log import LoggingOptions, _Recommender
from fedrec.simulation.users import UserOptions, UsersVectorEnv

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("data.devices=60", "data.items=80", "data.interactions=8", "server.rounds=3", "evaluation.every=3")
SHARED = {"topic": 12, "mood": 5}


@pytest.fixture(scope="module")
def worlds():
    return {name: domain_world(name, users=200, items=120, seed=3) for name in DOMAINS}


def test_the_registry_knows_the_domains_and_they_are_five():
    assert set(DOMAINS) == {"shop", "video", "news", "music", "social"}
    assert set(GENERATED) == {"synthetic", *DOMAINS}
    assert {info.name for info in list_datasets() if info.kind == "generated"} == set(GENERATED)


@pytest.mark.parametrize("name", DOMAINS)
def test_a_world_is_what_its_schema_says(worlds, name):
    domain, population = DOMAINS[name], worlds[name].population
    assert population.mean_probability() == pytest.approx(domain.base_rate, rel=1e-6)
    groups = {group.name: group for group in population.catalogue.groups}
    columns = [*(label.name for label in domain.item_labels), *(measure.name for measure in domain.item_measures)]
    assert list(groups) == columns + (["published"] if domain.lifetime else [])
    for label in domain.item_labels:
        names = population.catalogue.feature_names[groups[label.name].start : groups[label.name].stop]
        assert set(names) == {f"{label.name}={value}" for value in label.values}
    told = {feature.split("=")[0] for feature in population.user_feature_names}
    assert told == {label.name for label in domain.user_labels}
    personal = (population.tastes @ population.qualities.T).std()
    assert personal == pytest.approx(domain.taste_strength, rel=0.25)


def test_equal_seeds_give_equal_worlds_and_logs():
    first, same, other = (load("video", devices=20, items=30, interactions=4, seed=seed) for seed in (1, 1, 2))
    assert first.fingerprint() == same.fingerprint() != other.fingerprint()


def likes(name: str, seed: int) -> tuple[tuple[str, ...], np.ndarray]:
    """Names of the shared columns, and what each topic is worth to each person (the truth regressed on all columns)."""
    population = domain_world(name, users=50, items=1500, seed=seed).population
    groups, width = population.catalogue.groups, sum(SHARED.values())
    assert groups[:2] == (
        FeatureGroup(name="topic", kind="multilabel", start=0, stop=12),
        FeatureGroup(name="mood", kind="category", start=12, stop=17),
    )
    personal = population.qualities @ (population.tastes - population.tastes.mean(axis=0)).T
    shown = population.catalogue.features - population.catalogue.features.mean(axis=0)
    worth = np.linalg.lstsq(shown, personal, rcond=None)[0]
    return population.catalogue.feature_names[:width], worth[: SHARED["topic"]].T.ravel()


def test_shared_content_comes_first_and_means_the_same():
    names, shop = likes("shop", 3)
    for name in ("video", "news", "music", "social"):
        same_names, other = likes(name, 3)
        assert same_names == names
        assert np.corrcoef(shop, other)[0, 1] > 0.75
    assert abs(np.corrcoef(shop, likes("news", 4)[1])[0, 1]) < 0.2


def test_no_shared_column_is_missing_from_a_small_catalogue():
    names = domain_world("shop", users=3, items=12).population.catalogue.feature_names
    assert sum(name.startswith("topic=") for name in names) == 12


def test_a_person_is_the_same_in_every_population_size():
    few, many = (domain_world("shop", users=users, items=40, seed=1) for users in (20, 50))
    assert few.population.tastes == pytest.approx(many.population.tastes[:20])


@pytest.mark.parametrize("name", DOMAINS)
def test_a_log_holds_clicks_and_their_propensities(worlds, name):
    domain, dataset = DOMAINS[name], logged_dataset(worlds[name], LoggingOptions(interactions=8))
    assert dataset.interactions >= 8 * 200
    assert set(np.unique(dataset.rewards)) <= {np.float32(stage.reward) for stage in domain.behaviour.stages}
    assert dataset.propensities is not None
    assert (dataset.propensities > 0).all()
    assert describe(dataset)["propensities"] is True
    assert met_before(dataset).any() == (name == "music")


@pytest.mark.statistical
def test_propensities_are_how_often_items_are_shown():
    """3,000 people of one taste are shown items as often as the propensities say (chi-squared, 5 sigma)."""
    world = domain_world("news", users=3000, items=12, seed=5)
    alike = replace(world.population, tastes=np.tile(world.population.tastes[:1], (3000, 1)))
    recommender = _Recommender(replace(world, population=alike), LoggingOptions())
    shown, propensity = recommender.show(np.zeros(3000, dtype=np.int64))
    counts = np.bincount(shown, minlength=12)
    expected = np.zeros(12)
    expected[shown] = propensity * 3000
    assert expected.sum() == pytest.approx(3000, rel=0.01)
    hit = expected > 0
    degrees = hit.sum() - 1
    distance = ((counts - expected)[hit] ** 2 / expected[hit]).sum()
    assert distance < degrees + 5 * np.sqrt(2 * degrees)
    assert (counts[world.population.published > 0] == 0).all()


def test_importance_weighted_logs_tell_what_random_slates_bring(worlds):
    """Inverse propensities turn the log into the uniform policy's: within 5 standard errors of the truth."""
    world = worlds["shop"]
    world = replace(world, domain=replace(world.domain, behaviour=replace(world.domain.behaviour, fatigue=0.0)))
    dataset = logged_dataset(world, LoggingOptions(interactions=2, impressions=True))
    options = replace(world.domain.behaviour, slate=1, track_regret=False)
    many = UsersVectorEnv(world.population, options)
    items = [np.full((200, 1), item) for item in range(120)]
    truth = np.mean([many.expected_reward(item) for item in items])
    first = dataset.offsets[:-1][:, None] + np.arange(5)
    weighted = (dataset.rewards[first] / (120 * dataset.propensities[first])).ravel()
    error = weighted.std() / np.sqrt(len(weighted))
    assert error < 0.5 * truth
    assert abs(weighted.mean() - truth) < 5 * error


def test_options_of_a_domain_are_checked():
    with pytest.raises(DataError, match="expected options of shop to be among devices, items, seed, interactions"):
        load("shop", latent=3)
    with pytest.raises(DataError, match="expected a domain among shop, video, news, music, social, got 'zoo'"):
        domain_world("zoo")
    with pytest.raises(ValueError, match=r"expected weights of the items of odd of at most 1 in all, got 1\.5"):
        Domain(
            name="odd",
            title="",
            item_labels=(Label(name="a", values=("x",), weight=1.5),),
            item_measures=(),
            user_labels=(),
            behaviour=UserOptions(),
            base_rate=0.1,
        )


def test_every_domain_has_its_config_and_its_paragraph():
    assert sorted(path.stem for path in (ROOT / "examples" / "domains").glob("*.toml")) == sorted(DOMAINS)
    page = (ROOT / "docs" / "users.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\*\*`(\w+)`\.?\*\*", page, re.MULTILINE)) == set(DOMAINS)


@pytest.mark.parametrize("name", DOMAINS)
def test_each_config_simulates_its_domain(command_line, small_overrides, name, capsys):
    kept = [one for one in small_overrides if not one.startswith("data.")]
    settings = [part for override in (*kept, *SMALL) for part in ("--set", override)]
    config = ROOT / "examples" / "domains" / f"{name}.toml"
    assert invoke(["simulate", str(config), *settings, "--out", "run"]) == 0, capsys.readouterr().err
    assert name in capsys.readouterr().out
