import numpy as np
import policy_world as world
import pytest
import torch
from fedrec._streams import torch_stream
from fedrec.config import PolicyConfig
from fedrec.errors import PolicyError
from fedrec.meta import state as encoders
from fedrec.meta.interactions import Catalogue
from fedrec.meta.policy import Policy, State

ALL_FAST = ("taste", "affinity", "gain", "latent", "temperature")
VARIANTS = {
    **{state: {"state": state} for state in world.ENCODERS},
    **{
        f"{state}-everything": {"state": state, "user_features": True, "affinity": True, "fast": ALL_FAST}
        for state in world.ENCODERS
    },
    "ids-only": {"state": "none", "content": False, "content_embedding": False, "fast": ("latent",)},
    "content-only": {"state": "personal", "ids": False, "bias": False},
    "bias-only": {"state": "none", "content": False, "ids": False, "content_embedding": False, "fast": ("gain",)},
    "no-rewards": {"state": "history", "history_rewards": False},
    "affinity": {"state": "none", "ids": False, "content_embedding": False, "affinity": True, "affinity_init": 0.5},
    "odd-width": {"state": "transformer", "dim": 3},
    "scaled-bias": {"state": "gru", "bias_scale": 10.0},
    "frozen": {"state": "history", "frozen": ("ids", "state.mix")},
}


@pytest.fixture(params=VARIANTS, name="policy")
def _policy(request):
    return world.policy(**VARIANTS[request.param])


class TestEveryPolicy:
    """What holds for every policy, whatever its terms."""

    histories = ([], [3], [1, 2, 3], [5, 5, 0, 1, 2, 4])

    def test_is_a_distribution_over_the_catalogue(self, policy):
        given = world.state(self.histories)
        logs = policy.log_policy(world.parameters(policy), given)
        assert logs.shape == (4, world.ITEMS)
        assert logs.dtype == torch.float32
        torch.testing.assert_close(logs.exp().sum(-1), torch.ones(4))

    def test_is_finite_from_its_first_initialization_on_and_with_nothing_seen(self, policy):
        initial = policy.initial(torch_stream(0, "init"))
        assert bool(torch.isfinite(policy.scores(initial, world.state([[], [1]]))).all())
        assert {name: tuple(value.shape) for name, value in initial.items()} == {
            name: spec.shape for name, spec in policy.specs.items()
        }
        again = policy.initial(torch_stream(0, "init"))
        assert all(torch.equal(initial[name], again[name]) for name in initial)

    def test_every_parameter_matters(self, policy):
        point = {name: value.requires_grad_() for name, value in world.parameters(policy).items()}
        logs = policy.log_policy(point, world.state(self.histories))
        gradients = torch.autograd.grad(logs[:, 4].sum(), list(point.values()))
        assert [name for name, gradient in zip(point, gradients, strict=True) if float(gradient.abs().max()) == 0] == []
        assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)

    def test_more_padding_changes_nothing(self, policy):
        """The transformer's positions count from the end of the history's full length, so there it is the same too."""
        point = world.parameters(policy)
        short = world.state([[1, 2, 3]], length=4)
        long = world.state([[1, 2, 3]], length=6)
        torch.testing.assert_close(policy.scores(point, short), policy.scores(point, long), rtol=1e-5, atol=1e-5)

    def test_what_stands_under_the_padding_changes_nothing(self, policy):
        point = world.parameters(policy)
        clean = world.state([[1, 2, 3]])
        dirty = State(clean.history, torch.where(clean.history < 0, 4, clean.levels), clean.user)
        assert torch.equal(policy.scores(point, clean), policy.scores(point, dirty))

    def test_devices_of_a_batch_do_not_see_each_other(self, policy):
        point = world.parameters(policy)
        together = policy.scores(point, world.state(self.histories))
        alone = torch.cat([policy.scores(point, world.state([history])) for history in self.histories])
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)

    def test_vmap_equals_a_loop(self, policy):
        given = world.state(self.histories)
        points = [world.parameters(policy, seed) for seed in range(4)]
        stacked = {name: torch.stack([point[name] for point in points]) for name in policy.specs}

        def one(own, history, levels):
            return policy.scores(own, State(history[None], levels[None], given.user))[0]

        batched = torch.func.vmap(one)(stacked, given.history, given.levels)
        loop = torch.stack([one(point, given.history[row], given.levels[row]) for row, point in enumerate(points)])
        torch.testing.assert_close(batched, loop, rtol=1e-5, atol=1e-5)

    def test_roles_are_told_apart(self, policy):
        names = set(policy.specs)
        by_speed = [set(policy.names(speed=speed)) for speed in ("fast", "slow", "frozen")]
        assert set.union(*by_speed) == names
        assert sum(map(len, by_speed)) == len(names)
        assert set(policy.names(scope="personal")) == names & {"personal"}
        assert set(policy.trained) == names - set(policy.settings.frozen)
        assert set(policy.released) == set(policy.trained) - {"personal"}
        assert list(policy.specs) == sorted(names)


@pytest.mark.parametrize("kind", world.ENCODERS)
@pytest.mark.parametrize("affinity", [False, True])
def test_order_matters_exactly_where_the_state_sees_the_history(kind, affinity):
    policy = world.policy(state=kind, affinity=affinity, fast=())
    point = world.parameters(policy)
    scores = policy.scores(point, world.state([[1, 2, 3], [3, 2, 1]]))
    differs = float((scores[0] - scores[1]).abs().max()) > 1e-4
    assert differs == policy.sees_history == (affinity or kind in ("history", "gru", "transformer"))


@pytest.mark.parametrize("kind", ["history", "gru", "transformer"])
def test_rewards_of_the_history_matter_where_they_are_asked_for(kind):
    for rewards in (True, False):
        policy = world.policy(state=kind, history_rewards=rewards)
        given = world.state([[1, 2], [1, 2]], levels=[[0, 0], [4, 4]])
        scores = policy.scores(world.parameters(policy), given)
        assert (float((scores[0] - scores[1]).abs().max()) > 1e-4) == rewards


def test_scores_of_a_personal_policy_by_hand():
    """Bias, taste and the inner product of item and state, times the temperature; the gain sees no history."""
    policy = world.policy(state="personal", user_features=True, bias_scale=2.0, fast=("taste", "temperature"))
    point = world.parameters(policy)
    features, own = policy.features.double(), {name: value.double() for name, value in point.items()}
    item = features @ own["content"] + own["ids"]
    wanted = (
        2 * own["gain"][0] * own["bias"]
        + features @ own["taste"]
        + item @ (own["latent"] + own["personal"] + world.user().double() @ own["user"])
    ) * own["temperature"].exp()
    torch.testing.assert_close(policy.scores(point, world.state([[]]))[0].double(), wanted, rtol=1e-5, atol=1e-5)


def test_gain_of_the_bias_grows_with_the_log_of_what_is_known():
    policy = world.policy(state="history", content=False, fast=())
    point = {name: torch.zeros_like(value) for name, value in world.parameters(policy).items()}
    point |= {"bias": torch.arange(world.ITEMS, dtype=torch.float32), "gain": torch.tensor([0.5, 2.0])}
    scores = policy.scores(point, world.state([[], [1, 2, 3]]))
    torch.testing.assert_close(scores[0], 0.5 * point["bias"])
    torch.testing.assert_close(scores[1], (0.5 + 2 * np.log(4)) * point["bias"])


def test_recency_weights_by_hand():
    weights = encoders.recency_weights(torch.log(torch.tensor([2.0])), torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]]))
    raw = np.array([0, np.exp(-0.5), 1.0])
    np.testing.assert_allclose(weights[0, 0], raw / (raw.sum() + 0.1), rtol=1e-6)
    assert weights[0, 1].tolist() == [0, 0, 0]


def test_gru_by_hand():
    """Against torch's own GRU cell, whose update gate keeps the old state too."""
    policy = world.policy(state="gru", dim=3)
    own = world.parameters(policy)
    cell = torch.nn.GRUCell(3, 3)
    order = [1, 0, 2]  # torch: reset, update, new
    with torch.no_grad():
        cell.weight_ih.copy_(torch.cat([own["state.input"][gate].T for gate in order]))
        cell.weight_hh.copy_(torch.cat([own["state.recurrent"][gate].T for gate in order]))
        cell.bias_ih.copy_(torch.cat([own["state.gate_bias"][gate] for gate in order]))
        cell.bias_hh.zero_()
    inputs = torch.randn(1, 4, 3, generator=torch_stream(0, "inputs"))
    hidden = torch.zeros(1, 3)
    for step in range(1, 4):
        hidden = cell(inputs[:, step], hidden)
    mask = torch.tensor([[0.0, 1.0, 1.0, 1.0]])
    torch.testing.assert_close(encoders.encode("gru", own, inputs, mask), hidden @ own["state.output"])


def test_transformer_attends_as_torch_does():
    """The last position's attention against torch's scaled dot product with two heads."""
    policy = world.policy(state="transformer", dim=4)
    own = world.parameters(policy)
    inputs = torch.randn(1, 5, 4, generator=torch_stream(0, "inputs"))
    norm = torch.nn.functional.layer_norm

    def reference(count):
        tokens = inputs[:, 5 - count :] * 2.0 + own["state.position"][-count:]
        normed = norm(tokens, (4,), 1 + own["state.norm"][0], eps=1e-6)
        heads = [(normed @ own["state.attention"][part]).unflatten(-1, (2, 2)).transpose(1, 2) for part in range(3)]
        mixed = torch.nn.functional.scaled_dot_product_attention(heads[0][:, :, -1:], heads[1], heads[2])
        last = tokens[:, -1] + mixed.transpose(1, 2).flatten(2)[:, 0] @ own["state.attention"][3]
        inner = torch.nn.functional.gelu(norm(last, (4,), 1 + own["state.norm"][1], eps=1e-6) @ own["state.widen"])
        return norm(last + inner @ own["state.narrow"], (4,), 1 + own["state.norm"][2], eps=1e-6)

    for count in (1, 3, 5):
        mask = (torch.arange(5) >= 5 - count).float()[None]
        given = encoders.encode("transformer", own, inputs * mask[..., None], mask)
        torch.testing.assert_close(given, reference(count), rtol=1e-4, atol=1e-5)


def test_schema_changes_with_whatever_both_sides_must_share():
    schemas = [world.policy(**VARIANTS[name]).schema() for name in VARIANTS]
    assert len(set(schemas)) == len(schemas)
    assert world.policy().schema() == world.policy().schema()
    bigger = Policy.for_catalogue(
        PolicyConfig(dim=4, history_length=world.LENGTH), world.catalogue(items=12), world.USER
    )
    assert bigger.schema() != world.policy().schema()


def test_schema_does_not_depend_on_the_order_in_which_a_file_names_the_kernels():
    start = {"kind": (1.0, 0.0, 0.0, 0.0), "genre": (0.5, 0.0, 0.0, 0.0)}
    one, other = (
        world.policy(affinity=True, affinity_start=dict(order)) for order in (start.items(), reversed(start.items()))
    )
    assert one.settings == other.settings
    assert one.schema() == other.schema() != world.policy(affinity=True).schema()


BARE = Catalogue(features=np.zeros((3, 0), np.float32), feature_names=(), item_ids=("a", "b", "c"))


@pytest.mark.parametrize(
    ("settings", "catalogue", "sentence"),
    [
        ({"content": False, "ids": False, "bias": False, "fast": ()}, None, "content, ids or bias"),
        ({"state": "none", "content": False, "bias": False, "fast": ()}, None, "a policy with parameters, got none"),
        ({"content": False}, None, "policy.content for the fast weight taste"),
        ({"fast": ("affinity",)}, None, "policy.affinity for the fast weight affinity"),
        ({"bias": False, "fast": ("gain",)}, None, "policy.bias for the fast weight gain"),
        ({"state": "none", "ids": False, "content_embedding": False, "fast": ("latent",)}, None, "policy.ids for"),
        ({"state": "gru", "ids": False, "content_embedding": False}, None, "for the state encoder gru"),
        ({}, BARE, "content features for policy.content"),
        ({"content": False, "fast": (), "affinity": True}, BARE, "content features for policy.affinity"),
        ({"state": "personal", "frozen": ("personal",)}, None, "policy.frozen to name some of"),
        ({"frozen": ("bais",)}, None, "policy.frozen to name some of"),
    ],
)
def test_a_policy_that_would_silently_lack_a_term_gets_a_sentence(settings, catalogue, sentence):
    with pytest.raises(PolicyError, match=sentence):
        Policy.for_catalogue(PolicyConfig(**settings), catalogue or world.catalogue())
