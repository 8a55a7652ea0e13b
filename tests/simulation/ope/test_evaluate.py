"""A run judged on logs whose truth is known: the referee scores users and lists slates by another path."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from fedrec.cli import invoke
from fedrec.errors import DataError
from fedrec.simulation.ope.evaluate import off_policy_evaluation
from fedrec.simulation.ope.report import OpeSettings
from fedrec.simulation.run import simulate
from fedrec.simulation.world import load_dataset
from ope_worlds import conditionals, slate_probabilities, slates_of
from small_world import config

SLOTS = 3


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    changes = {"data__items": 12, "data__interactions": 6, "privacy__unit": "none", "evaluation__negatives": 3}
    settings = config(**changes, evaluation__ks=(5, 10), evaluation__baselines=False)
    return simulate(settings, out=tmp_path_factory.mktemp("ope") / "run")


@pytest.fixture(scope="module")
def data(run):
    return load_dataset(run.config)


@pytest.fixture(scope="module")
def chances(run, data):
    """``e(a | user)`` of every device, everything in its log known and out of reach, ``[devices, items]``."""
    scores = run.served(data).score_until(np.arange(data.devices), data.offsets[1:]).numpy().astype(np.float64)
    for device in range(data.devices):
        scores[device, data.items[data.rows(device)]] = -np.inf
    raised = np.exp(scores - scores.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def appeal(data, chances):
    """The true chance of a click of every user on every item: the policy is right about half of it."""
    luck = np.random.default_rng(0).uniform(0.02, 0.3, (data.devices, data.items_count))
    return luck + 0.4 * chances / chances.max(axis=1, keepdims=True)


def write(path, header, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def impressions(data, appeal, tmp_path_factory):
    """Every user is shown 1,500 items uniformly."""
    draw = np.random.default_rng(1)
    rows = []
    for device in np.repeat(np.arange(data.devices), 1500).tolist():
        item = int(draw.integers(data.items_count))
        click = int(draw.random() < appeal[device, item])
        rows.append((data.device_ids[device], data.catalogue.item_ids[item], 1 / data.items_count, click))
    path = tmp_path_factory.mktemp("log") / "impressions.csv"
    return write(path, ("user", "item", "propensity", "reward"), rows)


@pytest.fixture(scope="module")
def slates(data, appeal, tmp_path_factory):
    """Every user sees 400 slates of three, drawn without replacement from a random softmax, and stops at a click."""
    draw = np.random.default_rng(2)
    listed = slates_of(data.items_count, SLOTS)
    rows, number = [], 0
    for device in range(data.devices):
        logging = draw.dirichlet(np.full(data.items_count, 5.0))
        probability = slate_probabilities(logging, listed)
        above = conditionals(logging, listed)
        for row in draw.choice(len(listed), size=400, p=probability / probability.sum()):
            number, clicked = number + 1, False
            for slot, item in enumerate(listed[row].tolist()):
                click = not clicked and draw.random() < appeal[device, item]
                clicked = clicked or click
                shown = (data.device_ids[device], data.catalogue.item_ids[item], above[row, slot], int(click))
                rows.append((*shown, slot + 1, number))
    path = tmp_path_factory.mktemp("log") / "slates.csv"
    return write(path, ("user", "item", "propensity", "reward", "position", "slate"), rows)


def judge(run, data, path, **changes):
    settings = OpeSettings(**{"resamples": 300, "seed": 0, **changes})
    return off_policy_evaluation(run, path, settings=settings, dataset=data)


def named(report):
    return {one.name.split(" (")[0]: one for one in report.estimates}


def test_impressions_come_to_the_true_value(run, data, chances, appeal, impressions):
    """21,000 rows, standard errors near 0.005, four of them allowed; the 95 % intervals hold the truth."""
    truth = float((chances * appeal).sum(axis=1).mean())
    report = judge(run, data, impressions)
    found = named(report)
    assert (report.unit, report.rows, report.clusters) == ("impression", 21_000, data.devices)
    for name in ("IPS", "SNIPS", "DR"):
        assert found[name].value == pytest.approx(truth, abs=0.02)
        assert found[name].low < truth < found[name].high
    assert found["logged"].value == pytest.approx(appeal.mean(), abs=0.015)
    assert abs(found["logged"].value - truth) > 0.03  # the log alone would not do
    assert report.support.mean_weight == pytest.approx(1, abs=4 * report.support.standard_error)
    assert report.support.missing_mass == 0


def test_slates_come_to_the_true_value(run, data, chances, appeal, slates):
    """The truth is summed over all 1,320 slates of every user; 5,600 slates are logged.

    Standard errors are 0.021 (cascade-DR) to 0.047 (whole slates); the draw is fixed, and the log itself is 0.13 off.
    """
    listed = slates_of(data.items_count, SLOTS)
    truth = []
    for device in range(data.devices):
        able = (chances[device] > 0)[listed].all(axis=1)
        probability = slate_probabilities(chances[device], listed[able])
        truth.append(float(probability @ (1 - np.prod(1 - appeal[device][listed[able]], axis=1))))
    report = judge(run, data, slates)
    found = named(report)
    assert (report.unit, report.rows) == ("slate", 5_600)
    for name in ("IPS", "RIPS", "SNRIPS", "Cascade-DR"):
        assert found[name].value == pytest.approx(np.mean(truth), abs=0.06), name
    assert abs(found["logged"].value - np.mean(truth)) > 0.06
    size = found["IPS"].effective_sample_size  # of whole slates, as the support is
    assert 0 < report.support.effective_sample_size == size <= found["RIPS"].effective_sample_size < 5_600


def test_independent_ips_where_the_log_knows_its_places(run, data, slates, tmp_path):
    with slates.open(encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    path = write(tmp_path / "places.csv", (*header, "marginal"), [(*row, row[2]) for row in rows])
    assert "IIPS" not in named(judge(run, data, slates))
    assert named(judge(run, data, path))["IIPS"].value > 0


def test_the_same_seed_gives_the_same_bits_and_another_does_not(run, data, impressions):
    first, again, other = (judge(run, data, impressions, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert named(first)["IPS"].value == named(other)["IPS"].value
    assert named(first)["IPS"].low != named(other)["IPS"].low
    assert named(first)["DR"].value != named(other)["DR"].value  # folds


def test_chunks_change_nothing(run, data, impressions, slates, monkeypatch):
    before = [judge(run, data, path) for path in (impressions, slates)]
    monkeypatch.setattr("fedrec.simulation.ope.target._CELLS", 1)
    after = [judge(run, data, path) for path in (impressions, slates)]
    for one, other in zip(before, after, strict=True):
        for left, right in zip(one.estimates, other.estimates, strict=True):
            assert left.value == pytest.approx(right.value, rel=1e-6)


def test_a_log_without_users_judges_the_initialization(run, data, impressions):
    from fedrec.simulation.ope.target import initial_scores

    scores = initial_scores(run.served(data))
    chances = np.exp(scores) / np.exp(scores).sum()
    with impressions.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    place = {str(identifier): row for row, identifier in enumerate(data.catalogue.item_ids)}
    weighted = [chances[place[row["item"]]] / float(row["propensity"]) * float(row["reward"]) for row in rows]
    report = off_policy_evaluation(run, impressions, mapping={"user": None}, dataset=data)
    assert named(report)["IPS"].value == pytest.approx(np.mean(weighted))
    assert report.states == "the initialization: the log names no users"
    assert report.clusters == report.rows


def test_a_low_temperature_is_the_ranking_and_a_high_one_is_uniform(run, data, chances, appeal, impressions):
    uniform = judge(run, data, impressions, temperature=1e6, keep_seen=True)
    assert named(uniform)["IPS"].value == pytest.approx(named(uniform)["logged"].value, abs=1e-4)
    best = appeal[np.arange(data.devices), chances.argmax(axis=1)].mean()
    assert named(judge(run, data, impressions, temperature=1e-4))["SNIPS"].value == pytest.approx(best, abs=0.04)


def test_states_are_those_before_the_time_of_the_row(run, data, tmp_path):
    """The time of a user's third interaction: two are known then, the third item can still be shown."""
    assert data.timestamps is not None
    device = 3
    third = int(data.offsets[device]) + 2
    item = int(data.items[third])
    row = (data.device_ids[device], data.catalogue.item_ids[item], 0.5, 1, int(data.timestamps[third]))
    path = write(tmp_path / "timed.csv", ("user", "item", "propensity", "reward", "timestamp"), [row])
    scores = run.served(data).score_after(np.array([device]), 2)[0].numpy().astype(np.float64)
    scores[data.items[third - 2 : third]] = -np.inf
    raised = np.exp(scores - scores.max())
    report = judge(run, data, path)
    assert named(report)["IPS"].value == pytest.approx(raised[item] / raised.sum() / 0.5, rel=1e-5)
    assert any("the policy may have learnt from them" in one for one in report.warnings)


def test_rows_that_the_policy_may_have_learnt_from_matter_where_it_can_show_them(run, data, tmp_path):
    row = (data.device_ids[0], data.catalogue.item_ids[int(data.items[0])], 0.5, 1)
    path = write(tmp_path / "known.csv", ("user", "item", "propensity", "reward"), [row])
    assert not any("learnt" in one for one in judge(run, data, path).warnings)
    assert any("100.0% of the rows are interactions" in one for one in judge(run, data, path, keep_seen=True).warnings)


def test_strangers_and_foreign_items_are_warned_of(run, data, tmp_path):
    rows = [("nobody", data.catalogue.item_ids[0], 0.5, 1), (data.device_ids[0], "no item", 0.5, 0)]
    report = judge(run, data, write(tmp_path / "odd.csv", ("user", "item", "propensity", "reward"), rows))
    assert any("50.0% of the rows show items that synthetic lacks" in one for one in report.warnings)
    assert any("50.0% of the rows are of users that synthetic lacks" in one for one in report.warnings)
    with pytest.raises(DataError, match=r"expected items of synthetic in other\.csv, got 'x'"):
        judge(run, data, write(tmp_path / "other.csv", ("item", "propensity", "reward"), [("x", 0.5, 1)]))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"temperature": 0.0}, "expected temperature > 0"),
        ({"threshold": -1.0}, "expected a switch threshold >= 0"),
        ({"resamples": 1}, "expected resamples to be an integer >= 2"),
    ],
)
def test_wrong_settings_are_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        OpeSettings(**changes)


def test_the_command_shows_a_table_or_json(run, impressions, command_line, capsys):
    where = str(run.directory)
    assert invoke(["ope", where, "--log", str(impressions), "--resamples", "50"]) == 0
    shown = capsys.readouterr().out
    for word in ("the logging policy itself", "IPS", "Switch-DR", "95 % interval", "effective sample", "Support:"):
        assert word in shown
    assert invoke(["ope", where, "--log", str(impressions), "--resamples", "50", "--switch", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in found["estimates"]] == ["logged", "IPS", "SNIPS", "DM", "DR", "Switch-DR (w <= 2)"]
    assert found["rows"] == 21_000
    assert set(found["support"]) >= {"effective_sample_size", "mean_weight", "missing_mass"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--log", "none.csv"], "expected a file at none.csv"),
        (["--log", "LOG", "--temperature", "0"], "expected temperature > 0"),
        (["--log", "LOG", "--map", "reward"], "expected --map role=column, got 'reward'"),
        (["--log", "LOG", "--map", "item=who"], "expected a column for the item"),
        (["--log", "open-bandit/none"], "expected one of open-bandit/random-all"),
    ],
)
def test_wrong_arguments_end_in_one_sentence(run, impressions, command_line, capsys, arguments, sentence):
    arguments = [str(impressions) if one == "LOG" else one for one in arguments]
    assert invoke(["ope", str(run.directory), *arguments]) == 2
    lines = capsys.readouterr().err
    assert sentence in " ".join(lines.split())
    assert "Traceback" not in lines
