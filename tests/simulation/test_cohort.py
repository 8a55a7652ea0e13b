"""The batched engine against the devices one by one on Opacus, for every encoder and privacy unit."""

from dataclasses import replace

import numpy as np
import policy_world as policies
import pytest
import torch
from fedrec.client.adaptation import LocalMechanism
from fedrec.config import Config, LocalConfig, PolicyConfig
from fedrec.errors import ConfigError, PolicyError, PrivacyError
from fedrec.meta import descent, recency
from fedrec.meta.examples import build_examples, stack_examples
from fedrec.meta.interactions import Interactions
from fedrec.meta.policy import Policy
from fedrec.meta.slopes import DenseSlopes
from fedrec.meta.table import TableGradient
from fedrec.privacy.mechanisms import Sensitivity
from fedrec.simulation import cohort, moved
from fedrec.simulation.cohort import CohortResult, Work, adapt_cohort
from fedrec.simulation.moved import Moved
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

UNITS = ("none", "interaction", "user", "both")
LENGTHS = st.lists(st.sampled_from([0, 1, 2, 5, 13]), min_size=1, max_size=6)
ONCE = [0, 1, 2, 5, 9, policies.ITEMS]
"""Lengths of logs in which no item stands twice."""


def config(unit, **changes):
    defaults = {
        "local__steps": 3,
        "local__windows": 4,
        "local__horizon": 2,
        "local__lr": 0.6,
        "local__weight_decay": 0.1,
        "privacy__unit": unit,
        "privacy__clip": 0.05,
        "privacy__example_clip": 0.1,
        "privacy__expected_batch": 4.0,
        "privacy__scales": {"bias": 3.0},
    }
    return Config().updated(**(defaults | changes))


def tasks(policy, unit, lengths, devices=None, user=None, **local):
    """Work for devices with logs of these lengths."""
    built = [
        policies.examples(
            policy,
            length,
            seed=number,
            unit=unit,
            windows=4,
            horizon=2,
            propensities=number % 2,
            stream=(0, 1, number),
            **local,
        )
        for number, length in enumerate(lengths)
    ]
    if user is not None:
        built[-1] = built[-1]._replace(user=user)
    own = policy.names(scope="personal")
    return Work(
        devices=np.array(devices or [100 + number for number in range(len(lengths))], dtype=np.int64),
        sizes=np.array(lengths, dtype=np.int64),
        examples=lambda places: stack_examples([built[place] for place in places]),
        personal={
            name: 0.1 * torch.arange(len(lengths))[:, None].expand(-1, *policy.specs[name].shape) for name in own
        },
    )


def wider(work, columns):
    """The same work with so many columns of padding more in every history."""

    def examples(places):
        built = work.examples(places)
        history = functional.pad(built.history, (columns, 0), value=-1)
        return built._replace(history=history, levels=functional.pad(built.levels, (columns, 0)))

    return replace(work, examples=examples)


def reversed_order(work):
    count = len(work.devices)
    return Work(
        devices=work.devices[::-1].copy(),
        sizes=work.sizes[::-1].copy(),
        examples=lambda places: work.examples(count - 1 - places),
        personal={name: value.flip(0) for name, value in work.personal.items()},
    )


def run(policy, devices, settings, *, round_number=3):
    unit = settings.privacy.unit
    mechanism = LocalMechanism.of(policy, settings, 0.7) if unit in ("interaction", "both") else None
    point = policies.parameters(policy)
    phi = {name: point[name] for name in policy.names(scope="shared")}
    return adapt_cohort(policy, phi, devices, settings, mechanism, round_number=round_number)


def close(first, second, tolerance=1e-5):
    assert first.total.keys() == second.total.keys()
    for name, value in first.total.items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(value, second.total[name], rtol=1e-4, atol=tolerance)
    assert first.personal.keys() == second.personal.keys()
    for name, value in first.personal.items():
        torch.testing.assert_close(value, second.personal[name], rtol=1e-4, atol=tolerance)


POLICIES = st.fixed_dictionaries(
    {
        "ids": st.booleans(),
        "content_embedding": st.just(True),
        "bias_scale": st.sampled_from([1.0, 5.0]),
        "affinity": st.booleans(),
        "user_features": st.booleans(),
        "history_prior": st.sampled_from([0.0, 3.0]),
        "fast": st.sampled_from([(), ("taste",), ("taste", "latent"), ("gain", "temperature"), ("affinity",)]),
        "frozen": st.sampled_from([(), ("bias", "latent"), ("content",)]),
        "affinity_level": st.booleans(),
        "affinity_place": st.sampled_from([0, 3]),
        "pairs": st.sampled_from([0, 2]),
        "learned_rates": st.booleans(),
    }
).filter(
    lambda one: (
        (one["affinity"] or "affinity" not in one["fast"])
        and (not (one["affinity"] and one["affinity_level"]) or "bias" in one["frozen"])
    )
)
LOSSES = st.fixed_dictionaries(
    {
        "local__reward": st.sampled_from(["one", "value"]),
        "local__targets": st.sampled_from(["mean", "sum"]),
        "local__baseline": st.sampled_from([0.0, 0.5]),
        "local__weight_cap": st.sampled_from([1.5, 10.0]),
        "local__prior": st.sampled_from([0.0, 4.0]),
        "local__exclude_history": st.booleans(),
        "local__steps": st.sampled_from([1, 3]),
        "local__reward_model": st.sampled_from(["constant", "device", "content"]),
        "local__self_normalised": st.booleans(),
        "local__top_k": st.sampled_from([1, 4]),
        "local__trust_region": st.sampled_from([0.0, 0.7]),
    }
)


def allowed(unit, loss):
    """The loss with what the unit refuses, and what has no rewards to look at, switched off."""
    couples = unit in ("none", "user")
    model = loss["local__reward_model"] if couples and loss["local__reward"] == "value" else "constant"
    return loss | {"local__reward_model": model, "local__self_normalised": couples and loss["local__self_normalised"]}


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("kind", policies.ENCODERS)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    lengths=LENGTHS,
    rate=st.sampled_from([0.4, 1.0]),
    terms=POLICIES,
    loss=LOSSES,
    episodes=st.booleans(),
    once=st.booleans(),
)
def test_the_cohort_is_its_devices(kind, unit, lengths, rate, terms, loss, episodes, once):
    try:
        policy = policies.policy(state=kind, **terms)
    except PolicyError:
        reject()
    loss = allowed(unit, loss)
    own = {"local__episodes": episodes and unit in ("none", "user")}
    if loss["local__targets"] == "sum":  # up to 13 targets of reward 5 over a horizon of 2: larger steps are chaotic
        own |= {"local__lr": 0.05, "local__slow_lr": 0.1}
    if terms["learned_rates"] and "temperature" in terms["fast"]:  # one step took it to exp(18), where pi is a jump
        own |= {"local__lr": 0.05}
    chosen = config(unit, privacy__sample_rate=1.0 if policy.sees_history else rate, **loss, **own)
    lengths = [min(length, policies.ITEMS) for length in lengths] if once else lengths
    devices = tasks(policy, unit, lengths, episodes=own["local__episodes"], once=once)
    cohort, one_by_one = run(policy, devices, chosen), run(policy, devices, chosen.updated(engine__kind="reference"))
    close(cohort, one_by_one)
    assert cohort.unclipped == one_by_one.unclipped
    assert any(float(value.abs().max()) > 0 for value in cohort.total.values()) or not any(lengths)


@pytest.mark.parametrize("unit", ["none", "user"])
@pytest.mark.parametrize("episodes", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_windows_of_a_log_are_neither_sorted_nor_scattered(unit, episodes, seed, monkeypatch):
    """Longer and shorter than a history may be, with gaps between them, beside devices that have nothing."""
    policy = policies.policy(fast=("taste",), history_prior=1.0)
    lengths = np.random.default_rng(seed).choice(ONCE, 12).tolist()
    devices = tasks(policy, unit, lengths, episodes=episodes, once=True)
    chosen = config(unit, local__episodes=episodes)
    one_by_one = run(policy, devices, chosen.updated(engine__kind="reference"))
    monkeypatch.setattr(recency, "distinct", None)
    close(run(policy, devices, chosen), one_by_one)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("learned_rates", [False, True])
def test_parameters_by_themselves_are_those_in_one_place(unit, learned_rates, monkeypatch):
    policy = policies.policy(fast=("taste", "latent"), learned_rates=learned_rates)
    devices = tasks(policy, unit, [5, 0, 13])
    for decay in (0.0, 0.1):
        chosen = config(
            unit, local__weight_decay=decay, local__slow_lr=0.7, privacy__scales={"bias": 3.0, "content": 0.5}
        )
        reference = run(policy, devices, chosen.updated(engine__kind="reference"))
        for small in (1, 30, 10**9):
            monkeypatch.setattr(moved, "SMALL", small)
            close(run(policy, devices, chosen), reference)


@pytest.mark.parametrize("fast", [("taste",), ("taste", "temperature")])
@pytest.mark.parametrize("kind", ["none", "history"])
def test_weights_are_normalised_over_the_support_and_then_over_the_query(kind, fast):
    policy = policies.policy(state=kind, fast=fast)
    devices = tasks(policy, "user", [13, 13, 5, 13], episodes=True)
    loss = {"local__self_normalised": True, "local__episodes": True, "local__weight_cap": 50.0}
    loss |= {"local__reward": "value", "local__reward_model": "content", "local__targets": "mean", "privacy__clip": 5.0}
    for model in ("content", "device"):
        chosen = config("user", **loss | {"local__reward_model": model})
        close(run(policy, devices, chosen), run(policy, devices, chosen.updated(engine__kind="reference")))


@pytest.mark.parametrize("unit", ["interaction", "both"])
@pytest.mark.parametrize(
    "loss", [{"self_normalised": True}, {"reward": "value", "reward_model": "device"}], ids=["weights", "baseline"]
)
def test_what_couples_interactions_is_refused_where_examples_are_clipped(unit, loss):
    """By the configuration, and by both engines should anybody hand them one that was not checked."""
    policy = policies.policy(state="none")
    with pytest.raises(ConfigError, match=f"under unit {unit}, where an entry may influence one example"):
        config(unit, **{f"local__{key}": value for key, value in loss.items()})
    for kind in ("cohort", "reference"):
        plain = config(unit, engine__kind=kind)
        forced = plain.model_copy(update={"local": plain.local.model_copy(update=loss)})
        with pytest.raises(PrivacyError, match="where gradients are clipped example by example"):
            run(policy, tasks(policy, unit, [3]), forced)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("kind", ["personal", "history"])
def test_a_log_of_five_thousand_beside_one_of_one(kind, unit):
    policy = policies.policy(state=kind)
    devices = tasks(policy, unit, [5000, 1, 0])
    chosen = config(unit, privacy__expected_batch=2000.0)  # with 4 the steps of 5,000 examples would be chaotic
    close(run(policy, devices, chosen), run(policy, devices, chosen.updated(engine__kind="reference")))


def test_threads_change_no_bit():
    policy = policies.policy(state="personal")
    before, totals = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        devices = tasks(policy, "both", [5, 0, 13, 1, 2, 7])
        totals.append(run(policy, devices, config("both", engine__chunk=1)))
    torch.set_num_threads(before)
    for other in totals[1:]:
        assert all(torch.equal(value, other.total[name]) for name, value in totals[0].total.items())
        assert torch.equal(totals[0].personal["personal"], other.personal["personal"])


@pytest.mark.parametrize("unit", UNITS)
def test_frozen_parameters_are_left_out_by_both(unit):
    policy = policies.policy(state="personal", frozen=("bias", "gain"))
    devices = tasks(policy, unit, [3, 0, 7])
    cohort = run(policy, devices, config(unit, privacy__scales={}))
    close(cohort, run(policy, devices, config(unit, privacy__scales={}, engine__kind="reference")))
    assert set(cohort.total) == set(policy.released)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("kind", ["cohort", "reference"])
def test_chunks_and_order_change_nothing_but_rounding(unit, kind):
    policy = policies.policy(state="personal")
    devices = tasks(policy, unit, [5, 0, 13, 1, 2, 7])
    whole = run(policy, devices, config(unit, engine__kind=kind, engine__chunk=64))
    for chunk in (1, 4):
        close(whole, run(policy, devices, config(unit, engine__kind=kind, engine__chunk=chunk)), 1e-6)
    backwards = run(policy, reversed_order(devices), config(unit, engine__kind=kind, engine__chunk=2))
    mirrored = CohortResult(total=backwards.total, personal={k: v.flip(0) for k, v in backwards.personal.items()})
    close(whole, mirrored, 1e-6)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("kind", ["history", "gru", "transformer"])
def test_padding_before_a_history_changes_nothing_but_rounding(unit, kind):
    policy = policies.policy(state=kind, affinity=True)
    devices = tasks(policy, unit, [1, 2, 0, 2])
    padded = wider(devices, 1)
    assert padded.examples(np.arange(4)).history.shape[-1] <= policy.settings.history_length
    close(run(policy, devices, config(unit)), run(policy, padded, config(unit)), 1e-6)


def test_nobody_adds_up_to_zero():
    policy = policies.policy()
    empty = run(policy, tasks(policy, "user", []), config("user"))
    assert set(empty.total) == set(policy.released)
    assert all(float(value.abs().max()) == 0 for value in empty.total.values())
    assert empty.personal == {}


@pytest.mark.parametrize("kind", ["cohort", "reference"])
def test_streams_follow_round_and_device(kind):
    policy = policies.policy(state="none")
    chosen = config("interaction", engine__kind=kind)
    devices = tasks(policy, "interaction", [4])
    first = run(policy, devices, chosen).total["bias"]
    assert torch.equal(first, run(policy, devices, chosen).total["bias"])
    assert not torch.equal(first, run(policy, devices, chosen, round_number=4).total["bias"])
    renamed = tasks(policy, "interaction", [4], devices=[7])
    assert not torch.equal(first, run(policy, renamed, chosen).total["bias"])


@pytest.mark.parametrize(("rate", "bias", "fits"), [(0.6, 1.0, True), (300.0, 1.0, False), (0.6, 500.0, True)])
@pytest.mark.parametrize("propensities", [False, True])
def test_exponentials_that_leave_float32_cost_time_only(rate, bias, fits, propensities, monkeypatch):
    """Scores, or what a long step adds to them, may be more than an exponential in float32 can tell."""
    policy = policies.policy(fast=("taste",), bias_scale=bias)
    taken = []
    descend = descent.Offsets.descend

    def noted(offsets, steps):
        taken.append(descend(offsets, steps))
        return taken[-1]

    monkeypatch.setattr(descent.Offsets, "descend", noted)
    built = [policies.examples(policy, length, length, windows=4, propensities=propensities) for length in (5, 13, 9)]
    work = replace(
        tasks(policy, "none", [5, 13, 9]), examples=lambda places: stack_examples([built[p] for p in places])
    )
    chosen = config("none", local__lr=rate, local__slow_lr=0.5, local__steps=4, engine__chunk=64)
    batched, one_by_one = (run(policy, work, chosen.updated(engine__kind=kind)) for kind in ("cohort", "reference"))
    assert taken == [fits]
    close(batched, one_by_one, 1e-5 * max(1.0, rate))


@pytest.mark.parametrize("unit", ["none", "user"])
@pytest.mark.parametrize("shift", [-47.2, -46.0, -25.0, -19.0, 0.0, 19.0, 25.0, 43.4])
def test_scores_may_be_shifted_as_far_as_exponentials_go(unit, shift):
    """The sum of the exponentials is between 3e-20 and 8e19: slopes times it have squares that float32 loses."""
    policy = policies.policy(fast=("taste",), bias_scale=1.0)
    point = policies.parameters(policy)
    phi = {name: point[name] for name in policy.names(scope="shared")}
    phi |= {"gain": torch.tensor([1.0, 0.0]), "bias": phi["bias"] + shift}
    built = [policies.examples(policy, length, length, windows=4, once=True) for length in (5, 9, 2)]
    work = replace(tasks(policy, unit, [5, 9, 2]), examples=lambda places: stack_examples([built[p] for p in places]))
    chosen = config(unit, local__horizon=1)
    batched, one_by_one = (
        adapt_cohort(policy, phi, work, chosen.updated(engine__kind=kind), None, round_number=3)
        for kind in ("cohort", "reference")
    )
    close(batched, one_by_one, 2e-5)
    assert batched.unclipped == one_by_one.unclipped


@pytest.mark.parametrize("rate", [8.0, 15.0, 22.0, 32.92, 40.0])
@pytest.mark.parametrize("shift", [-65.0, -5.0, 0.0, 40.0])
def test_an_item_whose_exponential_vanished_at_the_start_comes_back(rate, shift):
    """Steps long enough make the device's one item likely again: exp(-105) is zero in float32, times whatever."""
    policy = policies.policy(state="none", fast=("taste",), user_features=False, ids=False)
    item, low = 8, [1, 2, 6, 7, 9]
    bias = torch.full((policies.ITEMS,), shift - 40.0)
    bias[low], bias[item] = shift - 104.0, shift - 105.0
    point = {name: torch.zeros(policy.specs[name].shape) for name in policy.names(scope="shared")}
    point |= {"gain": torch.tensor([1.0, 0.0]), "bias": bias}
    log = Interactions(items=torch.full((6,), item), rewards=torch.ones(6), propensities=None)
    local = LocalConfig(windows=4, horizon=2)
    built = build_examples(
        policy, log, torch.zeros(policy.user_width), settings=local, unit="none", reward_range=(1.0, 5.0)
    )
    work = replace(tasks(policy, "none", [6]), examples=lambda places: stack_examples([built for _ in places]))
    chosen = config("none", local__lr=rate, local__slow_lr=1.0, local__weight_decay=0.0)
    batched, one_by_one = (
        adapt_cohort(policy, point, work, chosen.updated(engine__kind=kind), None, round_number=3)
        for kind in ("cohort", "reference")
    )
    close(batched, one_by_one, 2e-4)


@pytest.mark.parametrize("kind", ["cohort", "reference"])
@pytest.mark.parametrize("unit", UNITS)
def test_a_device_that_diverges_harms_nobody_and_keeps_what_it_had(unit, kind):
    policy = policies.policy(state="personal", user_features=True)
    chosen = config(unit, engine__kind=kind)
    sick = torch.full((policies.USER,), float("nan"))
    together = run(policy, tasks(policy, unit, [4, 6, 4], user=sick), chosen)
    assert all(bool(torch.isfinite(value).all()) for value in together.total.values())
    assert bool(torch.isfinite(together.personal["personal"]).all())
    if unit in ("none", "user"):
        alone = run(policy, tasks(policy, unit, [4, 6]), chosen)
        kept = torch.cat([alone.personal["personal"], torch.full((1, 4), 0.2)])
        close(together, CohortResult(total=alone.total, personal={"personal": kept}), 1e-6)


def test_the_sum_holds_each_device_to_its_clip():
    policy = policies.policy(state="none")
    chosen = config("user", privacy__clip=0.01, privacy__scales={})
    total = run(policy, tasks(policy, "user", [5, 6, 7]), chosen).total
    norm = torch.cat([value.flatten() for value in total.values()]).norm()
    assert 0.01 < float(norm) <= 3 * 0.01 * (1 + 1e-6)


@pytest.mark.parametrize("unit", ["user", "both"])
@pytest.mark.parametrize("kind", ["cohort", "reference"])
def test_the_bits_count_the_devices_within_the_clip(unit, kind):
    """One by one each device tells by the norm of its sum; chunks, and one that diverged and answers zero, add up."""
    policy = policies.policy(state="personal", user_features=True)
    lengths, sick = [5, 0, 13, 1, 2, 7], torch.full((policies.USER,), float("nan"))
    wide = config(unit, privacy__clip=1e6, engine__kind=kind)
    norms = []
    for place, length in enumerate(lengths):
        alone = run(policy, tasks(policy, unit, [0] * place + [length]), wide).total
        before = run(policy, tasks(policy, unit, [0] * place), wide).total if place else {}
        moved = {name: value - before.get(name, 0.0) for name, value in alone.items()}
        norms.append(float(sum((v / (3.0 if n == "bias" else 1.0)).square().sum() for n, v in moved.items()) ** 0.5))
    clip = float(np.median(norms)) * 1.001
    for chunk in (1, 64):
        chosen = config(unit, privacy__clip=clip, engine__kind=kind, engine__chunk=chunk)
        result = run(policy, tasks(policy, unit, lengths), chosen)
        assert result.unclipped == sum(norm <= clip for norm in norms) == 3
        diverged = run(policy, tasks(policy, unit, [*lengths, 4], user=sick), chosen)
        assert diverged.unclipped == 4
    assert run(policy, tasks(policy, unit, lengths), config(unit, privacy__clip=1e6)).unclipped == 6
    assert run(policy, tasks(policy, unit, []), wide).unclipped == 0


class Shapes(TorchDispatchMode):
    """Remembers the shape of every tensor that is made."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        made = function(*arguments, **(keywords or {}))
        self.seen |= {
            tuple(one.shape) for one in torch.utils._pytree.tree_leaves(made) if isinstance(one, torch.Tensor)
        }
        return made


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("kind", policies.ENCODERS)
@pytest.mark.parametrize("engine", ["cohort", "reference"])
def test_with_content_alone_no_device_makes_an_item_table(kind, unit, engine):
    policy = policies.policy(state=kind, ids=False, dim=23, fast=("taste", "latent"), history_length=5)
    chosen = config(unit, privacy__scales={}, engine__kind=engine)
    with Shapes() as shapes:
        run(policy, tasks(policy, unit, [9, 2]), chosen)
    tables = [shape for shape in shapes.seen if policies.ITEMS in shape and 23 in shape]
    assert tables == []
    with Shapes() as shapes:
        policy.item_embedding(policies.parameters(policy))
    assert (policies.ITEMS, 23) in shapes.seen


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("sick", [False, True])
@pytest.mark.parametrize("state", ["none", "history"])
def test_what_each_device_releases_adds_up_and_is_the_same_on_opacus(unit, sick, state):
    policy = policies.policy(state=state, user_features=True)
    nan = torch.full((policies.USER,), float("nan")) if sick else None
    devices = tasks(policy, unit, [5, 0, 13, 1], user=nan)
    point = policies.parameters(policy)
    phi = {name: point[name] for name in policy.names(scope="shared")}
    local = unit in ("interaction", "both")
    cohort, reference = (
        adapt_cohort(
            policy,
            phi,
            devices,
            config(unit, engine__kind=kind, engine__chunk=3),
            LocalMechanism.of(policy, config(unit), 0.7) if local else None,
            round_number=3,
            each=True,
        )
        for kind in ("cohort", "reference")
    )
    for name, value in cohort.each.items():
        torch.testing.assert_close(value.double().sum(0), cohort.total[name], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(value, reference.each[name], rtol=1e-4, atol=1e-5)
    assert set(cohort.each) == set(policy.released)


def test_nothing_of_a_single_device_comes_back_unless_it_was_asked_for():
    policy = policies.policy(state="history")
    assert run(policy, tasks(policy, "user", [5, 0, 13]), config("user")).each == {}


def test_long_sums_hide_little_of_a_norm():
    """A large coordinate and 60,000 small ones: float32 sums would lose 9e-7 of the square, nearly the whole margin."""
    items = 60_000
    bare = PolicyConfig(state="none", content=False, ids=False, fast=())
    policy = Policy.for_catalogue(bare, policies.catalogue(items))
    gone = torch.full((1, items + 2), 1e-3)
    gone[0, 0] = 1.0
    bound = Sensitivity(1.0, {"bias": 3.0})
    exact = float((gone[:, :items].double() / 3).square().sum() + gone[:, items:].double().square().sum())
    found = float(Moved(names=["bias", "gain"], values=gone).squares(policy, bound))
    assert abs(found / exact - 1) < 0.4 * cohort._HIDDEN


@pytest.mark.parametrize("items", [11, 1682, 20_000])
def test_gram_matrices_hide_little_of_a_norm(items):
    """Of slopes with one large coordinate and thousands of small ones, which may cancel out over the examples."""
    generator = torch.Generator().manual_seed(items)
    chosen = torch.softmax(0.3 * torch.randn(4, 8, items, generator=generator), dim=-1)
    targets = torch.randint(0, items, (4, 8, 1), generator=generator)
    slopes = chosen.scatter_add(-1, targets, -torch.ones(4, 8, 1))
    for weights in (torch.rand(4, 8, generator=generator), torch.tensor([1.0, -1.0] * 4).expand(4, 8)):
        for dim in (1, 16):
            states = torch.randn(4, 8, dim, generator=generator)
            norm, size = TableGradient(slopes=DenseSlopes(slopes, weights), states=states).squares()
            table = slopes.double().mT @ (states.double() * weights.double()[..., None])
            assert ((table.square().sum((1, 2)) - norm).abs() < cohort._HIDDEN_BY_GRAM * size).all()
