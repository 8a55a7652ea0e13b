"""Adaptation of one device under its privacy unit: what runs in a deployment, and the referee of the cohort engine.

Unit ``interaction`` trains by DP-SGD on Opacus' optimizer; unit ``user`` adapts freely and clips the whole update, to
which the server adds noise; ``both`` does both; ``none`` neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..config import Config, LocalConfig
from ..errors import PrivacyError
from ..meta.adapt import Adaptation, adapt, step_size
from ..meta.examples import Examples, changes_per_entry
from ..meta.objective import example_losses
from ..meta.policy import Parameters, Policy
from ..privacy.entropy import NoiseSource
from ..privacy.mechanisms import Clipped, clip_update
from ..privacy.sampling import poisson_batch


@dataclass(frozen=True, kw_only=True)
class LocalMechanism:
    """DP-SGD on the device, public constants only.

    Attributes:
        noise_multiplier: sigma, the noise's standard deviation over the sensitivity.
        clip: C, the L2 bound of one example's gradient.
        changes: how many C one log entry can move a summed gradient: 2 where it changes an example (blocks of the log).
        sample_rate: Poisson rate of a step's batch.
        expected_batch: the public divisor B.
        scales: public preconditioner.
    """

    noise_multiplier: float
    clip: float
    changes: int = 1
    sample_rate: float = 1.0
    expected_batch: float = 1.0
    scales: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Blocks of the log are accounted as substitutions, which Poisson batches are not."""
        if self.changes != 1 and self.sample_rate != 1:
            raise PrivacyError(
                f"expected privacy.sample_rate = 1 for a policy whose state sees the history, got {self.sample_rate}: "
                "an entry changes an example instead of adding one, which Poisson amplification does not cover"
            )

    @classmethod
    def of(cls, policy: Policy, config: Config, noise_multiplier: float) -> LocalMechanism:
        """The mechanism that a configuration describes, for a policy and the noise that its plan found."""
        privacy = config.privacy
        return cls(
            noise_multiplier=noise_multiplier,
            clip=privacy.example_clip,
            changes=changes_per_entry(policy, privacy.unit),
            sample_rate=privacy.sample_rate,
            expected_batch=privacy.expected_batch,
            scales=privacy.scales_of(policy.trained),
        )

    @property
    def noise_over_clip(self) -> float:
        """Standard deviation of the noise over C: sigma times the sensitivity in units of C."""
        return self.noise_multiplier * self.changes


def adapt_privately(
    policy: Policy,
    start: Parameters,
    examples: Examples,
    settings: LocalConfig,
    mechanism: LocalMechanism,
    *,
    noise: NoiseSource,
    batches: torch.Generator | None,
    before_step: Callable[[], None] | None = None,
) -> Adaptation:
    """K steps of DP-SGD over *all* trained parameters, personal ones included, on Opacus.

    Slow weights take K steps of a K-th of their step size each, because only noised gradients may be used.

    Args:
        policy: the policy.
        start: every parameter.
        examples: built for unit ``interaction``: one log entry influences one example.
        settings: K and step sizes.
        mechanism: clip, noise and public constants.
        noise: ``SystemNoise`` in a deployment.
        batches: stream of the Poisson batches; none draws from OS entropy.
        before_step: called before every step; what it raises ends the adaptation, and nothing of it is returned.

    Guarantee:
        Unit interaction, add or remove one interaction: K Gaussian releases with ``mechanism.noise_multiplier`` at
        ``mechanism.sample_rate``. Released: the update, and the personal parameters if anybody asked for them.
    """
    from ..privacy.dpsgd import DPSGD  # Opacus takes some 80 MB: a device that clips only never loads it

    parameters = {name: nn.Parameter(start[name].clone()) for name in policy.trained}
    optimizer = DPSGD(
        parameters,
        learning_rates=private_step_sizes(policy, settings),
        clip=mechanism.clip,
        noise_multiplier=mechanism.noise_over_clip,
        expected_batch_size=mechanism.expected_batch,
        noise=noise,
        scales=mechanism.scales,
    )
    for _ in range(settings.steps):
        if before_step is not None:
            before_step()
        batch = poisson_batch(len(examples.present), mechanism.sample_rate, batches)
        current = {**start, **{name: parameter.detach() for name, parameter in parameters.items()}}
        optimizer.step(per_example_gradients(policy, current, select(examples, batch), settings, start=start))
    moved = {name: parameter.detach() for name, parameter in parameters.items()}
    return Adaptation(
        update={name: moved[name] - start[name] for name in policy.released},
        personal={name: moved[name] for name in policy.names(scope="personal")},
    )


def private_step_sizes(policy: Policy, settings: LocalConfig) -> dict[str, float]:
    """Step sizes of DP-SGD: fast weights as ever, slow ones a K-th of theirs on each of the K steps."""
    return {
        name: step_size(policy, settings, name) / (1 if spec.speed == "fast" else settings.steps)
        for name, spec in policy.specs.items()
        if spec.speed != "frozen"
    }


def per_example_gradients(
    policy: Policy,
    parameters: Parameters,
    examples: Examples,
    settings: LocalConfig,
    *,
    start: Parameters | None = None,
) -> dict[str, Tensor]:
    """Gradient of every example's own loss, ``[examples, *shape]`` for every trained parameter; zero where absent.

    Args:
        policy: the policy.
        parameters: where the gradients are taken.
        examples: one device's.
        settings: the objective.
        start: the initialization, which a trust region needs.

    Raises:
        PrivacyError: a term of the objective looks at more than one example.
    """
    refuse_coupling(settings)
    count = len(examples.present)
    if count == 0:
        return {name: torch.zeros(0, *parameters[name].shape) for name in policy.trained}

    def loss(chosen: Mapping[str, Tensor], one: Examples) -> Tensor:
        batch = Examples._make((*(value[None] for value in one[:-1]), one.user))
        return (example_losses(policy, {**parameters, **chosen}, batch, settings, start=start) * one.present).sum()

    axes = Examples(0, 0, 0, 0, 0, 0, 0, 0, None)  # type: ignore[arg-type]
    gradients: dict[str, Tensor] = torch.func.vmap(torch.func.grad(loss), in_dims=(None, axes))(
        {name: parameters[name] for name in policy.trained}, examples
    )
    return gradients


def refuse_coupling(settings: LocalConfig) -> None:
    """Refuse an objective under which one interaction would enter the gradient of another one's example.

    Raises:
        PrivacyError: it would.
    """
    if settings.couples:
        raise PrivacyError(
            f"expected {settings.couples} where gradients are clipped example by example, got a term that looks at all "
            "of a device's rewards; switch it off or protect the device as a whole (unit user)"
        )


def select(examples: Examples, rows: Tensor) -> Examples:
    """The examples in ``rows``; the user's features stay."""
    return Examples._make((*(value[rows] for value in examples[:-1]), examples.user))


def adapt_device(
    policy: Policy,
    start: Parameters,
    examples: Examples,
    settings: LocalConfig,
    mechanism: LocalMechanism | None,
    *,
    noise: NoiseSource,
    batches: torch.Generator | None,
    before_step: Callable[[], None] | None = None,
) -> Adaptation:
    """Adapt under unit ``interaction`` or ``both`` where there is a mechanism, plainly where there is none."""
    if mechanism is None:
        return adapt(policy, start, examples, settings, before_step)
    return adapt_privately(
        policy, start, examples, settings, mechanism, noise=noise, batches=batches, before_step=before_step
    )


def bound_update(adaptation: Adaptation, config: Config) -> Clipped | None:
    """Clip the update to S under units ``user`` and ``both``; none under the others, where nothing bounds it."""
    if config.privacy.unit not in ("user", "both"):
        return None
    return clip_update(adaptation.update, config.privacy.clip, config.privacy.scales_of(adaptation.update))
