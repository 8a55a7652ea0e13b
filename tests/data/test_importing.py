"""Strangers' files: every trap, every form, and one sentence for what is broken."""

from __future__ import annotations

import re

import numpy as np
import polars as pl
import pytest
from fedrec.errors import DataError
from fedrec.simulation.data import FeatureOptions, describe, import_dataset, leave_two_out, list_datasets, load

LOG = "userId,movieId,rating,timestamp\n7,100,3.5,20\n7,9,1,10\n9,9,5,30\n"


@pytest.fixture
def files(tmp_path, cache):
    directory = tmp_path / "mine"
    directory.mkdir()

    def write(**contents):
        for name, content in contents.items():
            stem, _, suffix = name.rpartition("_")
            data = content if isinstance(content, bytes) else content.encode()
            (directory / f"{stem}.{suffix}").write_bytes(data)
        return directory

    return write


@pytest.fixture
def take(files):
    """Import one log with whatever options, silently."""

    def importer(content, name="ratings_csv", **options):
        directory = files(**{name: content})
        return import_dataset(directory / name.replace("_", "."), "mine", progress=lambda line: None, **options)

    return importer


def _log(dataset, device=0):
    rows = dataset.rows(device)
    met = [dataset.catalogue.item_ids[item] for item in dataset.items[rows]]
    return list(zip(met, dataset.rewards[rows].tolist(), strict=True))


def test_usual_names_are_found(take):
    dataset = take(LOG)
    assert dataset.device_ids == ("7", "9")
    assert dataset.catalogue.item_ids == ("9", "100")
    assert _log(dataset) == [("9", 1.0), ("100", 3.5)]
    assert dataset.timestamps.tolist() == [10, 20, 30]
    assert dataset.reward_kind == "rating"
    assert dataset.reward_range == (1, 5)


def test_it_can_be_loaded_by_name(take):
    dataset = take(LOG)
    assert load("mine").fingerprint() == dataset.fingerprint()
    info = next(info for info in list_datasets() if info.name == "mine")
    assert (info.kind, info.available, info.devices, info.items, info.interactions) == ("imported", True, 2, 2, 3)


@pytest.mark.parametrize("separator", ["\t", ";", "|", "::"])
def test_separators(take, separator):
    assert take(LOG.replace(",", separator), "ratings_txt").fingerprint() == take(LOG, replace=True).fingerprint()


def test_a_mapping_overrides_names(take):
    content = "who,what,rating,stars,when\na,x,9,1,2\na,y,9,2,1\n"
    mapping = {"user": "who", "item": "what", "rating": "stars", "timestamp": "when"}
    assert _log(take(content, mapping=mapping)) == [("y", 2.0), ("x", 1.0)]
    assert _log(take(content, mapping={**mapping, "rating": None, "timestamp": None}, replace=True)) == [
        ("x", 1.0),
        ("y", 1.0),
    ]


def test_a_file_without_a_header(take):
    dataset = take("196\t242\t3\t20\n196\t5\t1\t10\n", "u_data")
    assert _log(dataset) == [("5", 1.0), ("242", 3.0)]
    swapped = take("a,5\nb,6\n", header=False, mapping={"user": 2, "item": 1}, replace=True)
    assert swapped.device_ids == ("5", "6")


def test_text_ids_with_leading_zeros_and_other_scripts(take):
    dataset = take("user,item\n007,Amélie\n7,アキラ\nÜwe,Amélie\n")
    assert dataset.device_ids == ("007", "7", "Üwe")
    assert dataset.catalogue.item_ids == ("Amélie", "アキラ")


def test_without_ratings_and_times_everything_is_a_click_in_file_order(take):
    dataset = take("user,item\nu,c\nu,a\nu,b\n")
    assert [item for item, _ in _log(dataset)] == ["c", "a", "b"]
    assert dataset.timestamps is None
    assert (dataset.rewards == 1).all()
    assert dataset.reward_kind == "click"
    assert describe(dataset)["span"] is None


@pytest.mark.parametrize(
    ("column", "values", "kind", "bounds"),
    [
        ("rating", ["-10", "-0.5", "9.75"], "rating", (-10, 9.75)),
        ("rating", ["0", "10", "5"], "rating", (0, 10)),
        ("plays", ["1", "3", "4500"], "count", (1, 4500)),
        ("rating", ["0", "1", "1"], "click", (0, 1)),
        ("click", ["0", "1", "1"], "click", (0, 1)),
    ],
)
def test_scales(take, column, values, kind, bounds):
    content = f"user,item,{column}\n" + "".join(f"u,{n},{value}\n" for n, value in enumerate(values))
    dataset = take(content)
    assert dataset.rewards.tolist() == [float(value) for value in values]
    assert (dataset.reward_kind, dataset.reward_range) == (kind, bounds)


def test_kind_and_range_can_be_told(take):
    dataset = take(LOG, reward_kind="count", reward_range=(0, 5))
    assert (dataset.reward_kind, dataset.reward_range) == ("count", (0, 5))


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("1600000000", 1600000000),
        ("1600000000.75", 1600000000),
        ("8.8e8", 880000000),
        ("1600000000123", 1600000000),
        ("1600000000123456789", 1600000000),
        ("2020-09-13T12:26:40", 1600000000),
        ("2020-09-13 12:26:40", 1600000000),
        ("2020-09-13T12:26:40Z", 1600000000),
    ],
)
def test_times(take, written, seconds):
    assert take(f"user,item,timestamp\nu,a,{written}\n").timestamps.tolist() == [seconds]


def test_milliseconds_order_before_they_are_cut(take):
    dataset = take("user,item,timestamp\nu,late,1600000000900\nu,soon,1600000000100\n")
    assert [item for item, _ in _log(dataset)] == ["soon", "late"]


def test_repeated_rows(take):
    content = "user,item,rating,timestamp\nu,a,1,1\nu,b,2,2\nu,a,3,3\n"
    assert _log(take(content)) == [("b", 2.0), ("a", 3.0)]
    assert _log(take(content, repeats="first", replace=True)) == [("a", 1.0), ("b", 2.0)]
    kept = take(content, repeats="keep", replace=True)
    assert _log(kept) == [("a", 1.0), ("b", 2.0), ("a", 3.0)]
    assert describe(kept)["repeated_rows"] == 1


def test_dropped_repeats_are_told(files):
    lines: list[str] = []
    path = files(r_csv="user,item,rating\nu,a,1\nu,a,3\n") / "r.csv"
    import_dataset(path, "mine", progress=lines.append)
    assert "mine: 1 interactions repeat an earlier user and item; the last of each was kept" in lines


def test_users_with_one_interaction(take):
    dataset = take("user,item\nu,a\nv,a\nw,a\nw,b\n")
    assert describe(dataset)["devices_with_one_interaction"] == 2
    assert leave_two_out(dataset).test.tolist() == [-1, -1, -1]


def test_propensities(take):
    assert take("user,item,click,propensity\nu,a,1,0.25\n").propensities.tolist() == [0.25]
    with pytest.raises(DataError, match=r"line 2, column propensity: expected a probability in \(0, 1\], got '0'"):
        take("user,item,propensity\nu,a,0\n", replace=True)


ITEMS = """movieId,title,genres,price,url
9,"Amélie, La (2001)",Comedy|Romance,1.5,http://a
100,Akira (1988),Animation,,http://b
555,Never Rated (2001),,3,http://c
"""
USERS = "id,gender,age\n9,F,24\n7,M,60\n1000,F,30\n"


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_tables(files, encoding):
    directory = files(ratings_csv=LOG, items_csv=ITEMS.encode(encoding), users_csv=USERS)
    lines: list[str] = []
    dataset = import_dataset(
        directory / "ratings.csv",
        "mine",
        items=directory / "items.csv",
        users=directory / "users.csv",
        features=FeatureOptions(text_buckets=4),
        item_kinds={"url": "skip"},
        progress=lines.append,
    )
    assert dataset.catalogue.titles == ("Amélie, La (2001)", "Akira (1988)", "Never Rated (2001)")
    assert dataset.items.tolist() == [0, 1, 0]
    assert [g.name for g in dataset.catalogue.groups] == ["title", "genres", "price", "title year"]
    names = dataset.catalogue.feature_names
    assert {"genres=Animation", "genres=Comedy", "genres=Romance", "title~0", "title year=2000-2004"} <= set(names)
    row = dict(zip(names, dataset.catalogue.features[0].tolist(), strict=True))
    assert row["genres=Comedy"] == pytest.approx(np.sqrt(0.5))
    assert dataset.device_ids == ("7", "9")
    assert "gender=M" in dataset.device_feature_names
    assert describe(dataset)["items_never_met"] == 1
    assert any("left out url" in line for line in lines)


def test_features_can_be_encoded_anew_when_loaded(files):
    directory = files(ratings_csv=LOG, items_csv=ITEMS)
    options = {"items": directory / "items.csv", "progress": lambda line: None}
    import_dataset(directory / "ratings.csv", "mine", **options)
    assert describe(load("mine"))["item_features"]["title"] == 32
    narrow = load("mine", text_buckets=8)
    assert describe(narrow)["item_features"]["title"] == 8
    assert narrow.items.tolist() == load("mine").items.tolist()


def test_parquet(files):
    directory = files(ratings_csv=LOG, items_csv=ITEMS)
    frame = pl.read_csv(directory / "ratings.csv").with_columns(pl.from_epoch("timestamp"))
    frame.write_parquet(directory / "ratings.parquet")
    genres = pl.DataFrame({"movieId": [9, 100], "genres": [["Comedy", "Romance"], ["Animation"]]})
    genres.write_parquet(directory / "items.parquet")
    dataset = import_dataset(directory / "ratings.parquet", "p", items=directory / "items.parquet")
    assert _log(dataset) == [("9", 1.0), ("100", 3.5)]
    assert dataset.timestamps.tolist() == [10, 20, 30]
    assert dataset.catalogue.feature_names == ("genres=Animation", "genres=Comedy", "genres=Romance")


def test_broken_parquet(files):
    directory = files(cut_parquet=b"PAR1 and no more")
    frame = pl.DataFrame({"user": [1, 1], "item": [1, 2], "rating": [1.0, float("nan")]})
    frame.write_parquet(directory / "nan.parquet")
    with pytest.raises(DataError, match=r"could not read cut.parquet as parquet"):
        import_dataset(directory / "cut.parquet", "mine")
    with pytest.raises(DataError, match=r"nan.parquet row 2, column rating: expected a finite number, got nan"):
        import_dataset(directory / "nan.parquet", "mine")


ATOMIC = {
    "x_inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    "1\tb\t3\t20.0\n1\ta\t4\t10.0\n2\ta\t5\t5.0\n",
    "x_item": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\tv:float_seq\n"
    "a\tBig Fish\t2003\tDrama Fantasy\t1 2\nb\tUp\t2009\tAnimation\t1 2\nc\tTen\tunknown\t\t1 2\n",
    "x_user": "user_id:token\tage:token\tgender:token\theight:float\n1\t24\tM\t180\n2\t53\tF\t170\n",
}


@pytest.mark.parametrize("where", ["", "x.inter"])
def test_recbole_atomic_files(files, where):
    dataset = import_dataset(files(**ATOMIC) / where, "mine", features=FeatureOptions(text_buckets=2))
    assert _log(dataset) == [("a", 4.0), ("b", 3.0)]
    assert dataset.catalogue.titles == ("Big Fish", "Up", "Ten")
    kinds = {g.name: (g.kind, g.stop - g.start) for g in dataset.catalogue.groups}
    assert kinds["movie_title"] == ("text", 2)
    assert kinds["class"] == ("multilabel", 3)
    assert kinds["release_year"][0] == "number"
    assert "v" not in kinds
    assert set(dataset.device_feature_names) >= {"age=18-24", "gender=F", "gender=M", "height"}


def test_atomic_files_without_tables_and_with_a_wrong_header(files):
    directory = files(x_inter=ATOMIC["x_inter"])
    assert import_dataset(directory, "mine").catalogue.features.shape == (2, 0)
    files(y_inter="user_id:token\titem_id\n1\t2\n")
    with pytest.raises(DataError, match=r"expected one .inter file in .*, found x.inter, y.inter; name the file"):
        import_dataset(directory, "other")
    message = "y.inter line 1, column item_id: expected a name and one of the types token, token_seq, float, float_seq"
    with pytest.raises(DataError, match=message):
        import_dataset(directory / "y.inter", "other")


HEAD = "user,item,rating,timestamp\n"
GOOD = "u,a,1,5\n" * 15


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            HEAD + GOOD + "u,b,abc,5\n",
            "ratings.csv line 17, column rating: expected a finite number, got 'abc'; correct",
        ),
        (HEAD + GOOD + "u,b,nan,5\n", "ratings.csv line 17, column rating: expected a finite number, got 'nan'"),
        (HEAD + GOOD + "u,b,-inf,5\n", "ratings.csv line 17, column rating: expected a finite number, got '-inf'"),
        (HEAD + GOOD + "u,b,1e39,5\n", "ratings.csv line 17, column rating: expected a number that fits 32 bits"),
        (HEAD + GOOD + "u,b,,5\n", "ratings.csv line 17, column rating: expected a finite number, got nothing"),
        (
            HEAD + GOOD + "u,b,1,soon\n",
            "ratings.csv line 17, column timestamp: expected seconds since 1970 or an ISO date",
        ),
        (HEAD + GOOD + "u,b,1,nan\n", "ratings.csv line 17, column timestamp: expected seconds"),
        (HEAD + GOOD + ",b,1,5\n", "ratings.csv line 17, column user: expected an id, got nothing; complete or remove"),
        (HEAD + GOOD + "u,  ,1,5\n", "ratings.csv line 17, column item: expected an id, got '  '"),
        (
            HEAD + GOOD + "u,b",
            "ratings.csv line 17, column rating: expected a finite number, got a line of 2 fields instead of 4; "
            "the file may be cut short: get it again",
        ),
        (HEAD + GOOD + "u,b,1,5,6\n", "ratings.csv line 17, column timestamp: expected 4 fields, got 5"),
        (HEAD, "expected interactions in ratings.csv, got none"),
        ("", "ratings.csv line 1: expected columns, got an empty line"),
        (
            "person,item\nu,a\n",
            "ratings.csv line 1: expected a column for the user among person, item, recognised none; name it in the "
            "mapping as user=COLUMN",
        ),
        ("user,thing\nu,a\n", "expected a column for the item among user, thing, recognised none"),
    ],
)
def test_broken_files_get_a_sentence_and_nothing_is_registered(take, cache, content, message):
    with pytest.raises(
        DataError, match="^" + re.escape(message) if message.startswith("ratings") else message
    ) as error:
        take(content)
    assert "\n" not in str(error.value)
    assert "mine" not in [info.name for info in list_datasets()]
    assert not list(cache.rglob("*.npy"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"mapping": {"user": "nobody"}},
            "expected a column for the user among userId, movieId, rating, timestamp, got",
        ),
        ({"mapping": {"who": "userId"}}, "expected a mapping of user, item, .*, got 'who'"),
        ({"item_kinds": {"genre": "multilabel"}}, "expected a table of items to apply the kinds of genre to, got none"),
        ({"repeats": "all"}, "expected repeats to be last, first or keep, got 'all'"),
    ],
)
def test_wrong_options(take, options, message):
    with pytest.raises(DataError, match=message):
        take(LOG, **options)


@pytest.mark.parametrize(
    ("items", "options", "message"),
    [
        (
            "x,title\n1,a\n",
            {},
            "items.csv line 1: expected a column for the item's id among x, title, got None; name it",
        ),
        ("movieId,title\n1,a\n,b\n", {}, "items.csv line 3, column movieId: expected an id, got nothing"),
        ("movieId,title\n1,a\n1,b\n", {}, "items.csv: expected every id once, got '1' again; drop one of the rows"),
        (
            "movieId,size\n1,2\n3,x\n",
            {"item_kinds": {"size": "number"}},
            "items.csv row 2, column size: expected a finite",
        ),
        ("movieId,size\n1,2\n", {"item_kinds": {"sise": "number"}}, "items.csv line 1: .* among size, got 'sise'"),
        ("movieId,size\n1,2\n", {"item_kinds": {"size": "huge"}}, "expected the kind of column size to be one of"),
        ("movieId,size\n", {}, "expected rows in items.csv, got none"),
    ],
)
def test_broken_tables(files, items, options, message):
    directory = files(ratings_csv=LOG, items_csv=items)
    with pytest.raises(DataError, match=message):
        import_dataset(directory / "ratings.csv", "mine", items=directory / "items.csv", **options)
    assert [info.name for info in list_datasets() if info.kind == "imported"] == []


@pytest.mark.parametrize("name", ["ml-100k", "synthetic", "shop"])
def test_registered_names_are_taken(files, name):
    with pytest.raises(DataError, match=f"expected a name of your own, got '{name}', which is registered"):
        import_dataset(files(r_csv=LOG) / "r.csv", name)


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b"])
def test_names_are_plain(files, name):
    with pytest.raises(DataError, match="expected a name of letters, digits, dots, dashes and underscores"):
        import_dataset(files(r_csv=LOG) / "r.csv", name)


def test_a_name_is_used_once_unless_replaced(take):
    take(LOG)
    with pytest.raises(DataError, match="expected a new name, got 'mine', which is an imported data set already"):
        take(LOG)
    assert take("user,item\nu,a\n", replace=True).interactions == 1
    assert load("mine").interactions == 1


def test_a_missing_file(cache, tmp_path):
    with pytest.raises(DataError, match=r"expected a file at .*nowhere.csv, found none"):
        import_dataset(tmp_path / "nowhere.csv", "mine")


def test_numbers_and_dates_in_one_column(take):
    dataset = take("user,item,timestamp\nu,a,2020-09-13\nu,b,1600000000\nu,c,1.5e9\n")
    assert dataset.timestamps.tolist() == [1500000000, 1599955200, 1600000000]


@pytest.mark.parametrize(("titles", "dated"), [(("A (1999)", "B (2001)", "C"), True), (("A (1999)", "B", "C"), False)])
def test_years_in_titles_count_when_most_have_one(files, titles, dated):
    items = "movieId,title\n" + "".join(f"{n},{title}\n" for n, title in enumerate(titles))
    directory = files(ratings_csv=LOG, items_csv=items)
    dataset = import_dataset(directory / "ratings.csv", "mine", items=directory / "items.csv")
    assert ("title year" in [group.name for group in dataset.catalogue.groups]) == dated
    assert dataset.catalogue.titles[:3] == titles
