"""A shard's files: the index beside it, claims on keys, buyers' files and how they are put together again."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import pytest
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


def row(number, slot, text="t", request=None, **more):
    refused = {} if slot is not None else {"refused": "empty"}
    return {
        "key": key(number), "slot": slot, "root": None, "text": text, "request": request or f"r{number}-{slot}", "choice": 0,
        "run": "run", "time": 1.0, "finish_reason": "stop", **refused, **more,
    }  # fmt: skip


def lost(number, request, **bound):
    return row(number, None, request=request) | {"refused": "lost", "choice": -1} | bound


def write(path, rows):
    with path.open("ab") as file:
        file.writelines(json.dumps(one).encode() + b"\n" for one in rows)


def content(one):
    """Everything that a shard says of keys 0 to 99."""
    one.refresh()
    keys = [key(number) for number in range(100)]
    return [([one.row(k, slot) for slot in one.slots(k)], one.unusable_rows(k), one.cost_only_rows(k)) for k in keys]


@pytest.fixture
def big(tmp_path, monkeypatch):
    """A shard so large that it gets an index, with every kind of row."""
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


def test_a_shard_with_an_index_says_what_one_without_it_says(big, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(shard, "_UNINDEXED", 1 << 40)
        plain = content(Shard(big))
    assert not big.with_suffix(".index").exists()
    assert content(Shard(big)) == plain
    assert big.with_suffix(".index").exists()
    assert content(Shard(big)) == plain
    assert any(refused for _, refused, _ in plain)
    assert any(unused for _, _, unused in plain)


def test_opening_reads_what_came_after_the_index_only(big, monkeypatch):
    Shard(big).refresh()
    write(big, [row(80, 0, "new")])
    parsed = []
    monkeypatch.setattr(shard, "lines", lambda handle, start: (parsed.append(one) or one for one in lines(handle, start)))
    one = Shard(big).refresh()
    assert len(parsed) == 1
    assert one.row(key(80), 0)["text"] == "new"
    assert one.row(key(3), 2)["text"] == "text 3 2"


lines = shard.lines


@pytest.mark.parametrize("damage", ["cut", "bytes", "header", "empty", "other_shard", "older"])
def test_an_index_that_is_stale_or_damaged_is_made_again(big, damage):
    whole = content(Shard(big))
    path = big.with_suffix(".index")
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[:-10])
    elif damage == "bytes":
        path.write_bytes(data[:300] + bytes(20) + data[320:])
    elif damage == "header":
        path.write_bytes(b"[1]" + data[3:])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "other_shard":  # of the same length, as after a copy of another store over this one
        text = big.read_bytes().replace(b"text 59 0", b"texT 59 0")
        big.write_bytes(text[: -len(text) // 2] + text[-len(text) // 2 :])
        whole = content(Shard(big))
    else:
        path.write_bytes(data.replace(b'"version": 1', b'"version": 0'))
    assert content(Shard(big)) == whole


def test_a_shard_that_was_compacted_by_another_process_is_read_anew(big):
    reader = Shard(big)
    before = content(reader)
    rows = [json.loads(line) for line in big.read_bytes().splitlines()]
    temporary = big.with_name("new")
    write(temporary, [one for one in rows if one["slot"] is not None])
    os.replace(temporary, big)
    after = content(reader)
    assert [slots for slots, _, _ in after] == [slots for slots, _, _ in before]
    assert not any(refused for _, refused, _ in after)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.binary(min_size=16, max_size=16), st.integers(-2, 5), st.integers(0, 1 << 40)), max_size=60, unique=True))
def test_an_index_gives_back_what_was_written(tmp_path_factory, records):
    path, shard_file = tmp_path_factory.mktemp("index") / "i", tmp_path_factory.mktemp("index") / "s"
    shard_file.write_bytes(b"x" * 10)
    block, index._BLOCK = index._BLOCK, 4
    try:
        with shard_file.open("rb") as file:
            write_index(path, file.fileno(), 10, records)
            opened = Index.open(path, file.fileno())
        for half, _, _ in [*records, (bytes(16), 0, 0)]:
            assert opened.records(half) == sorted(record for record in records if record[0] == half)
        assert list(opened) == sorted(records)
    finally:
        index._BLOCK = block


# --- rows before and after an answer ------------------------------------------------------------------------------------


def test_an_answer_takes_the_place_of_the_row_before_it(tmp_path):
    path = tmp_path / "a.jsonl"
    write(
        path, [lost(1, "r", bound_usd=0.5), row(1, 0, request="r"), lost(1, "s", bound_usd=0.25), lost(2, "t", bound_usd=0.1), lost(2, "t")]
    )
    one = Shard(path).refresh()
    assert [unused["request"] for unused in one.cost_only_rows(key(1))] == ["s"]
    assert one.cost_only_rows(key(2)) == [], "taken back"
    assert one.n_unusable(key(1)) == 0


def test_rows_of_older_versions_count_as_they_did(tmp_path):
    path = tmp_path / "a.jsonl"
    old = {name: value for name, value in row(1, None).items() if name != "choice"}
    write(path, [old, old, old | {"refused": "lost", "bound_usd": 0.5}, old | {"slot": 0, "refused": None}])
    one = Shard(path).refresh()
    assert (one.slots(key(1)), one.n_unusable(key(1))) == ([0], 2)


# --- buyers' files ------------------------------------------------------------------------------------------------------


def buying(path, buyer, number):
    one = Shard(path, buyer)
    assert one.claim(key(number))
    one.refresh()
    return one


def test_each_buyer_writes_a_file_of_its_own_and_the_last_one_puts_them_together(tmp_path):
    path = tmp_path / "a.jsonl"
    write(path, [row(0, 0)])
    first, second = buying(path, "one", 1), buying(path, "two", 2)
    first.append([lost(1, "r", bound_usd=1.0), row(1, 0, request="r"), lost(1, "s", bound_usd=2.0)])
    second.append([row(2, 0)])
    assert sorted(one.name for one in tmp_path.glob("a.*jsonl")) == ["a.jsonl", "a.one.jsonl", "a.two.jsonl"]
    seen = content(Shard(path))
    first.close()
    assert (tmp_path / "a.one.jsonl").exists(), "the other one is still buying"
    assert content(Shard(path)) == seen == content(second)
    second.close()
    assert [one.name for one in tmp_path.glob("a.*jsonl")] == ["a.jsonl"]
    assert content(Shard(path)) == seen
    assert [json.loads(line)["request"] for line in path.read_bytes().splitlines()] == ["r0-0", "r", "s", "r2-0"]
    assert first.row(key(1), 0)["request"] == second.refresh().row(key(2), 0)["request"].replace("2-0", "") == "r"


def test_a_key_is_one_buyers(tmp_path):
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


def test_a_buyer_that_was_killed_leaves_its_rows_to_the_next_one(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); from test_shard import *; from pathlib import Path\n"
        "one = buying(Path(sys.argv[1]), 'dead', 1); one.append([row(1, 0), row(1, 1)]); print(flush=True); import time; time.sleep(100)"
    )
    path = tmp_path / "a.jsonl"
    process = subprocess.Popen([sys.executable, "-c", code, str(path), os.path.dirname(__file__)], stdout=subprocess.PIPE)
    process.stdout.readline()
    one = Shard(path, "next")
    assert not one.claim(key(1))
    process.kill()
    process.communicate()
    with (tmp_path / "a.dead.jsonl").open("ab") as file:
        file.write(b'{"key": "torn')
    assert one.claim(key(1))
    assert one.refresh().slots(key(1)) == [0, 1]
    one.append([row(1, 2)])
    one.close()
    assert [path.name for path in tmp_path.glob("a.*jsonl")] == ["a.jsonl"]
    assert Shard(path).refresh().slots(key(1)) == [0, 1, 2]


def test_a_kill_while_rows_are_moved_changes_nothing(tmp_path, monkeypatch):
    """Between the append to the shard and the removal of a buyer's file, rows stand in both."""
    path = tmp_path / "a.jsonl"
    one = buying(path, "one", 1)
    one.append([row(1, 0), row(1, None, "no"), row(1, None, "no either", request="q"), lost(1, "s", bound_usd=2.0)])
    seen = content(Shard(path))
    copy = (tmp_path / "a.one.jsonl").read_bytes()
    one.close()
    for _ in range(2):
        (tmp_path / "a.one.jsonl").write_bytes(copy)
        assert content(Shard(path)) == seen
        folder = StoreFolder(tmp_path)
        folder.shard(key(1)).claim(key(2))
        folder.close()
        assert content(Shard(path)) == seen
        assert len(path.read_bytes().splitlines()) == 4


def test_locks_that_do_not_reach_another_process_are_noticed(tmp_path, monkeypatch):
    """As on file systems where each host has locks of its own: both believe that the key is theirs."""
    monkeypatch.setattr(KeyLocks, "_set_open", lambda *_: True)
    path = tmp_path / "a.jsonl"
    first, second = buying(path, "one", 1), buying(path, "two", 1)
    first.append([lost(1, "r", bound_usd=1.0)])
    with pytest.raises(FcotError, match=r"a\.one\.jsonl: another process wrote about a problem that this one has locked\. The locks"):
        second.refresh()


def test_what_a_living_buyer_writes_is_not_moved_where_locks_do_not_reach_it(tmp_path, monkeypatch):
    """A buyer elsewhere appends on; another one that has never heard of it ends, and puts files together."""
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
    (left,) = tmp_path.glob("a.*elsewhere_example*.jsonl")
    os.utime(left, (0, 0))
    third = buying(path, buyers.buyer_name(), 3)
    third.append([row(3, 0)])
    third.close()
    assert not left.exists(), "after an hour without a row its buyer counts as gone"
    assert Shard(path).refresh().slots(key(1)) == [0, 1]


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(KeyLocks, "_set_open", refuse)
    with pytest.raises(FcotError, match=r"has no working file locks \(No locks available\).*output_dir"):
        Shard(tmp_path / "a.jsonl").claim(key(1))


def test_a_lock_says_who_has_it(tmp_path):
    one = buying(tmp_path / "a.jsonl", "one", 1)
    one.append([row(1, 0)])
    assert Shard(tmp_path / "a.jsonl").buyers().startswith(f"process {os.getpid()} on ")
    one.close()
    two = Shard(tmp_path / "a.jsonl", "two")
    assert two.lock_all(wait=False)
    assert " since 2" in Shard(tmp_path / "a.jsonl").buyers()
    two.close()


@pytest.mark.parametrize("plain", [False, True])
def test_locks_of_keys_and_of_the_whole_exclude_each_other(tmp_path, plain):
    """Open-file-description locks, and the POSIX locks that stand in for them; the other process is an older version."""
    locks = KeyLocks(tmp_path / "x.lock")
    locks._plain = plain
    code = (
        "import fcntl, os, sys\nfile = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n"
        "try: fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB); print('free')\nexcept OSError: print('locked')"
    )

    def other():
        return subprocess.run([sys.executable, "-c", code, str(locks.path)], capture_output=True, text=True, check=True).stdout.strip()

    assert other() == "free"
    assert locks.take(key(1))
    assert other() == "locked"
    locks.drop(key(1))
    assert other() == "free"
    assert locks.take_all(wait=False)
    assert other() == "locked"
    locks.drop_all()
    assert other() == "free"
    locks.take(key(2))
    locks.close()
    assert other() == "free"
