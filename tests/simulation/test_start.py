"""A federation that begins from another one's release: what it brings with nothing seen, and how it is kept."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import small_world as small
from fedrec import simulate
from fedrec.cli import invoke
from fedrec.config import Config
from fedrec.errors import ConfigError, PolicyError, RunError
from fedrec.meta.interactions import Catalogue, FeatureGroup
from fedrec.meta.transfer import transfer
from fedrec.simulation.cold_start import cold_start, cold_values
from fedrec.simulation.data.dataset import Dataset
from fedrec.simulation.federation import plan_of
from fedrec.simulation.run import Quiet
from fedrec.simulation.serving import Served
from fedrec.simulation.start import START, read_start, side_of, start_from
from fedrec.simulation.world import World

TINY = {
    "data": {"name": "video", "devices": 24, "items": 30, "interactions": 8, "holdout": 0.3},
    "policy": {"ids": False, "affinity": True, "dim": 3, "fast": ["taste"], "history_rewards": False},
    "local": {"horizon": 4, "steps": 2, "windows": 2},
    "server": {"rounds": 2},
    "evaluation": {"baselines": False, "cold_start": (), "negatives": 5, "resamples": 100, "ks": (5, 10), "every": 2},
}
THERE = Config.from_mapping(TINY).updated(privacy__epsilon=8.0)
HERE = THERE.updated(data__name="social", privacy__epsilon=4.0)


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    return simulate(THERE, out=tmp_path_factory.mktemp("there") / "run")


@pytest.fixture(scope="module")
def moved(there, tmp_path_factory):
    return simulate(HERE, out=tmp_path_factory.mktemp("here") / "run", start=there.directory)


def lovers_of_sport(names, seed, devices=60, items=24, length=8):
    """A domain of items with one label each, where most of what anybody takes is ``topic=Sport``."""
    random = np.random.default_rng(seed)
    label = np.arange(items) % len(names)
    sport = np.flatnonzero(label == names.index("topic=Sport"))
    weight = np.where(np.isin(np.arange(items), sport), 6.0, 1.0)
    taken = np.concatenate(
        [random.choice(items, length, replace=False, p=weight / weight.sum()) for _ in range(devices)]
    )
    groups = (FeatureGroup(name="topic", kind="category", start=0, stop=len(names)),)
    return Dataset(
        name="sport",
        items=taken.astype(np.int32),
        rewards=np.ones(len(taken), np.float32),
        offsets=np.arange(devices + 1) * length,
        catalogue=Catalogue(
            features=np.eye(len(names), dtype=np.float32)[label],
            feature_names=names,
            item_ids=[str(item) for item in range(items)],
            groups=groups,
        ),
        device_features=np.zeros((devices, 0), np.float32),
        device_feature_names=(),
        device_ids=tuple(map(str, range(devices))),
        reward_range=(0.0, 1.0),
    )


def test_a_start_from_another_domain_beats_a_fresh_one_for_who_has_shown_nothing(tmp_path):
    config = THERE.updated(privacy__unit="none", server__rounds=8, evaluation__serve_lr=0.02)
    first = World.build(config, lovers_of_sport(("topic=Sport", "topic=Art", "topic=Food", "topic=Home"), 0))
    second = World.build(config, lovers_of_sport(("topic=Home", "topic=Food", "topic=Money", "topic=Sport"), 1))
    learned = simulate(config, out=tmp_path / "run", dataset=first.dataset).policy()
    phi = transfer(side_of(first, learned), side_of(second, second.fresh())).phi
    tasks = cold_start(second.dataset, second.held_out, points=(0, 1, 2))
    found, fresh = (
        cold_values(Served(world=second, phi=one), tasks, second.dataset, 0).mean() for one in (phi, second.fresh())
    )
    assert found > fresh + 0.1


def test_the_federation_begins_there(there, moved):
    world = World.build(HERE)
    begin = start_from(there, world)
    assert moved.config.server.start == begin.digest() != ""
    assert small.same(_first_phi(moved), begin.phi)
    assert not small.same(world.fresh(), begin.phi)


def _first_phi(run):
    """What the server held before the first round."""
    world = World.build(run.config)
    return plan_of(replace(world, start=read_start(run.directory, run.config)), run.directory).phi0


def test_the_summary_and_the_report_say_whose_budget_came_before(there, moved):
    start = moved.summary["start"]
    assert (start["data"], start["private"]) == ("video", True)
    assert start["privacy"] == there.summary["privacy"]
    assert "ids" not in start["taken"]
    assert "bias" not in start["taken"]
    assert start["taken"]["taste"].startswith("17 of ")
    report = (moved.directory / "report.html").read_text()
    assert "for whoever took part in both, the budgets add up" in report
    assert there.summary["privacy"][0]["sentence"].split(",")[0] in report


class Stopping(Quiet):
    """Presses Ctrl-C before the first round, or after it."""

    def __init__(self, when):
        self.when = when

    def started(self, *_):
        self.stop("before")

    def round(self, *_):
        self.stop("after")

    def stop(self, now):
        if now == self.when:
            raise KeyboardInterrupt


@pytest.mark.parametrize("when", ["before", "after"])
def test_stopped_and_resumed_is_never_stopped(when, there, moved, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        simulate(HERE, out=tmp_path, start=there.directory, listener=Stopping(when))
    again = simulate(out=tmp_path, resume=True)
    assert small.same(again.policy(), moved.policy())
    assert again.summary["start"] == moved.summary["start"]


def test_another_start_or_none_is_refused_when_a_run_goes_on(moved, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(moved.directory, out)
    (out / START).write_bytes((out / START).read_bytes()[:-1] + b"x")
    with pytest.raises(RunError, match=r"expected the start that this run began with .* got another file"):
        simulate(out=out, resume=True)
    (out / START).unlink()
    with pytest.raises(ConfigError, match=r"expected the start that server.start names .* got none"):
        simulate(out=out, resume=True)
    with pytest.raises(RunError, match=r"expected a resumed run to keep its own start"):
        simulate(out=out, resume=True, start=moved.directory)
    with pytest.raises(ConfigError, match=r"expected server.start to be empty"):
        World.build(HERE.updated(server__start="ab")).initialization()


def test_a_run_with_nothing_in_common_leaves_no_trace(there, tmp_path):
    with pytest.raises(PolicyError, match=r"expected content features in common"):
        simulate(small.config(), out=tmp_path / "run", start=there.directory, dataset=small.dataset())
    assert not (tmp_path / "run" / "config.toml").exists()


def test_the_command_line_takes_a_start(there, command_line, capsys):
    arguments = ["simulate", str(_toml(command_line)), "--out", "run", "--start-from", str(there.directory)]
    assert invoke(arguments) == 0
    assert "of a federation over video" in " ".join(capsys.readouterr().out.split())
    assert invoke(["simulate", "--resume", "run", "--start-from", str(there.directory)]) == 2


def _toml(folder):
    (folder / "here.toml").write_text(HERE.to_toml())
    return folder / "here.toml"
