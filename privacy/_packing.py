"""Sorted sets of whole numbers as short texts: what a debit of a hundred thousand devices takes on disk.

Few runs are written out (``0-4,7``). Else the shorter of two: a bitmap, or the code of Elias (1974) and Fano (1971),
which keeps the low bits of each number as they are and the high bits in unary, near the least possible for random sets.
"""

from __future__ import annotations

import base64
import binascii

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]

LIMIT = 2**26
"""Numbers lie below this; it bounds what an altered text can make its reader allocate."""
_WRITTEN_OUT = 24
"""Runs that are written out; more of them are packed."""


def pack(numbers: Numbers) -> str:
    """The text of distinct ascending numbers, one text a set.

    Raises:
        ValueError: none at all, not ascending, or outside of [0, 2^26).
    """
    gaps = np.diff(numbers)
    if not len(numbers) or numbers[0] < 0 or numbers[-1] >= LIMIT or (gaps <= 0).any():
        raise ValueError(f"expected distinct ascending numbers in [0, {LIMIT}), got {numbers[:6].tolist()}")
    breaks = np.flatnonzero(gaps > 1)
    if len(breaks) < _WRITTEN_OUT:
        firsts, lasts = numbers[[0, *(breaks + 1)]].tolist(), numbers[[*breaks, -1]].tolist()
        return ",".join(f"{a}-{b}" if a < b else f"{a}" for a, b in zip(firsts, lasts, strict=True))
    top, low = int(numbers[-1]), _low_bits(len(numbers), int(numbers[-1]))
    if len(numbers) * (low + 1) + (top >> low) < top:
        return f"fano:{len(numbers)}:{low}:{_text(_fano(numbers, low))}"
    return f"bits:{_text(_bitmap(numbers, top + 1))}"


def unpack(text: str) -> Numbers:
    """The numbers of a text that :func:`pack` wrote.

    Raises:
        ValueError: it wrote no such text.
    """
    try:
        kind, _, rest = text.partition(":")
        if not rest:
            numbers = _runs(kind)
        elif kind == "bits":
            numbers = np.flatnonzero(_bits(rest)).astype(np.int64)
        else:
            numbers = _from_fano(*rest.split(":"))
        if pack(numbers) == text:
            return numbers
    except (ValueError, TypeError, IndexError, binascii.Error):
        pass
    raise ValueError(f"expected a packed set of numbers, got {text[:60]!r}")


def _low_bits(count: int, top: int) -> int:
    return max(0, (top // count).bit_length() - 1)


def _bitmap(positions: Numbers, length: int) -> NDArray[np.uint8]:
    bits = np.zeros(length, dtype=np.uint8)
    bits[positions] = 1
    return np.packbits(bits)


def _fano(numbers: Numbers, low: int) -> NDArray[np.uint8]:
    """High parts in unary, then the low bits of each number."""
    places = (numbers >> low) + np.arange(len(numbers))
    lows = (numbers[:, None] >> np.arange(low)) & 1
    return np.concatenate([_bitmap(places, int(places[-1]) + 1), np.packbits(lows.astype(np.uint8))])


def _from_fano(count: str, low: str, text: str) -> Numbers:
    number, width = int(count), int(low)
    bits = _bits(text)
    size = -(-number * width // 8) * 8
    if not (0 < number < LIMIT and 0 <= width < 32 and size < len(bits)):
        raise ValueError("lengths that do not fit")
    high = np.flatnonzero(bits[: len(bits) - size])
    lows = bits[len(bits) - size :][: number * width].reshape(number, width).astype(np.int64)
    numbers: Numbers = ((high - np.arange(number)) << width) + (lows << np.arange(width)).sum(axis=1)
    return numbers


def _runs(text: str) -> Numbers:
    ends = [[int(end) for end in part.split("-")] for part in text.split(",")]
    if any(not 0 <= end < LIMIT for run in ends for end in run):
        raise ValueError("a number out of range")
    return np.concatenate([np.arange(run[0], run[-1] + 1, dtype=np.int64) for run in ends])


def _text(packed: NDArray[np.uint8]) -> str:
    return base64.b64encode(packed.tobytes()).decode("ascii")


def _bits(text: str) -> NDArray[np.uint8]:
    return np.unpackbits(np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8))
