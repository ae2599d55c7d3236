"""Files are old or new but never partial; locks name their holder and are released when it ends."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fcot.base import files
from fcot.base.errors import FcotError
from fcot.base.files import (
    exclusive,
    file_fingerprint,
    fingerprint,
    folder_fingerprint,
    read_json,
    read_jsonl,
    write_atomic,
    write_folder,
    write_json,
    write_jsonl,
)
from fcot.base.run_folder import RunDirectory

FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from fcot.base import files
from fcot.base.errors import FcotError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    {statement}
except FcotError as error:
    sys.exit(f"message: {{error}}")
"""


def on_full_disk(statement, path):
    """Standard error of a process in which no file may exceed 1,000 bytes; ``path`` is ``sys.argv[1]``."""
    script = FULL_DISK.format(statement=statement)
    process = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=600, check=False)
    assert process.returncode == 1
    return process.stderr


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_fingerprint_is_the_sha256_of_canonical_json():
    assert fingerprint({"b": [1, 0.7, None], "a": "ü"}) == hashlib.sha256('{"a":"ü","b":[1,0.7,null]}'.encode()).hexdigest()
    assert fingerprint({"a": {"x": 1, "y": 2}, "b": 3}) == fingerprint({"b": 3, "a": {"y": 2, "x": 1}})
    assert len({fingerprint(value) for value in ([1, 2], [2, 1], "[1,2]", {"1": 2}, [[1], 2], [1.5, 2])}) == 6


@pytest.fixture
def model(tmp_path):
    """A folder whose files were last changed long ago."""
    folder = tmp_path / "model"
    (folder / "part").mkdir(parents=True)
    for name in ("a.bin", "part/b.bin"):
        (folder / name).write_text("one")
        os.utime(folder / name, (1, 1))
    return folder


@pytest.fixture
def hashed_files(monkeypatch):
    """Names of the files that have been read for a hash; starts with an empty cache in memory."""
    hashed, original = [], files.file_fingerprint
    monkeypatch.setattr(files, "_folders", {})
    monkeypatch.setattr(files, "file_fingerprint", lambda path: (hashed.append(path.name), original(path))[1])
    return hashed


def test_a_folders_hash_is_cached_for_processes_with_the_same_outputs(model, hashed_files, tmp_path, monkeypatch):
    first = folder_fingerprint(model, tmp_path / "outputs")
    assert folder_fingerprint(model, tmp_path / "outputs") == first
    monkeypatch.setattr(files, "_folders", {})  # another process
    monkeypatch.chdir(model)
    assert folder_fingerprint(Path("../model"), tmp_path / "outputs") == first
    assert hashed_files == ["a.bin", "b.bin"]
    assert folder_fingerprint(model) == first


@pytest.mark.parametrize("change", ["content", "time", "name", "removed", "added"])
def test_a_changed_folder_is_read_again(model, hashed_files, tmp_path, change):
    first, file = folder_fingerprint(model, tmp_path), model / "a.bin"
    if change == "content":
        file.write_text("other")
    elif change == "time":
        file.write_text("two")
        os.utime(file, (2, 2))
    elif change == "name":
        file.rename(model / "c.bin")
    elif change == "removed":
        file.unlink()
    else:
        (model / "c.bin").write_text("")
        os.utime(model / "c.bin", (1, 1))
    assert folder_fingerprint(model, tmp_path) != first


def test_the_hash_of_a_just_changed_folder_is_not_cached(model, hashed_files, tmp_path):
    """Another change may fall into the same time stamp."""
    file = model / "a.bin"
    file.write_text("two")
    now = file.stat()
    before = folder_fingerprint(model, tmp_path)
    file.write_text("six")
    os.utime(file, ns=(now.st_atime_ns, now.st_mtime_ns))
    assert folder_fingerprint(model, tmp_path) != before


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 1}', '{"a": ["b"]}', None])
def test_a_cache_that_cannot_be_read_or_written_is_ignored(model, hashed_files, tmp_path, content):
    outputs = tmp_path / "outputs"
    (outputs / "cache").mkdir(parents=True)
    if content is None:
        (outputs / "cache" / "folders.json").mkdir()
    else:
        (outputs / "cache" / "folders.json").write_text(content)
    assert folder_fingerprint(model, outputs) == folder_fingerprint(model)
    assert hashed_files == ["a.bin", "b.bin"]


def test_a_folders_hash_depends_on_names_and_contents_only(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "weights").write_text("w")
        (tmp_path / name / f".cache-{name}").write_text(name)
    before = folder_fingerprint(tmp_path / "one")
    assert before == folder_fingerprint(tmp_path / "two")
    (tmp_path / "two" / "deep" / "weights").write_text("v")
    assert folder_fingerprint(tmp_path / "two") != before
    (tmp_path / "one" / "deep" / "weights").rename(tmp_path / "one" / "weights")
    assert folder_fingerprint(tmp_path / "one") != before
    assert file_fingerprint(tmp_path / "one" / "weights") == hashlib.sha256(b"w").hexdigest()


def test_json_that_was_written_is_read_back_unchanged(tmp_path):
    rows = [{"text": "line\nbreak \u2028 ü", "n": 1}, {"text": "", "n": None}]
    write_jsonl(tmp_path / "new" / "rows.jsonl", rows)
    assert list(read_jsonl(tmp_path / "new" / "rows.jsonl")) == rows
    write_json(tmp_path / "one.json", rows[0])
    assert read_json(tmp_path / "one.json") == rows[0]


@pytest.mark.parametrize("error", [ValueError("bad row"), KeyboardInterrupt()])
def test_a_failed_write_keeps_the_old_file(tmp_path, error):
    path = tmp_path / "file.txt"
    write_atomic(path, "old")

    def text():
        yield "half"
        raise error

    with pytest.raises(type(error)):
        write_atomic(path, text())
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]
    write_atomic(path, iter(["n", "ew"]))
    assert path.read_text() == "new"
    assert names(tmp_path) == ["file.txt"]


def test_a_reader_never_sees_a_partial_file(tmp_path):
    path = tmp_path / "file.txt"
    contents = []

    def text():
        for _ in range(3):
            contents.append(path.exists() and path.read_text())
            yield "x" * 100_000

    write_atomic(path, text())
    write_atomic(path, text())
    assert contents == [False] * 3 + ["x" * 300_000] * 3


def test_a_write_to_a_full_disk_leaves_no_partial_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    output = on_full_disk("files.write_atomic(Path(sys.argv[1]), 'x' * 5000)", path)
    assert output.startswith(f"message: no space left to write {path}")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_a_write_error_names_the_path(tmp_path):
    (tmp_path / "file").write_text("in the way")
    why = r"there is a file where a folder is needed \(.*/file"
    with pytest.raises(FcotError, match=rf"cannot write .*config\.yaml: {why}"):
        write_atomic(tmp_path / "file" / "config.yaml", "text")
    with pytest.raises(FcotError, match=rf"cannot write .*student: {why}"):
        write_folder(tmp_path / "file" / "student", lambda folder: None)
    with pytest.raises(FcotError, match=rf"cannot write .*run\.lock: {why}"), exclusive(tmp_path / "file" / "run.lock", print):
        pass
    assert names(tmp_path) == ["file"]


def fill_with(text):
    def fill(folder):
        (folder / "config.json").write_text(text)
        (folder / "deep").mkdir()
        (folder / "deep" / "weights").write_text(text)

    return fill


def contents(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_write_folder_replaces_the_whole_folder(tmp_path):
    path = tmp_path / "runs" / "student"
    write_folder(path, fill_with("old"))
    (path / "stray").write_text("of an earlier version")
    write_folder(path, fill_with("new"))
    assert contents(path) == {"config.json": "new", "deep/weights": "new"}
    assert names(path.parent) == ["student"]


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (ValueError("bad weights"), ValueError, "bad weights"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
        (OSError(errno.ENOSPC, "No space left on device"), FcotError, "no space left to write .*student"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), FcotError, "no space left to write .*student"),
        (OSError("unreadable"), FcotError, "cannot write .*student: unreadable"),
    ],
)
def test_a_failed_fill_keeps_the_old_folder(tmp_path, error, raised, message):
    path = tmp_path / "student"
    (tmp_path / f"student.partial-{os.getpid()}" / "deep").mkdir(parents=True)  # process ids are reused
    write_folder(path, fill_with("old"))

    def fill(folder):
        fill_with("new")(folder)
        raise error

    with pytest.raises(raised, match=message):
        write_folder(path, fill)
    assert contents(path) == {"config.json": "old", "deep/weights": "old"}
    assert names(tmp_path) == ["student"]


def test_a_folder_on_a_full_disk_leaves_nothing_partial(tmp_path):
    path = tmp_path / "student"
    write_folder(path, fill_with("old"))
    fill = "lambda folder: [(folder / name).write_text('x' * size) for name, size in (('small', 10), ('large', 5000))]"
    assert f"no space left to write {path}" in on_full_disk(f"files.write_folder(Path(sys.argv[1]), {fill})", path)
    assert contents(path) == {"config.json": "old", "deep/weights": "old"}
    assert names(tmp_path) == ["student"]


def test_a_kill_between_the_renames_never_mixes_two_folders(tmp_path):
    """The process is killed at each file operation in turn. Each time the path has one complete version, or none."""
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom fcot.base.files import write_folder\n"
        "path, count = Path(sys.argv[1]), int(sys.argv[2])\n"
        "def fill(folder):\n    (folder / 'a').write_text('new')\n    (folder / 'b').write_text('new')\n    sys.addaudithook(hook)\n"
        "def hook(event, arguments):\n    global count\n"
        "    if event in ('os.rename', 'os.remove', 'os.rmdir', 'shutil.rmtree'):\n        count -= 1\n"
        "        if count < 0: os._exit(9)\n"
        "write_folder(path, fill)\n"
    )
    n_killed, all_versions = 0, set()
    for count in range(20):
        path = tmp_path / str(count) / "student"
        path.mkdir(parents=True)
        for name in "ab":
            (path / name).write_text("old")
        process = subprocess.run([sys.executable, "-c", script, str(path), str(count)], timeout=600, check=False)
        versions = {text for name, text in contents(path).items()} if path.exists() else {"nothing"}
        assert versions in ({"old"}, {"new"}, {"nothing"})
        assert not path.exists() or names(path) == ["a", "b"]
        RunDirectory(path.parent).remove_partial()
        assert names(path.parent) in (["student"], [])
        all_versions |= versions
        if process.returncode == 0:
            break
        n_killed += process.returncode == 9
    assert process.returncode == 0
    assert n_killed > 1
    assert all_versions >= {"old", "new"}


def test_remove_partial_removes_only_partial_files(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.remove_partial()  # the run does not exist
    for leftover in ("metrics.json.partial-1", "student.partial-22/deep/model.partial-22/weights", "stages/train.json.partial-3"):
        (directory.path / leftover).parent.mkdir(parents=True, exist_ok=True)
        (directory.path / leftover).write_text("half")
    complete_files = {"config.yaml": "c", "student/model.safetensors": "w", "stages/generate.json": "{}", "partial-notes.txt": "mine"}
    for name, text in complete_files.items():
        (directory.path / name).parent.mkdir(parents=True, exist_ok=True)
        (directory.path / name).write_text(text)
    directory.remove_partial()
    assert contents(directory.path) == complete_files
    assert not list(directory.path.glob("student.partial*"))


HOLD = """
import sys, time
from pathlib import Path
from fcot.base.files import exclusive
with exclusive(Path(sys.argv[1]), lambda message: print(message, flush=True)):
    print("got it", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def hold(tmp_path):
    """``hold() -> process``: starts a process that takes the lock and keeps it until it reads a line."""
    processes = []

    def start():
        command = [sys.executable, "-c", HOLD, str(tmp_path / "run" / "run.lock")]
        processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_a_process_waits_for_a_lock_names_its_holder_and_gets_it_when_the_holder_is_killed(hold, tmp_path):
    first = hold()
    assert first.stdout.readline() == "got it\n"
    second = hold()
    line = second.stdout.readline()
    assert line.startswith(f"waiting for {tmp_path / 'run'}: in use by process {first.pid} on ")
    first.kill()
    assert second.stdout.readline() == "got it\n"
    third = hold()
    assert f"in use by process {second.pid} on " in third.stdout.readline()
    second.communicate("\n")
    assert third.stdout.readline() == "got it\n"
    third.communicate("\n")
    assert (tmp_path / "run" / "run.lock").read_text() == ""


def test_taking_a_free_lock_prints_nothing(tmp_path):
    messages = []
    for _ in range(2):
        with exclusive(tmp_path / "run.lock", messages.append):
            assert f"process {os.getpid()} on" in (tmp_path / "run.lock").read_text()
    assert messages == []


def test_the_lock_is_released_by_an_exception(hold, tmp_path):
    with pytest.raises(ValueError, match="inside"), RunDirectory(tmp_path / "run").lock(print):
        raise ValueError("inside")
    process = hold()
    assert process.stdout.readline() == "got it\n"


def test_locking_on_a_full_disk_gets_one_message(tmp_path):
    """A limit of 0 bytes: not even the holder's name can be written."""
    statement = "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n    with files.exclusive(Path(sys.argv[1]), print): pass"
    assert on_full_disk(statement, tmp_path / "run.lock").startswith(f"message: no space left to write {tmp_path / 'run.lock'}")


def test_json_files_end_with_a_newline(tmp_path):
    write_json(tmp_path / "one.json", {"ü": 1})
    text = (tmp_path / "one.json").read_text(encoding="utf-8")
    assert text.endswith("}\n")
    assert json.loads(text) == {"ü": 1}
    assert "ü" in text


def test_a_folder_that_a_killed_process_renamed_is_restored(tmp_path):
    run = RunDirectory(tmp_path)
    aside = tmp_path / "student.partial-old-123"
    aside.mkdir()
    (aside / "weights").write_text("the best")
    run.remove_partial()
    assert (run.student / "weights").read_text() == "the best"
    assert not aside.exists()
