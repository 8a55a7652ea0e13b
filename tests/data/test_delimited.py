"""Delimited text, piece by piece."""

from __future__ import annotations

import gzip

import pytest
from fedrec.errors import DataError
from fedrec.simulation.data import delimited
from fedrec.simulation.data.delimited import TextFormat, read_chunks, read_header, read_whole, sniff


@pytest.fixture
def write(tmp_path):
    def writer(content, name="x.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return writer


@pytest.mark.parametrize(
    ("text", "separator"),
    [("a,b\n1,2\n", ","), ("a\tb,c\td\n", "\t"), ("1::2::3\n", "::"), ("a;b\n", ";"), ("1|Film (1995)|01-Jan\n", "|")],
)
def test_separators_are_guessed(write, text, separator):
    assert sniff(write(text)).separator == separator


def test_no_separator(write):
    with pytest.raises(DataError, match=r"x.csv line 1: expected columns between .*, got 'abc'; name the separator"):
        sniff(write("abc\n"))


def test_quotes_blank_lines_and_missing_fields(write):
    path = write('id,text,n\n1,"a, ""b""\nc",5\n\n2,,\n3,plain\n')
    frame = read_whole(path, sniff(path))
    assert frame.rows() == [("1", 'a, "b"\nc', "5"), ("2", None, None), ("3", "plain", None)]


def test_quotes_are_ordinary_in_tab_files(write):
    path = write('a\tb\n"x\t1\ny"\t2\n', "x.tsv")
    assert read_whole(path, sniff(path)).rows() == [('"x', "1"), ('y"', "2")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1"])
def test_encodings(write, encoding):
    path = write("naïve,b\nCafé au lait,1\n".encode(encoding))
    assert read_header(path, sniff(path)) == ["naïve", "b"]
    assert read_whole(path, sniff(path)).rows() == [("Café au lait", "1")]


def test_a_byte_order_mark_before_data(write):
    path = write("1,2\n".encode("utf-8-sig"))
    assert read_whole(path, TextFormat(separator=",", header=False)).rows() == [("1", "2")]


def test_gzip(tmp_path):
    path = tmp_path / "x.csv.gz"
    path.write_bytes(gzip.compress(b"a,b\n1,2\n"))
    assert read_whole(path, sniff(path)).rows() == [("1", "2")]
    path.write_bytes(gzip.compress(b"a,b\n" + b"1,2\n" * 999)[:-12])
    with pytest.raises(DataError, match=r"could not read .*x.csv.gz.*check the path and that the file is whole"):
        read_whole(path, TextFormat(separator=","))


@pytest.mark.parametrize("size", [1, 7, 16, 64, 10**6])
def test_the_size_of_the_pieces_changes_nothing(write, monkeypatch, size):
    text = "id,title,n\r\n" + "".join(f'{n},"title\n{n}, ""x""",{n % 5}\r\n\r\n' for n in range(30))
    path = write(text + "30,last,4")
    monkeypatch.setattr(delimited, "CHUNK_BYTES", size)
    frame = read_whole(path, sniff(path))
    assert frame["id"].to_list() == [str(n) for n in range(31)]
    assert frame["title"][7] == 'title\n7, "x"'


@pytest.mark.parametrize("size", [16, 10**6])
def test_a_wrong_value_is_named_by_its_line(write, monkeypatch, size):
    monkeypatch.setattr(delimited, "CHUNK_BYTES", size)
    path = write('id,n\n1,1\n\n2,"2\n2"\n3,3\n4,x\n')
    chunks = read_chunks(path, sniff(path))
    found = [(chunk, chunk.frame["n"].to_list().index("x")) for chunk in chunks if "x" in chunk.frame["n"]]
    with pytest.raises(DataError, match=r"x.csv line 7, column n: expected a number, got 'x'; repair it"):
        found[0][0].fail(found[0][1], "n", "a number", "repair it")


def test_too_many_fields(write):
    path = write("a,b\n1,2\n\n1,2,3\n")
    with pytest.raises(DataError, match=r"x.csv line 4, column b: expected 2 fields, got 3; quote fields"):
        read_whole(path, sniff(path))


def test_an_open_quote(write):
    path = write('a,b\n1,2\n3,"4\n')
    with pytest.raises(DataError, match=r"x.csv after line 2, column a: expected whole fields"):
        read_whole(path, sniff(path))


def test_binary_empty_and_missing_files(write, tmp_path):
    with pytest.raises(DataError, match=r"expected x.csv to be text, got zero bytes"):
        sniff(write(b"PK\x00\x00,\n"))
    with pytest.raises(DataError, match=r"x.csv line 1: expected columns, got an empty line"):
        sniff(write(""))
    with pytest.raises(DataError, match=r"could not read .*nowhere.csv: No such file"):
        sniff(tmp_path / "nowhere.csv")


def test_a_column_twice(write):
    path = write("a,b,a\n1,2,3\n")
    with pytest.raises(DataError, match=r"x.csv line 1, column a: expected every name once"):
        read_header(path, sniff(path))
