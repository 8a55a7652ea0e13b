"""DP-SGD for one device on Opacus' optimizer, with public constants only.

The caller brings per-example gradients of *every* parameter whose value influences what is released; they are clipped
jointly. One interaction must influence one example at most: building the examples so is the caller's duty.

=====================  ===================================================================================
input                  what happens
=====================  ===================================================================================
empty batch            a step of pure noise: the number of steps and the noise never depend on private counts
zero gradient          contributes zero
NaN or inf in one      that example contributes zero in all parameters; the others and the model are not touched
norm above the clip    scaled to norm clip (Opacus' formula: clip / (norm + 1e-6), at most 1)
=====================  ===================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from opacus.optimizers import DPOptimizer
from opacus.optimizers.optimizer import _check_processed_flag, _mark_as_processed
from torch import Tensor, nn

from .._validate import non_negative, positive
from ..errors import PrivacyError
from .accounting import Charge
from .entropy import NoiseSource
from .mechanisms import Sensitivity

_OPACUS_MARGIN = 1e-6


class DPSGD:
    """Runs DP-SGD steps on named parameters, which move in place.

    Every step computes, with h = gradient / scale per example,
    ``p <- p - learning_rate * scale * (sum of clip(h) + N(0, (noise_multiplier * clip)^2)) / expected_batch_size``.

    Guarantee:
        Unit ``interaction``, add or remove one interaction of one device: given that batches are Poisson samples of
        rate q, ``steps`` steps are ``charge(q)``. Released: the parameters after every step.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        learning_rates: Mapping[str, float],
        clip: float,
        noise_multiplier: float,
        expected_batch_size: float,
        noise: NoiseSource,
        scales: Mapping[str, float] | None = None,
    ) -> None:
        """Set up the optimizer.

        Args:
            parameters: all that is trained under this guarantee, in the order in which noise is laid out.
            learning_rates: one for each parameter.
            clip: l2 bound C on one example's gradient, jointly over all parameters.
            noise_multiplier: sigma >= 0; with 0 no charge can be made.
            expected_batch_size: the divisor, a public constant: never derived from the number of examples.
            noise: ``SystemNoise`` in a deployment.
            scales: public preconditioner as in ``mechanisms``.

        Raises:
            ValueError: no parameters, a frozen one, a name without learning rate, clip <= 0, expected_batch_size <= 0.
        """
        if set(learning_rates) != set(parameters) or not parameters:
            raise ValueError(f"expected learning rates for {sorted(parameters)}, got {sorted(learning_rates)}")
        frozen = sorted(name for name, parameter in parameters.items() if not parameter.requires_grad)
        if frozen:
            raise ValueError(f"expected trainable parameters only, got {frozen} with requires_grad = False")
        self.sensitivity = Sensitivity(clip, scales or {}, "interaction")
        self.sensitivity.check_names(parameters)
        self.noise_multiplier = non_negative("noise_multiplier", noise_multiplier)
        self.seeded = noise.seeded
        self.steps = 0
        self._parameters = dict(parameters)
        groups = [
            {
                "params": [parameter],
                "lr": non_negative(f"the learning rate of {name!r}", learning_rates[name])
                * self.sensitivity.scale(name),
            }
            for name, parameter in parameters.items()
        ]
        self._optimizer = _SourcedOptimizer(
            torch.optim.SGD(groups, lr=0.0),
            noise=noise,
            noise_multiplier=noise_multiplier,
            max_grad_norm=clip,
            expected_batch_size=positive("expected_batch_size", expected_batch_size),
            loss_reduction="mean",
        )

    def step(self, per_example_gradients: Mapping[str, Tensor]) -> None:
        """Take one step.

        Args:
            per_example_gradients: floats ``[batch, *shape]`` for every parameter; ``[0, *shape]`` for an empty batch.

        Raises:
            ValueError: names or shapes differ from the parameters'.
        """
        self._check(per_example_gradients)
        scaled = {
            name: per_example_gradients[name].detach() / self.sensitivity.scale(name) for name in self._parameters
        }
        bad = nonfinite_examples(scaled)
        for name, parameter in self._parameters.items():
            gradient = scaled[name]
            parameter.grad_sample = torch.where(  # type: ignore[attr-defined]
                _along(bad, gradient), torch.zeros_like(gradient), gradient
            )
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.steps += 1

    def charge(self, sample_rate: float) -> Charge:
        """What the steps taken so far cost with Poisson batches of ``sample_rate``.

        Raises:
            PrivacyError: no step was taken, or there was no noise.
        """
        if self.steps == 0 or self.noise_multiplier == 0:
            raise PrivacyError(
                f"no charge for {self.steps} steps at noise multiplier {self.noise_multiplier:g}: it takes both"
            )
        return Charge(self.noise_multiplier, sample_rate, self.steps)

    def _check(self, gradients: Mapping[str, Tensor]) -> None:
        if set(gradients) != set(self._parameters):
            raise ValueError(f"expected gradients of {sorted(self._parameters)}, got {sorted(gradients)}")
        examples = {len(gradient) for gradient in gradients.values()}
        shapes = {name: tuple(gradient.shape[1:]) for name, gradient in gradients.items()}
        expected = {name: tuple(parameter.shape) for name, parameter in self._parameters.items()}
        if shapes != expected or len(examples) != 1:
            raise ValueError(f"expected per-example gradients of one batch with shapes {expected}, got {shapes}")


class _SourcedOptimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus' optimizer, its noise drawn from a ``NoiseSource`` instead of a torch generator."""

    def __init__(self, optimizer: torch.optim.Optimizer, *, noise: NoiseSource, **settings: Any) -> None:
        super().__init__(optimizer, **settings)
        self._noise = noise

    def add_noise(self) -> None:
        """As Opacus' own, with the noise of all parameters from one draw (``draw_step_noise``)."""
        shapes = {str(index): parameter.shape for index, parameter in enumerate(self.params)}
        drawn = draw_step_noise(self._noise, shapes, self.noise_multiplier * self.max_grad_norm)
        for parameter, noise in zip(self.params, drawn.values(), strict=True):
            _check_processed_flag(parameter.summed_grad)
            parameter.grad = (parameter.summed_grad + noise.to(parameter.summed_grad)).view_as(parameter)
            _mark_as_processed(parameter.summed_grad)


def draw_step_noise(noise: NoiseSource, shapes: Mapping[str, Sequence[int]], std: float) -> dict[str, Tensor]:
    """One step's noise: a single float32 draw, laid out parameter by parameter in the order of ``shapes``.

    The cohort engine fills its buffer from the same stream in the same layout, so both engines see the same numbers.
    """
    sizes = [torch.Size(shape).numel() for shape in shapes.values()]
    flat = noise.normal((sum(sizes),), std)
    pieces = torch.split(flat, sizes)
    return {name: piece.reshape(tuple(shape)) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}


def example_clip_factors(norms: Tensor, clip: float) -> Tensor:
    """Factors in [0, 1] by which per-example gradients of these l2 norms are scaled; Opacus' formula."""
    return (clip / (norms + _OPACUS_MARGIN)).clamp(max=1.0)


def nonfinite_examples(per_example_gradients: Mapping[str, Tensor]) -> Tensor:
    """Bool ``[batch]``: examples that hold NaN or inf in any parameter."""
    flags = [
        ~torch.isfinite(gradient.reshape(len(gradient), math.prod(gradient.shape[1:]))).all(dim=-1)
        for gradient in per_example_gradients.values()
    ]
    return torch.stack(flags).any(dim=0)


def _along(flags: Tensor, tensor: Tensor) -> Tensor:
    return flags.reshape(*flags.shape, *[1] * (tensor.dim() - flags.dim()))
