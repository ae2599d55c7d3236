"""The completion store under real processes: shared, killed, out of disk. What was stored is never lost and never bought twice."""

from __future__ import annotations

import contextlib
import fcntl
import json
import random
import subprocess
import time
import tracemalloc
from collections import Counter

import pytest
import teachers
import zygote

from fcot.base.errors import FcotError
from fcot.base.files import fingerprint
from fcot.base.records import to_row
from fcot.llm.generate import generate_completions
from fcot.llm.store.folder import StoreFolder, readable

KEY = "a" * 64  # its shard is a.jsonl


def row(slot, text="t", key=KEY, **fields):
    return {
        "key": key, "slot": slot, "root": None, "text": text, "finish_reason": "stop", "request": "r", "run": "run",
        "prompt_tokens": 1, "completion_tokens": 1, **fields,
    }  # fmt: skip


def buy(path, *rows):
    folder = StoreFolder(path)
    shard = folder.shard(KEY)
    assert shard.claim(KEY)
    shard.refresh()
    for entry in rows:
        shard.append([entry])
    folder.close()


def texts(path, key=KEY):
    return texts_of(StoreFolder(path).shard(key).refresh(), key)


def texts_of(shard, key=KEY):
    return {slot: shard.row(key, slot)["text"] for slot in shard.slots(key)}


# --- one process --------------------------------------------------------------------------------------------------


def test_a_process_reads_what_another_appended(tmp_path):
    reader = StoreFolder(tmp_path).shard(KEY).refresh()
    assert reader.slots(KEY) == []
    buy(tmp_path, row(0, "zero\n\u2028ü"), row(1, "one"))
    buy(tmp_path, row(2, "two"), row(None, "no", refused="empty"), row(0, "other", key="a" * 63 + "b"))
    reader.refresh().refresh()
    assert texts_of(reader) == {0: "zero\n\u2028ü", 1: "one", 2: "two"}
    assert [entry["text"] for entry in reader.unusable_rows(KEY)] == ["no"]
    assert texts_of(reader, "a" * 63 + "b") == {0: "other"}
    assert (reader.has(KEY, 2), reader.has(KEY, 3), reader.n_unusable(KEY)) == (True, False, 1)


def test_a_writer_reads_its_own_rows_once_and_earlier_rows_of_others(tmp_path):
    buy(tmp_path, row(0, "zero"))
    shard = StoreFolder(tmp_path).shard(KEY)
    assert shard.claim(KEY)
    shard.refresh()
    shard.append([row(1, "one ü"), row(None, "no", refused="empty"), row(2, "two")])
    assert texts_of(shard) == {0: "zero", 1: "one ü", 2: "two"}
    shard.close()
    assert len(shard.refresh().unusable_rows(KEY)) == 1
    assert texts_of(shard) == texts(tmp_path)


def test_the_first_row_of_a_slot_wins(tmp_path):
    buy(tmp_path, row(0, "first"), row(0, "second"))
    buy(tmp_path, row(0, "third"))
    assert texts(tmp_path) == {0: "first"}


def test_a_torn_last_line_is_skipped_and_later_rows_follow_it(tmp_path):
    shard = tmp_path / "a.jsonl"
    buy(tmp_path, row(0, "zero"), row(1, "one"))
    whole = shard.read_bytes()
    torn = whole[: -len(whole) // 5]
    shard.write_bytes(torn)
    assert texts(tmp_path) == {0: "zero"}
    assert shard.read_bytes() == torn, "a reader changes nothing"
    buy(tmp_path, row(2, "two"))
    assert shard.read_bytes().startswith(torn + b"\n{")
    assert texts(tmp_path) == {0: "zero", 2: "two"}


def test_a_last_line_that_lacks_only_its_newline_is_not_lost(tmp_path):
    shard = tmp_path / "a.jsonl"
    buy(tmp_path, row(0, "zero"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert texts(tmp_path) == {}
    buy(tmp_path, row(1, "one"))
    assert texts(tmp_path) == {0: "zero", 1: "one"}


def test_a_reader_takes_a_growing_line_once_it_is_complete(tmp_path):
    line = json.dumps(row(0, "zero")).encode() + b"\n"
    reader = StoreFolder(tmp_path).shard(KEY)
    for end in (10, len(line) - 1, len(line)):
        (tmp_path / "a.jsonl").write_bytes(line[:end])
        assert reader.refresh().slots(KEY) == ([0] if end == len(line) else [])


def test_lines_that_do_not_parse_are_skipped(tmp_path):
    junk = [
        b"",
        b"{",
        b"null",
        b"3",
        b"[]",
        b"{}",
        b'{"key": "a"}',
        b'{"key": ["a"], "slot": 0}',
        json.dumps({"key": KEY, "slot": [0]}).encode(),
        json.dumps({"key": KEY, "slot": -1}).encode(),
        json.dumps({"key": KEY, "slot": True}).encode(),
        b'"\xff\xfe"',
    ]
    good = [json.dumps(row(slot)).encode() for slot in range(len(junk))]
    (tmp_path / "a.jsonl").write_bytes(b"".join(b"%s\n%s\n" % pair for pair in zip(junk, good, strict=True)))
    assert sorted(texts(tmp_path)) == list(range(len(junk)))


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("meta-llama/Llama-3.1-8B", "meta-llama_Llama-3.1-8B"),
        ("gpt 4: new", "gpt_4_new"),
        ("../..", "unnamed"),
        (".hidden", "hidden"),
        ("", "unnamed"),
    ],
)
def test_a_name_becomes_a_valid_folder_name(name, folder):
    assert readable(name) == folder


def test_a_file_where_the_folder_should_be_is_an_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FcotError, match=r"cannot write .*a\.lock"):
        StoreFolder(tmp_path / "file").shard(KEY).claim(KEY)


def test_the_index_contains_no_texts(tmp_path):
    """Memory does not grow with the length of the stored texts."""
    shard = StoreFolder(tmp_path).shard(KEY)
    shard.claim(KEY)
    shard.append([row(slot, "x" * 100_000) for slot in range(50)])
    shard.close()
    tracemalloc.start()
    reader = StoreFolder(tmp_path).shard(KEY).refresh()
    traced_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(reader.slots(KEY)) == 50
    assert traced_bytes < 400_000


# --- real processes -----------------------------------------------------------------------------------------------


@pytest.fixture
def buyer(tmp_path):
    """Start a process that buys from a slow teacher. All processes log their sales to one file."""
    started = []

    def start(**options):
        arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        process = zygote.start([teachers.__file__, tmp_path / "store", tmp_path / "log", *arguments])
        started.append(process)
        assert process.stdout.readline() == "buying\n", process.stderr.read()
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def finish(process):
    """Wait for a process, which must succeed; returns the fingerprint of its completions."""
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return out.strip()


def sales(tmp_path):
    return (tmp_path / "log").read_text().split() if (tmp_path / "log").exists() else []


def stored(tmp_path):
    """Names of sold texts by (key, slot), and the number of rows of each (key, slot), both read from the files alone."""
    rows = []
    for shard in (tmp_path / "store").glob("*.jsonl"):
        for line in shard.read_bytes().split(b"\n"):
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
    names = {(entry["key"], entry["slot"]): entry["text"].removeprefix(" sold as ") for entry in rows}
    return names, Counter((entry["key"], entry["slot"]) for entry in rows)


def assert_whole(tmp_path, n_problems, diversity):
    """One good row for each (key, slot): D rationales of each problem, and one answer to each (their texts all differ)."""
    rows, counts = stored(tmp_path)
    assert set(counts.values()) == {1}
    slots = Counter(key for key, _ in rows)
    assert Counter(slots.values()) == {diversity: n_problems, 1: n_problems * diversity}
    assert all((key, slot) in rows for key, count in slots.items() for slot in range(count))
    return rows


def fingerprint_of_store(tmp_path, n_problems, diversity):
    """The fingerprint of the completions that this process reads from the store. It buys nothing."""

    def refuse(*call):
        raise AssertionError(f"requested {call}")

    teacher = teachers.Scripted(refuse)
    teacher.identity = teachers.Slow.identity
    plan = teachers.plan(teacher, diversity)
    completions = generate_completions(plan, StoreFolder(tmp_path / "store"), teachers.problems(n_problems))
    return fingerprint([to_row(completion) for completion in completions])


@pytest.mark.parametrize("n", [2, 4])
def test_processes_that_need_the_same_completions_buy_them_once(tmp_path, buyer, n):
    fingerprints = {finish(process) for process in [buyer(problems=30, diversity=4) for _ in range(n)]}
    rows = assert_whole(tmp_path, 30, 4)
    assert sorted(sales(tmp_path)) == sorted(rows.values())
    assert fingerprints == {fingerprint_of_store(tmp_path, 30, 4)}


def test_processes_with_different_problems_and_diversity_share_common_completions(tmp_path, buyer):
    for process in [buyer(problems=10, diversity=6), buyer(problems=30, diversity=2), buyer(problems=20, diversity=3)]:
        finish(process)
    rows, counts = stored(tmp_path)
    assert set(counts.values()) == {1}
    assert len(rows) == 2 * (10 * 6 + 10 * 3 + 10 * 2)
    assert sorted(sales(tmp_path)) == sorted(rows.values())


def test_kills_at_random_moments_lose_no_stored_row_and_repeat_only_requests_in_flight(tmp_path, buyer):
    rng = random.Random(0)
    killed, before = [], {}
    while len(killed) < 15:
        process = buyer(problems=30, diversity=8, delay=0.04)
        try:
            process.communicate(timeout=rng.uniform(0, 0.25))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.returncode == 0:
            break
        killed.append(process.pid)
        files = {path: path.read_bytes() for path in (tmp_path / "store").glob("*.jsonl")}
        for path, data in before.items():
            assert files[path].startswith(data), "rows in a file stay there"
        before = files
    assert len(killed) == 15, "the work is too short to be killed 15 times"
    final = finish(buyer(problems=30, diversity=8, delay=0))
    rows = assert_whole(tmp_path, 30, 8)
    lost = Counter(int(name.partition("-")[0]) for name in set(sales(tmp_path)) - set(rows.values()))
    assert len(sales(tmp_path)) == len(set(sales(tmp_path)))
    assert set(lost) <= set(killed)
    assert lost, "no kill hit a request in flight"
    assert max(lost.values()) <= teachers.Slow.concurrency * teachers.Slow.max_choices
    assert final == fingerprint_of_store(tmp_path, 30, 8)
    assert fingerprint_of_store(tmp_path, 30, 3) != final


def test_the_locks_of_a_killed_process_block_no_other(tmp_path, buyer):
    stuck = buyer(delay=1000)
    while not sales(tmp_path):
        time.sleep(0.01)
    waiting = buyer()
    stuck.kill()
    finish(waiting)
    assert_whole(tmp_path, 30, 6)


@contextlib.contextmanager
def process_holding(code, *arguments):
    """A process that runs ``code``, prints "held" and keeps running."""
    script = f"import fcntl, os, sys, time\nfrom pathlib import Path\nfrom fcot.llm.store.folder import StoreFolder\n{code}\n"
    script += "print('held', flush=True)\ntime.sleep(1000)"
    process = zygote.start(["-c", script, *arguments])
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


OLDER_VERSION = (  # buys with a lock on the whole lock file
    "Path(sys.argv[1]).mkdir(parents=True)\n"
    "lock = os.open(Path(sys.argv[1]) / f'{sys.argv[2][0]}.lock', os.O_RDWR | os.O_CREAT)\nfcntl.lockf(lock, fcntl.LOCK_EX)"
)
THIS_VERSION = "assert StoreFolder(Path(sys.argv[1])).shard(sys.argv[2]).claim(sys.argv[2])"


@pytest.mark.parametrize("code", [OLDER_VERSION, THIS_VERSION])
def test_problems_that_another_process_has_claimed_wait_and_all_others_are_bought(tmp_path, buyer, code):
    """All other problems are bought while the other process runs, and the claimed problems after its end."""
    plan = teachers.plan(teachers.Slow(tmp_path / "unused", 0), 6)
    keys = [plan.key(plan.step1(problem)) for problem in teachers.problems(30)]
    claimed = min(keys)
    n_claimed = sum(key[0] == claimed[0] for key in keys) if code == OLDER_VERSION else 1
    with process_holding(code, tmp_path / "store", claimed):
        process = buyer()
        while len(stored(tmp_path)[0]) < 2 * 6 * (30 - n_claimed):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        time.sleep(0.5)
        rows = stored(tmp_path)[0]
        assert len(rows) == 2 * 6 * (30 - n_claimed)
        assert not [key for key, _ in rows if key == claimed]
        assert process.poll() is None
    finish(process)
    assert rows.items() <= assert_whole(tmp_path, 30, 6).items()


@pytest.mark.parametrize("n", [1, 3])
def test_buyers_of_different_prompts_in_one_folder_do_not_wait_for_each_other(tmp_path, buyer, n):
    """The other buyers have every problem of the folder in flight and never end."""
    others = [buyer(delay=1000, concurrency=500, temperature=number) for number in range(n)]
    while len(sales(tmp_path)) < n * 30 * 6:
        time.sleep(0.02)
    finish(buyer(problems=30, diversity=6))
    assert len(stored(tmp_path)[0]) == 2 * 30 * 6
    assert all(other.poll() is None for other in others)


def test_an_older_version_waits_while_this_version_buys(tmp_path):
    """Older versions lock the whole file. A claim on one key of the file excludes that lock."""
    code = (
        "shard = StoreFolder(Path(sys.argv[1])).shard(sys.argv[2])\nassert shard.claim(sys.argv[2])\n"
        "shard.append([{'key': sys.argv[2], 'slot': 0, 'text': 't', 'request': 'r', 'run': 'x'}])"
    )
    with process_holding(code, tmp_path, KEY), open(tmp_path / "a.lock", "r+b") as lock, pytest.raises(BlockingIOError):
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with open(tmp_path / "a.lock", "r+b") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_full_disk_gives_one_message_and_leaves_complete_lines(tmp_path, buyer):
    process = buyer(problems=1, diversity=40, file_limit=5000)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 1
    (shard,) = (tmp_path / "store").glob("*.jsonl")
    assert err == f"no space left to write {shard}: free some and run the same command again; it continues here\n"
    assert out == ""
    data = shard.read_bytes()
    assert data.endswith(b"}\n")
    assert 4000 < len(data) <= 5000
    before = {(entry["key"], entry["slot"]): entry["text"] for entry in map(json.loads, data.splitlines())}
    finish(buyer(problems=1, diversity=40))
    assert shard.read_bytes().startswith(data)
    after = assert_whole(tmp_path, 1, 40)
    assert {slot: f" sold as {name}" for slot, name in after.items()}.items() >= before.items()


def test_rows_that_a_full_disk_keeps_out_of_the_main_file_stay_in_the_buyers_file_and_count(tmp_path, buyer):
    finish(buyer(problems=1, diversity=12))
    (shard,) = (tmp_path / "store").glob("*.jsonl")
    shard.write_bytes(data := shard.read_bytes() + b'{"key": "to')
    finish(buyer(problems=1, diversity=18, file_limit=len(data)))
    assert shard.read_bytes() == data
    assert len(list((tmp_path / "store").glob("*.jsonl"))) == 2
    assert_whole(tmp_path, 1, 18)
    before = fingerprint_of_store(tmp_path, 1, 18)
    assert finish(buyer(problems=1, diversity=19, delay=0))
    assert [path.name for path in (tmp_path / "store").glob("*.jsonl")] == [shard.name], "the next buyer moves them"
    assert fingerprint_of_store(tmp_path, 1, 18) == before


@pytest.mark.parametrize("whole_rows", [0, 2])
def test_rows_of_one_answer_that_fit_on_the_disk_are_kept(tmp_path, whole_rows):
    """A write that stops inside an answer's third row keeps the two before it, which other processes may have read."""
    rows = [row(slot, "x" * 200) for slot in range(4)]
    length = len(json.dumps(rows[0])) + 1
    script = (
        "import json, resource, signal, sys\nfrom pathlib import Path\n"
        "from fcot.base.errors import FcotError\nfrom fcot.llm.store.folder import StoreFolder\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)\n"
        "shard = StoreFolder(Path(sys.argv[1])).shard('a')\nshard.claim('a' * 64)\n"
        "try: shard.append(json.loads(sys.argv[3]))\n"
        "except FcotError as error: sys.exit(str(error))"
    )
    done = zygote.run(["-c", script, tmp_path, whole_rows * length + length // 2, json.dumps(rows)])
    assert done.stderr.startswith("no space left to write")
    (own,) = tmp_path.glob("*.jsonl")
    assert own.stat().st_size == whole_rows * length
    assert sorted(texts(tmp_path)) == list(range(whole_rows))
