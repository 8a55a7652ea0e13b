"""The cohort engine: adapt many devices at once in batched tensors, with the semantics of the per-device path.

Devices are padded to one shape and adapted under ``torch.func.vmap``; random streams derive from (seed, round, device,
purpose), as on a device by itself, so chunk size and order change nothing but the rounding of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .._streams import torch_stream
from ..client.adaptation import (
    LocalMechanism,
    adapt_device,
    bound_update,
    per_example_gradients,
    private_step_sizes,
)
from ..config import Config
from ..meta.adapt import Adaptation, adapt, descend, step_size
from ..meta.examples import Examples, stack_examples
from ..meta.objective import device_loss
from ..meta.policy import Named, Parameters, Policy
from ..privacy.dpsgd import dp_sgd_step_batched, draw_cohort_noise, nonfinite_examples
from ..privacy.entropy import SeededNoise
from ..privacy.mechanisms import clip_updates
from ..privacy.sampling import poisson_batch

_GRADIENT_FLOATS = 60_000_000  # floats of per-example gradients held at once under unit interaction


@dataclass(frozen=True, kw_only=True)
class DeviceTask:
    """One device's part of a round.

    Attributes:
        device: its index in the data set: names its random streams.
        examples: its training examples.
        personal: its personal parameters, which stay with it.
    """

    device: int
    examples: Examples
    personal: Named


@dataclass(frozen=True, kw_only=True)
class CohortResult:
    """What a cohort answers with.

    Attributes:
        total: sum of the (clipped) updates, float64 by name.
        personal: new personal parameters of every device, in the order of the tasks.
    """

    total: Named
    personal: list[Named]


def adapt_cohort(
    policy: Policy,
    phi: Parameters,
    tasks: Sequence[DeviceTask],
    config: Config,
    mechanism: LocalMechanism | None,
    *,
    round_number: int,
) -> CohortResult:
    """Adapt every task's device from ``phi`` and sum what may leave.

    Args:
        policy: the policy.
        phi: shared parameters.
        tasks: the devices drawn this round.
        config: local settings, privacy unit and engine; ``engine.kind = "reference"`` goes device by device on Opacus.
        mechanism: the local mechanism under units ``interaction`` and ``both``, else none.
        round_number: names the random streams.
    """
    run = _reference if config.engine.kind == "reference" else _batched
    total: Named = {name: torch.zeros(policy.specs[name].shape, dtype=torch.float64) for name in policy.released}
    personal: dict[int, Named] = {}
    for chunk in _chunks(policy, tasks, config, mechanism):
        summed, new = run(policy, phi, chunk, config, mechanism, round_number)
        for name, value in summed.items():
            total[name] += value
        personal |= {task.device: own for task, own in zip(chunk, new, strict=True)}
    return CohortResult(total=total, personal=[personal[task.device] for task in tasks])


def _chunks(
    policy: Policy, tasks: Sequence[DeviceTask], config: Config, mechanism: LocalMechanism | None
) -> Iterator[list[DeviceTask]]:
    """Devices of like size together; under DP-SGD as many as their per-example gradients leave room for."""
    size = sum(torch.Size(spec.shape).numel() for spec in (policy.specs[name] for name in policy.trained))
    chunk: list[DeviceTask] = []
    for task in sorted(
        tasks, key=lambda task: (len(task.examples.present), task.examples.targets.shape[1], task.device)
    ):
        heavy = mechanism is not None and (len(chunk) + 1) * len(task.examples.present) * size > _GRADIENT_FLOATS
        if chunk and (heavy or len(chunk) >= config.engine.chunk):
            yield chunk
            chunk = []
        chunk.append(task)
    if chunk:
        yield chunk


def _reference(
    policy: Policy,
    phi: Parameters,
    tasks: Sequence[DeviceTask],
    config: Config,
    mechanism: LocalMechanism | None,
    round_number: int,
) -> tuple[Named, list[Named]]:
    total: Named = {}
    personal = []
    for task in tasks:
        adaptation = adapt_device(
            policy,
            {**phi, **task.personal},
            task.examples,
            config.local,
            mechanism,
            noise=SeededNoise(torch_stream(config.seed, round_number, task.device, "local-noise")),
            batches=torch_stream(config.seed, round_number, task.device, "batches"),
        )
        before = {name: own[None] for name, own in task.personal.items()}
        adaptation = _each(_contained(_each(adaptation, lambda value: value[None]), before), lambda value: value[0])
        clipped = bound_update(adaptation, config)
        for name, value in (adaptation.update if clipped is None else clipped.value).items():
            total[name] = total.get(name, torch.zeros_like(value, dtype=torch.float64)) + value.double()
        personal.append(adaptation.personal)
    return total, personal


def _batched(
    policy: Policy,
    phi: Parameters,
    tasks: Sequence[DeviceTask],
    config: Config,
    mechanism: LocalMechanism | None,
    round_number: int,
) -> tuple[Named, list[Named]]:
    examples = stack_examples([task.examples for task in tasks])
    personal = {name: torch.stack([task.personal[name] for task in tasks]) for name in policy.names(scope="personal")}
    if mechanism is None and config.privacy.unit == "none":
        total, moved = adapt_summed(policy, phi, personal, examples, config)
        if all(bool(torch.isfinite(value).all()) for value in (*total.values(), *moved.values())):
            return total, _rows(moved, len(tasks))
    if mechanism is None:
        adaptation = adapt_stacked(policy, phi, personal, examples, config)
    else:
        adaptation = _dp_sgd(policy, phi, personal, examples, tasks, config, mechanism, round_number)
    adaptation = _contained(adaptation, personal)
    if config.privacy.unit in ("user", "both"):
        scales = {name: scale for name, scale in config.privacy.scales.items() if name in adaptation.update}
        total = clip_updates(adaptation.update, config.privacy.clip, scales).value
    else:
        total = {name: value.sum(dim=0, dtype=torch.float64) for name, value in adaptation.update.items()}
    return total, _rows(adaptation.personal, len(tasks))


def _rows(stacked: Named, count: int) -> list[Named]:
    return [{name: value[row] for name, value in stacked.items()} for row in range(count)]


def _contained(adaptation: Adaptation, personal: Named) -> Adaptation:
    """A device that diverged answers zero and keeps its personal parameters: it must not take its neighbours along."""
    update, new = adaptation.update, adaptation.personal
    parts = {**{f"update {name}": value for name, value in update.items()}, **new}
    bad = nonfinite_examples(parts)
    if not bool(bad.any()):
        return adaptation

    def held(value: Tensor, otherwise: Tensor) -> Tensor:
        return torch.where(bad.reshape(-1, *[1] * (value.dim() - 1)), otherwise, value)

    return Adaptation(
        update={name: held(value, torch.zeros_like(value)) for name, value in update.items()},
        personal={name: held(value, personal[name]) for name, value in new.items()},
    )


def _each(adaptation: Adaptation, change: Callable[[Tensor], Tensor]) -> Adaptation:
    return Adaptation(
        update={name: change(value) for name, value in adaptation.update.items()},
        personal={name: change(value) for name, value in adaptation.personal.items()},
    )


def adapt_stacked(
    policy: Policy, phi: Parameters, personal: Parameters, examples: Examples, config: Config
) -> Adaptation:
    """``meta.adapt`` for every device of a stack: updates and personal parameters ``[devices, *shape]``."""

    def one(own: Mapping[str, Tensor], device: Examples) -> tuple[Named, Named]:
        adaptation = adapt(policy, {**phi, **own}, device, config.local)
        return adaptation.update, adaptation.personal

    update, own = torch.func.vmap(one)(dict(personal), examples)
    return Adaptation(update=update, personal=own)


def adapt_summed(
    policy: Policy, phi: Parameters, personal: Parameters, examples: Examples, config: Config
) -> tuple[Named, Named]:
    """The sum of ``adapt_stacked``'s updates, and its personal parameters, where nobody's update is clipped.

    Slow weights take one step each, so the sum of their updates is one gradient of the summed loss: no device's item
    table is materialised. One device that diverges spoils the sum: the caller then takes the long way.
    """
    names, start = policy.names(speed="fast"), {}
    count, settings = len(examples.present), config.local
    for name in names:
        start[name] = personal[name] if name in personal else phi[name].expand(count, *phi[name].shape)
    fast: Named = dict(start)
    if names and settings.steps > 1:

        def arrive(own: Mapping[str, Tensor], device: Examples) -> Named:
            return descend(policy, {**phi, **own}, device, settings, steps=settings.steps - 1)

        fast = torch.func.vmap(arrive)(start, examples)

    def summed_loss(slow: Named, arrived: Named) -> Tensor:
        def one(own: Mapping[str, Tensor], device: Examples) -> Tensor:
            return device_loss(policy, {**phi, **slow, **own}, device, settings)

        losses: Tensor = torch.func.vmap(one)(arrived, examples)
        return losses.sum()

    slow = {name: phi[name] for name in policy.trained if name not in names}
    slow_gradient, fast_gradient = torch.func.grad(summed_loss, argnums=(0, 1))(slow, fast)
    moved = {}
    for name, here in fast.items():
        pull = settings.weight_decay * (here - start[name])
        moved[name] = here - step_size(policy, settings, name) * (fast_gradient[name] + pull)
    total = {name: -step_size(policy, settings, name) * value.double() for name, value in slow_gradient.items()}
    total |= {name: (moved[name] - start[name]).sum(0, dtype=torch.float64) for name in names if name not in personal}
    return total, {name: moved[name] for name in personal}


def _dp_sgd(
    policy: Policy,
    phi: Parameters,
    personal: Parameters,
    examples: Examples,
    tasks: Sequence[DeviceTask],
    config: Config,
    mechanism: LocalMechanism,
    round_number: int,
) -> Adaptation:
    """K DP-SGD steps of every device: the batched twin of ``client.adaptation.adapt_privately``."""
    count = len(tasks)
    start = {
        name: personal[name] if name in personal else phi[name].expand(count, *phi[name].shape)
        for name in policy.trained
    }
    shapes = {name: policy.specs[name].shape for name in policy.trained}
    sources = [SeededNoise(torch_stream(config.seed, round_number, task.device, "local-noise")) for task in tasks]
    batches = [torch_stream(config.seed, round_number, task.device, "batches") for task in tasks]
    std = mechanism.noise_over_clip * mechanism.clip
    parameters = start
    for _ in range(config.local.steps):
        gradients = torch.func.vmap(
            lambda own, device: per_example_gradients(policy, {**phi, **own}, device, config.local)
        )(parameters, examples)
        parameters = dp_sgd_step_batched(
            parameters,
            gradients,
            _batch_mask(examples.present, tasks, mechanism, batches),
            learning_rates=private_step_sizes(policy, config.local),
            clip=mechanism.clip,
            expected_batch_size=mechanism.expected_batch,
            noise=draw_cohort_noise(sources, shapes, std),
            scales=mechanism.scales,
        )
    return Adaptation(
        update={name: parameters[name] - start[name] for name in policy.released},
        personal={name: parameters[name] for name in policy.names(scope="personal")},
    )


def _batch_mask(
    present: Tensor, tasks: Sequence[DeviceTask], mechanism: LocalMechanism, batches: Sequence[torch.Generator]
) -> Tensor:
    mask = torch.zeros(present.shape, dtype=torch.bool)
    for row, (task, generator) in enumerate(zip(tasks, batches, strict=True)):
        mask[row, poisson_batch(len(task.examples.present), mechanism.sample_rate, generator)] = True
    return mask
