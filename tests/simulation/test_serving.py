import numpy as np
import pytest
import small_world as small
import torch
from fedrec.errors import PolicyError
from fedrec.meta.adapt import descend
from fedrec.simulation.serving import Served

STATES = ("none", "personal", "history")


def served(world, **options):
    phi = {name: value + 0.1 for name, value in world.initialization().items()}
    return Served(world=world, phi=phi, **options)


def with_last(data, device, count, item):
    """The data set with the last ``count`` items of a device replaced."""
    rows = data.rows(device)
    items = data.items[rows].copy()
    items[-count:] = item
    return small.with_logs(data, {device: (items, data.rewards[rows])})


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(("which", "hidden"), [("test", 1), ("valid", 2)])
def test_what_is_asked_for_does_not_change_the_scores(state, which, hidden):
    devices = np.arange(14)
    before = served(small.world(policy__state=state), which=which).score(devices)
    for item in (0, 23):
        data = with_last(small.dataset(), 4, hidden, item)
        assert torch.equal(before, served(small.world(data, policy__state=state), which=which).score(devices))
    seen = with_last(small.dataset(), 4, hidden + 1, 0)
    after = served(small.world(seen, policy__state=state), which=which).score(devices)
    assert not torch.equal(before[4], after[4])
    assert torch.equal(before[5:], after[5:])


@pytest.mark.parametrize("state", STATES)
def test_scores_are_those_of_a_device_by_itself(state):
    world = small.world(policy__state=state)
    scorer = served(world, which="test")
    scores = scorer.score(np.arange(14))
    for device in (0, 9):
        stop = int(world.dataset.offsets[device + 1]) - 1
        own = world.examples(device, stop, unit="none", stream=(0, "serve", device))
        start = {**scorer.phi, **{name: value[0] for name, value in world.personal_start(1).items()}}
        settings = world.config.local.model_copy(update={"lr": world.config.evaluation.serve_lr})
        adapted = {**start, **descend(world.policy, start, own, settings, steps=2)}
        state_of = world.states(np.array([device]), np.array([stop]))
        alone = world.policy.scores(adapted, type(state_of)(*(value[0] for value in state_of)))[0]
        torch.testing.assert_close(scores[device], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("state", ["none", "history"])
def test_a_device_is_served_what_all_of_its_log_says_also_where_training_is_in_episodes(state):
    whole, cut = (small.world(policy__state=state, local__episodes=episodes) for episodes in (False, True))
    assert torch.equal(served(whole).score(np.arange(14)), served(cut).score(np.arange(14)))


def test_chunks_change_nothing():
    whole = served(small.world()).score(np.arange(14))
    torch.testing.assert_close(whole, served(small.world(engine__chunk=3)).score(np.arange(14)), rtol=1e-5, atol=1e-6)


def test_without_steps_the_initialization_ranks():
    world = small.world(policy__state="none")
    scores = served(world, steps=0).score(np.arange(3))
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-5, atol=1e-6)
    adapted = served(world, steps=2).score(np.arange(2))
    assert float((adapted[0] - adapted[1]).abs().max()) > 0.01


def test_only_fast_weights_adapt_unless_everything_does():
    world = small.world(policy__state="history")
    devices, stops = np.arange(3), world.dataset.offsets[1:4]
    assert set(served(world).adapted(devices, stops)) == {"taste"}
    assert set(served(world, everything=True).adapted(devices, stops)) == set(world.policy.specs)


def test_each_device_is_served_its_own_personal_vector():
    world = small.world(policy__state="personal")
    personal = world.personal_start(14)
    personal["personal"][6] += 1.0
    plain = served(world).score(np.arange(14))
    own = served(world, personal=personal).score(np.arange(14))
    changed = (plain != own).any(dim=1)
    assert changed.tolist() == [device == 6 for device in range(14)]


def test_the_first_interactions_of_a_newcomer():
    world = small.world()
    scorer = served(world)
    nothing = scorer.score_after(np.arange(14), 0)
    torch.testing.assert_close(nothing[0], nothing[1], rtol=1e-5, atol=1e-6)
    assert not torch.equal(scorer.score_after(np.arange(2), 3), nothing[:2])
    everything = world.dataset.offsets[1:]
    torch.testing.assert_close(scorer.score_after(np.arange(14), 10_000), scorer.score_until(np.arange(14), everything))
    assert scorer.score(np.arange(0)).shape == (0, 24)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused_not_ranked(value):
    world = small.world(policy__state="personal")
    phi = world.initialization()
    phi["bias"][3] = value
    with pytest.raises(PolicyError, match="NaN or infinity in bias"):
        Served(world=world, phi=phi)
    personal = world.personal_start(14)
    personal["personal"][2, 0] = value
    with pytest.raises(PolicyError, match="NaN or infinity in personal"):
        served(world, personal=personal)
    huge = world.initialization() | {"taste": torch.full_like(phi["taste"], 3e38)}
    with pytest.raises(PolicyError, match="expected finite scores"):
        Served(world=world, phi=huge).score(np.arange(14))
