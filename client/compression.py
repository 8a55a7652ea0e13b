"""Updates in fewer bytes: 16-bit floats or 8-bit integers, in blocks of 64 numbers with a float32 scale each.

Within a block every number is ``code * scale``. Codes lie on a grid (``int8``: the integers to 127; ``float16``: IEEE
half-precision numbers to 1), the scale puts the block's largest number on its end. Rounding is stochastic: to the grid
point above or below with the probability that makes the mean right (Alistarh et al. 2017, QSGD, in buckets).

=============  =====================================  ==============================================
encoding       bytes of n numbers, a block of 64      error of one number at most
=============  =====================================  ==============================================
``float32``    4 n                                    none
``float16``    2 n and 4 a block                      2^-10 of it, or 2^-24 of its block's largest
``int8``       n and 4 a block                        1/127 of its block's largest
=============  =====================================  ==============================================
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import Encoding
from ..errors import WireError
from ..meta.policy import Named
from ..privacy.mechanisms import Sensitivity

BLOCK = 64
"""Numbers that share a scale."""
_INSIDE = 1.0 - 2.0**-22  # making float32 of code * scale adds at most 2^-24 to a number
_CODES = {"float16": torch.float16, "int8": torch.int8}
_TOP = {"float16": 1.0, "int8": 127.0}
_SMALLEST, _DIGITS = -14, 10  # of IEEE half precision: exponent of its smallest normal number, bits of its fraction


@dataclass(frozen=True)
class Packed:
    """An update as it travels.

    Attributes:
        encoding: ``float16`` or ``int8``.
        codes: tensors of that type, in the update's shapes; of a stack ``[devices, *shape]``.
        scales: float32, one for each block of a flattened tensor, ``[blocks]``; of a stack ``[devices, blocks]``.
    """

    encoding: Encoding
    codes: Named
    scales: Named

    def unpack(self) -> Named:
        """The update that the codes stand for, float32; of a stack every device's."""
        if self._stacked:
            return {name: _decoded(codes, self.scales[name]) for name, codes in self.codes.items()}
        return {name: _decoded(codes[None], self.scales[name][None])[0] for name, codes in self.codes.items()}

    @property
    def _stacked(self) -> bool:
        return any(scales.dim() == 2 for scales in self.scales.values())

    def stack(self) -> Packed:
        """The same as a stack of one."""
        codes, scales = ({name: rows[None] for name, rows in found.items()} for found in (self.codes, self.scales))
        return Packed(self.encoding, codes, scales)

    def check(self, *, stacked: bool) -> None:
        """Refuse scales that do not fit the codes.

        Raises:
            WireError: there are too few or too many.
        """
        shapes = shapes_of(self.codes)
        wanted = {
            name: (*shape[:1], blocks_of(math.prod(shape[1:]))) if stacked else (blocks_of(math.prod(shape)),)
            for name, shape in shapes.items()
        }
        found = shapes_of(self.scales)
        if found != wanted:
            raise WireError(f"expected a scale for each block of {BLOCK} codes, got scales {found} for codes {shapes}")


def pack(
    update: Mapping[str, Tensor],
    encoding: Encoding,
    bound: Sensitivity | None,
    generator: torch.Generator | None = None,
) -> Packed:
    """Round one device's update to what travels.

    Args:
        update: named tensors.
        encoding: ``float16`` or ``int8``.
        bound: what clipping promised of it, where the server adds noise to the sum (units ``user`` and ``both``).
        generator: of the rounding; none takes a seed from the operating system.

    Guarantee:
        Unit ``interaction``: the noise is in the update already, and rounding is post-processing of it: it costs
        nothing, whoever knows the generator. Units ``user`` and ``both``: rounding comes *before* the server's noise,
        so what is bounded must be what arrives. An update is shrunk, before anything is drawn, until its largest
        rounding (every number away from zero) has l2 norm <= ``bound.value`` in scaled space. Every rounding that can
        be drawn has numbers at most that large, hence at most that norm: one device moves the sum by no more than
        before, for every outcome of the draws, and neither noise nor account change. The mean over the draws is the
        shrunk update itself, so that no direction is favoured.

        This holds for one device's update. A *sum* of several must not be rounded before the noise: with one device
        more, all of its numbers round differently, which together can move it by more than the bound.

    Raises:
        WireError: NaN or infinity, which no code stands for.
    """
    rows = {name: tensor[None] for name, tensor in update.items()}
    stack = _pack_rows(rows, encoding, bound, generator or _system_generator())
    codes, scales = ({name: rows[0] for name, rows in found.items()} for found in (stack.codes, stack.scales))
    return Packed(encoding, codes, scales)


def sent(
    update: Named, encoding: Encoding, bound: Sensitivity | None, generator: torch.Generator | None = None
) -> tuple[Named, Packed | None]:
    """One device's update as it arrives, and as it travels where that is not float32: two fields of a reply.

    Guarantee and errors as :func:`pack`.
    """
    if encoding == "float32":
        return update, None
    packed = pack(update, encoding, bound, generator)
    return packed.unpack(), packed


def rounded(
    stacked: Mapping[str, Tensor], encoding: Encoding, bound: Sensitivity | None, generator: torch.Generator
) -> Named:
    """What arrives of many devices' updates, ``[devices, *shape]``, each of which is packed by itself.

    Guarantee and errors as :func:`pack`.
    """
    if encoding == "float32":
        return dict(stacked)
    return _pack_rows(stacked, encoding, bound, generator).unpack()


def payload_bytes(shapes: Mapping[str, tuple[int, ...]], encoding: Encoding = "float32") -> int:
    """Bytes of tensors of these shapes on the wire, without the some hundred of names and headers."""
    each = {"float32": 4, "float16": 2, "int8": 1}[encoding]
    counts = [math.prod(shape) for shape in shapes.values()]
    return sum(each * count + (0 if encoding == "float32" else 4 * blocks_of(count)) for count in counts)


def shapes_of(named: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shapes of named tensors."""
    return {name: tuple(tensor.shape) for name, tensor in named.items()}


def blocks_of(count: int) -> int:
    """Scales of a tensor with so many numbers."""
    return -(-count // BLOCK)


@dataclass(frozen=True)
class _Cells:
    """Where numbers lie on the grid, as magnitudes in units of the block's scale: ``[rows, blocks, 64]``."""

    scale: Tensor
    low: Tensor
    step: Tensor
    chance: Tensor
    """Of the grid point above: 0 where the number lies on the grid."""

    @property
    def largest(self) -> Tensor:
        """Magnitudes of the rounding away from zero, times the scale."""
        return (self.low + torch.where(self.chance > 0, self.step, 0.0)) * self.scale[..., None]


def _pack_rows(
    stacked: Mapping[str, Tensor], encoding: Encoding, bound: Sensitivity | None, generator: torch.Generator
) -> Packed:
    blocks = {name: _blocks(name, stacked[name]) for name in sorted(stacked)}
    if bound is not None:
        blocks = _within(blocks, encoding, bound)
    codes, scales = {}, {}
    for name, values in blocks.items():
        cells = _cells(values, encoding)
        drawn = torch.rand(values.shape, generator=generator, dtype=torch.float64) < cells.chance
        code = torch.copysign(cells.low + torch.where(drawn, cells.step, 0.0), values).flatten(1)
        shape = stacked[name].shape
        codes[name] = code[:, : math.prod(shape[1:])].reshape(shape).to(_CODES[encoding])
        scales[name] = cells.scale.to(torch.float32)
    return Packed(encoding, codes, scales)


def _blocks(name: str, values: Tensor) -> Tensor:
    """Rows as blocks of 64, padded with zeros, float64 ``[rows, blocks, 64]``."""
    if not bool(torch.isfinite(values).all()):
        raise WireError(f"expected a finite update to encode, got NaN or infinity in {name!r}; lower the step sizes")
    flat = values.detach().reshape(values.shape[0], math.prod(values.shape[1:])).double()
    padded = torch.nn.functional.pad(flat, (0, BLOCK * blocks_of(flat.shape[1]) - flat.shape[1]))
    return padded.reshape(len(flat), -1, BLOCK)


def _within(blocks: Named, encoding: Encoding, bound: Sensitivity) -> Named:
    """The blocks, shrunk row by row until the largest rounding of each row is within the bound."""
    bound.check_names(blocks)
    while True:
        largest = {name: _cells(values, encoding).largest / bound.scale(name) for name, values in blocks.items()}
        norms = torch.stack([value.square().sum((1, 2)) for value in largest.values()]).sum(0).sqrt()
        factors = torch.where(norms > bound.value * _INSIDE, bound.value / norms * _INSIDE**2, 1.0)
        if bool((factors == 1).all()):
            return blocks
        blocks = {name: values * factors[:, None, None] for name, values in blocks.items()}


def _cells(values: Tensor, encoding: Encoding) -> _Cells:
    top = _TOP[encoding]
    scale = _scale(values.abs().amax(-1), top)
    units = (values.abs() / torch.where(scale > 0, scale, 1.0)[..., None]).clamp(max=top)
    step = _STEPS[encoding](units)
    low = (units / step).floor() * step
    return _Cells(scale, low, step, (units - low) / step)


def _scale(largest: Tensor, top: float) -> Tensor:
    """The least float32 number (as float64) whose ``top``-fold is no less than the block's largest magnitude."""
    nearest = (largest / top).to(torch.float32)
    above = torch.nextafter(nearest, torch.full_like(nearest, math.inf))
    return torch.where(nearest.double() * top < largest, above, nearest).double()


def _half_steps(units: Tensor) -> Tensor:
    """Distance to the next half-precision number above."""
    exponent = torch.frexp(units).exponent - 1
    return torch.ldexp(torch.ones_like(units), exponent.clamp(min=_SMALLEST) - _DIGITS)


_STEPS: dict[str, Callable[[Tensor], Tensor]] = {"float16": _half_steps, "int8": torch.ones_like}


def _decoded(codes: Tensor, scales: Tensor) -> Tensor:
    """Codes ``[rows, *shape]`` times the scales of their blocks ``[rows, blocks]``, float32."""
    count = math.prod(codes.shape[1:])
    along = scales.double().repeat_interleave(BLOCK, dim=1)[:, :count]
    return (codes.reshape(len(codes), count).double() * along).to(torch.float32).reshape(codes.shape)


def _system_generator() -> torch.Generator:
    return torch.Generator().manual_seed(secrets.randbits(63))
