"""Encoding in closed form: what each kind of column turns into."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from fedrec.errors import DataError
from fedrec.simulation.data.features import FeatureOptions, encode_table, stable_hash, text_grams
from fedrec.simulation.data.tables import FeatureTable, join_title, split_title
from hypothesis import given, settings
from hypothesis import strategies as st


def _encode(kind, values, **options):
    dtype = {"multilabel": pl.List(pl.String), "category": pl.String, "text": pl.String}.get(kind, pl.Float64)
    frame = pl.DataFrame({"id": [str(n) for n in range(len(values))], "x": pl.Series(values, dtype=dtype)})
    return encode_table(FeatureTable(frame=frame, kinds={"x": kind}), FeatureOptions(**options))


def test_category():
    found = _encode("category", ["b", "a", None, "b"])
    assert found.names == ("x=a", "x=b")
    assert found.matrix.tolist() == [[0, 1], [1, 0], [0, 0], [0, 1]]
    assert [(g.name, g.kind, g.start, g.stop) for g in found.groups] == [("x", "category", 0, 2)]


def test_rare_categories_share_hashed_columns():
    values = ["z"] * 3 + ["y"] * 2 + ["c", "d", "e"]
    found = _encode("category", values, category_cap=2, hash_buckets=4)
    assert found.names == ("x=y", "x=z", "x#0", "x#1", "x#2", "x#3")
    for row, value in enumerate(values):
        column = {"y": 0, "z": 1}.get(value, 2 + stable_hash(f"x={value}") % 4)
        assert found.matrix[row].tolist() == np.eye(6)[column].tolist()


def test_multilabel():
    found = _encode("multilabel", [["a", "b", "c", "d"], ["b"], [], None, ["b", "b"]])
    assert found.names == ("x=a", "x=b", "x=c", "x=d")
    assert found.matrix.tolist() == [[0.5] * 4, [0, 1, 0, 0], [0] * 4, [0] * 4, [0, 1, 0, 0]]


def test_number():
    found = _encode("number", [1.0, 3.0, None, 2.0])
    spread = np.std([1, 3, 2])
    np.testing.assert_allclose(found.matrix[:, 0], [-1 / (3 * spread), 1 / (3 * spread), 0, 0], rtol=1e-6)


def test_an_outlier_is_cut_and_a_constant_is_nothing():
    values = [0.0] * 99 + [1000.0]
    assert _encode("number", values).matrix.max() == 1.0
    assert (_encode("number", [7.0, 7.0]).matrix == 0).all()
    assert (_encode("number", [None, None]).matrix == 0).all()


def test_number_bins():
    found = _encode("number", [1.0, 2.0, 3.0, 4.0, None], number_bins=2)
    assert found.names == ("x", "x:bin0", "x:bin1")
    half = np.float32(1 / np.sqrt(2))
    assert found.matrix[:, 1:].tolist() == [[half, 0], [half, 0], [0, half], [0, half], [0, 0]]


def test_year():
    found = _encode("year", [1990.0, 1994.0, 1995.0, None, 2011.0])
    assert found.names == ("x", "x=1990-1994", "x=1995-1999", "x=2010-2014")
    assert found.groups[0].kind == "number"
    half = np.float32(1 / np.sqrt(2))
    assert found.matrix[:, 1:].tolist() == [[half, 0, 0], [half, 0, 0], [0, half, 0], [0, 0, 0], [0, 0, half]]
    known = np.array([1990, 1994, 1995, 2011])
    z = (known - known.mean()) / (3 * known.std()) * half
    np.testing.assert_allclose(found.matrix[[0, 1, 2, 4], 0], z, rtol=1e-5)
    assert _encode("year", [1990.0], year_bin=10).names == ("x", "x=1990-1999")
    assert _encode("year", [1990.0], year_bin=0).names == ("x",)


def test_age_has_public_bins():
    found = _encode("age", [17.0, 18.0, 24.0, 25.0, 55.0, 56.0, None])
    assert found.names[0] == "x=under 18"
    assert found.matrix.argmax(axis=1).tolist() == [0, 1, 1, 2, 5, 6, 0]
    assert found.matrix.sum(axis=1).tolist() == [1, 1, 1, 1, 1, 1, 0]


def test_text_is_hashed_with_a_sign():
    buckets = 8
    found = _encode("text", ["Red Ox", "", None], text_buckets=buckets)
    grams = ["red", "ox", "red ox", "# re", "#red", "#ed ", "# ox", "#ox "]
    assert text_grams("Red Ox") == grams
    row = np.zeros(buckets)
    for gram in grams:
        code = stable_hash(gram)
        row[(code >> 1) % buckets] += 1 if code & 1 else -1
    np.testing.assert_allclose(found.matrix[0], row / np.linalg.norm(row), rtol=1e-6)
    assert (found.matrix[1:] == 0).all()
    assert _encode("text", ["Red Ox"], text_buckets=0).matrix.shape == (1, 0)


def test_similar_texts_are_close():
    matrix = _encode("text", ["Star Wars", "Star Wars II", "Café au lait"], text_buckets=256).matrix
    assert matrix[0] @ matrix[1] > 0.6
    assert abs(matrix[0] @ matrix[2]) < 0.4


def test_hashes_are_the_same_everywhere():
    assert stable_hash("Misérables") == 6334102652375705177  # b2sum -l 64


_cells = {
    "category": st.none() | st.text(max_size=3),
    "multilabel": st.none() | st.lists(st.text(max_size=2), max_size=4),
    "number": st.none() | st.floats(-1e6, 1e6),
    "year": st.none() | st.integers(1900, 2030).map(float),
    "age": st.none() | st.integers(0, 120).map(float),
    "text": st.none() | st.text(max_size=20),
}


@settings(deadline=None, max_examples=80)
@given(data=st.data(), kind=st.sampled_from(sorted(_cells)), bins=st.integers(0, 4))
def test_every_block_of_every_row_has_norm_at_most_one(data, kind, bins):
    values = data.draw(st.lists(_cells[kind], min_size=1, max_size=12))
    found = _encode(kind, values, category_cap=3, hash_buckets=2, number_bins=bins, text_buckets=6)
    assert found.matrix.shape == (len(values), len(found.names))
    assert found.matrix.dtype == np.float32
    assert np.isfinite(found.matrix).all()
    assert np.linalg.norm(found.matrix, axis=1).max(initial=0) <= 1 + 1e-6


def test_blocks_stand_side_by_side():
    frame = pl.DataFrame({"id": ["1"], "a": ["x"], "b": [["y", "z"]], "c": ["word"]})
    table = FeatureTable(frame=frame, kinds={"a": "category", "c": "text", "b": "multilabel"})
    found = encode_table(table, FeatureOptions(text_buckets=3))
    assert [(g.name, g.start, g.stop) for g in found.groups] == [("a", 0, 1), ("c", 1, 4), ("b", 4, 6)]
    assert found.names == ("a=x", "c~0", "c~1", "c~2", "b=y", "b=z")


def test_wrong_options_and_kinds():
    with pytest.raises(ValueError, match="expected text_buckets to be an integer >= 0, got -1"):
        FeatureOptions(text_buckets=-1)
    with pytest.raises(ValueError, match="expected category_cap to be an integer >= 1, got 0"):
        FeatureOptions(category_cap=0)
    with pytest.raises(DataError, match=r"expected x \(number\) to be Float64, got String"):
        FeatureTable(frame=pl.DataFrame({"id": ["1"], "x": ["a"]}), kinds={"x": "number"})
    with pytest.raises(DataError, match="expected the kind of x to be one of category"):
        FeatureTable(frame=pl.DataFrame({"id": ["1"], "x": ["a"]}), kinds={"x": "colour"})


@pytest.mark.parametrize(
    ("text", "title", "year"),
    [
        ("Toy Story (1995)", "Toy Story", 1995),
        ("Seven (Se7en) (1995)", "Seven (Se7en)", 1995),
        ("Land Before Time III (1995) (V)", "Land Before Time III", 1995),
        ("unknown", "unknown", None),
        ("2001: A Space Odyssey", "2001: A Space Odyssey", None),
        ("Misérables, Les (1995) ", "Misérables, Les", 1995),
    ],
)
def test_titles_with_years(text, title, year):
    assert split_title(text) == (title, year)
    assert split_title(join_title(title, year)) == (title, year)


def test_tables_survive_the_disk(tmp_path):
    frame = pl.DataFrame({"id": ["1", "2"], "g": [["a", "b"], None], "n": [1.5, None]})
    table = FeatureTable(frame=frame, kinds={"g": "multilabel", "n": "number"}, titles=["Ä", "ß"])
    table.save(tmp_path / "items.parquet")
    opened = FeatureTable.open(tmp_path / "items.parquet")
    assert opened.frame.equals(frame)
    assert (dict(opened.kinds), list(opened.titles or [])) == (dict(table.kinds), ["Ä", "ß"])
    (tmp_path / "items.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"could not read .*items.parquet"):
        FeatureTable.open(tmp_path / "items.parquet")
