"""Encode a table about items or users into a public matrix of features.

Every source column becomes one block of columns whose part of a row has a Euclidean norm of at most 1, so that no
column outweighs the others and the norm of a row is at most the square root of the number of blocks:

=============  ====================================================================================================
kind           block
=============  ====================================================================================================
``category``   one-hot; above ``category_cap`` values, the most frequent keep a column and the others share hashed ones
``multilabel`` multi-hot divided by the square root of the number of labels; capped the same way
``number``     ``z / 3`` clipped to [-1, 1], z being the standardised value; with ``number_bins``, quantile bins too
``year``       ``z / 3`` as above and a one-hot of ``year_bin`` years, both divided by the square root of 2
``age``        one-hot of fixed, public bins (MovieLens): under 18, 18-24, 25-34, 35-44, 45-49, 50-55, 56 and older
``text``       words, pairs of words and character trigrams, hashed with a sign into ``text_buckets`` columns, norm 1
=============  ====================================================================================================

A missing value is a row of zeros in its block. Hashes are BLAKE2 and do not change between runs or machines
(Weinberger et al. 2009, "Feature hashing for large scale multitask learning").
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..._validate import at_least
from ...meta.interactions import FeatureGroup
from .tables import FeatureTable, Kind

AGE_EDGES = (18.0, 25.0, 35.0, 45.0, 50.0, 56.0)
AGE_NAMES = ("under 18", "18-24", "25-34", "35-44", "45-49", "50-55", "56+")


@dataclass(frozen=True, kw_only=True)
class FeatureOptions:
    """How wide the encoded features are."""

    text_buckets: int = 32
    """Columns of each text; 0 leaves texts out."""
    category_cap: int = 64
    """Values (or labels) of one column that get a column of their own."""
    hash_buckets: int = 16
    """Columns that the values above the cap share."""
    year_bin: int = 5
    """Years that share a bin; 0 keeps the number only."""
    number_bins: int = 0
    """Quantile bins of each number; 0 keeps the number only."""

    def __post_init__(self) -> None:
        """Refuse widths that make no sense."""
        for name in ("text_buckets", "year_bin", "number_bins"):
            at_least(name, getattr(self, name), 0)
        for name in ("category_cap", "hash_buckets"):
            at_least(name, getattr(self, name), 1)


class Features(NamedTuple):
    """An encoded table: float32 ``[rows, columns]``, a name for each column, the block of each source column."""

    matrix: NDArray[np.float32]
    names: tuple[str, ...]
    groups: tuple[FeatureGroup, ...]


class Block(NamedTuple):
    """The encoding of one source column: float32 ``[rows, width]`` and ``width`` names."""

    matrix: NDArray[np.float32]
    names: list[str]


def encode_table(table: FeatureTable, options: FeatureOptions | None = None) -> Features:
    """Encode every feature column of ``table``, in their order; a column that encodes to nothing is left out."""
    options = options or FeatureOptions()
    blocks: list[Block] = []
    groups: list[FeatureGroup] = []
    width = 0
    for name, kind in table.kinds.items():
        block = _ENCODERS[kind](name, table.frame[name].to_list(), options)
        if not block.names:
            continue
        shown = kind if kind in ("category", "multilabel", "text") else "number"
        groups.append(FeatureGroup(name=name, kind=shown, start=width, stop=width + len(block.names)))
        width += len(block.names)
        blocks.append(block)
    matrix = np.concatenate([b.matrix for b in blocks], axis=1) if blocks else np.zeros((len(table), 0), np.float32)
    return Features(np.ascontiguousarray(matrix), tuple(n for b in blocks for n in b.names), tuple(groups))


def stable_hash(text: str) -> int:
    """A 64-bit hash of ``text`` (BLAKE2b) that is the same in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _encode_category(name: str, values: Sequence[str | None], options: FeatureOptions) -> Block:
    return _encode_multilabel(name, [None if value is None else [value] for value in values], options)


def _encode_multilabel(name: str, values: Sequence[Sequence[str] | None], options: FeatureOptions) -> Block:
    labels = [sorted({label for label in row if label}) if row else [] for row in values]
    counts = Counter(label for row in labels for label in row)
    frequent = sorted(counts, key=lambda label: (-counts[label], label))[: options.category_cap]
    columns = {label: column for column, label in enumerate(sorted(frequent))}
    names = [f"{name}={label}" for label in columns]
    if len(counts) > len(columns):
        names += [f"{name}#{bucket}" for bucket in range(options.hash_buckets)]
    matrix = np.zeros((len(labels), len(names)), dtype=np.float32)
    for index, row in enumerate(labels):
        for label in row:
            column = columns.get(label)
            if column is None:
                column = len(columns) + stable_hash(f"{name}={label}") % options.hash_buckets
            matrix[index, column] = 1.0
    return Block(_unit_rows(matrix), names)


def _unit_rows(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """Divide every row by its norm; rows of zeros stay."""
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    return np.asarray(matrix / np.where(norms > 0, norms, 1.0), dtype=np.float32)


def _numbers(values: Sequence[float | None]) -> NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _standardise(numbers: NDArray[np.float64]) -> NDArray[np.float32]:
    """``z / 3`` clipped to [-1, 1], float32 ``[rows, 1]``; missing values and constant columns give 0."""
    known = numbers[np.isfinite(numbers)]
    spread = known.std() if len(known) else 0.0
    if spread == 0:
        return np.zeros((len(numbers), 1), dtype=np.float32)
    scaled = np.clip((numbers - known.mean()) / (3 * spread), -1, 1)
    column: NDArray[np.float32] = np.nan_to_num(scaled).astype(np.float32)[:, None]
    return column


def _one_hot_bins(numbers: NDArray[np.float64], bins: NDArray[np.int64], names: Sequence[str]) -> Block:
    """One column for each bin of ``names``; a missing number has none."""
    matrix = np.zeros((len(numbers), len(names)), dtype=np.float32)
    known = np.flatnonzero(np.isfinite(numbers))
    matrix[known, bins[known]] = 1.0
    return Block(matrix, list(names))


def _with_bins(name: str, numbers: NDArray[np.float64], bins: Block) -> Block:
    matrix = np.concatenate([_standardise(numbers), bins.matrix], axis=1) / np.sqrt(2.0)
    return Block(matrix.astype(np.float32), [name, *bins.names])


def _encode_number(name: str, values: Sequence[float | None], options: FeatureOptions) -> Block:
    numbers = _numbers(values)
    known = numbers[np.isfinite(numbers)]
    if options.number_bins < 2 or not len(known):
        return Block(_standardise(numbers), [name])
    inner = np.linspace(0, 1, options.number_bins + 1)[1:-1]
    edges = np.unique(np.quantile(known, inner))
    bins = np.searchsorted(edges, numbers, side="right")
    names = [f"{name}:bin{bin}" for bin in range(len(edges) + 1)]
    return _with_bins(name, numbers, _one_hot_bins(numbers, bins, names))


def _encode_year(name: str, values: Sequence[float | None], options: FeatureOptions) -> Block:
    numbers = _numbers(values)
    known = np.isfinite(numbers)
    if not options.year_bin or not known.any():
        return Block(_standardise(numbers), [name])
    floors = np.floor(np.where(known, numbers, numbers[known].min()) / options.year_bin).astype(np.int64)
    occurring = np.unique(floors[known])
    names = [_year_name(name, floor * options.year_bin, options.year_bin) for floor in occurring.tolist()]
    return _with_bins(name, numbers, _one_hot_bins(numbers, np.searchsorted(occurring, floors), names))


def _year_name(name: str, first: int, width: int) -> str:
    return f"{name}={first}" if width == 1 else f"{name}={first}-{first + width - 1}"


def _encode_age(name: str, values: Sequence[float | None], options: FeatureOptions) -> Block:
    numbers = _numbers(values)
    bins = np.searchsorted(np.array(AGE_EDGES), numbers, side="right")
    return _one_hot_bins(numbers, np.minimum(bins, len(AGE_EDGES)), [f"{name}={label}" for label in AGE_NAMES])


def text_grams(text: str) -> list[str]:
    """What a text is made of: its words, its pairs of neighbouring words, its character trigrams; lower case."""
    words = re.findall(r"\w+", text.lower())
    pairs = [f"{left} {right}" for left, right in pairwise(words)]
    padded = [f" {word} " for word in words]
    trigrams = [f"#{word[i : i + 3]}" for word in padded for i in range(len(word) - 2)]
    return words + pairs + trigrams


def _encode_text(name: str, values: Sequence[str | None], options: FeatureOptions) -> Block:
    buckets = options.text_buckets
    if not buckets:
        return Block(np.zeros((len(values), 0), dtype=np.float32), [])
    matrix = np.zeros((len(values), buckets), dtype=np.float32)
    hashes: dict[str, int] = {}
    for row, text in enumerate(values):
        for gram in text_grams(text or ""):
            if gram not in hashes:
                hashes[gram] = stable_hash(gram)
            code = hashes[gram]
            matrix[row, (code >> 1) % buckets] += 1.0 if code & 1 else -1.0
    return Block(_unit_rows(matrix), [f"{name}~{bucket}" for bucket in range(buckets)])


_ENCODERS: dict[Kind, Callable[..., Block]] = {
    "category": _encode_category,
    "multilabel": _encode_multilabel,
    "number": _encode_number,
    "year": _encode_year,
    "age": _encode_age,
    "text": _encode_text,
}
