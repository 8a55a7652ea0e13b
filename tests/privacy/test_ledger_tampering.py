"""Files and rows that were cut, altered, forged or restored: refused with a sentence, or told where they can be."""

import hashlib
import json
import math
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fedrec.errors import LedgerError
from fedrec.privacy.ledger import Ledger
from ledger_world import CHARGE, DELTA, create, filled


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite"


def test_append_only_for_anyone_who_uses_sql(path):
    filled(path)
    connection = sqlite3.connect(path)
    for statement in ("UPDATE entries SET body = '{}' WHERE sequence = 1", "DELETE FROM entries"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(statement)
    connection.close()


def tamper(path, *statements):
    """What someone does who drops the guards, edits and puts the guards back."""
    connection = sqlite3.connect(path)
    guards = [sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master WHERE type = 'trigger'")]
    for statement in ("DROP TRIGGER no_update", "DROP TRIGGER no_delete", *statements, *guards):
        connection.execute(statement)
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE entries SET body = replace(body, '2.07', '9.07') WHERE sequence = 1", "altered at row 1"),
        ("UPDATE entries SET body = replace(body, 'settle', 'settlE') WHERE sequence = 2", "altered at row 2"),
        ("UPDATE entries SET body = replace(body, '8.0', '9.0') WHERE sequence = 0", "altered at row 0"),
        ("DELETE FROM entries WHERE sequence = 1", "altered at row 1"),
        ("DELETE FROM entries WHERE sequence = 3", "was rolled back: its witness has seen 4 rows"),
        ("DELETE FROM entries WHERE sequence = 0", "altered"),
        ("DELETE FROM entries", "first rows are missing"),
        ("DROP TABLE entries", "guards were removed|not a ledger"),
    ],
)
def test_altered_rows_are_refused(path, statement, message):
    filled(path)
    if "DROP TABLE" in statement:
        connection = sqlite3.connect(path)
        connection.execute(statement)
        connection.close()
    else:
        tamper(path, statement)
    with pytest.raises(LedgerError, match=message):
        Ledger.open(path)


def forge(path, body):
    """Add a row to a filled ledger with the right hash, as someone who knows the format can."""
    export = filled(path)
    append(path, export["count"], export["head"], body)


def append(path, count, head, body):
    connection = sqlite3.connect(path)
    digest = hashlib.sha256(f"{head}\n{body}".encode()).hexdigest()
    connection.execute("INSERT INTO entries VALUES (?, ?, ?)", (count, body, digest))
    connection.commit()
    connection.close()


def create_and_receive(path, body):
    with create(path) as ledger:
        ledger.reserve("device:1", CHARGE, key="round:1")
        append(path, ledger.count, ledger.head, body)
        ledger.reserve("device:2", CHARGE, key="round:1")


def with_accounts(accounts):
    return json.dumps({"kind": "reserve", "key": "x", "charge": CHARGE.to_dict(), "accounts": accounts})


@pytest.mark.parametrize(
    "record",
    [
        {"noise_multiplier": 1.0, "sample_rate": 0.5, "steps": -1000},
        {"noise_multiplier": 1.0, "sample_rate": 0.5, "steps": 0},
        {"noise_multiplier": 1.0, "sample_rate": 0.5, "steps": 1.5},
        {"noise_multiplier": 1.0, "sample_rate": 0.5, "steps": True},
        {"noise_multiplier": 0.0, "sample_rate": 0.5, "steps": 1},
        {"noise_multiplier": -2.0, "sample_rate": 0.5, "steps": 1},
        {"noise_multiplier": math.nan, "sample_rate": 0.5, "steps": 1},
        {"noise_multiplier": math.inf, "sample_rate": 0.5, "steps": 1},
        {"noise_multiplier": "1", "sample_rate": 0.5, "steps": 1},
        {"noise_multiplier": 1.0, "sample_rate": 1.5, "steps": 1},
        {"noise_multiplier": 1.0, "sample_rate": 0.0, "steps": 1},
        {"noise_multiplier": 1.0, "sample_rate": math.nan, "steps": 1},
        {"noise_multiplier": 1.0},
    ],
)
def test_a_charge_that_gives_budget_back_is_refused_even_if_its_hash_is_right(path, record):
    accounts = {"names": [], "numbers": {"device": "3"}}
    forge(path, json.dumps({"kind": "reserve", "key": "x", "charge": record, "accounts": accounts}))
    with pytest.raises(LedgerError, match="can't be read"):
        Ledger.open(path)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("no JSON at all", "can't be read"),
        ("[]", "can't be read"),
        ("17", "can't be read"),
        ('{"kind": "refund", "key": "round:1"}', "unknown kind 'refund'"),
        ('{"kind": "settle", "key": "round:7"}', "settles 'round:7', which nobody reserved"),
        ('{"kind": "settle", "key": ""}', "expected a key, got ''"),
        ('{"kind": "settle", "key": "round:1", "refund": 8}', "fields \\['key', 'refund'\\]"),
        ('{"kind": "settings", "format": 2, "settings": {"budget_epsilon": 1e9}}', "can't be read"),
        (with_accounts({"names": [], "numbers": {}}), "one or more accounts"),
        (with_accounts({"names": [], "numbers": {"device": "5-3"}}), "packed set of numbers"),
        (with_accounts({"names": ["federation\ndevice:1"], "numbers": {}}), "without line breaks"),
        (with_accounts({"names": ["device:1"], "numbers": {}}), "one or more accounts"),
        (with_accounts(""), "without line breaks"),
        (with_accounts(None), "can't be read"),
    ],
)
def test_a_row_that_is_none_is_refused_even_if_its_hash_is_right(path, body, message):
    forge(path, body)
    with pytest.raises(LedgerError, match=message):
        Ledger.open(path)
    with pytest.raises(LedgerError, match=message):  # and by a process that had it open when the row came
        create_and_receive(path.with_name("open.sqlite"), body)


def test_the_clock_may_be_set_back(tmp_path, monkeypatch):
    """Nothing in a ledger is a time: rows, hashes and verdicts are the same under any clock and any date of files."""
    expected = filled(tmp_path / "plain")
    ticks = iter(range(2_000_000_000, 0, -1_000_000))
    for name in ("time", "time_ns", "monotonic", "monotonic_ns"):
        monkeypatch.setattr(time, name, lambda: next(ticks))
    path = tmp_path / "set back"
    with create(path) as ledger:
        ledger.reserve_many([f"device:{d}" for d in range(40)], CHARGE, key="round:1")
    for file in tmp_path.glob("set back*"):
        os.utime(file, (1, 1))
    with Ledger.open(path) as ledger:
        ledger.settle("round:1")
        ledger.reserve("device:3", CHARGE, key="round:2")
        assert ledger.export() == expected


def test_any_flipped_byte_is_refused_or_changes_nothing(path, tmp_path):
    expected = filled(path)
    content = path.read_bytes()
    copy = tmp_path / "copy.sqlite"
    refused = 0
    for position in range(0, len(content), 53):
        copy.write_bytes(content[:position] + bytes([content[position] ^ 0x11]) + content[position + 1 :])
        shutil.copy(f"{path}.witness", f"{copy}.witness")
        try:
            with Ledger.open(copy) as ledger:
                assert ledger.export() == expected
        except LedgerError:
            refused += 1
    assert refused > 20


def test_a_write_ahead_log_that_was_cut_or_altered_is_refused_or_changes_nothing(path, tmp_path):
    """What was acknowledged may lie in the log alone: SQLite drops a log from its first bad frame on without a word."""
    ledger = create(path)
    for step in range(3):
        ledger.reserve("device:1", CHARGE, key=f"round:{step}")
    expected = ledger.export()
    log, copy = Path(f"{path}-wal").read_bytes(), tmp_path / "copy.sqlite"
    assert len(log) > 20_000
    cuts = [log[:length] for length in range(0, len(log), 811)]
    flips = [log[:place] + bytes([log[place] ^ 0x40]) + log[place + 1 :] for place in range(0, len(log), 397)]
    refused = {"cut": 0, "flip": 0}
    for kind, logs in (("cut", cuts), ("flip", flips)):
        for altered in logs:
            shutil.copy(path, copy)
            shutil.copy(f"{path}.witness", f"{copy}.witness")
            Path(f"{copy}-shm").unlink(missing_ok=True)
            Path(f"{copy}-wal").write_bytes(altered)
            try:
                with Ledger.open(copy) as opened:
                    assert opened.export() == expected
            except LedgerError:
                refused[kind] += 1
    ledger.close()
    assert refused["cut"] == len(cuts)
    assert refused["flip"] > 0.9 * len(flips)


def test_any_flipped_byte_of_the_witness_is_refused_or_changes_nothing(path):
    expected = filled(path)
    witness = Path(f"{path}.witness")
    content = witness.read_bytes()
    for place in range(len(content)):
        witness.write_bytes(content[:place] + bytes([content[place] ^ 0x11]) + content[place + 1 :])
        if content[place : place + 1] == b"\n":
            continue  # only the end of the line
        with pytest.raises(LedgerError, match="witness"):
            Ledger.open(path)
    witness.write_bytes(content)
    with Ledger.open(path) as ledger:
        assert ledger.export() == expected


def test_a_database_of_somebody_else_is_refused_and_left_as_it_is(tmp_path):
    foreign = tmp_path / "bookmarks.sqlite"
    connection = sqlite3.connect(foreign)
    connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.commit()
    connection.close()
    before = foreign.read_bytes()
    with pytest.raises(LedgerError, match="is not a ledger of this format"):
        Ledger.open(foreign)
    assert foreign.read_bytes() == before
    assert list(tmp_path.iterdir()) == [foreign]


def test_truncated_empty_missing_or_foreign_files_are_refused(path, tmp_path):
    filled(path)
    content = path.read_bytes()
    copy = tmp_path / "copy.sqlite"
    for length in (0, 50, 4096, len(content) // 2, len(content) - 4096, len(content) - 1):
        copy.write_bytes(content[:length])
        shutil.copy(f"{path}.witness", f"{copy}.witness")
        with pytest.raises(LedgerError):
            Ledger.open(copy)
    with pytest.raises(LedgerError, match="is missing; without it nothing may be trained"):
        Ledger.open(tmp_path / "nowhere.sqlite")
    copy.write_text("a text file, not a ledger at all " * 200)
    with pytest.raises(LedgerError):
        Ledger.open(copy)


def test_a_lost_write_ahead_log_or_witness_is_noticed(path, tmp_path):
    with create(path) as ledger:
        ledger.reserve("device:1", CHARGE, key="a")
        copy = tmp_path / "copy.sqlite"
        shutil.copy(path, copy)  # without the -wal file, where the debit still is
        shutil.copy(f"{path}.witness", f"{copy}.witness")
    with pytest.raises(LedgerError):
        Ledger.open(copy)
    Path(f"{path}.witness").unlink()
    with pytest.raises(LedgerError, match=r"witness .* is missing or unreadable"):
        Ledger.open(path)


def test_drafts_of_killed_processes_go_and_those_of_the_living_stay(path):
    filled(path)
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    drafts = [Path(f"{path}.witness.{name}") for name in (int(gone.stdout), 10**30, os.getppid(), "mine")]
    for draft in drafts:
        draft.write_text("3 ab")
    Ledger.open(path).close()
    assert [draft.exists() for draft in drafts] == [False, False, True, True]


def test_a_restored_older_copy_is_noticed(path, tmp_path):
    filled(path)
    older = path.read_bytes()
    with Ledger.open(path) as ledger:
        ledger.reserve("device:1", CHARGE, key="later")
    path.write_bytes(older)
    with pytest.raises(LedgerError, match="rolled back"):
        Ledger.open(path)


def test_an_older_copy_with_its_witness_is_noticed_only_by_who_kept_the_counter(path):
    """Both files together are a ledger as it once was: nothing in them can tell. The server's checkpoint can."""
    filled(path)
    files = {file: file.read_bytes() for file in path.parent.iterdir()}
    with Ledger.open(path) as ledger:
        ledger.reserve("device:1", CHARGE, key="later")
        kept = ledger.count, ledger.head
    for file, content in files.items():
        file.write_bytes(content)
    with Ledger.open(path) as ledger:
        assert not ledger.extends(*kept)
        ledger.reserve("device:2", CHARGE, key="another")  # as many rows again, of another history
        assert ledger.count == kept[0]
        assert not ledger.extends(*kept)


def test_a_ledger_of_format_1_is_read_and_goes_on(path):
    """It lists the names of a debit one a line; what is added to it is written as today."""
    filled(path)
    bodies = [
        {"kind": "settings", "format": 1, "settings": {"unit": "interaction", "delta": DELTA, "budget_epsilon": 8.0,
                                                       "accountant": "rdp"}},
        {"kind": "reserve", "key": "round:1", "charge": CHARGE.to_dict(), "accounts": "device:1\ndevice:2"},
        {"kind": "settle", "key": "round:1"},
    ]  # fmt: skip
    rows, head = [], ""
    for number, body in enumerate(map(json.dumps, bodies)):
        head = hashlib.sha256(f"{head}\n{body}".encode()).hexdigest()
        rows.append((number, body, head))
    tamper(path, "DELETE FROM entries")
    connection = sqlite3.connect(path)
    connection.executemany("INSERT INTO entries VALUES (?, ?, ?)", rows)
    connection.commit()
    connection.close()
    Path(f"{path}.witness").write_text(f"3 {head}\n")
    with Ledger.open(path) as ledger:
        assert ledger.reserve_many(["device:2", "device:3"], CHARGE, key="round:1", replay=True).refused == frozenset()
    with Ledger.open(path) as ledger:
        assert list(ledger.export()["accounts"]) == ["device:1-3"]
        assert ledger.count == 4
