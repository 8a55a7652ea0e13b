"""Describing a data set, the cache's place, and MovieLens 100K itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fedrec.simulation.data import describe, filter_positive, leave_two_out, list_datasets, load, sample_negatives
from fedrec.simulation.data.cache import cache_directory, directory_of


def test_describe(small):
    found = describe(small)
    assert json.loads(json.dumps(found)) == found
    assert (found["devices"], found["items"], found["interactions"]) == (3, 5, 8)
    assert found["density"] == pytest.approx(8 / 15)
    expected = {"mean": 8 / 3, "min": 1, "25%": 2, "median": 3, "75%": 3.5, "max": 4}
    assert found["interactions_per_device"] == pytest.approx(expected)
    assert found["devices_with_one_interaction"] == 1
    assert found["rewards"] == {"1": 1, "2": 1, "3": 1, "4": 4, "5": 1}
    assert found["span"]["first"] == "1970-01-01T00:00:01+00:00"
    assert found["repeated_rows"] == 0
    assert found["items_never_met"] == 0
    assert found["fingerprint"] == small.fingerprint()


def test_describe_many_reward_values_and_nothing_at_all(small):
    rewards = np.linspace(0, 1, 8).astype(np.float32)
    assert len(describe(small.replace(rewards=rewards))["rewards"]) == 8
    many = load("synthetic", devices=40, items=30)
    spread = np.linspace(0, 10, many.interactions).astype(np.float32)
    histogram = describe(many.replace(rewards=spread))["rewards"]
    assert len(histogram) == 10
    assert sum(histogram.values()) == many.interactions
    nothing = describe(filter_positive(small, 99))
    assert (nothing["interactions"], nothing["items_never_met"], nothing["span"]) == (0, 5, None)


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDREC_CACHE", str(tmp_path / "own"))
    assert cache_directory() == tmp_path / "own"
    monkeypatch.delenv("FEDREC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == tmp_path / "xdg" / "fedrec"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == Path.home() / ".cache" / "fedrec"


def test_list_of_an_empty_cache(cache):
    found = {info.name: (info.kind, info.available) for info in list_datasets()}
    expected = {"ml-100k": ("registered", False), "ml-1m": ("registered", False)}
    made = ("synthetic", "shop", "video", "news", "music", "social")
    expected |= dict.fromkeys(made, ("generated", True))
    assert found == expected


@pytest.mark.data
def test_ml_100k(ml_100k):
    found = describe(ml_100k)
    assert (found["devices"], found["items"], found["interactions"]) == (943, 1682, 100_000)
    assert found["rewards"] == {"1": 6110, "2": 11370, "3": 27145, "4": 34174, "5": 21201}
    assert found["interactions_per_device"]["min"] == 20
    assert found["item_features"] == {"genre": 18, "year": 17, "title": 32}
    assert found["device_features"] == {"age": 7, "gender": 2, "occupation": 21}
    assert ml_100k.catalogue.titles[0] == "Toy Story (1995)"
    assert ml_100k.catalogue.titles[266] == "unknown"
    assert ml_100k.catalogue.titles[542] == "Misérables, Les (1995)"
    norms = np.linalg.norm(ml_100k.catalogue.features, axis=1)
    assert norms.max() <= np.sqrt(3) + 1e-6


@pytest.mark.data
def test_ml_100k_protocols(ml_100k):
    split = leave_two_out(ml_100k)
    assert (split.test >= 0).sum() == 943
    positive = filter_positive(ml_100k, 4)
    assert positive.interactions == 34174 + 21201
    negatives = sample_negatives(ml_100k, split, 99, seed=0)
    for device in range(943):
        known = set(ml_100k.items[split.train(device)].tolist())
        assert not known & set(negatives.valid[device].tolist())
        assert not known & set(negatives.test[device].tolist())
        assert ml_100k.items[split.test[device]] not in negatives.test[device]
    most_met = np.bincount(ml_100k.items[[r for d in range(943) for r in range(*split.train(d).indices(10**6))]])
    scores = np.concatenate([ml_100k.items[split.test][:, None], negatives.test], axis=1)
    rank = (most_met[scores[:, 1:]] >= most_met[scores[:, :1]]).sum(axis=1)
    assert (rank < 10).mean() == pytest.approx(0.40, abs=0.03)  # popularity, 99 negatives


def test_a_data_set_that_is_broken_hides_no_other(cache):
    broken = directory_of("mine")
    broken.mkdir(parents=True)
    (broken / "manifest.json").write_text("{")
    found = {info.name: info.devices for info in list_datasets()}
    assert found["mine"] is None
    assert "synthetic" in found
