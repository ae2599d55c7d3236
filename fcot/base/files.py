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

LINE_ENDS = "\n\r\x85\u2028\u2029"  # characters that end a line, and so a comment, in YAML
TEMPORARY = ".partial"  # part of the names of files and folders that are being written
_SETTLED_S = 2.0  # a file that changed more recently may change again without a new time stamp
_TRY_EVERY_S = 0.2  # while another process holds a lock
_FLOCK = "hhqqi4x"  # struct flock of 64-bit Linux: type, whence, start, length, process


def fingerprint(value: Any) -> str:
    """The SHA-256 (hex) of a JSON value in canonical form."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def file_fingerprint(path: Path) -> str:
    """The SHA-256 (hex) of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_folders: dict[str, list[str]] = {}  # by absolute path: hash of the folder's listing, hash of its content


def folder_fingerprint(folder: Path, outputs: Path | None = None) -> str:
    """The SHA-256 (hex) over names and contents of all files below a folder, without hidden ones.

    Files are read again only when a name, size or modification time has changed.

    Args:
        folder: The folder to hash.
        outputs: The output folder, whose ``cache/folders.json`` keeps the hashes for later processes; None keeps them in this process.
    """
    visible = (path for path in folder.rglob("*") if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    files = sorted(path for path in visible if path.is_file())
    now, stats = time.time(), [(str(path.relative_to(folder)), path.stat()) for path in files]
    listing = fingerprint([[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats])
    key, cache = str(folder.resolve()), None if outputs is None else outputs / "cache" / "folders.json"
    for cached in (_folders, {} if cache is None else _read_cache(cache)):
        if key in cached and cached[key][0] == listing:
            return cached[key][1]
    content = fingerprint([[name, file_fingerprint(path)] for (name, _), path in zip(stats, files, strict=True)])
    if max((stat.st_mtime for _, stat in stats), default=0.0) < now - _SETTLED_S:
        _folders[key] = [listing, content]
        if cache is not None:
            with contextlib.suppress(FcotError):  # then the next process reads the folder again
                write_json(cache, _read_cache(cache) | {key: [listing, content]})
    return content


def _read_cache(cache: Path) -> dict[str, list[str]]:
    """The hashes that earlier processes wrote; empty if the file is missing or damaged."""
    try:
        entries = json.loads(cache.read_text(encoding="utf-8"))
        return {key: [str(listing), str(content)] for key, (listing, content) in entries.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def disk_error(error: OSError, path: Path) -> FcotError:
    """The exception for a failed write. Its message assumes that the caller has removed the partial file."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return FcotError(f"no space left to write {path}: free some and run the same command again; it continues here")
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return FcotError(f"cannot write {path}: there is a file where a folder is needed ({error.filename})")
    return FcotError(f"cannot write {path}: {error.strerror or error}")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file to fill, then rename it to ``path``, which is never half-written (fsync, rename).

    Raises:
        FcotError: The disk is full, or the folder is not writable. The temporary file is removed.
    """
    temporary = path.with_name(f"{path.name}{TEMPORARY}-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise disk_error(error, path) from error
        raise


def write_atomic(path: Path, text: str | Iterable[str]) -> None:
    """Write a text file through :func:`replacing`, which documents the errors."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines([text] if isinstance(text, str) else text)


def _system_error(error: Exception) -> OSError | None:
    """The operating system's error, also from the message of a safetensors exception; None for other exceptions."""
    if isinstance(error, OSError):
        return error
    match = re.search(r"os error (\d+)", str(error))
    return OSError(int(match[1]), os.strerror(int(match[1]))) if match else None


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
    """Fill a folder through ``fill(temporary)`` and rename it to ``path``, replacing an older folder.

    A killed process leaves the old folder, the new one or, between the two renames, none; never a mixture of both.

    Raises:
        FcotError: The disk is full, or the folder is not writable. The temporary folder is removed.
    """
    temporary = path.with_name(f"{path.name}{TEMPORARY}-{os.getpid()}")
    old = path.with_name(f"{path.name}{TEMPORARY}-old-{os.getpid()}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # of a killed process with the same id
        temporary.mkdir(parents=True)
        fill(temporary)
        for file in temporary.rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)  # safetensors writes files that only their owner can read
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
    """Hold a lock file exclusively. If another process holds it, say which one and wait.

    The kernel drops the lock when its holder dies, so a killed run never blocks the next one. Nothing else in this process may open the
    lock file: closing any handle on a POSIX-locked file drops the lock.

    Raises:
        FcotError: The lock file cannot be written, or its file system has no locks.
    """
    file = _locked(lock, say)
    try:
        yield
    finally:
        try:
            os.ftruncate(file, 0)
        finally:
            os.close(file)


def _locked(lock: Path, say: Callable[[str], object]) -> int:
    """The descriptor of a lock file that this process has locked.

    The holder before may have removed the file, as ``fcot rm`` does: then its lock is of no use any more, and a new file is locked.
    """
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(lock, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            raise disk_error(error, lock) from error
        try:
            _acquire(file, lock.parent, say)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(lock), os.fstat(file)):
                    return file
        except OSError as error:
            os.close(file)
            raise disk_error(error, lock) from error
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _acquire(file: int, folder: Path, say: Callable[[str], object]) -> None:
    """Lock an open lock file, waiting for its holder if there is one, and write this process's name into it."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        say(f"waiting for {folder}: in use by {os.pread(file, 1000, 0).decode().strip() or 'another process'}")
        wait_for_lock(file)
    os.ftruncate(file, 0)
    os.write(file, f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())


def wait_for_lock(file: int) -> None:
    """Wait until a lock is free, and take it. Unlike a blocking call, it ends when a signal requests a stop."""
    while True:
        with contextlib.suppress(BlockingIOError, PermissionError):
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        sleep(_TRY_EVERY_S)


def holder(lock: Path) -> int | None:
    """The id of the process that holds a lock of :func:`exclusive`; 0 for a process on another machine, None if the lock is free.

    The holder itself must not call this: it would release its own lock.
    """
    try:
        file = os.open(lock, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        query = struct.pack(_FLOCK, fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, process = struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, query))
    finally:
        os.close(file)
    return None if kind == fcntl.F_UNLCK else max(process, 0)
