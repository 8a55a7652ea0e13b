"""What an initialization brings to another catalogue: by name, where there is a meaning, and nothing else."""

import numpy as np
import pytest
import torch
from fedrec.config import PolicyConfig
from fedrec.errors import PolicyError
from fedrec.meta.interactions import Catalogue, FeatureGroup
from fedrec.meta.policy import Policy
from fedrec.meta.transfer import Side, transfer

VIDEO = ("topic=Sport", "topic=Art", "format=clip", "format=film")
NEWS = ("section=world", "section=local", "topic=Art", "topic=Sport", "topic=Money")
FULL = {"affinity": True, "dim": 3, "fast": ("taste", "latent", "temperature"), "user_features": True}


def side(names, items, value, users=("age=old",), **settings):
    """A policy over features of those names, every parameter of which counts up from ``value``."""
    groups, start = [], 0
    for name in dict.fromkeys(one.split("=")[0] for one in names):
        width = sum(one.startswith(name + "=") for one in names)
        groups.append(FeatureGroup(name=name, kind="category", start=start, stop=start + width))
        start += width
    features = np.eye(len(names), dtype=np.float32)[np.arange(items) % len(names)]
    ids = [str(item) for item in range(items)]
    catalogue = Catalogue(features=features, feature_names=tuple(names), item_ids=ids, groups=tuple(groups))
    policy = Policy.for_catalogue(PolicyConfig(**{**FULL, **settings}), catalogue, len(users))
    phi = {
        name: value + torch.arange(float(torch.Size(spec.shape).numel())).reshape(spec.shape)
        for name, spec in policy.specs.items()
        if spec.scope == "shared"
    }
    return Side(policy=policy, phi=phi, catalogue=catalogue, user_names=users)


def test_rows_go_by_name_and_the_rest_of_a_table_is_the_targets():
    source, target = side(VIDEO, 5, 100.0), side(NEWS, 7, 0.0)
    moved = transfer(source, target)
    assert moved.phi["taste"].tolist() == [0.0, 1.0, 101.0, 100.0, 4.0]
    assert torch.equal(moved.phi["content"][2], source.phi["content"][1])
    assert torch.equal(moved.phi["content"][3], source.phi["content"][0])
    assert torch.equal(moved.phi["content"][[0, 1, 4]], target.phi["content"][[0, 1, 4]])
    assert (moved.taken["taste"], moved.of["taste"]) == (2, 5)


def test_weights_of_kernels_go_by_the_kernels_names():
    source, target = side(VIDEO, 5, 100.0), side(NEWS, 7, 0.0)
    assert source.policy.kernel_names == ("topic", "format", "topic x format")
    assert target.policy.kernel_names == ("section", "topic", "section x topic")
    moved = transfer(source, target).phi["affinity"]
    assert torch.equal(moved[:, 1], source.phi["affinity"][:, 0])
    assert torch.equal(moved[:, [0, 2]], target.phi["affinity"][:, [0, 2]])


def test_device_features_go_by_name_too():
    source = side(VIDEO, 5, 100.0, users=("screen=phone", "age=old"))
    moved = transfer(source, side(NEWS, 7, 0.0, users=("age=old", "account=bot"))).phi["user"]
    assert torch.equal(moved[0], source.phi["user"][1])
    assert moved[1].tolist() == [3.0, 4.0, 5.0]


def test_what_belongs_to_the_items_stays_behind_even_where_shapes_agree():
    source, target = side(VIDEO, 6, 100.0), side(VIDEO, 6, 0.0)
    moved = transfer(source, target)
    assert not {"ids", "bias"} & set(moved.taken)
    for name, value in moved.phi.items():
        assert torch.equal(value, (target if name in ("ids", "bias") else source).phi[name]), name


def test_nothing_of_the_embedding_space_comes_over_into_another_one():
    moved = transfer(side(VIDEO, 5, 100.0), side(NEWS, 7, 0.0, dim=4))
    assert sorted(moved.taken) == ["affinity", "gain", "taste", "temperature"]


def test_a_state_encoder_goes_to_its_own_kind_only():
    moved = transfer(side(VIDEO, 5, 100.0), side(NEWS, 7, 0.0, state="gru"))
    assert not [name for name in moved.taken if name.startswith("state.")]
    assert [name for name in transfer(side(VIDEO, 5, 100.0), side(NEWS, 7, 0.0)).taken if name.startswith("state.")]


def test_learned_rates_go_with_their_weights():
    source, target = (side(names, 5, value, learned_rates=True) for names, value in ((VIDEO, 100.0), (NEWS, 0.0)))
    assert transfer(source, target).phi["rate.taste"].tolist() == [0.0, 1.0, 101.0, 100.0, 4.0]


def test_neither_side_is_changed():
    source, target = side(VIDEO, 5, 100.0), side(NEWS, 7, 0.0)
    moved = transfer(source, target)
    for value in moved.phi.values():
        value.add_(1.0)
    assert target.phi["taste"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert source.phi["gain"].tolist() == [100.0, 101.0]


@pytest.mark.parametrize(
    ("names", "settings"),
    [
        (("genre=Jazz", "genre=Rock"), {}),
        (VIDEO, {"content": False, "content_embedding": False, "affinity": False, "fast": ("latent",)}),
    ],
)
def test_nothing_in_common_is_refused_in_a_sentence(names, settings):
    with pytest.raises(PolicyError, match=r"expected content features in common .*; start from a run that shares some"):
        transfer(side(VIDEO, 5, 100.0), side(names, 4, 0.0, **settings))
