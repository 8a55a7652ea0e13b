"""The cohort engine: adapt many devices at once in batched tensors, with the semantics of the per-device path.

Devices are taken in chunks of like size, as many as stay in the processor's cache, on as many threads as torch may use
or in worker processes (``schedule``, ``workers``). Neither their number nor the order of the devices changes a bit;
another size of the chunks changes the rounding of sums only.

Per-example gradients are clipped through their norms (``meta.backward``); a device whose numbers are not finite is
adapted again by itself on the per-device path, which is also the referee: ``engine.kind = "reference"``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._streams import torch_stream
from .._validate import non_negative
from ..client.adaptation import LocalMechanism, adapt_device, bound_update, private_step_sizes, refuse_coupling
from ..client.compression import rounded
from ..config import Config
from ..meta.adapt import Adaptation, learned_rate, step_size
from ..meta.backward import backward, example_squares
from ..meta.descent import arrive
from ..meta.examples import Examples
from ..meta.policy import Named, Parameters, Policy
from ..meta.stacked import Shared, Stack, anchored, forward
from ..meta.table import TableGradient, summed
from ..privacy.dpsgd import example_clip_factors
from ..privacy.entropy import SeededNoise
from ..privacy.mechanisms import Sensitivity, clip_factors
from ..privacy.sampling import poisson_batch
from .moved import Moved, along, named_parts, named_views, sizes, spread_out
from .placement import compute_device
from .schedule import DEVICE_FLOATS, Ints, chunk_floats, divided, in_order

_HIDDEN = 1e-6
"""Share of a squared norm that float32 products may hide; it is added before clipping."""
_HIDDEN_BY_GRAM = 2e-6
"""Share of the size of what it sums that a Gram matrix may hide: 1.4e-6 was seen for 20,000 items; added, too."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """The devices of a round.

    Attributes:
        devices: their indices in the data set, which name their random streams, int64 ``[devices]``.
        sizes: length of each one's log: devices of like length share a chunk.
        examples: stacked training examples of the devices in some places, every field ``[places, ...]``.
        personal: their personal parameters, which stay with them, ``[devices, *shape]``.
    """

    devices: NDArray[np.int64]
    sizes: NDArray[np.int64]
    examples: Callable[[NDArray[np.int64]], Examples]
    personal: Named


@dataclass(frozen=True, kw_only=True)
class CohortResult:
    """What a cohort answers with.

    Attributes:
        total: sum of the (clipped) updates by name, float64.
        personal: new personal parameters, ``[devices, *shape]`` in the order of the work.
        unclipped: devices whose update was not clipped, the bits of adaptive clipping; all where nothing is clipped.
        each: what every device releases by itself, ``[devices, *shape]`` in that order; empty unless it was asked for.
    """

    total: Named
    personal: Named
    unclipped: int = 0
    each: Named = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class PartResult:
    """What a part of a cohort answers with, see :class:`CohortResult`.

    Attributes:
        sums: sum of the (clipped) updates, one released parameter behind the other, ``[parameters]``; float32 where
            that holds it exactly, else float64.
        personal: new personal parameters of its devices.
        unclipped: devices whose update was not clipped.
        each: what every device releases by itself.
    """

    sums: Tensor
    personal: Named = field(default_factory=dict)
    unclipped: int = 0
    each: Named = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Chunk:
    """Some of a round's devices, and all that adapting them takes."""

    shared: Shared
    placed: Shared
    """The same where the batched path computes."""
    device: torch.device
    """Where that is."""
    config: Config
    mechanism: LocalMechanism | None
    round_number: int
    devices: NDArray[np.int64]
    examples: Examples
    personal: Named
    each: bool = False

    @property
    def policy(self) -> Policy:
        """The policy."""
        return self.shared.policy

    @property
    def phi(self) -> Parameters:
        """Shared parameters."""
        return self.shared.phi

    def only(self, rows: NDArray[np.int64]) -> _Chunk:
        """Some of the chunk's devices."""
        taken = torch.from_numpy(rows)
        return replace(
            self,
            devices=self.devices[rows],
            examples=Examples._make(value[taken] for value in self.examples),
            personal={name: value[taken] for name, value in self.personal.items()},
        )

    def there(self) -> _Chunk:
        """The chunk with its tensors on its device, for the batched path."""
        return replace(
            self,
            shared=self.placed,
            examples=Examples._make(value.to(self.device) for value in self.examples),
            personal={name: value.to(self.device) for name, value in self.personal.items()},
        )

    def noise(self, row: int) -> SeededNoise:
        """The noise of one device."""
        return SeededNoise(torch_stream(self.config.seed, self.round_number, int(self.devices[row]), "local-noise"))

    def batches(self, row: int) -> torch.Generator:
        """The stream of one device's Poisson batches."""
        return torch_stream(self.config.seed, self.round_number, int(self.devices[row]), "batches")


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """What comes of a chunk.

    Attributes:
        total: sum of what its devices release, float32 where one product made it, else float64.
        personal: their new personal parameters.
        finite: devices whose numbers are, bool ``[devices]``.
        unclipped: how many updates were not clipped.
        each: every device's own update, ``[devices, *shape]``; empty unless it was asked for.
    """

    total: Named
    personal: Named
    finite: Tensor
    unclipped: int = 0
    each: Named = field(default_factory=dict)

    def sums(self, policy: Policy) -> Tensor:
        """``total``, one released parameter behind the other, ``[parameters]``."""
        rest = {name: policy.specs[name].shape for name in policy.released if name not in self.total}
        total = {**self.total, **{name: torch.zeros(shape) for name, shape in rest.items()}}
        return torch.cat([torch.zeros(0), *(total[name].flatten() for name in policy.released)])

    def to(self, device: torch.device) -> _Outcome:
        """The outcome with its tensors on ``device``."""
        return _Outcome(
            total={name: value.to(device) for name, value in self.total.items()},
            personal={name: value.to(device) for name, value in self.personal.items()},
            finite=self.finite.to(device),
            unclipped=self.unclipped,
            each={name: value.to(device) for name, value in self.each.items()},
        )


def adapt_cohort(
    policy: Policy,
    phi: Parameters,
    work: Work,
    config: Config,
    mechanism: LocalMechanism | None,
    *,
    round_number: int,
    workers: Helpers | None = None,
    each: bool = False,
) -> CohortResult:
    """Adapt every device from ``phi`` and sum what may leave.

    Args:
        policy: the policy.
        phi: shared parameters.
        work: the devices drawn this round.
        config: local settings, privacy unit and engine.
        mechanism: the local mechanism under units ``interaction`` and ``both``, else none.
        round_number: names the random streams.
        workers: processes that adapt, instead of this one's threads; the result is the same to the bit.
        each: return what every device releases, too, before any sum: stacked updates.
    """
    device = compute_device(config.engine) if config.engine.kind == "cohort" else torch.device("cpu")
    task = Task(
        policy=policy,
        phi={name: value.contiguous() for name, value in phi.items()},  # as they arrive elsewhere
        work=work,
        config=config,
        mechanism=mechanism,
        round_number=round_number,
        device=device,
        each=each,
    )
    answers = in_order(task.adapt, task.parts) if workers is None else workers.adapt(task)
    sums = torch.zeros(sum(sizes(policy, policy.released)), dtype=torch.float64)
    personal = {name: value.clone() for name, value in work.personal.items()}
    alone: Named = {name: torch.zeros(len(work.devices), *policy.specs[name].shape) for name in policy.released if each}
    unclipped = 0
    for part, found in zip(task.parts, answers, strict=True):
        sums += found.sums
        unclipped += found.unclipped
        if found.personal or found.each:
            places = torch.from_numpy(np.concatenate(part))
            for kept, rows in ((personal, found.personal), (alone, found.each)):
                for name, value in rows.items():
                    kept[name][places] = value
    total = named_parts(sums, policy, policy.released)
    return CohortResult(total=total, personal=personal, unclipped=unclipped, each=alone)


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """A round's adaptation: all that a chunk takes, apart from which devices it holds."""

    policy: Policy
    phi: Parameters
    work: Work
    config: Config
    mechanism: LocalMechanism | None
    round_number: int
    device: torch.device
    each: bool = False

    @cached_property
    def shared(self) -> Shared:
        """What all chunks start from."""
        return Shared(policy=self.policy, phi=self.phi)

    @cached_property
    def placed(self) -> Shared:
        """The same on the device, taken there once a round."""
        if self.device.type == "cpu":
            return self.shared
        with self.device:
            return self.shared.to(self.device)

    @cached_property
    def parts(self) -> list[Sequence[Ints]]:
        """Its devices' places by chunks, and neighbouring chunks together; whoever has the task divides it alike."""
        config = self.config
        # every device's own tables are written down
        private = self.each or self.mechanism is not None or config.server.uplink != "float32"
        room = chunk_floats() if self.device.type == "cpu" else DEVICE_FLOATS
        work = self.work
        return divided(self.policy, work.devices, work.sizes, config, private=private, room=room)

    def adapt(self, part: Sequence[Ints]) -> PartResult:
        """Sum and personal parameters of some chunks' devices, in their order; each chunk is its devices' places."""
        outcomes = [self._adapted(places) for places in part]
        sums = outcomes[0].sums(self.policy)
        for outcome in outcomes[1:]:
            sums = sums.double() + outcome.sums(self.policy)
        personal = _joined([outcome.personal for outcome in outcomes])
        unclipped = sum(outcome.unclipped for outcome in outcomes)
        each = _joined([outcome.each for outcome in outcomes])
        return PartResult(sums=sums, personal=personal, unclipped=unclipped, each=each)

    def _adapted(self, places: Ints) -> _Outcome:
        work = self.work
        chunk = _Chunk(
            shared=self.shared,
            placed=self.placed,
            device=self.device,
            config=self.config,
            mechanism=self.mechanism,
            round_number=self.round_number,
            devices=work.devices[places],
            examples=work.examples(places),
            personal={name: value[torch.from_numpy(places)] for name, value in work.personal.items()},
            each=self.each or self.config.server.uplink != "float32",
        )
        outcome = _reference(chunk) if self.config.engine.kind == "reference" else _batched(chunk)
        return outcome if self.config.server.uplink == "float32" else _encoded(chunk, outcome, kept=self.each)


def _joined(parts: Sequence[Named]) -> Named:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


class Helpers(Protocol):
    """Whoever adapts parts of a round elsewhere: ``simulation.workers``."""

    def adapt(self, task: Task) -> Iterator[PartResult]:
        """``task.adapt`` of every part of it, in order."""
        ...


def _reference(chunk: _Chunk) -> _Outcome:
    """Device by device, on Opacus where there is a local mechanism."""
    total: Named = {}
    personal: Named = {name: value.clone() for name, value in chunk.personal.items()}
    unclipped = 0
    each: dict[str, list[Tensor]] = {}
    for row in range(len(chunk.devices)):
        own = {name: value[row] for name, value in chunk.personal.items()}
        adaptation = adapt_device(
            chunk.policy,
            {**chunk.phi, **own},
            _alone(chunk.examples, row),
            chunk.config.local,
            chunk.mechanism,
            noise=chunk.noise(row),
            batches=chunk.batches(row),
        )
        adaptation = _contained(adaptation, own)
        clipped = bound_update(adaptation, chunk.config)
        unclipped += clipped is None or not clipped.was_clipped
        for name, value in (adaptation.update if clipped is None else clipped.value).items():
            total[name] = total.get(name, torch.zeros_like(value, dtype=torch.float64)) + value.double()
            if chunk.each:
                each.setdefault(name, []).append(value)
        for name, value in adaptation.personal.items():
            personal[name][row] = value
    return _Outcome(
        total=total,
        personal=personal,
        finite=torch.ones(len(chunk.devices), dtype=torch.bool),
        unclipped=unclipped,
        each={name: torch.stack(values) for name, values in each.items()},
    )


def _encoded(chunk: _Chunk, outcome: _Outcome, *, kept: bool) -> _Outcome:
    """What arrives of every device's own update when it is rounded for its way, and the sum of that.

    Guarantee:
        As ``client.compression.pack``, device by device: the sum of a cohort itself is not rounded.
    """
    privacy, server = chunk.config.privacy, chunk.config.server
    bound = None
    if privacy.unit in ("user", "both"):
        bound = Sensitivity(privacy.clip, privacy.scales_of(outcome.each))
    arrived: dict[str, list[Tensor]] = {name: [] for name in outcome.each}
    for row, device in enumerate(chunk.devices.tolist()):
        stream = torch_stream(chunk.config.seed, chunk.round_number, device, "rounding")
        own = {name: value[row : row + 1] for name, value in outcome.each.items()}
        for name, value in rounded(own, server.uplink, bound, stream).items():
            arrived[name].append(value)
    each = {name: torch.cat(values) for name, values in arrived.items()}
    total = {name: value.sum(0, dtype=torch.float64) for name, value in each.items()}
    return replace(outcome, total=total, each=each if kept else {})


def _alone(examples: Examples, row: int) -> Examples:
    """One device's examples without padding."""
    there = examples.present[row] > 0
    *fields, user = (value[row] for value in examples)
    return Examples._make((*(value[there] for value in fields), user))


def _contained(adaptation: Adaptation, own: Named) -> Adaptation:
    """A device that diverged answers zero and keeps its personal parameters: it must not take others along."""
    values = {**{f"update {name}": value for name, value in adaptation.update.items()}, **adaptation.personal}
    if all(bool(torch.isfinite(value).all()) for value in values.values()):
        return adaptation
    return Adaptation(update={name: torch.zeros_like(value) for name, value in adaptation.update.items()}, personal=own)


def _batched(chunk: _Chunk) -> _Outcome:
    """The whole chunk at once; devices whose numbers are not finite once more by themselves."""
    outcome = _placed(chunk)
    if bool(outcome.finite.all()):
        return outcome
    healthy, sick = (np.flatnonzero(rows.numpy()) for rows in (outcome.finite, ~outcome.finite))
    alone = _reference(chunk.only(sick))
    if not len(healthy):
        return alone
    rest = _batched(chunk.only(healthy))
    personal = {name: value.clone() for name, value in chunk.personal.items()}
    each = {name: torch.zeros(len(chunk.devices), *value.shape[1:]) for name, value in rest.each.items()}
    for rows, part in ((healthy, rest), (sick, alone)):
        for name, value in part.personal.items():
            personal[name][torch.from_numpy(rows)] = value
        for name, value in each.items():
            value[torch.from_numpy(rows)] = part.each[name]
    total = {name: value.double() + alone.total[name] for name, value in rest.total.items()}
    unclipped = rest.unclipped + alone.unclipped
    return _Outcome(
        total=total, personal=personal, finite=torch.ones_like(outcome.finite), unclipped=unclipped, each=each
    )


def _placed(chunk: _Chunk) -> _Outcome:
    """The whole chunk at once on its device; what comes of it is the processor's again."""
    adapt = _adapt_plainly if chunk.mechanism is None else _adapt_privately
    if chunk.device.type != "cpu":
        with chunk.device:
            return adapt(chunk.there()).to(torch.device("cpu"))
    with torch.inference_mode():  # small operations cost little more than autograd's bookkeeping
        return adapt(chunk)


def _adapt_plainly(chunk: _Chunk) -> _Outcome:
    """``meta.adapt`` for every device; under unit ``user`` each update is clipped by its norm, then summed.

    Guarantee:
        As ``privacy.mechanisms.clip_updates``: no device moves the sum by more than the clip. The norm of what an item
        table gets comes from Gram matrices; what rounding may hide of it is added to it first.
    """
    policy, settings = chunk.policy, chunk.config.local
    stack = Stack(shared=chunk.shared, examples=chunk.examples, settings=settings)
    start = {**chunk.phi, **chunk.personal}
    fast, done = arrive(stack, start, steps=settings.steps - 1, names=policy.names(speed="fast"))
    whole = chunk.config.privacy.unit == "user" and not chunk.each  # only norms and sums are needed
    factored = [name for name in ("bias", "state.mix") if whole and name not in fast]
    gradients = backward(stack, {**start, **fast}, done, stack.last, policy.trained, factored=factored)
    rates = {name: step_size(policy, settings, name) * learned_rate(start, name) for name in policy.trained}
    decay = settings.weight_decay
    before = {name: (here - start[name]) * (1 - rates[name] * decay) for name, here in fast.items()}
    return _settled(chunk, along(gradients.plain, rates, before, policy), done.finite, gradients.tables)


def _bounded(squares: Tensor, bound: Sensitivity) -> Tensor:
    """Factors that hold contributions of these squared norms to the bound, whatever rounding hid of them."""
    return clip_factors((squares * (1 + _HIDDEN)).sqrt(), bound)


def _adapt_privately(chunk: _Chunk) -> _Outcome:
    """K DP-SGD steps of every device: the batched twin of ``client.adaptation.adapt_privately``.

    Guarantee:
        As there, for each device: its own noise from its own stream, on all that is trained, at every step.
    """
    policy, config, mechanism = chunk.policy, chunk.config, chunk.mechanism
    if mechanism is None:
        raise ValueError("expected a local mechanism, got none; adapt plainly")
    refuse_coupling(config.local)
    names = policy.trained
    start = {**chunk.phi, **chunk.personal}
    flat = _laid_out(start, names, len(chunk.devices))
    views = named_views(flat, policy, names)
    stack = Stack(shared=chunk.shared, examples=chunk.examples, settings=config.local, each=True)
    stack = anchored(stack, start)
    sources = [chunk.noise(row) for row in range(stack.count)]
    batches = [chunk.batches(row) for row in range(stack.count)]
    rates = {name: rate / mechanism.expected_batch for name, rate in private_step_sizes(policy, config.local).items()}
    std = mechanism.noise_over_clip * mechanism.clip
    non_negative("std", std)
    noise = [rates[name] * mechanism.scales.get(name, 1.0) * std for name in names]
    amounts = spread_out(noise, policy, names).to(flat.device)
    finite = torch.ones(stack.count, dtype=torch.bool)
    for _ in range(config.local.steps):
        here = {**chunk.phi, **views}
        done = forward(stack, here)
        squares, known = example_squares(stack, here, done, mechanism.scales, names)
        mask = _batch_mask(stack.examples.present, mechanism, batches)
        finite &= (torch.isfinite(squares) | ~mask).all(1)
        factors = example_clip_factors(squares.sqrt(), mechanism.clip).where(mask, 0.0)
        gradients = backward(stack, here, done, factors, names, known)
        for name, view in views.items():
            if name in gradients.tables:
                gradients.tables[name].subtract(view, rates[name])
            else:
                view.sub_(gradients.plain[name], alpha=rates[name])
        _take_noise(flat, amounts, sources)
    for name, view in views.items():
        view.sub_(start[name])
    return _settled(chunk, [Moved(names=names, values=flat)], finite)


def _take_noise(flat: Tensor, amounts: Tensor, sources: Sequence[SeededNoise]) -> None:
    """Take every device's own noise off its parameters ``[devices, parameters]``, standard normal times ``amounts``.

    A device at a time: what is drawn is still in the cache when it is taken.
    """
    drawn = torch.empty(flat.shape[1], device="cpu")
    for row, source in zip(flat, sources, strict=True):
        row.addcmul_(source.fill(drawn, 1.0).to(row.device), amounts, value=-1)


def _settled(
    chunk: _Chunk, moved: Sequence[Moved], finite: Tensor, tables: Mapping[str, TableGradient] | None = None
) -> _Outcome:
    """What parameters moved, together with what gradients that are factors move, as a chunk's outcome.

    Under units ``user`` and ``both`` it is clipped as a whole.
    """
    policy, privacy, count = chunk.policy, chunk.config.privacy, len(chunk.devices)
    tables = tables or {}
    rates = {name: -step_size(policy, chunk.config.local, name) for name in tables}
    factors = torch.ones(count, dtype=torch.float64)
    if privacy.unit in ("user", "both"):
        bound = Sensitivity(privacy.clip, privacy.scales_of(policy.released))
        squares = sum((one.squares(policy, bound) for one in moved), torch.zeros(count, dtype=torch.float64))
        for name, table in tables.items():
            norm, size = table.squares()
            squares = squares + (norm + _HIDDEN_BY_GRAM * size).double() * (rates[name] / bound.scale(name)) ** 2
        factors = _bounded(squares, bound)
        finite = finite & torch.isfinite(squares)
    else:
        for values in [one.values for one in moved] + [one.rows for one in tables.values() if one.rows is not None]:
            finite = finite & torch.isfinite(values.flatten(1).sum(1))
    total = {name: value for one in moved for name, value in one.summed(factors, policy).items()}
    sums = summed(tables, {name: factors * rate for name, rate in rates.items()})
    total |= {name: value.reshape(policy.specs[name].shape) for name, value in sums.items()}
    own = {name: value for one in moved if chunk.each or chunk.personal for name, value in one.each(policy).items()}
    each = {name: _scaled(own[name], factors) for name in policy.released if chunk.each and name in own}
    if chunk.each:
        each |= {name: _scaled(table.each(policy.items), factors * rates[name]) for name, table in tables.items()}
    return _Outcome(
        total={name: total[name] for name in policy.released if name in total},
        personal={name: value + own[name] for name, value in chunk.personal.items() if name in own},
        finite=finite,
        unclipped=int((factors == 1).sum()),
        each=each,
    )


def _scaled(values: Tensor, factors: Tensor) -> Tensor:
    """Every device's values times its factor."""
    return values * factors.float().reshape(-1, *[1] * (values.dim() - 1))


def _laid_out(parameters: Parameters, names: tuple[str, ...], count: int) -> Tensor:
    """Every device's parameters one behind the other, ``[devices, parameters]``."""
    parts = [
        parameters[name].reshape(count, -1) if name == "personal" else parameters[name].reshape(1, -1).expand(count, -1)
        for name in names
    ]
    return torch.cat(parts, dim=1)


def _batch_mask(present: Tensor, mechanism: LocalMechanism, batches: list[torch.Generator]) -> Tensor:
    """Which examples this step's Poisson batches hold, bool ``[devices, examples]``."""
    if mechanism.sample_rate == 1:
        return present > 0
    mask = torch.zeros(present.shape, dtype=torch.bool, device="cpu")
    for row, (count, generator) in enumerate(zip(present.sum(1).tolist(), batches, strict=True)):
        mask[row, poisson_batch(int(count), mechanism.sample_rate, generator)] = True
    return mask.to(present.device)
