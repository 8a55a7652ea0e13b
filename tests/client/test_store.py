"""The store: limits, migration, encryption, damage, and bytes that are gone when they were forgotten."""

import contextlib
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
from fedrec.client import _connection, _schema
from fedrec.client.store import Entry, Impression, Store, Training
from fedrec.errors import NotAllowed, StoreError

KEY = "a key that the app keeps elsewhere"
SECRET = "film-that-nobody-may-find"


def entry(number=0, item=None, at=None):
    return Entry(item=item or f"item-{number}", kind="click", reward=1.0, at=number if at is None else at)


def shown(number=0, item=None):
    item = item or f"item-{number}"
    return Impression(item=item, slate=f"s{number}", position=0, propensity=0.5, first_draw=0.25, at=number)


def add(store, *entries, impressions=(), most=1000, oldest=None):
    return store.add(list(entries), list(impressions), most=most, oldest=oldest)


@pytest.fixture(params=[None, KEY], ids=["plain", "encrypted"])
def key(request):
    if request.param is not None:
        pytest.importorskip("apsw")
    return request.param


@pytest.fixture
def store(tmp_path, key):
    opened = Store.create(tmp_path / "device.sqlite", key)
    yield opened
    opened.close()


def test_what_was_added_is_there_after_opening_again(store, key):
    first = Entry(
        item="é", kind="rating", reward=0.1, at=3, propensity=1 / 3, first_draw=1e-300, position=2, slate="abc"
    )
    add(store, first, impressions=[shown(7)])
    with_second = Store.open(store.path, key)
    assert [e.__class__(**{**e.__dict__, "id": 0}) for e in with_second.entries()] == [first]
    assert [one.item for one in with_second.impressions()] == ["item-7"]
    assert with_second.data_version() == with_second.data_version()
    before = store.data_version()
    add(with_second, entry(4))
    assert store.data_version() != before, "another process's writing goes unnoticed"
    with_second.close()


def test_every_commit_is_flushed_and_deleted_cells_are_overwritten(store):
    pragmas = {name: store._connection.rows(f"PRAGMA {name}")[0][0] for name in ("journal_mode", "synchronous")}
    assert pragmas == {"journal_mode": "wal", "synchronous": 2}
    assert store._connection.rows("PRAGMA secure_delete") == [(1,)]
    assert store._connection.rows("PRAGMA temp_store") == [(2,)]
    assert store.path.stat().st_mode & 0o777 == 0o600


def test_the_newest_are_kept_by_number_and_by_age(store):
    for number in range(10):
        add(store, entry(number), impressions=[shown(number)] * 2, most=6)
    assert [one.item for one in store.entries()] == [f"item-{number}" for number in range(4, 10)]
    assert store.count("impressions") == 6
    assert add(store, entry(10), most=100, oldest=8) == (1, 4 + 2)
    assert [one.at for one in store.entries()] == [8, 9, 10]
    assert store.entries(after=store.entries()[1].id)[0].at == 10


def test_ids_are_not_used_twice_so_that_marks_stay_right(store):
    add(store, entry(1), entry(2))
    last = store.entries()[-1].id
    store.forget(now=0)
    add(store, entry(3))
    assert store.entries()[0].id == last + 1


def everything(store):
    """Bytes of all files of the store."""
    return b"".join(path.read_bytes() for path in store.path.parent.iterdir() if "ledger" not in path.name)


@pytest.mark.parametrize("how", [{"item": SECRET}, {"before": 1_000}, {}], ids=["item", "before", "everything"])
def test_what_is_forgotten_is_in_none_of_the_bytes(how, tmp_path):
    store = Store.create(tmp_path / "device.sqlite")
    for number in range(400):
        hidden = number % 40 == 7
        one = entry(number, item=SECRET if hidden else f"other-{number:04d}", at=number if hidden else 2_000 + number)
        seen = Impression(item=one.item, slate=str(number), position=0, propensity=0.5, first_draw=0.5, at=one.at)
        add(store, one, impressions=[seen] * 3, most=10_000)
    assert everything(store).count(SECRET.encode()) >= 10
    removed = store.forget(now=0, **how)
    assert removed == (4 * 400 if not how else 10 + 3 * 400), "what was shown since the first of them goes with them"
    assert everything(store).count(SECRET.encode()) == 0
    assert (everything(store).count(b"other-0123") > 0) == bool(how)
    assert store.count("interactions") == (0 if not how else 390)
    store.close()


def test_bytes_that_another_reader_keeps_are_told_and_finished_by_the_next_opening(tmp_path, monkeypatch):
    monkeypatch.setattr(_connection, "BUSY_SECONDS", 0.2)
    store = Store.create(tmp_path / "device.sqlite")
    add(store, entry(item=SECRET))
    reader = sqlite3.connect(store.path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM interactions").fetchall()
    store._connection.rows("PRAGMA busy_timeout = 100")
    with pytest.raises(StoreError, match="keeps the old bytes"):
        store.forget(now=0, item=SECRET)
    assert store.count("interactions") == 0
    reader.close()
    store.close()
    Store.open(store.path).close()
    assert SECRET.encode() not in store.path.read_bytes()


def test_what_was_trained_meanwhile_on_something_forgotten_is_void(store):
    add(store, entry(1), entry(2))
    training = Training(at=1, kind="local", name="serving", version=1, last=2, used=2)
    epoch = store.epoch
    store.keep(training, epoch, "served", b"weights")
    store.forget(now=0, item="item-1")
    assert store.parameters("served") is None
    assert [one.forgotten for one in store.trainings()] == [1]
    with pytest.raises(NotAllowed):
        store.keep(training, epoch, "served", b"weights")
    assert (store.parameters("served"), len(store.trainings())) == (None, 1)


def test_a_transaction_inside_another_is_part_of_it(store):
    def both():
        with store.transaction():
            add(store, entry(1))
            store.put("name", "value")
            raise KeyError

    with pytest.raises(KeyError):
        both()
    assert (store.entries(), store.setting("name")) == ([], None)
    add(store, entry(1))
    assert len(store.entries()) == 1


def test_a_slate_is_logged_once_however_often_it_is_recorded(store):
    first = Entry(item="a", kind="click", reward=5.0, at=1, slate="one")
    again, rated = replace(first, at=2), replace(first, kind="rating", reward=3.0)
    assert add(store, first, impressions=[shown(1), shown(1, "b")]).interactions == 1
    assert add(store, again, rated, impressions=[shown(1), shown(1, "b")]).interactions == 1
    assert add(store, replace(rated, reward=4.0), replace(first, slate="two"), impressions=[shown(2)]).interactions == 2
    assert [(one.kind, one.reward, one.slate) for one in store.entries()] == [
        ("click", 5.0, "one"),
        ("rating", 3.0, "one"),
        ("rating", 4.0, "one"),
        ("click", 5.0, "two"),
    ]
    assert [one.slate for one in store.impressions()] == ["s1", "s1", "s2"]
    assert add(store, replace(first, slate=None), replace(first, slate=None)).interactions == 2, "no slate, no repeat"


def test_looking_a_slate_up_does_not_read_the_log(store):
    for table in ("impressions", "interactions"):
        plan = store._connection.rows(f"EXPLAIN QUERY PLAN SELECT 1 FROM {table} WHERE slate = ?", ("x",))
        assert f"{table}_of_slate" in str(plan)


def create_at_once(path, number):
    started = threading.Barrier(number)
    found = []

    def create():
        started.wait()
        try:
            found.append(Store.create(path))
        except StoreError as error:
            found.append(str(error))

    threads = [threading.Thread(target=create) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_of_two_who_create_the_same_store_one_does(tmp_path):
    for turn in range(8):
        found = create_at_once(tmp_path / f"{turn}.sqlite", 3)
        made = [one for one in found if isinstance(one, Store)]
        assert len(made) == 1
        assert sum("exists at" in str(one) for one in found) == 2
        add(made[0], entry(turn))
        made[0].close()
        again = Store.open(tmp_path / f"{turn}.sqlite")
        assert len(again.entries()) == 1
        again.close()


def test_a_name_that_is_a_pattern_sweeps_nothing_of_others(tmp_path):
    (tmp_path / ".d1.sqlite.new.x").mkdir()
    Store.create(tmp_path / "d[1].sqlite").close()
    (tmp_path / ".d[1].sqlite.new.x").mkdir()
    Store.open(tmp_path / "d[1].sqlite").close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".d1.sqlite.new.x", "d[1].sqlite"]


@pytest.mark.parametrize("wrong", [7, True, ["k"], 1.5])
def test_a_key_is_text_or_bytes(wrong, tmp_path):
    pytest.importorskip("apsw")
    with pytest.raises(StoreError, match="expected a key of text or bytes"):
        Store.create(tmp_path / "device.sqlite", wrong)
    assert list(tmp_path.iterdir()) == []


def old_file(path):
    """A store as version 1 wrote it, with one interaction."""
    connection = sqlite3.connect(path)
    for statement in _schema.STEPS[0]:
        connection.execute(statement)
    connection.execute(
        "INSERT INTO interactions (at, item, kind, reward) VALUES (5, 'kept', 'click', 1.0)",
    )
    connection.execute(f"PRAGMA application_id = {_schema.APPLICATION}")
    connection.execute("PRAGMA user_version = 1")
    connection.commit()
    connection.close()


def test_an_older_store_is_brought_to_this_version(tmp_path):
    old_file(tmp_path / "old.sqlite")
    store = Store.open(tmp_path / "old.sqlite")
    assert [one.item for one in store.entries()] == ["kept"]
    store.keep(Training(at=1, kind="local", name="serving", version=1, last=1, used=1), store.epoch)
    assert len(store.trainings()) == 1
    assert store._connection.rows("PRAGMA user_version") == [(_schema.VERSION,)]
    store.close()


def test_half_of_a_step_is_never_seen(tmp_path, monkeypatch):
    old_file(tmp_path / "old.sqlite")
    broken = (*_schema.STEPS[:1], (*_schema.STEPS[1], "CREATE TABLE trainings (twice INTEGER)"))
    monkeypatch.setattr(_schema, "STEPS", broken)
    with pytest.raises(StoreError, match="already exists"):
        Store.open(tmp_path / "old.sqlite")
    monkeypatch.undo()
    Store.open(tmp_path / "old.sqlite").close()


def test_a_new_file_has_the_tables_of_a_migrated_one(tmp_path):
    def tables(path):
        connection = sqlite3.connect(path)
        found = set(connection.execute("SELECT name, sql FROM sqlite_master").fetchall())
        connection.close()
        return found

    old_file(tmp_path / "old.sqlite")
    Store.open(tmp_path / "old.sqlite").close()
    Store.create(tmp_path / "new.sqlite").close()
    assert tables(tmp_path / "old.sqlite") == tables(tmp_path / "new.sqlite")


def refused(path, key=None):
    with pytest.raises(StoreError) as caught:
        Store.open(path, key)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def test_files_that_are_no_stores_are_refused_and_left_alone(tmp_path):
    other, newer = tmp_path / "other.sqlite", tmp_path / "newer.sqlite"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE theirs (x)")
    connection.commit()
    connection.close()
    Store.create(newer).close()
    connection = sqlite3.connect(newer)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    (tmp_path / "text").write_text("hello" * 1000)
    before = other.read_bytes()
    assert "another application's database" in refused(other)
    assert other.read_bytes()[40:] == before[40:] or b"theirs" in other.read_bytes()
    assert "update fedrec" in refused(newer)
    (tmp_path / "empty").touch()
    assert "got an empty file; remove it and create one" in refused(tmp_path / "empty")
    assert (tmp_path / "empty").read_bytes() == b""
    sqlite3.connect(tmp_path / "bare").execute("VACUUM").connection.close()
    assert "got a database without tables; check the path" in refused(tmp_path / "bare")
    assert "got a file that is encrypted or none at all" in refused(tmp_path / "text")
    assert "got none; create one first" in refused(tmp_path / "nothing")
    with pytest.raises(StoreError, match="exists at"):
        Store.create(other)
    with pytest.raises(StoreError, match="can't create"):
        Store.create(tmp_path / "no" / "such" / "place.sqlite")


def test_a_damaged_file_is_told_from_a_whole_one(tmp_path):
    path = tmp_path / "device.sqlite"
    store = Store.create(path)
    for number in range(300):
        add(store, entry(number))
    store.close()
    content = bytearray(path.read_bytes())
    content[8192:16384] = b"\xff" * 8192
    path.write_bytes(content)
    assert "restore a copy" in refused(path)


def test_keys_wrong_missing_and_needless(tmp_path):
    pytest.importorskip("apsw")
    Store.create(tmp_path / "locked.sqlite", KEY).close()
    Store.create(tmp_path / "plain.sqlite").close()
    assert "can't be read with this key" in refused(tmp_path / "locked.sqlite", "another")
    assert "encrypted or none at all; give its key" in refused(tmp_path / "locked.sqlite")
    assert "got a plain one; open it without a key" in refused(tmp_path / "plain.sqlite", KEY)
    with pytest.raises(StoreError, match="got an empty one"):
        Store.create(tmp_path / "empty.sqlite", b"")


def test_an_encrypted_store_shows_nothing_in_any_file(tmp_path):
    pytest.importorskip("apsw")
    store = Store.create(tmp_path / "device.sqlite", KEY)
    add(store, entry(item=SECRET), impressions=[shown(item=SECRET)])
    store.put("profile", SECRET)
    assert store.path.with_name("device.sqlite-wal").stat().st_size > 0
    found = everything(store)
    assert SECRET.encode() not in found
    assert b"interactions" not in found
    assert b"SQLite format" not in found
    store.close()


def test_any_flipped_bit_of_an_encrypted_store_is_refused(tmp_path):
    pytest.importorskip("apsw")
    path = tmp_path / "device.sqlite"
    store = Store.create(path, KEY)
    for number in range(40):
        add(store, entry(number), impressions=[shown(number)])
    store.close()
    content = path.read_bytes()
    generator = random.Random(0)
    for place in [*range(0, 100, 9), *(generator.randrange(len(content)) for _ in range(30))]:
        flipped = bytearray(content)
        flipped[place] ^= 1 << generator.randrange(8)
        path.write_bytes(flipped)
        assert "can't be" in refused(path, KEY) or "damaged" in refused(path, KEY), place
    path.write_bytes(content)
    Store.open(path, KEY).close()


def test_without_the_extra_a_key_gets_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apsw", None)
    with pytest.raises(StoreError, match=r'pip install "fedrec\[encryption\]"'):
        Store.create(tmp_path / "device.sqlite", KEY)


def test_another_process_that_writes_is_waited_for_and_then_told(tmp_path, monkeypatch):
    store = Store.create(tmp_path / "device.sqlite")
    writer = sqlite3.connect(store.path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    store._connection.rows("PRAGMA busy_timeout = 100")
    with pytest.raises(StoreError, match="in use by another process"):
        add(store, entry(1))
    writer.execute("ROLLBACK")
    writer.close()
    add(store, entry(2))
    assert [one.item for one in store.entries()] == ["item-2"]
    store.close()


def test_recording_needs_neither_torch_nor_numpy():
    code = "import sys, fedrec; fedrec.Device; print(sorted({'torch', 'numpy', 'flwr', 'opacus'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class Full:
    """A connection on a disk that has no room for a second copy of the file."""

    def __init__(self, raw):
        self._raw = raw

    def execute(self, sql, *values):
        if sql == "VACUUM":
            raise sqlite3.OperationalError("database or disk is full")
        return self._raw.execute(sql, *values)

    def __getattr__(self, name):
        return getattr(self._raw, name)


def test_forgetting_without_room_says_what_is_left_and_the_next_opening_finishes_it(tmp_path, monkeypatch, caplog):
    path = tmp_path / "device.sqlite"
    store = Store.create(path)
    add(store, entry(item=SECRET), entry(1))
    store._connection._raw = Full(store._connection._raw)
    with pytest.raises(StoreError, match=r"the rows are deleted, but no space .* make 1 MB of room and open") as caught:
        store.forget(now=0, item=SECRET)
    assert "\n" not in str(caught.value)
    assert (store.count("interactions"), store.unscrubbed) == (1, True)
    store.close()
    plain = _connection._plain
    monkeypatch.setattr(_connection, "_plain", lambda path: (Full(plain(path)[0]), plain(path)[1]))
    with caplog.at_level("WARNING", logger="fedrec.client.store"):
        still = Store.open(path)
    assert "no space is left to write" in caplog.text
    assert still.unscrubbed
    assert [one.item for one in still.entries()] == ["item-1"], "it can be used meanwhile"
    still.close()
    monkeypatch.undo()
    finished = Store.open(path)
    assert not finished.unscrubbed
    finished.close()
    assert SECRET.encode() not in path.read_bytes()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of eight megabytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill_up(path):
    junk = os.open(path, os.O_CREAT | os.O_WRONLY)
    with contextlib.suppress(OSError):
        while True:
            os.write(junk, b"x" * 4096)
    os.close(junk)


def test_a_disk_that_is_really_full(small_disk, key):
    store = Store.create(small_disk / "device.sqlite", key)
    for number in range(300):
        rows = [replace(shown(number, "x" * 100), position=place) for place in range(10)]
        add(store, entry(number, item=SECRET if number % 7 == 0 else None), impressions=rows, most=10_000)
    fill_up(small_disk / "junk")
    with pytest.raises(StoreError, match="no space is left to write"):
        store.forget(now=0, item=SECRET)
    store.close()
    again = Store.open(small_disk / "device.sqlite", key)
    assert (again.unscrubbed, again.count("interactions")) == (True, 257)
    again.close()
    (small_disk / "junk").unlink()
    done = Store.open(small_disk / "device.sqlite", key)
    assert not done.unscrubbed
    assert SECRET.encode() not in everything(done)
    done.close()


@pytest.mark.parametrize("error", ["attempt to write a readonly database", "unable to open database file"])
def test_a_store_that_may_not_be_written_is_not_called_damaged(error, tmp_path):
    path = tmp_path / "device.sqlite"
    told = _connection._sentence(path, False, error)
    assert told == f"the device store {path} can't be written; allow writing to the file and to its folder"


def test_a_full_disk_is_told_and_changes_nothing(store):
    ((pages,),) = store._connection.rows("PRAGMA page_count")
    store._connection.rows(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match="no space is left for the device store"):
        store.put("profile", "x" * 100_000)
    assert store.setting("profile") is None
