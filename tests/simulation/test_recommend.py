"""What a user of a run gets recommended, and why: against the batched serving path, and by counterfactual."""

from __future__ import annotations

import json
import re
from dataclasses import FrozenInstanceError, replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from fedrec.errors import PolicyError, RunError
from fedrec.meta.acting import Exploration, propensities
from fedrec.simulation.recommend import REASONS, Recommendation, recommend, recommendation_table, term_label
from fedrec.simulation.run import Run, simulate
from fedrec.simulation.world import load_dataset
from rich.console import Console

ITEMS = 40


@pytest.fixture(scope="session", params=["history", "personal"])
def run(request, tmp_path_factory):
    values = {
        "data": {"name": "synthetic", "devices": 40, "items": ITEMS, "interactions": 8},
        "policy": {"state": request.param, "affinity": True, "dim": 4, "affinity_init": 0.5, "history_length": 6},
        "privacy": {"unit": "none"},
        "server": {"rounds": 3},
        "local": {"windows": 2, "steps": 2},
        "evaluation": {"baselines": False, "resamples": 100, "cold_start": [0], "serve_steps": 3},
    }
    return simulate(values, out=tmp_path_factory.mktemp("recommend") / "run")


@pytest.fixture(scope="session")
def data(run):
    return load_dataset(run.config)


def referee(run, data, device):
    """Scores of the path that evaluation takes, the whole log known and everything met at minus infinity."""
    scores = run.served(data).score_until(np.array([device]), data.offsets[[device + 1]])[0].detach()
    scores[data.log(device).items] = -torch.inf
    return scores


def devices_of_both_kinds(run, data):
    held_out = run.served(data).world.held_out
    return [int(np.flatnonzero(held_out)[0]), int(np.flatnonzero(~held_out)[-1])]


def test_the_ranking_is_that_of_the_served_policy_without_what_was_met(run, data):
    for device in devices_of_both_kinds(run, data):
        expected = referee(run, data, device)
        found = recommend(run, data.device_ids[device], 5, dataset=data)
        order = torch.sort(expected, descending=True).indices[:5].tolist()
        assert [one.item_id for one in found] == [str(data.catalogue.item_ids[item]) for item in order]
        assert [one.title for one in found] == [data.catalogue.title(item) for item in order]
        assert [one.rank for one in found] == [1, 2, 3, 4, 5]
        assert [one.score for one in found] == pytest.approx(expected[order].tolist(), abs=1e-5)
        chances = torch.softmax(expected, 0)[order].tolist()
        assert [one.probability for one in found] == pytest.approx(chances, rel=1e-4)


def rows_of(data, found):
    known = {str(identifier): row for row, identifier in enumerate(data.catalogue.item_ids)}
    return [known[one.item_id] for one in found]


def test_a_drawn_slate_has_its_exact_propensities(run, data):
    device, how = 4, Exploration(temperature=0.7, epsilon=0.1, diversity=0.3)
    scores, features = referee(run, data, device)[None], run.served(data).world.policy.features
    allowed = torch.isfinite(scores)
    met = set()
    for seed in range(5):
        found = recommend(run, data.device_ids[device], 4, how=how, seed=seed, dataset=data)
        assert found == recommend(run, data.device_ids[device], 4, how=how, seed=seed, dataset=data)
        rows = rows_of(data, found)
        assert len(set(rows)) == 4
        assert bool(allowed[0, rows].all())
        expected = propensities(torch.tensor([rows]), scores.masked_fill(~allowed, 0.0), allowed, how, features)[0]
        assert [one.propensity for one in found] == pytest.approx(expected.tolist(), rel=1e-4)
        assert [one.score for one in found] == pytest.approx(scores[0, rows].tolist(), abs=1e-5)
        met.add(tuple(rows))
    assert len(met) > 1


def test_a_slate_without_temperature_is_the_ranking(run, data):
    user = data.device_ids[6]
    ranked, drawn = (recommend(run, user, 5, how=how, dataset=data) for how in (None, Exploration(temperature=0.0)))
    assert [one.item_id for one in drawn] == [one.item_id for one in ranked]
    assert [one.propensity for one in drawn] == [1.0] * 5
    assert [one.propensity for one in ranked] == [None] * 5
    shown = StringIO()
    Console(file=shown, width=100).print(recommendation_table(drawn))
    assert "propensity" in shown.getvalue()
    assert shown.getvalue().count("100.00%") == 5


def test_the_run_and_the_configured_data_set_give_the_same(run, data):
    user = data.device_ids[3]
    assert run.recommend(user, 4, explain=True) == recommend(run, user, 4, explain=True, dataset=data)
    assert Run.open(run.directory).recommend(user, 4) == run.recommend(user, 4)


def test_an_explanation_adds_up_and_changes_no_number(run, data):
    user = data.device_ids[5]
    plain = recommend(run, user, 6, dataset=data)
    explained = recommend(run, user, 6, explain=True, dataset=data)
    state = {"history": "state", "personal": "personal"}[run.config.policy.state]
    for before, one in zip(plain, explained, strict=True):
        assert (before.terms, before.because, before.features) == ({}, (), ())
        assert replace(one, terms={}, because=(), features=()) == before
        assert sum(one.terms.values()) == pytest.approx(one.score, abs=1e-4)
        assert {"bias", "taste", "latent", state, "affinity.genre", "affinity.genre x year"} <= set(one.terms)


def test_reasons_come_from_the_log_and_from_the_item(run, data):
    device = int(np.argmax(data.lengths))
    recent = data.log(device).items[-run.config.policy.history_length :].tolist()
    titles = {data.catalogue.title(item) for item in recent}
    found = recommend(run, data.device_ids[device], 8, explain=True, dataset=data)
    assert any(one.because for one in found)
    rows = {str(identifier): row for row, identifier in enumerate(data.catalogue.item_ids)}
    for one in found:
        assert {title for title, _ in one.because} <= titles
        effects = [effect for _, effect in one.because]
        assert effects == sorted(effects, reverse=True)
        assert all(effect > 0 for effect in effects)
        own = data.catalogue.features[rows[one.item_id]]
        assert all(own[data.catalogue.feature_names.index(name)] != 0 for name, _ in one.features)
        sizes = [abs(effect) for _, effect in one.features]
        assert sizes == sorted(sizes, reverse=True)
        assert max(len(one.because), len(one.features)) <= REASONS


def test_features_hold_their_share_of_the_kernels(run, data):
    """Items with no more features than are named: the shares are all there."""
    few = {
        str(data.catalogue.item_ids[row]) for row in np.flatnonzero((data.catalogue.features != 0).sum(1) <= REASONS)
    }
    found = recommend(run, data.device_ids[0], ITEMS, explain=True, dataset=data)
    chosen = [one for one in found if one.item_id in few]
    assert chosen
    for one in chosen:
        total = one.terms["taste"] + one.terms["affinity.genre"] + one.terms["affinity.year"]
        assert sum(effect for _, effect in one.features) == pytest.approx(total, abs=1e-4)


def test_the_first_reason_is_what_its_absence_costs(run, data):
    """Counterfactual from outside: the same parameters, the entry struck from the log."""
    device = int(np.argmin(np.where(data.lengths >= 4, data.lengths, 99)))  # its whole log is in the history
    found = recommend(run, data.device_ids[device], 1, explain=True, dataset=data)[0]
    title, effect = found.because[0]
    served = run.served(data)
    stops = data.offsets[[device + 1]]
    own = {name: value[0] for name, value in served.adapted(np.array([device]), stops).items()}
    struck = next(row for row in range(stops[0] - 1, -1, -1) if data.catalogue.title(data.items[row]) == title)
    keep = np.arange(len(data.items)) != struck
    offsets = data.offsets - (data.offsets > struck)
    shorter = data.replace(
        items=data.items[keep],
        rewards=data.rewards[keep],
        timestamps=data.timestamps[keep],
        propensities=None if data.propensities is None else data.propensities[keep],
        offsets=offsets,
    )
    batch = run.served(shorter).world.states(np.array([device]), offsets[[device + 1]])
    state = type(batch)(*(field[0] for field in batch))
    item = list(map(str, data.catalogue.item_ids)).index(found.item_id)
    after = served.world.policy.scores({**served.phi, **own}, state)[0, item]
    assert found.score - float(after) == pytest.approx(effect, abs=1e-4)


def test_everything_is_known_the_last_interaction_too(run, data):
    device = int(np.argmax(data.lengths))
    found = recommend(run, data.device_ids[device], ITEMS, dataset=data)
    items = data.items.copy()
    last = data.offsets[device + 1] - 1
    unseen = np.setdiff1d(np.arange(ITEMS), data.log(device).items.numpy())
    items[last] = unseen[0]
    other = recommend(run, data.device_ids[device], ITEMS, dataset=data.replace(items=items))
    assert str(data.catalogue.item_ids[unseen[0]]) in {one.item_id for one in found}
    assert str(data.catalogue.item_ids[unseen[0]]) not in {one.item_id for one in other}
    common = {one.item_id: one.score for one in found}
    assert any(abs(common[one.item_id] - one.score) > 1e-4 for one in other if one.item_id in common)


def test_a_list_is_as_long_as_there_are_items_left(run, data):
    for device in (0, 1):
        left = ITEMS - len(set(data.log(device).items.tolist()))
        found = recommend(run, data.device_ids[device], 10 * ITEMS, dataset=data)
        assert len(found) == left
        assert sum(one.probability for one in found) == pytest.approx(1.0, abs=1e-5)


def test_what_was_met_and_disliked_is_left_out_too(run, data):
    """A threshold takes interactions out of the policy's log, not out of the user's memory."""
    strict = replace(run, config=run.config.updated(data__positive_threshold=4.0))
    device = int(np.argmax([(data.log(d).rewards < 4).sum() for d in range(data.devices)]))
    disliked = data.log(device).items[data.log(device).rewards < 4].tolist()
    assert disliked
    found = strict.recommend(data.device_ids[device], ITEMS, explain=True)
    assert not {one.item_id for one in found} & {str(data.catalogue.item_ids[item]) for item in disliked}
    liked = {data.catalogue.title(item) for item in data.log(device).items[data.log(device).rewards >= 4].tolist()}
    assert {title for one in found for title, _ in one.because} <= liked


def test_a_user_with_an_empty_log_gets_the_shared_policy(run, data):
    rewards = data.rewards.copy()
    rewards[data.offsets[2] : data.offsets[3]] = 1.0
    strict = replace(run, config=run.config.updated(data__positive_threshold=4.0))
    found = strict.recommend(data.device_ids[2], 3, explain=True, dataset=data.replace(rewards=rewards))
    assert len(found) == 3
    assert all(one.because == () for one in found)


def test_wrong_arguments_get_a_sentence(run, data):
    with pytest.raises(RunError, match="expected a user of synthetic, got 'nobody'"):
        run.recommend("nobody")
    for k in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match=re.escape(f"expected k to be an integer >= 1, got {k!r}")):
            run.recommend(data.device_ids[0], k)


def test_nan_is_refused(run, data, monkeypatch):
    whole = run.served(data)
    broken = {
        name: torch.full_like(value, torch.nan) if name == "taste" else value for name, value in whole.phi.items()
    }
    monkeypatch.setattr(Run, "policy", lambda _: broken)
    with pytest.raises(PolicyError, match="expected finite parameters, got NaN or infinity in taste"):
        recommend(run, data.device_ids[0], dataset=data)
    huge = whole.phi | {"bias": torch.full((ITEMS,), 3e38), "gain": torch.tensor([2.0, 0.0])}
    monkeypatch.setattr(Run, "policy", lambda _: huge)
    with pytest.raises(PolicyError, match=r"expected finite scores.*lower evaluation.serve_lr"):
        recommend(run, data.device_ids[0], dataset=data)


def test_plain_values_survive_json(run, data):
    one = recommend(run, data.device_ids[0], 1, explain=True, dataset=data)[0]
    values = json.loads(json.dumps(one.to_dict(), allow_nan=False))
    assert values == one.to_dict()
    assert values["terms"] == one.terms
    assert [tuple(pair) for pair in values["features"]] == list(one.features)
    with pytest.raises(FrozenInstanceError):
        one.rank = 2


def drawn(recommendations, width=80):
    console = Console(width=width, record=True, file=StringIO())
    console.print(recommendation_table(recommendations))
    return console.export_text()


def example(**changes):
    values = {
        "rank": 1,
        "item_id": "7",
        "title": "A title that is [b]no markup[/b]",
        "score": 1.5,
        "probability": 0.25,
        "terms": {"bias": 2.0, "taste": -0.5, "affinity.genre": 0.0},
        "because": (("Seen before", 0.4),),
        "features": (("genre=Comedy", -0.3),),
    }
    return Recommendation(**(values | changes))


def test_the_table_of_explanations_says_all_within_80_columns():
    text = drawn([example(), example(rank=2, title="x" * 200)])
    for part in ("[b]no markup[/b]", "score 1.50", "25.00%", "+0.40  Seen before", "-0.30  genre: Comedy"):
        assert part in text
    for label, value in (("popularity", "+2.00"), ("taste", "-0.50"), ("alike: genre", "+0.00")):
        assert re.search(rf"{label}\s+{re.escape(value)}", text)
    assert max(map(len, text.splitlines())) <= 80


def test_bars_of_a_table_share_zero_and_scale():
    lines = [
        line for line in drawn([example(terms={"bias": 4.0, "taste": -4.0, "latent": 2.0})]).splitlines() if "█" in line
    ]
    spans = [(line.index("█"), line.rindex("█") + 1) for line in lines]
    (bias, taste, latent) = spans
    assert taste[1] == bias[0] == latent[0]
    assert bias[1] - bias[0] == taste[1] - taste[0] == 2 * (latent[1] - latent[0])


def test_the_plain_table_has_one_line_an_item():
    plain = [example(rank=rank, terms={}, because=(), features=(), title=f"Item {rank}") for rank in (1, 2)]
    lines = drawn(plain).strip().splitlines()
    assert len(lines) == 3
    assert "popularity" not in lines[1]
    assert "Item 1" in lines[1]
    assert "25.00%" in lines[1]
    assert "█" in lines[1]
    assert drawn([]).strip().startswith("item")


def test_labels_of_terms():
    assert term_label("affinity.genre x year") == "alike: genre x year"
    assert [term_label(name) for name in ("bias", "user", "state", "personal")] == [
        *("popularity", "user features", "history", "personal"),
    ]


def test_the_code_of_the_guide_runs(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    guide = Path(__file__).parents[2] / "docs" / "explanations.md"
    (block,) = re.findall(r"```python\n(.*?)```", guide.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, object] = {}
    exec(block, names)
    assert len(names["found"]) == 5
    assert "score, term by term" in capsys.readouterr().out
