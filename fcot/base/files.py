"""Fingerprints, atomic writes and locks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fcot.base.errors import FcotError
from fcot.base.stopping import sleep

LINE_ENDS = "\n\r\x85\u2028\u2029"  # YAML's: each ends a comment
TEMPORARY = ".partial"
_SETTLED_S = 2.0  # a file that was changed later than this may change again within the same time stamp
_LOOK_EVERY_S = 0.2  # at a lock that another process holds
_FLOCK = "hhqqi4x"  # struct flock of 64-bit Linux: type, whence, start, length, process


def fingerprint(value: Any) -> str:
    """The SHA-256 (hex) of a JSON value in canonical form."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def file_fingerprint(path: Path) -> str:
    """The SHA-256 (hex) of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_folders: dict[str, list[str]] = {}  # by absolute path: the hash of a folder's listing, and that of its content


def folder_fingerprint(folder: Path, outputs: Path | None = None) -> str:
    """The SHA-256 (hex) over names and contents of all files below a folder, hidden ones left out.

    Files are read once, as long as their names, sizes and times of change stay the same.

    Args:
        folder: Which.
        outputs: The output folder, where hashes are kept for later processes (``cache/folders.json``); None keeps them in this process.
    """
    visible = (path for path in folder.rglob("*") if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    files = sorted(path for path in visible if path.is_file())
    now, facts = time.time(), [(str(path.relative_to(folder)), path.stat()) for path in files]
    listing = fingerprint([[name, fact.st_size, fact.st_mtime_ns] for name, fact in facts])
    place, cache = str(folder.resolve()), None if outputs is None else outputs / "cache" / "folders.json"
    for known in (_folders, {} if cache is None else _kept_folders(cache)):
        if place in known and known[place][0] == listing:
            return known[place][1]
    content = fingerprint([[name, file_fingerprint(path)] for (name, _), path in zip(facts, files, strict=True)])
    if max((fact.st_mtime for _, fact in facts), default=0.0) < now - _SETTLED_S:
        _folders[place] = [listing, content]
        if cache is not None:
            with contextlib.suppress(FcotError):  # a folder that is read again next time
                write_json(cache, _kept_folders(cache) | {place: [listing, content]})
    return content


def _kept_folders(cache: Path) -> dict[str, list[str]]:
    """The hashes that earlier processes kept; none where the file is damaged."""
    try:
        kept = json.loads(cache.read_text(encoding="utf-8"))
        return {place: [str(listing), str(content)] for place, (listing, content) in kept.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def disk_error(error: OSError, path: Path) -> FcotError:
    """The message for a write that failed; the caller has removed what it had written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return FcotError(f"no space left to write {path}: free some and run the same command again; it continues here")
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return FcotError(f"cannot write {path}: a file stands where a folder is needed ({error.filename})")
    return FcotError(f"cannot write {path}: {error.strerror or error}")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file to fill, which then takes ``path``'s place: that is either its old self or whole (fsync, rename).

    Raises:
        FcotError: The disk is full or the folder not writable; nothing is left behind.
    """
    temporary = path.with_name(f"{path.name}{TEMPORARY}-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise disk_error(error, path) from error
        raise


def write_atomic(path: Path, text: str | Iterable[str]) -> None:
    """Write a text file by :func:`replacing`, with its errors."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines([text] if isinstance(text, str) else text)


def _system_error(error: Exception) -> OSError | None:
    """The operating system's error, also inside one of safetensors' own; None for any other."""
    if isinstance(error, OSError):
        return error
    found = re.search(r"os error (\d+)", str(error))
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else None


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write one JSON object, indented, atomically."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON Lines atomically."""
    write_atomic(path, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_json(path: Path) -> Any:
    """Read one JSON file; a byte order mark is ignored."""
    return json.loads(path.read_text(encoding="utf-8-sig"))


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Read the rows of a JSON Lines file written by :func:`write_jsonl`."""
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for line in file:
            yield json.loads(line)


def write_folder(path: Path, fill: Callable[[Path], object]) -> None:
    """Fill a folder through ``fill(temporary)`` and rename it into place, replacing an older one.

    A kill leaves the old folder, the new one, or (between two renames) none, never a mixture.

    Raises:
        FcotError: The disk is full or the folder not writable; nothing is left behind.
    """
    temporary = path.with_name(f"{path.name}{TEMPORARY}-{os.getpid()}")
    old = path.with_name(f"{path.name}{TEMPORARY}-old-{os.getpid()}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # a killed process had the same id
        temporary.mkdir(parents=True)
        fill(temporary)
        for file in temporary.rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)  # safetensors' own are unreadable to the rest of a group
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not path.exists():  # interrupted between the two renames
            os.replace(old, path)
        shutil.rmtree(old, ignore_errors=True)
        if isinstance(error, Exception) and (cause := _system_error(error)) is not None:
            raise disk_error(cause, path) from error
        raise


@contextlib.contextmanager
def exclusive(lock: Path, say: Callable[[str], object]) -> Iterator[None]:
    """Hold a lock file exclusively; a second holder waits and is told who the first is.

    The kernel drops the lock when its holder dies, so a killed run never blocks the next one. The lock file is opened
    by nothing else in this process (closing any handle on it would release a POSIX lock).

    Raises:
        FcotError: The lock file cannot be written, or its file system has no locks.
    """
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(lock, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError as error:
        raise disk_error(error, lock) from error
    try:
        try:
            _take(file, lock.parent, say)
        except OSError as error:
            raise disk_error(error, lock) from error
        try:
            yield
        finally:
            os.ftruncate(file, 0)
    finally:
        os.close(file)


def _take(file: int, what: Path, say: Callable[[str], object]) -> None:
    """Lock an open lock file, waiting for who has it, and sign it."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        say(f"waiting for {what}: in use by {os.pread(file, 1000, 0).decode().strip() or 'another process'}")
        wait_for_lock(file)
    os.ftruncate(file, 0)
    os.write(file, f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())


def wait_for_lock(file: int) -> None:
    """Take a lock when it becomes free; a stop that is asked for meanwhile is heard, as it is not inside a blocking call."""
    while True:
        with contextlib.suppress(BlockingIOError, PermissionError):
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        sleep(_LOOK_EVERY_S)


def holder(lock: Path) -> int | None:
    """The process that holds a lock of :func:`exclusive` (0 where it is on another machine), None where nobody does.

    Not for the holder itself: looking would release its lock.
    """
    try:
        file = os.open(lock, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        asked = struct.pack(_FLOCK, fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, process = struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, asked))
    finally:
        os.close(file)
    return None if kind == fcntl.F_UNLCK else max(process, 0)
