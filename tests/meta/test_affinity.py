import numpy as np
import policy_world as world
import pytest
import torch
from fedrec.errors import PolicyError
from fedrec.meta import state as encoders
from fedrec.meta.affinity import kernel_features, level_features
from fedrec.meta.interactions import Catalogue, FeatureGroup


def small():
    features = np.array([[1, 0, 1, 1, 3.0], [1, 0, 0, 1, 4.0], [0, 1, 0, 0, 0.0]], np.float32)
    groups = (
        FeatureGroup(name="kind", kind="category", start=0, stop=2),
        FeatureGroup(name="genre", kind="multilabel", start=2, stop=4),
        FeatureGroup(name="title", kind="text", start=4, stop=5),
    )
    return Catalogue(features=features, feature_names=tuple("abcde"), item_ids=tuple("xyz"), groups=groups)


def kernel(name):
    features, kernel_of, names = kernel_features(small())
    own = features[:, kernel_of == names.index(name)]
    return (own @ own.T).numpy()


def test_one_kernel_a_group_and_one_a_pair_that_are_no_texts():
    assert kernel_features(small())[2] == ("kind", "genre", "title", "kind x genre")


def test_kernels_are_cosines_and_their_products():
    np.testing.assert_allclose(kernel("kind"), [[1, 1, 0], [1, 1, 0], [0, 0, 1]], atol=1e-6)
    half = 1 / np.sqrt(2)  # genres {c, d} against {d}; the third item has none
    np.testing.assert_allclose(kernel("genre"), [[1, half, 0], [half, 1, 0], [0, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(kernel("title"), [[1, 1, 0], [1, 1, 0], [0, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(kernel("kind x genre"), kernel("kind") * kernel("genre"), atol=1e-6)


def test_columns_that_nobody_uses_are_left_out():
    features, _, _ = kernel_features(small())
    assert bool((features.abs().amax(dim=0) > 0).all())


def test_a_catalogue_without_groups_has_no_kernels():
    features, kernel_of, names = kernel_features(
        Catalogue(features=np.zeros((2, 0), np.float32), feature_names=(), item_ids=("a", "b"))
    )
    assert (features.shape, kernel_of.shape, names) == ((2, 0), (0,), ())


def test_affinity_of_a_policy_is_the_weighted_sum_of_kernels_to_what_was_seen():
    policy = world.policy(
        state="none", ids=False, bias=False, content_embedding=False, affinity=True, fast=("affinity",)
    )
    point = world.parameters(policy) | {"taste": torch.zeros(policy.features.shape[1])}
    history = [4, 1, 7]
    recency = encoders.recency_weights(torch.log(torch.tensor(encoders.SCALES)), torch.ones(1, 3))[:, 0]
    wanted = torch.zeros(world.ITEMS)
    for scale in range(len(encoders.SCALES)):
        for number in range(len(policy.kernel_names)):
            own = policy.kernels[:, policy.kernel_of == number]
            for place, seen in enumerate(history):
                wanted += point["affinity"][scale, number] * recency[scale, place] * (own @ own[seen])
    torch.testing.assert_close(policy.scores(point, world.state([history]))[0], wanted, rtol=1e-4, atol=1e-5)


def test_place_and_popularity_are_alike_where_they_are_near():
    """Bumps of width w make about exp(-(distance / w)^2 / 4)."""
    policy = world.policy(affinity=True, affinity_place=2)
    own = policy.kernels[:, policy.kernel_of == policy.kernel_names.index("place")]
    apart = torch.arange(world.ITEMS)[:, None] - torch.arange(world.ITEMS)
    torch.testing.assert_close(own @ own.T, torch.exp(-((apart / 2) ** 2) / 4), atol=0.1, rtol=0)
    bias = torch.tensor([0.0, 0.2, 4.0, 4.2, 8.0])
    level = level_features(bias)
    torch.testing.assert_close(
        level @ level.T, torch.exp(-(((bias[:, None] - bias) / 0.35) ** 2) / 4), atol=0.1, rtol=0
    )


def test_released_parameters_are_kernels_like_the_others():
    """Pairs and popularity act on the history through the columns of the table, with weights of their own."""
    policy = world.policy(state="none", affinity=True, affinity_level=True, pairs=3, frozen=("bias",))
    point = world.parameters(policy)
    assert policy.kernel_names[-2:] == ("level", "pairs")
    assert policy.specs["pairs"].speed == "frozen"
    assert "pairs" not in policy.released
    assert "pairs" in policy.names(scope="shared")
    state = world.state([[3, 1, 7], []])
    weights = encoders.recency_weights(torch.log(torch.tensor(encoders.SCALES)), (state.history >= 0).float())
    for name, table in (("level", level_features(point["bias"])), ("pairs", point["pairs"])):
        only = torch.zeros_like(point["affinity"])
        only[:, policy.kernel_names.index(name)] = torch.tensor([0.5, -1.0, 2.0, 0.25])
        expected = torch.zeros(2, world.ITEMS)
        for place, item in zip((-3, -2, -1), (3, 1, 7), strict=True):
            expected[0] += (only.sum(1) * weights[:, 0, place]).sum() * (table @ table[item])
        with_it = policy.scores({**point, "affinity": only}, state)
        without = policy.scores({**point, "affinity": torch.zeros_like(only)}, state)
        torch.testing.assert_close(with_it - without, expected, rtol=1e-4, atol=1e-5)


def test_kernels_start_where_the_settings_say():
    start = {"kind": (1.0, 2.0, 3.0, 4.0)}
    policy = world.policy(affinity=True, affinity_init=0.5, affinity_start=start, gain_start=1.5)
    initial = policy.initial(torch.Generator())
    assert initial["affinity"][:, policy.kernel_names.index("kind")].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert set(initial["affinity"][:, policy.kernel_names.index("genre")].tolist()) == {0.5}
    assert initial["gain"].tolist() == [1.5, 0.0]


def test_kernels_that_can_not_be_are_told():
    with pytest.raises(PolicyError, match=r"expected the bias in policy\.frozen for policy\.affinity_level"):
        world.policy(affinity=True, affinity_level=True)
    with pytest.raises(PolicyError, match=r"expected policy\.affinity_start to name kernels among kind, .* got mood"):
        world.policy(affinity=True, affinity_start={"mood": (0, 0, 0, 0)})
    with pytest.raises(PolicyError, match=r"expected 4 weights in policy\.affinity_start\.kind, .* got 1"):
        world.policy(affinity=True, affinity_start={"kind": (1.0,)})
