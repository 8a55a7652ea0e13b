"""Read delimited text in pieces, as text, so that any size fits and every wrong value can be named by its line.

Everything is read as text first: an id ``007`` stays ``007``, and a number that is none is found with its line. Text
is UTF-8, with Latin-1 as the fallback for files from before it; ``.gz`` files are unpacked on the way.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Literal, NoReturn

import polars as pl

from ...errors import DataError

CHUNK_BYTES = 32 * 2**20
_UNIT = "\x1f"
_SEPARATORS = ("\t", "::", ",", ";", "|")


@dataclass(frozen=True, kw_only=True)
class TextFormat:
    """How a file is delimited.

    Attributes:
        separator: what stands between two fields; more than one character is fine.
        quote: what encloses a field that holds a separator, or ``None`` where quotes are ordinary characters.
        header: whether the first line names the columns.
    """

    separator: str
    quote: str | None = None
    header: bool = True


@dataclass(frozen=True, kw_only=True, eq=False)
class Chunk:
    """Some lines of a file: all columns as text, null where a field is empty or missing; blank lines are gone.

    Attributes:
        frame: one row for each line.
        path: the file.
        data: the bytes the rows were read from.
        first_line: number of the first of its lines, counted from 1.
        format: how the file is delimited.
        records: position of each row among all records of ``data``, the blank ones included.
    """

    frame: pl.DataFrame
    path: Path
    data: bytes
    first_line: int
    format: TextFormat
    records: pl.Series

    def fail(self, row: int, column: str, expected: str, advice: str) -> NoReturn:
        """Raise the ``DataError`` that names file, line and column of a wrong value."""
        text, separator = _single(self.data, self.format)
        records = _records(text, separator, self.format.quote)
        line, fields = next(islice(records, self.records[row], None))
        value = self.frame[column][row]
        if value is None and len(fields) < self.frame.width:
            found = f"a line of {len(fields)} fields instead of {self.frame.width}"
            advice = "the file may be cut short: get it again"
        else:
            found = "nothing" if value is None else repr(value)
        where = f"{self.path.name} line {self.first_line + line}, column {column}"
        raise DataError(f"{where}: expected {expected}, got {found}; {advice}")


def sniff(path: Path, *, separator: str | None = None) -> TextFormat:
    """Guess the delimiter from the first line: of tab, ``::``, comma, semicolon and bar the one that it has most of.

    A quote character counts only in comma and semicolon files.
    """
    first = _first_line(path)
    if separator is None:
        counts = {candidate: first.count(candidate) for candidate in _SEPARATORS}
        separator = max(counts, key=lambda candidate: counts[candidate])
        if not counts[separator]:
            wanted = "columns between tabs, commas, semicolons, bars or ::"
            raise DataError(f"{path.name} line 1: expected {wanted}, got {first[:60]!r}; name the separator")
    return TextFormat(separator=separator, quote='"' if separator in (",", ";") else None)


def read_header(path: Path, format: TextFormat, *, unique: bool = True) -> list[str]:
    """The names of the columns; for a file without a header ``1``, ``2``, ... for its fields."""
    text, separator = _single(_first_line(path).encode(), format)
    _, fields = next(_records(text, separator, format.quote))
    names = [field.strip() for field in fields] if format.header else [str(n + 1) for n in range(len(fields))]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice and unique:
        raise DataError(f"{path.name} line 1, column {twice[0]}: expected every name once, got it twice; rename one")
    return names


def read_chunks(path: Path, format: TextFormat, *, columns: Sequence[str] | None = None) -> Iterator[Chunk]:
    """Read a file piece by piece.

    Args:
        path: the file.
        format: how it is delimited.
        columns: what to call its columns; by default their names in the header.

    Raises:
        DataError: the file can't be read, is not text, or a line has more fields than there are columns.
    """
    names = list(columns) if columns is not None else read_header(path, format)
    line = 1
    for position, data in enumerate(_pieces(path, format)):
        piece, start = data, line
        line += data.count(b"\n")
        if position == 0 and format.header:
            piece = data.partition(b"\n")[2]
            start += 1
        if piece.strip():
            yield _parse(path, piece, start, format, names)


def read_whole(path: Path, format: TextFormat, *, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """Read a whole, smaller file, such as an item table, as text."""
    names = list(columns) if columns is not None else read_header(path, format)
    frames = [chunk.frame for chunk in read_chunks(path, format, columns=names)]
    return pl.concat(frames) if frames else pl.DataFrame(schema=dict.fromkeys(names, pl.String))


def _open(path: Path) -> BinaryIO | gzip.GzipFile:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _first_line(path: Path) -> str:
    try:
        with _open(path) as handle:
            first = handle.readline(2**20)
    except (OSError, EOFError) as error:
        raise _unreadable(path, error) from error
    if not first.strip():
        raise DataError(f"{path.name} line 1: expected columns, got an empty line; check the file")
    return _to_utf8(path, first).decode().rstrip("\r\n")


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return DataError(f"could not read {path}: {reason}; check the path and that the file is whole")


def _pieces(path: Path, format: TextFormat) -> Iterator[bytes]:
    """Pieces of about ``CHUNK_BYTES`` that end with a line, and outside of a quoted field."""
    rest = b""
    try:
        with _open(path) as handle:
            while block := handle.read(CHUNK_BYTES):
                rest += block
                cut = rest.rfind(b"\n") + 1
                whole = format.quote is None or rest[:cut].count(format.quote.encode()) % 2 == 0
                if cut and whole:
                    yield rest[:cut]
                    rest = rest[cut:]
    except (OSError, EOFError) as error:
        raise _unreadable(path, error) from error
    if rest:
        yield rest


def _to_utf8(path: Path, data: bytes) -> bytes:
    if b"\x00" in data:
        raise DataError(f"expected {path.name} to be text, got zero bytes; save it as UTF-8 text or as parquet")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1").encode("utf-8")
    return data.removeprefix(b"\xef\xbb\xbf")


def _single(data: bytes, format: TextFormat) -> tuple[bytes, str]:
    """Replace a separator of several characters by one that no text uses."""
    if len(format.separator) == 1:
        return data, format.separator
    return data.replace(format.separator.encode(), _UNIT.encode()), _UNIT


def _records(
    text: bytes, separator: str, quote: str | None, *, strict: bool = False
) -> Iterator[tuple[int, list[str]]]:
    """The slow, exact way to read: number of the line (from 0) on which each record starts, and its fields."""
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE
    lines = io.StringIO(text.decode(), newline="")
    reader = csv.reader(lines, delimiter=separator, quotechar=quote or '"', quoting=quoting, strict=strict)
    line = 0
    for fields in reader:
        yield line, fields
        line = reader.line_num


def _parse(path: Path, data: bytes, first_line: int, format: TextFormat, names: list[str]) -> Chunk:
    text = _to_utf8(path, data)
    single, separator = _single(text, format)
    header = separator.join(f"c{column}" for column in range(len(names))).encode() + b"\n"
    try:
        frame = pl.read_csv(header + single, separator=separator, quote_char=format.quote, infer_schema_length=0)
    except pl.exceptions.PolarsError as error:
        raise _malformed(
            path.name, _records(single, separator, format.quote, strict=True), first_line, names
        ) from error
    frame.columns = names
    filled = ~frame.select(pl.all_horizontal(pl.all().is_null())).to_series()
    records = pl.Series("record", range(frame.height), dtype=pl.Int64).filter(filled)
    return Chunk(
        frame=frame.filter(filled), path=path, data=text, first_line=first_line, format=format, records=records
    )


def _malformed(file: str, records: Iterator[tuple[int, list[str]]], first_line: int, names: list[str]) -> DataError:
    """Find the line that could not be read: too many fields, or a quote that is never closed."""
    line = 0
    try:
        for line, fields in records:
            if len(fields) > len(names):
                where = f"{file} line {first_line + line}, column {names[-1]}"
                advice = "quote fields that hold the separator, or name another one"
                return DataError(f"{where}: expected {len(names)} fields, got {len(fields)}; {advice}")
    except csv.Error as problem:
        return DataError(f"{file} after line {first_line + line}, column {names[0]}: expected whole fields, {problem}")
    return DataError(f"{file} from line {first_line}: expected delimited text, got something else; check the file")
