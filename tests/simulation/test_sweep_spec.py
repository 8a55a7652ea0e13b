"""A sweep's specification: every cell is built before anything runs, and what is wrong is said in one sentence."""

import pytest
from fedrec.config import Config
from fedrec.errors import ConfigError
from fedrec.simulation.sweep import SweepSpec, load_spec, plan_cells, run_sweep

AXES = {"privacy": {"epsilon": [8, 4.0], "unit": ["user", "interaction"]}, "seed": [0, 1]}


def spec(**tables):
    return SweepSpec.from_mapping({"axes": AXES, **tables})


def test_cells_are_the_product_of_the_axes():
    cells = plan_cells(spec())
    assert len({cell.config.fingerprint() for cell in cells}) == len(cells) == 8
    for cell in cells:
        assert cell.config.privacy.epsilon == cell.axes["privacy.epsilon"]
        assert cell.config.privacy.unit == cell.axes["privacy.unit"]
        assert cell.config.seed == cell.axes["seed"]
        assert cell.config.engine.threads == 1


def test_an_axis_may_be_written_dotted_or_in_a_section():
    dotted = {"axes": {"privacy.epsilon": [8, 4.0], "privacy.unit": ["user", "interaction"], "seed": [0, 1]}}
    assert plan_cells(SweepSpec.from_mapping(dotted)) == plan_cells(spec())


def test_a_bundle_holds_where_it_matches_and_a_later_one_wins():
    bundles = [
        {"match": {"privacy": {"unit": "user"}}, "set": {"privacy": {"clip": 0.3}, "local.steps": 2}},
        {"match": {"privacy.unit": "user", "privacy.epsilon": [4, 2]}, "set": {"privacy.clip": 0.1}},
    ]
    clips = {}
    for cell in plan_cells(spec(base={"privacy": {"clip": 0.7}}, bundle=bundles)):
        clips[cell.config.privacy.unit, cell.config.privacy.epsilon] = cell.config.privacy.clip
        assert cell.config.local.steps == (2 if cell.config.privacy.unit == "user" else Config().local.steps)
    assert clips == {("user", 8): 0.3, ("user", 4): 0.1, ("interaction", 8): 0.7, ("interaction", 4): 0.7}


def test_a_base_is_a_file_and_what_is_written_wins_over_it(tmp_path):
    (tmp_path / "under.toml").write_text("[server]\nrounds = 7\nmomentum = 0.5\n")
    (tmp_path / "sweep.toml").write_text(
        'name = "x"\n[base]\nfile = "under.toml"\nserver.rounds = 9\n[axes]\nseed = [3]\nlocal.rates.bias = [0.5]\n'
    )
    (cell,) = plan_cells(load_spec(tmp_path / "sweep.toml"))
    assert (cell.config.server.rounds, cell.config.server.momentum, cell.config.seed) == (9, 0.5, 3)
    assert cell.config.local.rates == {"bias": 0.5}


def test_there_is_one_ceiling_for_each_seed_and_none_is_private():
    ceiling = {"server": {"rounds": 60}}
    bundles = [{"match": {"privacy.unit": "user"}, "set": {"local.steps": 2}}]
    cells = plan_cells(spec(ceiling=ceiling, bundle=bundles))
    above = [cell for cell in cells if cell.kind == "ceiling"]
    assert [cell.axes for cell in above] == [{"seed": 0}, {"seed": 1}]
    assert {(cell.config.privacy.unit, cell.config.server.rounds) for cell in above} == {("none", 60)}
    assert {cell.config.local.steps for cell in above} == {Config().local.steps}


def test_what_is_set_holds_everywhere_and_leaves_an_axis_with_one_value():
    pinned = spec(ceiling={"server.rounds": 60}, bundle=[{"match": {"seed": 0}, "set": {"server.rounds": 30}}]).pinned(
        {"server.rounds": 4, "privacy.epsilon": 2.0}
    )
    cells = plan_cells(pinned)
    assert {cell.config.server.rounds for cell in cells} == {4}
    assert len(cells) == 4 + 2
    assert {cell.config.privacy.epsilon for cell in cells if cell.kind == "cell"} == {2.0}


def test_the_default_sweep_is_four_epsilons_two_units_three_seeds_and_a_ceiling_a_seed():
    cells = plan_cells(load_spec())
    private = [cell.config for cell in cells if cell.kind == "cell"]
    places = {(config.privacy.epsilon, config.privacy.unit, config.seed) for config in private}
    assert len(private) == len(places) == 24
    assert {config.data.name for config in private} == {"ml-100k"}
    assert {config.privacy.delta for config in private} == {1e-5}
    assert len(cells) == 27


WRONG = {
    "an unknown key": ({"axes": {"privacy.epsilom": [1]}}, r"privacy\.epsilom; did you mean privacy\.epsilon\?"),
    "an unknown table": ({"axis": {}}, "unknown table axis of a sweep; did you mean axes"),
    "no axis": ({"axes": {}}, "one axis or more, got none"),
    "a value for a list": ({"axes": {"seed": 3}}, "expected axis seed to be a list of values, got 3"),
    "a value twice": ({"axes": {"seed": [1, 2, 1]}}, "values of axis seed to differ, got 1 twice"),
    "a value out of range": ({"axes": {"privacy.epsilon": [8, -1]}}, r"> 0, got -1 \(in the cell privacy\.epsilon=-1"),
    "an axis without effect": ({"axes": {"engine.chunk": [1, 2]}}, r"the same for engine\.chunk=1 and engine\.chunk=2"),
    "a match of no axis": (
        {"axes": AXES, "bundle": [{"match": {"privacy.units": "user"}, "set": {"seed": 1}}]},
        r"to name an axis, got privacy\.units; did you mean privacy\.unit\?",
    ),
    "a match of no value": (
        {"axes": AXES, "bundle": [{"match": {"privacy.epsilon": 3}, "set": {"privacy.clip": 1}}]},
        r"meet a value of axis privacy\.epsilon \(\[8, 4\.0\]\), got 3",
    ),
    "a bundle that sets an axis": (
        {"axes": AXES, "bundle": [{"match": {"seed": 0}, "set": {"privacy.epsilon": 1}}]},
        r"keys that are no axes, got the axis privacy\.epsilon",
    ),
    "a wrong key of a bundle": ({"axes": AXES, "bundle": [{"when": {}}]}, "unknown key when of a bundle"),
    "a wrong base": ({"axes": AXES, "base": 3}, "expected base to be a path or a table, got 3"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_specification_is_told_in_one_sentence_and_nothing_is_made(name, tmp_path):
    values, sentence = WRONG[name]
    with pytest.raises(ConfigError, match=sentence) as raised:
        run_sweep(SweepSpec.from_mapping(values), tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_the_tables_of_one_sweep_are_not_written_over_those_of_another(tmp_path):
    (tmp_path / "sweep.json").write_text('{"name": "another", "cells": []}\n')
    with pytest.raises(ConfigError, match="tables of 'another'; choose another with --out"):
        run_sweep(load_spec(), tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.suffix in (".csv", ".html")] == []
