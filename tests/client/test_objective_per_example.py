"""Unit interaction: one interaction enters the gradient of one example, whatever the objective is made of."""

import policy_world as world
import pytest
import torch
from fedrec._streams import torch_stream
from fedrec.client.adaptation import LocalMechanism, adapt_privately, per_example_gradients, select
from fedrec.config import LocalConfig
from fedrec.errors import PrivacyError
from fedrec.meta.objective import example_losses
from fedrec.privacy.entropy import SeededNoise

SOUND = LocalConfig(reward="value", baseline=2.0, top_k=4, trust_region=0.7, weight_cap=3.0)
COUPLING = [{"reward_model": "device"}, {"reward_model": "content"}, {"self_normalised": True}]


def log(policy, rows):
    built = world.examples(policy, 8, unit="interaction", windows=4, propensities=True)
    return select(built, torch.tensor(rows))


def together(policy, built, settings):
    """Gradient of every example's loss by the scores of its actions, all losses computed from one batch."""
    point = world.parameters(policy)
    bias = point["bias"].requires_grad_()
    start = world.parameters(policy, seed=1)
    losses = example_losses(policy, {**point, "bias": bias}, built, settings, start=start)
    return torch.stack([torch.autograd.grad(loss, bias, retain_graph=True)[0] for loss in losses])


@pytest.mark.parametrize("kind", world.ENCODERS)
def test_an_example_that_goes_changes_no_other_ones_gradient(kind):
    policy = world.policy(state=kind)
    start = world.parameters(policy, seed=1)
    count = len(world.examples(policy, 8, unit="interaction", windows=4).present)
    point = world.parameters(policy)
    whole = per_example_gradients(policy, point, log(policy, list(range(count))), SOUND, start=start)
    rest = per_example_gradients(policy, point, log(policy, list(range(1, count))), SOUND, start=start)
    for name, gradients in whole.items():
        torch.testing.assert_close(gradients[1:], rest[name], rtol=1e-5, atol=1e-6)
        assert float(gradients[:1].abs().max()) > 0 or name in ("state.log_scale", "state.mix")


@pytest.mark.parametrize("terms", COUPLING, ids=lambda terms: next(iter(terms.items()))[-1])
def test_what_is_refused_would_change_the_others(terms):
    """The planted bug: computed over a batch, each of these lets one reward into every other gradient."""
    policy = world.policy(state="none")
    settings = LocalConfig(reward="value", weight_cap=1e6, **terms)
    whole, rest = (together(policy, log(policy, rows), settings) for rows in (list(range(8)), list(range(1, 8))))
    assert float((whole[1:] - rest).abs().max()) > 1e-3
    sound = [together(policy, log(policy, rows), SOUND) for rows in (list(range(8)), list(range(1, 8)))]
    torch.testing.assert_close(sound[0][1:], sound[1], rtol=1e-5, atol=1e-6)
    with pytest.raises(PrivacyError, match="where gradients are clipped example by example"):
        per_example_gradients(policy, world.parameters(policy), log(policy, [0, 1]), settings)
    with pytest.raises(PrivacyError, match="protect the device as a whole"):
        adapt_privately(
            policy,
            world.parameters(policy),
            log(policy, [0, 1]),
            settings,
            LocalMechanism(noise_multiplier=1.0, clip=0.5),
            noise=SeededNoise(torch_stream(0, "noise")),
            batches=None,
        )
