"""Fetching the Open Bandit logs: a made-up wheel in their format, verified, kept whole, and told in sentences."""

from __future__ import annotations

import hashlib
import json
import zipfile

import numpy as np
import polars as pl
import pytest
from fedrec.cli import invoke
from fedrec.errors import DataError
from fedrec.simulation.data import fetch, load
from fedrec.simulation.data import open_bandit as source
from fedrec.simulation.data.bandit_log import read_bandit_log

FEATURES = ",".join(f"user_feature_{n}" for n in range(4))
LOG = (
    f",timestamp,item_id,position,click,propensity_score,{FEATURES},user-item_affinity_0\n"
    "0,2019-11-24 00:00:34.762830+00:00,1,3,0,0.0125,aaaaaaa1,b2,c3,d4,0.0\n"
    "1,2019-11-24 00:00:35+00:00,0,1,1,0.25,aaaaaaa2,b2,c3,d4,0.0\n"
)
ITEMS = ",item_id,item_feature_0,item_feature_1,item_feature_2,item_feature_3\n0,0,0.5,x,y,z\n1,1,-0.5,x,y,w\n"
PRIOR = "".join(
    f"{campaign}:\n  alpha:\n    - {number}.5\n    - 2.0\n  beta:\n    - 7.0\n    - 8.0\n"
    for number, campaign in enumerate(source.CAMPAIGNS)
)


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    path = tmp_path / "obp.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("obp/policy/conf/prior_bts.yaml", PRIOR)
        for policy in source.POLICIES:
            for campaign in source.CAMPAIGNS:
                archive.writestr(f"obp/dataset/obd/{policy}/{campaign}/{campaign}.csv", LOG)
                archive.writestr(f"obp/dataset/obd/{policy}/{campaign}/item_context.csv", ITEMS)
    monkeypatch.setattr(source, "WHEELS", {"obp==0": hashlib.sha256(path.read_bytes()).hexdigest()})
    return path


def test_logs_items_and_priors_are_kept_and_the_notice_is_said(cache, wheel):
    said = []
    fetched = fetch("open-bandit", archive=wheel, progress=said.append)
    assert fetched.source == str(wheel)
    assert "arXiv:2008.07146" in said[0]
    assert "arXiv:2008.07146" in fetched.notice
    log = read_bandit_log(source.find_log("open-bandit/bts-men"))
    assert (log.item_ids, log.items.tolist(), log.positions.tolist()) == (["1", "0"], [0, 1], [2, 0])
    assert (log.propensities.tolist(), log.rewards.tolist()) == ([0.0125, 0.25], [0.0, 1.0])
    assert log.timestamps.tolist() == [1574553634, 1574553635]
    frame = pl.read_parquet(fetched.directory / "random-all.parquet")
    assert frame["segment"].to_list() == ["aaaaaa-b2-c3-d4", "aaaaaa-b2-c3-d4"]
    assert not any("affinity" in column for column in frame.columns)
    prior = json.loads((fetched.directory / "prior-men.json").read_text())
    assert prior == {"alpha": [1.5, 2.0], "beta": [7.0, 8.0]}
    assert fetch("open-bandit", progress=lambda line: None).source == "cache"


def test_another_wheel_is_refused_and_nothing_is_kept(cache, wheel, tmp_path):
    other = tmp_path / "other.whl"
    other.write_bytes(wheel.read_bytes() + b" ")
    with pytest.raises(DataError, match=r"expected the wheel of obp==0, got another file in other\.whl"):
        fetch("open-bandit", archive=other, progress=lambda line: None)
    with pytest.raises(DataError, match=r"the archive can't be read"):
        fetch("open-bandit", archive=tmp_path / "none.whl", progress=lambda line: None)
    assert not source.directory().exists()


def test_the_next_release_is_tried_where_pip_fails(cache, wheel, monkeypatch):
    def pip(requirement, place):
        if requirement == "first==1":
            raise DataError("pip could not download it: no such thing")
        return wheel

    monkeypatch.setattr(source, "WHEELS", {"first==1": "", **source.WHEELS})
    monkeypatch.setattr(source, "_pip_download", pip)
    assert fetch("open-bandit", progress=lambda line: None).source == "obp==0"
    monkeypatch.setattr(source, "WHEELS", {"first==1": ""})
    with pytest.raises(DataError, match=r"could not fetch open-bandit: first==1 \(pip could not download it"):
        fetch("open-bandit", progress=lambda line: None, force=True)
    assert source.find_log("open-bandit/random-all").is_file()  # what was there stays


def test_names_and_other_paths(cache, wheel, tmp_path):
    with pytest.raises(DataError, match=r"expected one of open-bandit/random-all, .*got 'open-bandit/random'"):
        source.find_log("open-bandit/random")
    assert source.find_log(tmp_path / "mine.csv") == tmp_path / "mine.csv"
    with pytest.raises(DataError, match="expected a data set with users, got 'open-bandit'"):
        load("open-bandit")


def test_a_log_can_be_imported_by_segment(cache, wheel, command_line, monkeypatch, capsys):
    monkeypatch.setenv("FEDREC_CACHE", str(cache))
    fetch("open-bandit", archive=wheel, progress=lambda line: None)
    arguments = ["--name", "fashion", "--map", "user=segment", "--items", "open-bandit/random-all-items"]
    assert invoke(["data", "import", "open-bandit/random-all", *arguments]) == 0
    assert "fashion is ready" in capsys.readouterr().out
    found = load("fashion")
    assert (found.devices, found.interactions, found.propensities.tolist()) == (1, 2, [np.float32(0.0125), 0.25])
    assert "item_feature_0" in found.catalogue.feature_names[0]
