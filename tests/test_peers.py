"""The peers of the speed benchmark do the work that they are compared on."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from fedrec.config import Config
from fedrec.meta.adapt import adapt
from fedrec.meta.examples import Examples
from fedrec.meta.interactions import Catalogue, FeatureGroup, Interactions
from fedrec.meta.policy import Policy
from opacus.accountants import RDPAccountant

FLOWER = Path(__file__).parents[1] / "benchmarks" / "peers" / "flower_opacus"
ITEMS = 30
NAMES = {
    "log_scale": "state.log_scale",
    "mix": "state.mix",
    "rating_gain": "state.reward_gain",
    "rating_shift": "state.reward_shift",
}


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"peer_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def peer() -> ModuleType:
    return load(FLOWER / "policy.py")


@pytest.fixture
def log() -> Interactions:
    generator = torch.Generator().manual_seed(3)
    return Interactions(
        items=torch.randint(0, ITEMS, (20,), generator=generator),
        rewards=torch.randint(1, 6, (20,), generator=generator).float(),
        timestamps=torch.arange(20),
        propensities=None,
    )


def settings(config: Config) -> dict[str, Any]:
    return {
        "policy.steps": config.local.steps,
        "policy.fast-learning-rate": config.local.lr,
        "policy.slow-learning-rate": config.local.slow_lr,
    }


def test_flower_adapts_the_default_policy_as_fedrec_does(peer: ModuleType, log: Interactions) -> None:
    config, features = Config(), np.eye(ITEMS, 7, dtype=np.float32)
    catalogue = Catalogue(
        item_ids=np.array([str(item) for item in range(ITEMS)]),
        features=features,
        feature_names=tuple("abcdefg"),
        groups=(FeatureGroup(name="genre", kind="multilabel", start=0, stop=7),),
    )
    torch.manual_seed(0)
    policy = Policy.for_catalogue(config.policy, catalogue)
    plain = peer.Policy(torch.from_numpy(features), config.policy.dim)
    assert sorted(NAMES.get(name, name) for name, _ in plain.named_parameters()) == sorted(policy.specs)
    for parameter in plain.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    start = {NAMES.get(name, name): value.detach().clone() for name, value in plain.named_parameters()}
    examples = peer.sample_examples(log, config.local.windows, config.policy.history_length)

    peer.train(plain, examples, settings(config))

    shape = (config.local.windows, 1)
    same = Examples(
        history=examples.history,
        levels=examples.ratings,
        targets=examples.targets[:, None],
        rewards=torch.ones(shape),
        propensities=torch.zeros(shape),
        present=torch.ones(config.local.windows),
        query=torch.zeros(config.local.windows),
        position=(examples.history >= 0).sum(-1),
        user=torch.zeros(0),
    )
    wanted = adapt(policy, start, same, config.local).update
    for own_name, parameter in plain.named_parameters():
        name = NAMES.get(own_name, own_name)
        torch.testing.assert_close(parameter.detach() - start[name], wanted[name], atol=1e-5, rtol=1e-4, msg=name)
        assert wanted[name].abs().max() > 1e-6


def test_flower_examples_hold_what_precedes_their_target(peer: ModuleType, log: Interactions) -> None:
    torch.manual_seed(0)
    examples = peer.sample_examples(log, 8, 6)
    for history, ratings, target in zip(*examples, strict=True):
        known = int((history >= 0).sum())
        places = [place for place in range(20) if log.items[place] == target]
        assert any(
            torch.equal(history[6 - known :], log.items[max(0, place - 6) : place])
            and torch.equal(ratings[6 - known :], log.rewards[max(0, place - 6) : place].long() - 1)
            for place in places
        )
        assert (history[: 6 - known] == -1).all()


@pytest.mark.filterwarnings("ignore:Full backward hook:UserWarning", "ignore:Secure RNG:UserWarning")
def test_flower_trains_the_table_by_dp_sgd_on_every_interaction() -> None:
    """Without noise and with every interaction in every batch: clipped gradients over the public divisor."""
    table = load(FLOWER / "table.py")
    user_rate, rate, clip, divisor, steps = 2.0, 1.0, 0.15, 25, 5
    config = {
        "noise-multiplier": 0.0,
        "table.user-learning-rate": user_rate,
        "table.learning-rate": rate,
        "table.clip": clip,
        "table.sample-rate": 1.0,
        "table.expected-batch": divisor,
        "table.steps": steps,
    }
    torch.manual_seed(1)
    model, items = table.Recommender(ITEMS, 4), torch.randint(0, ITEMS, (9,))
    user, rows = model.user.weight.detach()[0].clone(), model.items.weight.detach().clone()
    for _ in range(steps):
        errors = torch.softmax(rows @ user, 0).expand(9, -1) - torch.eye(ITEMS)[items]
        of_user, of_rows = errors @ rows, errors[:, :, None] * user
        norms = (of_user.square().sum(1) + of_rows.square().sum((1, 2))).sqrt()
        assert (norms > clip).all()
        factors = clip / norms
        user, rows = (
            user - user_rate / divisor * (factors @ of_user),
            rows - rate / divisor * torch.einsum("n,nid->id", factors, of_rows),
        )
    accountant = RDPAccountant()

    table.train(model, items, accountant, config)

    torch.testing.assert_close(model.user.weight.detach()[0], user, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.items.weight.detach(), rows, atol=1e-5, rtol=1e-4)
    assert accountant.history == [(0.0, 1.0, steps)]
