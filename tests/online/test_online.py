"""The loop: the same bits, the same privacy as a simulation, late devices, taste shifts, kills, refusals."""

import json

import numpy as np
import pytest
import torch
from fedrec.errors import ConfigError, RunError
from fedrec.privacy.ledger import Ledger
from fedrec.server.account import LEDGER
from fedrec.simulation.federation import NODES, budget_of
from fedrec.simulation.online import arms, run
from fedrec.simulation.online.arms import federate, measure, participants
from fedrec.simulation.online.cohort import ActingCohort
from fedrec.simulation.online.curves import Point, reached
from fedrec.simulation.online.run import open_online, run_online
from fedrec.simulation.participant import Cohort
from online_world import arm, config, lively, same_traces, users


def ctr(trace, rows=slice(None)):
    return np.nanmean(trace.values["clicked"][rows])


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(tmp_path):
    first, second = (federate(arm("meta@8"), users(), tmp_path / name) for name in ("a", "b"))
    assert same_traces(first, second)
    assert not same_traces(first, federate(arm("meta@8"), users(seed=1), tmp_path / "c"))


def test_the_reference_path_acts_and_learns_like_the_cohort_engine(tmp_path):
    found = {kind: federate(arm("meta"), users(engine__kind=kind), tmp_path / kind) for kind in ("cohort", "reference")}
    assert same_traces(found["cohort"], found["reference"])
    fast, plain = (_phi(tmp_path / kind) for kind in found)
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)
    start = users().world.initialization()
    assert all(float((fast[name] - start[name]).abs().max()) > 1e-3 for name in start)


def test_users_fitted_on_a_generated_log_are_as_many_as_the_data_section_says():
    found = users(data__name="synthetic", data__devices=80, data__items=40).population
    assert (found.users, found.items) == (80, 40)
    strict = users(data__name="synthetic", data__devices=80, data__items=40, data__positive_threshold=0.5).population
    assert strict.users == 80


def _phi(run_dir):
    from fedrec.server.checkpoint import CheckpointStore

    return CheckpointStore(run_dir).load().phi


@pytest.mark.parametrize("separation", [1, 2])
def test_every_arm_meets_the_same_devices_in_the_same_rounds(tmp_path, separation):
    world_of = users(server__min_separation=separation)
    learned = federate(arm("meta"), world_of, tmp_path)
    for name in ("random", "oracle", "popularity", "local"):
        other = measure(arm(name), world_of)
        assert np.array_equal(np.isnan(learned.values["clicked"]), np.isnan(other.values["clicked"]))
    drawn = [participants(world_of.config, number, len(world_of.world.roster)) for number in range(1, 5)]
    assert len({tuple(one) for one in drawn}) > 1


def test_late_devices_act_from_their_round_on_and_never_train(tmp_path, monkeypatch):
    trained = []
    pay = Cohort._pay
    monkeypatch.setattr(
        Cohort, "_pay", lambda self, order, devices: (trained.append(devices), pay(self, order, devices))[1]
    )
    world_of = users()
    trace = federate(arm("meta"), world_of, tmp_path)
    late = np.flatnonzero(world_of.world.held_out)
    assert not set(np.concatenate(trained)) & set(late)
    assert ((~np.isnan(trace.values["clicked"][late])).sum(1) == 2 * 2).all()  # rounds 3 and 4, two slates each


def test_a_run_costs_what_a_simulation_of_its_configuration_would(tmp_path):
    world_of = users()
    federate(arm("meta@8"), world_of, tmp_path)
    own = arm("meta@8").config(world_of.config)
    statement = budget_of(users(privacy__unit="user", privacy__epsilon=8.0).world).statements[0]
    assert own.privacy.epsilon == 8.0
    assert own.privacy.unit == "user"
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["epsilon"]["user"] == pytest.approx(statement.epsilon, rel=1e-9)
    with Ledger.open(tmp_path / LEDGER) as ledger:
        assert ledger.count > 0
    assert run.privacy_of(arm("meta@8"), world_of)[0]["noise_multiplier"] == statement.noise_multiplier


def test_units_of_a_device_pay_in_their_own_ledgers(tmp_path):
    world_of = users(privacy__unit="interaction")
    federate(arm("meta@8"), world_of, tmp_path)
    with Ledger.open(tmp_path / NODES / "node-0-of-1" / "devices.sqlite") as ledger:
        assert ledger.count > 0
    assert {one["unit"] for one in run.privacy_of(arm("meta@8"), world_of)} == {"interaction"}


def test_the_update_that_leaves_is_clipped_and_noise_moves_what_is_learned(tmp_path):
    quiet, noisy = (
        federate(arm(name), users(server__rounds=6), tmp_path / name) and _phi(tmp_path / name)
        for name in ("meta", "meta@0.5")
    )
    moved = [
        sum(float((phi[name] - users().world.initialization()[name]).norm()) for name in phi) for phi in (quiet, noisy)
    ]
    assert moved[1] > 3 * moved[0]


class _Killed(BaseException):
    """The process ends here."""


def kill_third(place, where, monkeypatch):
    """A federation that is killed where a method of its cohort is called for the third time."""
    kept, calls = getattr(*place), []

    def dies(self, *args):
        calls.append(1)
        if len(calls) == 3:
            raise _Killed
        return kept(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(*place, dies)
        with pytest.raises(_Killed):
            federate(arm("meta@8"), users(), where)


@pytest.mark.parametrize("where", ["acting", "adapting", "after"])
def test_a_killed_federation_goes_on_to_the_same_bits(tmp_path, monkeypatch, where):
    whole = federate(arm("meta@8"), users(), tmp_path / "whole")
    place = {"acting": (ActingCohort, "_acting"), "adapting": (Cohort, "_adapt"), "after": (Cohort, "_pay")}[where]
    kill_third(place, tmp_path / "killed", monkeypatch)
    assert same_traces(federate(arm("meta@8"), users(), tmp_path / "killed"), whole)
    assert all(torch.equal(value, _phi(tmp_path / "whole")[name]) for name, value in _phi(tmp_path / "killed").items())


def test_a_run_goes_on_where_it_stopped_and_is_not_overwritten(tmp_path, monkeypatch):
    settings, where = config(), tmp_path / "run"
    played = run._played

    def stops(one, *rest):
        if one.name == "random":
            raise KeyboardInterrupt
        return played(one, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(run, "_played", stops)
        with pytest.raises(KeyboardInterrupt):
            run_online(settings, out=where)
    with pytest.raises(RunError, match=r"expected a finished online run .*fedrec online --resume"):
        open_online(where)
    with pytest.raises(RunError, match=r"expected a new directory, got .* resume it"):
        run_online(settings, out=where)
    again = []
    with monkeypatch.context() as patch:
        patch.setattr(run, "_played", lambda one, *rest: (again.append(one.name), played(one, *rest))[1])
        done = run_online(out=where, resume=True)
    assert again == ["random", "oracle"]
    assert open_online(where).summary["arms"].keys() == done.summary["arms"].keys()
    plain = run_online(settings, out=tmp_path / "plain").summary
    for name, one in plain["arms"].items():
        assert one["curves"] == done.summary["arms"][name]["curves"]
    rows = (where / "curves.csv").read_text().splitlines()
    assert rows[0].startswith("arm,devices_group,first,last")
    assert len(rows) == 1 + 3 * sum(len(points) for one in plain["arms"].values() for points in one["curves"].values())
    assert "epsilon = 8 at delta" in (where / "report.html").read_text()


def test_a_taste_shift_shows_in_regret_for_who_knew_the_taste():
    calm, shifted = (
        measure(arm("known-popularity"), users(**sizes, online__shift_at=at)).values["reward"]
        for at in (None, 6)
        for sizes in [{"data__devices": 150, "server__rounds": 6, "server__participation": 1.0}]
    )
    np.testing.assert_array_equal(calm[:, :6], shifted[:, :6])
    assert np.nanmean(np.abs(calm[:, 6:] - shifted[:, 6:])) > 0.01


def test_the_policy_learns_from_clicks(tmp_path):
    world_of = lively(120, server__rounds=10, server__participation=1.0, exploration__repeats=True)
    learned = federate(arm("meta"), world_of, tmp_path).values["reward"][:, -6:]
    chance = measure(arm("random"), world_of).values["reward"][:, -6:]
    assert np.nanmean(learned) > 1.2 * np.nanmean(chance)


def killed_in_round_three(where, monkeypatch):
    """A federation of which two rounds are over: where its users stood after each round."""
    kill_third((Cohort, "_pay"), where, monkeypatch)
    return sorted((where / NODES).glob("standing-*.safetensors"))


@pytest.mark.parametrize("lost", ["all", "last"])
def test_where_users_stood_is_missed_and_nothing_else_is_made_of_it(tmp_path, monkeypatch, lost):
    standing = killed_in_round_three(tmp_path, monkeypatch)
    assert [path.name for path in standing] == [f"standing-{number:06d}.safetensors" for number in (1, 2, 3)]
    for path in standing if lost == "all" else standing[1:]:
        path.unlink()
    with pytest.raises(RunError, match=r"expected where users stood after round 2 in .*restore the whole"):
        federate(arm("meta@8"), users(), tmp_path)


def test_where_users_stood_is_refused_where_it_is_damaged(tmp_path, monkeypatch):
    standing = killed_in_round_three(tmp_path, monkeypatch)
    standing[1].write_bytes(standing[1].read_bytes()[:50])
    with pytest.raises(RunError, match=r"expected .*standing-000002.safetensors as fedrec wrote it, got a damaged"):
        federate(arm("meta@8"), users(), tmp_path)


def test_a_finished_arm_is_believed_only_by_its_own_configuration_and_whole(tmp_path):
    where = tmp_path / "run"
    run_online(config(online__arms=["random"]), out=where)
    told = where / run.CONFIG
    more = config(online__arms=["random", "oracle"])
    told.write_text(more.to_toml())
    assert set(run_online(out=where, resume=True).summary["arms"]) == {"random", "oracle"}
    told.write_text(more.updated(seed=5).to_toml())
    with pytest.raises(RunError, match=r"expected the configuration that .*random.* was made by, got an online.toml"):
        run_online(out=where, resume=True)
    told.write_text(more.to_toml())
    (where / run.ARMS / "oracle" / "trace.safetensors").write_bytes(b"zz")
    with pytest.raises(RunError, match=r"expected .*trace.safetensors as fedrec wrote it, got a damaged file"):
        run_online(out=where, resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"server__nodes": 2}, "expected server.nodes = 1 for the online loop"),
        (
            {"online__log": "shown", "policy__state": "history"},
            "expected online.log = clicks with a policy whose state",
        ),
        ({"online__log": "shown", "local__reward": "one"}, "expected local.reward = value where online.log = shown"),
        ({"exploration__size": 31}, "expected exploration.size of at most 30, the items there are, got 31"),
        ({"online__arms": ["best"]}, "expected online.arms among meta, joint, local"),
        ({"online__arms": ["meta@0"]}, "expected online.arms among meta, joint, local"),
        ({"online__arms": []}, "expected one or more arms in online.arms, got none"),
        ({"evaluation__metric": "hr@3"}, "expected evaluation.metric to be one of"),
    ],
)
def test_what_can_not_be_run_is_refused_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        run_online(config(**changes), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("changes", [{"epsilon": 0.1}, {"temperature": 0.0}])
def test_exploration_without_exact_first_propensities_is_refused(changes):
    with pytest.raises(ConfigError, match=r"expected exploration.temperature > 0 and"):
        config(**{f"exploration__{name}": value for name, value in changes.items()})
    config(exploration__size=1, **{f"exploration__{name}": value for name, value in changes.items()})


def test_a_curve_reaches_its_end_where_it_stays_there():
    def curve(*means):
        return [
            Point(first=i, last=5 * (i + 1), devices=1, ctr={}, regret={}, reward={"mean": m})
            for i, m in enumerate(means)
        ]

    assert reached(curve(0.2, 0.5, 0.9, 1.0)) == 15
    assert reached(curve(0.9, 0.5, 0.9, 1.0)) == 15
    assert reached(curve(1.0, 1.0)) == 5
    assert reached([]) is None


def test_arms_say_what_they_run_by():
    assert arms.Arm.of("joint@2.5").config(config()).local.steps == 1
    assert arms.Arm.of("joint@2.5").config(config()).privacy.epsilon == 2.5
    assert arms.Arm.of("meta").config(config(privacy__clipping="adaptive")).privacy.unit == "none"
    assert arms.Arm.of("meta@8").config(config(privacy__unit="both")).privacy.unit == "both"
