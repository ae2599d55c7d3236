"""A shard's files: its index, claims on keys, and buyers' files, whose rows move into the main file at the end."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import pytest
import zygote
from hypothesis import given, settings
from hypothesis import strategies as st

from fcot.base.errors import FcotError
from fcot.llm.store import buyers, index, shard
from fcot.llm.store.folder import StoreFolder
from fcot.llm.store.index import Index, write_index
from fcot.llm.store.keylocks import KeyLocks
from fcot.llm.store.shard import Shard


def key(number, first="a"):
    return first + hashlib.sha256(str(number).encode()).hexdigest()[1:]


def row(number, slot, text="t", request=None, **fields):
    refusal = {} if slot is not None else {"refused": "empty"}
    return {
        "key": key(number), "slot": slot, "root": None, "text": text, "request": request or f"r{number}-{slot}", "choice": 0,
        "run": "run", "time": 1.0, "finish_reason": "stop", **refusal, **fields,
    }  # fmt: skip


def lost(number, request, **bound):
    return row(number, None, request=request) | {"refused": "lost", "choice": -1} | bound


def write(path, rows):
    with path.open("ab") as file:
        file.writelines(json.dumps(entry).encode() + b"\n" for entry in rows)


def content(opened):
    """All rows of keys 0 to 99 in a shard."""
    opened.refresh()
    keys = [key(number) for number in range(100)]
    return [([opened.row(k, slot) for slot in opened.slots(k)], opened.unusable_rows(k), opened.cost_only_rows(k)) for k in keys]


@pytest.fixture
def large_shard(tmp_path, monkeypatch):
    """A shard with every kind of row, large enough to get an index."""
    monkeypatch.setattr(shard, "_UNINDEXED", 4000)
    path = tmp_path / "a.jsonl"
    rows = []
    for number in range(60):
        rows += [row(number, slot, f"text {number} {slot}") for slot in range(number % 4)]
        rows += [row(number, None)] * (number % 5 == 0) + [lost(number, "x", bound_usd=0.1)] * (number % 7 == 0)
    rows.append(row(3, 0, "a second answer"))
    write(path, rows)
    return path


# --- the index --------------------------------------------------------------------------------------------------------


def test_a_shard_reads_the_same_with_and_without_an_index(large_shard, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(shard, "_UNINDEXED", 1 << 40)
        plain = content(Shard(large_shard))
    assert not large_shard.with_suffix(".index").exists()
    assert content(Shard(large_shard)) == plain
    assert large_shard.with_suffix(".index").exists()
    assert content(Shard(large_shard)) == plain
    assert any(unusable for _, unusable, _ in plain)
    assert any(cost_only for _, _, cost_only in plain)


def test_opening_a_shard_parses_only_the_rows_after_its_index(large_shard, monkeypatch):
    Shard(large_shard).refresh()
    write(large_shard, [row(80, 0, "new")])
    parsed = []
    monkeypatch.setattr(shard, "lines", lambda handle, start: (parsed.append(line) or line for line in lines(handle, start)))
    opened = Shard(large_shard).refresh()
    assert len(parsed) == 1
    assert opened.row(key(80), 0)["text"] == "new"
    assert opened.row(key(3), 2)["text"] == "text 3 2"


lines = shard.lines


@pytest.mark.parametrize("damage", ["cut", "bytes", "header", "empty", "other_shard", "older"])
def test_a_stale_or_damaged_index_is_rebuilt(large_shard, damage):
    expected = content(Shard(large_shard))
    path = large_shard.with_suffix(".index")
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[:-10])
    elif damage == "bytes":
        path.write_bytes(data[:300] + bytes(20) + data[320:])
    elif damage == "header":
        path.write_bytes(b"[1]" + data[3:])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "other_shard":  # of the same length, as after another store was copied over this one
        text = large_shard.read_bytes().replace(b"text 59 0", b"texT 59 0")
        large_shard.write_bytes(text[: -len(text) // 2] + text[-len(text) // 2 :])
        expected = content(Shard(large_shard))
    else:
        path.write_bytes(data.replace(b'"version": 1', b'"version": 0'))
    assert content(Shard(large_shard)) == expected


def test_a_shard_that_another_process_compacted_is_read_again(large_shard):
    reader = Shard(large_shard)
    before = content(reader)
    rows = [json.loads(line) for line in large_shard.read_bytes().splitlines()]
    temporary = large_shard.with_name("new")
    write(temporary, [entry for entry in rows if entry["slot"] is not None])
    os.replace(temporary, large_shard)
    after = content(reader)
    assert [slots for slots, _, _ in after] == [slots for slots, _, _ in before]
    assert not any(unusable for _, unusable, _ in after)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.binary(min_size=16, max_size=16), st.integers(-2, 5), st.integers(0, 1 << 40)), max_size=60, unique=True))
def test_an_index_returns_the_records_that_were_written(tmp_path_factory, records):
    path, shard_file = tmp_path_factory.mktemp("index") / "i", tmp_path_factory.mktemp("index") / "s"
    shard_file.write_bytes(b"x" * 10)
    block, index._BLOCK = index._BLOCK, 4
    try:
        with shard_file.open("rb") as file:
            write_index(path, file.fileno(), 10, records)
            opened_index = Index.open(path, file.fileno())
        for half, _, _ in [*records, (bytes(16), 0, 0)]:
            assert opened_index.records(half) == sorted(record for record in records if record[0] == half)
        assert list(opened_index) == sorted(records)
    finally:
        index._BLOCK = block


# --- rows before and after an answer ------------------------------------------------------------------------------------


def test_an_answer_supersedes_the_row_of_its_request(tmp_path):
    path = tmp_path / "a.jsonl"
    write(
        path, [lost(1, "r", bound_usd=0.5), row(1, 0, request="r"), lost(1, "s", bound_usd=0.25), lost(2, "t", bound_usd=0.1), lost(2, "t")]
    )
    opened = Shard(path).refresh()
    assert [cost_only["request"] for cost_only in opened.cost_only_rows(key(1))] == ["s"]
    assert opened.cost_only_rows(key(2)) == [], "cancelled"
    assert opened.n_unusable(key(1)) == 0


def test_rows_of_older_versions_still_count(tmp_path):
    path = tmp_path / "a.jsonl"
    old = {name: value for name, value in row(1, None).items() if name != "choice"}
    write(path, [old, old, old | {"refused": "lost", "bound_usd": 0.5}, old | {"slot": 0, "refused": None}])
    opened = Shard(path).refresh()
    assert (opened.slots(key(1)), opened.n_unusable(key(1))) == ([0], 2)


# --- buyers' files ------------------------------------------------------------------------------------------------------


def buying(path, buyer, number):
    """A shard in which ``buyer`` has claimed the key of ``number``."""
    claimed = Shard(path, buyer)
    assert claimed.claim(key(number))
    claimed.refresh()
    return claimed


def test_each_buyer_writes_its_own_file_and_the_last_buyer_moves_all_rows_into_the_main_file(tmp_path):
    path = tmp_path / "a.jsonl"
    write(path, [row(0, 0)])
    first, second = buying(path, "one", 1), buying(path, "two", 2)
    first.append([lost(1, "r", bound_usd=1.0), row(1, 0, request="r"), lost(1, "s", bound_usd=2.0)])
    second.append([row(2, 0)])
    assert sorted(file.name for file in tmp_path.glob("a.*jsonl")) == ["a.jsonl", "a.one.jsonl", "a.two.jsonl"]
    before = content(Shard(path))
    first.close()
    assert (tmp_path / "a.one.jsonl").exists(), "the other buyer is still buying"
    assert content(Shard(path)) == before == content(second)
    second.close()
    assert [file.name for file in tmp_path.glob("a.*jsonl")] == ["a.jsonl"]
    assert content(Shard(path)) == before
    assert [json.loads(line)["request"] for line in path.read_bytes().splitlines()] == ["r0-0", "r", "s", "r2-0"]
    assert first.row(key(1), 0)["request"] == second.refresh().row(key(2), 0)["request"].replace("2-0", "") == "r"


def test_only_one_buyer_can_claim_a_key(tmp_path):
    path = tmp_path / "a.jsonl"
    first, second = buying(path, "one", 1), Shard(path, "two")
    assert not second.claim(key(1))
    assert second.claim(key(2))
    assert not second.lock_all(wait=False)
    first.append([row(1, 0)])
    first.sync()
    first.release(key(1))
    assert second.claim(key(1))
    assert second.refresh().has(key(1), 0)
    first.close()
    second.close()


def test_the_next_buyer_takes_over_the_rows_of_a_killed_buyer(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); from test_shard import *; from pathlib import Path\n"
        "dead = buying(Path(sys.argv[1]), 'dead', 1); dead.append([row(1, 0), row(1, 1)]); print(flush=True); import time; time.sleep(100)"
    )
    path = tmp_path / "a.jsonl"
    process = zygote.start(["-c", code, path, os.path.dirname(__file__)])
    process.stdout.readline()
    successor = Shard(path, "next")
    assert not successor.claim(key(1))
    process.kill()
    process.communicate()
    with (tmp_path / "a.dead.jsonl").open("ab") as file:
        file.write(b'{"key": "torn')
    assert successor.claim(key(1))
    assert successor.refresh().slots(key(1)) == [0, 1]
    successor.append([row(1, 2)])
    successor.close()
    assert [path.name for path in tmp_path.glob("a.*jsonl")] == ["a.jsonl"]
    assert Shard(path).refresh().slots(key(1)) == [0, 1, 2]


def test_a_kill_while_rows_are_moved_duplicates_nothing(tmp_path, monkeypatch):
    """Between the append to the shard and the removal of a buyer's file, the rows are in both."""
    path = tmp_path / "a.jsonl"
    buyer = buying(path, "one", 1)
    buyer.append([row(1, 0), row(1, None, "no"), row(1, None, "no either", request="q"), lost(1, "s", bound_usd=2.0)])
    before = content(Shard(path))
    copy = (tmp_path / "a.one.jsonl").read_bytes()
    buyer.close()
    for _ in range(2):
        (tmp_path / "a.one.jsonl").write_bytes(copy)
        assert content(Shard(path)) == before
        folder = StoreFolder(tmp_path)
        folder.shard(key(1)).claim(key(2))
        folder.close()
        assert content(Shard(path)) == before
        assert len(path.read_bytes().splitlines()) == 4


def test_locks_that_do_not_reach_another_process_are_detected(tmp_path, monkeypatch):
    """On some file systems each host has its own locks, so two processes can both claim a key."""
    monkeypatch.setattr(KeyLocks, "_set_open", lambda *_: True)
    path = tmp_path / "a.jsonl"
    first, second = buying(path, "one", 1), buying(path, "two", 1)
    first.append([lost(1, "r", bound_usd=1.0)])
    with pytest.raises(
        FcotError, match=r"a\.one\.jsonl: another process appended completions of a problem that this one has locked\. File locks"
    ):
        second.refresh()


def test_the_file_of_a_running_buyer_is_not_moved_if_locks_do_not_reach_it(tmp_path, monkeypatch):
    """A buyer on another host continues to append while a buyer that cannot see its lock ends and moves rows."""
    monkeypatch.setattr(KeyLocks, "_set_open", lambda *_: True)
    path = tmp_path / "a.jsonl"
    monkeypatch.setattr(buyers.socket, "gethostname", lambda: "elsewhere.example")
    first = buying(path, buyers.buyer_name(), 1)
    monkeypatch.setattr(buyers.socket, "gethostname", lambda: "here")
    second = buying(path, buyers.buyer_name(), 2)
    first.append([row(1, 0)])
    second.append([row(2, 0)])
    second.close()
    first.append([row(1, 1)])
    assert Shard(path).refresh().slots(key(1)) == [0, 1]
    (remaining,) = tmp_path.glob("a.*elsewhere_example*.jsonl")
    os.utime(remaining, (0, 0))
    third = buying(path, buyers.buyer_name(), 3)
    third.append([row(3, 0)])
    third.close()
    assert not remaining.exists(), "after an hour without a row its buyer counts as ended"
    assert Shard(path).refresh().slots(key(1)) == [0, 1]


def test_a_file_system_without_locks_is_an_error(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(KeyLocks, "_set_open", refuse)
    with pytest.raises(FcotError, match=r"has no working file locks \(No locks available\).*output_dir"):
        Shard(tmp_path / "a.jsonl").claim(key(1))


def test_a_lock_file_names_its_holder(tmp_path):
    first = buying(tmp_path / "a.jsonl", "one", 1)
    first.append([row(1, 0)])
    assert Shard(tmp_path / "a.jsonl").buyers().startswith(f"process {os.getpid()} on ")
    first.close()
    second = Shard(tmp_path / "a.jsonl", "two")
    assert second.lock_all(wait=False)
    assert " since 2" in Shard(tmp_path / "a.jsonl").buyers()
    second.close()


@pytest.mark.parametrize("plain", [False, True])
def test_a_lock_on_a_key_and_a_lock_on_the_whole_file_exclude_each_other(tmp_path, plain):
    """With open-file-description locks, and with plain POSIX locks where those are missing. Older versions lock the whole file."""
    locks = KeyLocks(tmp_path / "x.lock")
    locks._plain = plain
    code = (
        "import fcntl, os, sys\nfile = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n"
        "try: fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB); print('free')\nexcept OSError: print('locked')"
    )

    def whole_file():
        return subprocess.run([sys.executable, "-c", code, str(locks.path)], capture_output=True, text=True, check=True).stdout.strip()

    assert whole_file() == "free"
    assert locks.take(key(1))
    assert whole_file() == "locked"
    locks.drop(key(1))
    assert whole_file() == "free"
    assert locks.take_all(wait=False)
    assert whole_file() == "locked"
    locks.drop_all()
    assert whole_file() == "free"
    locks.take(key(2))
    locks.close()
    assert whole_file() == "free"
