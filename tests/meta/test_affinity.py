import numpy as np
import policy_world as world
import torch
from fedrec.meta import state as encoders
from fedrec.meta.affinity import kernel_features
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
