"""Arms of an online run in an A/B test: what a federation learned by acting, on devices that begin with nothing."""

import pytest
from fedrec.config import Config
from fedrec.errors import RunError
from fedrec.server.checkpoint import CheckpointStore
from fedrec.simulation.compare.contender import open_contender
from fedrec.simulation.compare.run import compare
from fedrec.simulation.compare.settings import CompareSettings
from fedrec.simulation.online.run import run_online
from online_world import TINY

FEW = CompareSettings(interactions=3, resamples=50)


@pytest.fixture(scope="module")
def arms(tmp_path_factory):
    place = tmp_path_factory.mktemp("online") / "run"
    changes = {"online": TINY["online"] | {"arms": ["meta", "joint", "popularity"]}}
    return run_online(Config.from_mapping(TINY | changes), out=place).directory / "arms"


def test_arms_are_compared_with_what_their_last_round_left(arms):
    found = compare(arms / "meta", arms / "joint", settings=FEW)
    assert found.users == 24
    assert not found.same
    assert found.how[0].size == 3
    served = open_contender(arms / "joint").served()
    kept = CheckpointStore(arms / "joint").load().phi
    assert served.phi.keys() == kept.keys()
    assert all(bool((served.phi[name] == kept[name]).all()) for name in kept)
    assert compare(arms / "meta", arms / "meta", settings=FEW).same


def test_what_is_no_trained_arm_is_refused(arms):
    with pytest.raises(RunError, match="expected a run or one arm of an online run"):
        open_contender(arms.parent)
    with pytest.raises(RunError, match=r"expected an arm that a federation trained, got .*popularity, a yardstick"):
        open_contender(arms / "popularity")
    with pytest.raises(RunError, match="expected a checkpoint in"):
        open_contender(arms / "meta@8").served()
    with pytest.raises(RunError, match="expected start new with an arm of an online run"):
        compare(arms / "meta", arms / "joint", settings=CompareSettings(start="log"))


def test_an_online_run_that_has_not_ended_is_refused(arms):
    summary = arms.parent / "online.json"
    kept = summary.read_bytes()
    summary.unlink()
    try:
        with pytest.raises(RunError, match="expected a finished online run"):
            open_contender(arms / "meta")
    finally:
        summary.write_bytes(kept)
