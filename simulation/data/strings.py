"""Many short texts as two arrays, so that ids and titles can be memory-mapped like every other column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray


class Strings(Sequence[str]):
    """A read-only sequence of texts over one UTF-8 buffer.

    Args:
        text: all texts, one after the other, uint8 ``[bytes]``.
        ends: where each text ends in ``text``, int64 ``[n]``.
    """

    def __init__(self, text: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        self.text = text
        self.ends = ends

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Strings: ...

    def __getitem__(self, index: int | slice) -> str | Strings:
        """The text at ``index``, or the texts of a slice."""
        if isinstance(index, slice):
            return pack([self[position] for position in range(*index.indices(len(self)))])
        position = range(len(self))[index]
        start = int(self.ends[position - 1]) if position else 0
        return self.text[start : int(self.ends[position])].tobytes().decode()


def pack(texts: Sequence[str]) -> Strings:
    """Pack ``texts`` into one buffer; texts that are packed already are passed through."""
    if isinstance(texts, Strings):
        return texts
    encoded = [str(text).encode() for text in texts]
    ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
    return Strings(np.frombuffer(b"".join(encoded), dtype=np.uint8), ends)


def unpack(packed: Strings) -> tuple[str, ...]:
    """All texts of ``packed`` as a tuple."""
    whole = packed.text.tobytes()
    starts = np.concatenate([[0], packed.ends[:-1]]) if len(packed) else np.empty(0, dtype=np.int64)
    return tuple(whole[start:end].decode() for start, end in zip(starts.tolist(), packed.ends.tolist(), strict=True))
