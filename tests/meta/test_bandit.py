"""Acting and learning together: what was shown, with its propensities, makes the policy better."""

import policy_world as world
import pytest
import torch
from fedrec._streams import torch_stream
from fedrec.config import LocalConfig
from fedrec.meta.acting import Exploration, act, first_draw
from fedrec.meta.adapt import descend
from fedrec.meta.examples import build_examples
from fedrec.meta.interactions import Interactions
from fedrec.meta.policy import State

SHOWN = 60
TERMS = [
    {},
    {"self_normalised": True},
    {"reward_model": "device"},
    {"reward_model": "content"},
    {"reward_model": "content", "top_k": 2, "trust_region": 0.01},
]


def log_policy(policy, parameters):
    nothing = torch.full((1, 0), -1)
    return policy.log_policy(parameters, State(nothing, nothing, torch.zeros(0)))


@pytest.mark.parametrize("terms", TERMS, ids=lambda terms: "-".join(terms) or "plain")
def test_a_policy_that_learns_from_its_own_slates_earns_more(terms):
    """Sixty slates of two, clicked where ``kind=a`` (surely) or not at all: its share of the first position grows."""
    policy = world.policy(state="none", ids=False, bias=False, user_width=0)
    start = policy.initial(torch_stream(0, "start"))
    liked = policy.features[:, 0]
    scores = log_policy(policy, start).expand(SHOWN, -1)
    slate = act(scores, torch.ones_like(scores, dtype=torch.bool), Exploration(size=2), torch_stream(0, "act"))
    log = Interactions(
        items=slate.items.flatten(),
        rewards=liked[slate.items.flatten()],
        propensities=first_draw(slate.propensities).flatten().float(),
    )
    local = LocalConfig(reward="value", lr=1.0, **terms)
    built = build_examples(policy, log, torch.zeros(0), settings=local, unit="none", reward_range=(0, 1))
    learned = {**start, **descend(policy, start, built, local, steps=10)}
    before, after = (float(log_policy(policy, point).exp()[0] @ liked) for point in (start, learned))
    assert 0.2 < before < 0.6
    assert after > before + 0.2
