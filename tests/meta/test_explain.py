"""Terms add up to the score, occlusion is the counterfactual it says it is, features are shares of their terms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fedrec.config import PolicyConfig
from fedrec.errors import PolicyError
from fedrec.meta.explain import explain, score_terms, without_entry
from fedrec.meta.interactions import Catalogue, FeatureGroup
from fedrec.meta.policy import LEVELS, Policy, State
from hypothesis import given, reject, settings
from hypothesis import strategies as st

ITEMS, LENGTH = 11, 6
GROUPS = (
    FeatureGroup(name="genre", kind="multilabel", start=0, stop=4),
    FeatureGroup(name="year", kind="category", start=4, stop=7),
    FeatureGroup(name="title", kind="text", start=7, stop=10),
)
ENCODERS = ("none", "personal", "history", "gru", "transformer")


def catalogue():
    random = np.random.default_rng(5)
    features = random.normal(size=(ITEMS, 10)) * (random.random((ITEMS, 10)) < 0.6)
    return Catalogue(
        features=features.astype(np.float32),
        feature_names=tuple(f"f{column}" for column in range(10)),
        item_ids=tuple(str(row) for row in range(ITEMS)),
        groups=GROUPS,
    )


def make(seed=0, **options):
    """A policy, random parameters (none of them neutral) and a state with a padded history."""
    chosen = {"affinity": True, "user_features": True, "dim": 4, "history_length": LENGTH, "bias_scale": 3.0}
    policy = Policy.for_catalogue(PolicyConfig(**(chosen | options)), catalogue(), user_width=2)
    generator = torch.Generator().manual_seed(seed)
    start = policy.initial(generator)
    parameters = {name: value + 0.4 * torch.randn(value.shape, generator=generator) for name, value in start.items()}
    return policy, parameters, make_state(generator)


def make_state(generator, known=4):
    history = torch.randint(0, ITEMS, (1, LENGTH), generator=generator)
    history[0, : LENGTH - known] = -1
    levels = torch.where(history >= 0, torch.randint(0, LEVELS, (1, LENGTH), generator=generator), 0)
    return State(history, levels, torch.randn(2, generator=generator))


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(ENCODERS),
    st.fixed_dictionaries(
        {
            name: st.booleans()
            for name in ("content", "ids", "bias", "user_features", "content_embedding", "affinity", "history_rewards")
        }
    ),
    st.sets(st.sampled_from(["affinity", "gain", "latent", "temperature"])),
    st.integers(0, LENGTH),
    st.integers(0, 10_000),
)
def test_terms_add_up_to_the_score_whatever_the_options(encoder, options, fast, known, seed):
    try:
        policy, parameters, _ = make(seed, state=encoder, fast=tuple(sorted(fast)), **options)
    except PolicyError:
        reject()
    state = make_state(torch.Generator().manual_seed(seed), known)
    scores = policy.scores(parameters, state)[0]
    item = seed % ITEMS
    found = explain(policy, parameters, state, item)
    size = max(1.0, sum(abs(value) for value in found.terms.values()))
    assert found.score == pytest.approx(float(scores[item]), abs=1e-6)
    assert abs(sum(found.terms.values()) - found.score) <= 1e-5 * size
    assert found.probability == pytest.approx(float(torch.softmax(scores, 0)[item]), rel=1e-5)
    assert len(found.history) == known


def test_terms_are_those_that_the_policy_has():
    policy, parameters, state = make(fast=("taste", "temperature"))
    kernels = ("genre", "year", "title", "genre x year")
    assert set(explain(policy, parameters, state, 0).terms) == {
        *("bias", "taste", "latent", "user", "state"),
        *(f"affinity.{kernel}" for kernel in kernels),
    }
    policy, parameters, state = make(state="none", affinity=False, content=False, user_features=False, fast=())
    assert set(explain(policy, parameters, state, 0).terms) == {"bias"}
    policy, parameters, state = make(state="personal", affinity=False, user_features=False)
    assert set(explain(policy, parameters, state, 0).terms) == {"bias", "taste", "latent", "personal"}


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("term", ["bias", "taste", "latent", "user", "affinity.year"])
def test_a_term_is_what_the_score_loses_without_its_weight(encoder, term):
    policy, parameters, state = make(state=encoder, fast=("taste", "temperature"))
    silenced = dict(parameters)
    name, _, kernel = term.partition(".")
    silenced[name] = torch.zeros_like(parameters[name])
    if kernel:
        silenced[name] = parameters[name].clone()
        silenced[name][:, policy.kernel_names.index(kernel)] = 0
    for item in range(ITEMS):
        lost = float((policy.scores(parameters, state) - policy.scores(silenced, state))[0, item])
        assert explain(policy, parameters, state, item).terms[term] == pytest.approx(lost, abs=1e-5)


def test_temperature_scales_every_term():
    policy, parameters, state = make(fast=("temperature",))
    warm = explain(policy, parameters | {"temperature": torch.tensor([0.7])}, state, 3)
    plain = explain(policy, parameters | {"temperature": torch.tensor([0.0])}, state, 3)
    factor = float(np.exp(0.7))
    assert warm.temperature == pytest.approx(factor)
    assert warm.terms == pytest.approx({name: value * factor for name, value in plain.terms.items()}, rel=1e-5)
    assert warm.features[0][1] == pytest.approx(plain.features[0][1] * factor, rel=1e-5)
    assert plain.temperature == 1.0


def removed(state, column):
    """The same by lists: the referee."""
    history, levels = state.history[0].tolist(), state.levels[0].tolist()
    del history[column], levels[column]
    return State(torch.tensor([[-1, *history]]), torch.tensor([[0, *levels]]), state.user)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_removing_an_entry_costs_its_stated_effect(encoder):
    policy, parameters, state = make(state=encoder, fast=("temperature",))
    item = 2
    before = float(policy.scores(parameters, state)[0, item])
    history = explain(policy, parameters, state, item).history
    assert sorted(column for column, _, _ in history) == [2, 3, 4, 5]
    for column, entry, effect in history:
        assert entry == int(state.history[0, column])
        after = float(policy.scores(parameters, removed(state, column))[0, item])
        assert before - after == pytest.approx(effect, abs=2e-5)
    effects = [effect for _, _, effect in history]
    assert effects == sorted(effects, reverse=True)
    assert max(map(abs, effects)) > 1e-3


def test_the_top_entry_supports_the_item_that_is_like_it():
    policy, parameters, _ = make(state="none", bias=False, content=False, fast=())
    parameters = {name: torch.zeros_like(value) for name, value in parameters.items()}
    parameters["affinity"] = torch.ones_like(parameters["affinity"])
    state = State(torch.tensor([[-1, -1, 7, 1, 3, 9]]), torch.zeros(1, LENGTH, dtype=torch.int64), torch.zeros(2))
    column, entry, effect = explain(policy, parameters, state, 1).history[0]
    assert (column, entry) == (3, 1)
    assert effect > 0.3


def test_an_entry_taken_out_moves_older_ones_up():
    state = State(torch.tensor([[-1, 4, 5, 6]]), torch.tensor([[0, 1, 2, 3]]), torch.zeros(0))
    without = without_entry(state, 2)
    assert without.history.tolist() == [[-1, -1, 4, 6]]
    assert without.levels.tolist() == [[0, 0, 1, 3]]


def test_features_share_out_taste_and_the_kernels_of_single_groups():
    policy, parameters, state = make(fast=("taste", "temperature"))
    for item in range(ITEMS):
        found = explain(policy, parameters, state, item, groups=GROUPS)
        single = sum(found.terms[f"affinity.{group.name}"] for group in GROUPS)
        assert sum(effect for _, effect in found.features) == pytest.approx(found.terms["taste"] + single, abs=1e-5)
        columns = {column for column, _ in found.features}
        assert columns == set(torch.nonzero(policy.features[item]).flatten().tolist())
        without_groups = explain(policy, parameters, state, item)
        assert sum(effect for _, effect in without_groups.features) == pytest.approx(found.terms["taste"], abs=1e-5)
        sizes = [abs(effect) for _, effect in found.features]
        assert sizes == sorted(sizes, reverse=True)
        assert explain(policy, parameters, state, item, groups=GROUPS, top=2).features == found.features[:2]


def test_one_feature_by_hand():
    """Without a history, feature x taste is all there is."""
    policy, parameters, _ = make(fast=("taste",))
    state = make_state(torch.Generator(), known=0)
    expected = {column: float(policy.features[4, column] * parameters["taste"][column]) for column in range(10)}
    for column, effect in explain(policy, parameters, state, 4, groups=GROUPS).features:
        assert effect == pytest.approx(expected[column], abs=1e-7)


def test_candidates_narrow_the_probability_only():
    policy, parameters, state = make()
    candidates = torch.zeros(ITEMS, dtype=torch.bool)
    candidates[[1, 4]] = True
    both = [explain(policy, parameters, state, item, candidates=candidates) for item in (1, 4)]
    assert sum(one.probability for one in both) == pytest.approx(1.0)
    assert both[0].score == explain(policy, parameters, state, 1).score
    odds = both[0].probability / both[1].probability
    assert odds == pytest.approx(np.exp(both[0].score - both[1].score), rel=1e-4)


def test_terms_of_many_states_at_once():
    policy, parameters, _ = make(state="gru")
    states = [make_state(torch.Generator().manual_seed(seed), known=seed) for seed in range(5)]
    user = states[0].user
    batch = State(torch.cat([s.history for s in states]), torch.cat([s.levels for s in states]), user)
    together = sum(score_terms(policy, parameters, batch, 6).values())
    torch.testing.assert_close(together, policy.scores(parameters, batch)[:, 6], rtol=1e-5, atol=1e-5)


def test_nan_is_refused():
    policy, parameters, state = make()
    for name in ("bias", "taste", "state.mix"):
        broken = parameters | {name: torch.full_like(parameters[name], torch.nan)}
        with pytest.raises(PolicyError, match=f"expected finite parameters, got NaN or infinity in {name}"):
            explain(policy, broken, state, 0)
    huge = parameters | {"bias": torch.full_like(parameters["bias"], 3e38)}
    with pytest.raises(PolicyError, match="expected finite scores"):
        explain(policy, huge, state, 0)


def test_unusable_arguments_get_a_sentence():
    policy, parameters, state = make()
    with pytest.raises(PolicyError, match=r"expected an item row in \[0, 11\), got 11"):
        explain(policy, parameters, state, 11)
    with pytest.raises(PolicyError, match=r"expected one state, history \[1, length\], got \(2, 6\)"):
        explain(policy, parameters, State(state.history.repeat(2, 1), state.levels.repeat(2, 1), state.user), 0)
    with pytest.raises(PolicyError, match=r"expected candidates as bool \[11\], got torch.bool \(3,\)"):
        explain(policy, parameters, state, 0, candidates=torch.ones(3, dtype=torch.bool))
    with pytest.raises(PolicyError, match="expected an item among the candidates, got row 0"):
        explain(policy, parameters, state, 0, candidates=torch.arange(ITEMS) > 0)
