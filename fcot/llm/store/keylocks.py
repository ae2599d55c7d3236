"""Kernel locks on single bytes of a lock file. Each byte stands for a key, so two buyers exclude each other key by key.

A lock on the whole file conflicts with all locks on bytes. Older versions lock the whole file to buy, so an old and a new version
that share a store exclude each other. The kernel drops the locks of a process that dies. On Linux the locks are
open-file-description locks (``F_OFD_SETLK``): unlike plain POSIX locks they survive the closing of another handle on the
file, and two handles of one process conflict. They also conflict with plain POSIX locks, which are used on other systems.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from fcot.base.errors import FcotError
from fcot.base.files import disk_error
from fcot.base.stopping import sleep

_FLOCK = "hhqqi4x"  # struct flock of 64-bit Linux: type, whence, start, length, process
_KEY_DIGITS = 15  # hexadecimal digits of a key: these 60 bits are the position of its byte
_NAMES = 1 << 61  # the byte that guards the file's text
_ALL = (0, 0)  # start and length of the whole file
_WAITS_S = (0.1, 0.2, 0.5, 1.0, 2.0)  # between tries to take a lock that another process holds; the last one repeats


def signature() -> str:
    """This process, its host and the time, shown to those who wait for its locks."""
    return f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"


class KeyLocks:
    """The locks that this object holds on one lock file. Nothing else in the process may use its handle.

    The file's text lists the buyers: a line ``NAME SIGNATURE`` for each. ``NAME`` is the buyer's file, or ``*`` if the buyer has locked
    the whole file. The text is written under a lock. It is needed on network file systems: a process that has just locked a file sees
    the file's new content, but sees new names in a folder only much later.

    Args:
        path: The lock file; created when it is first needed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None
        self._plain = not hasattr(fcntl, "F_OFD_SETLK")

    def take(self, key: str) -> bool:
        """Lock a key; False if another process has locked it or the whole file."""
        return self._set(fcntl.LOCK_EX, (_byte(key), 1))

    def drop(self, key: str) -> None:
        """Unlock a key."""
        self._set(fcntl.LOCK_UN, (_byte(key), 1))

    def take_all(self, wait: bool) -> bool:
        """Lock the whole file. False if another process has locked a part of it and ``wait`` is false."""
        for seconds in _repeat_last(_WAITS_S):
            if self._set(fcntl.LOCK_EX, _ALL):
                break
            if not wait:
                return False
            sleep(seconds)
        self.write_text([*self.lines(), f"* {signature()}"])
        return True

    def drop_all(self) -> None:
        """Unlock everything, and delete the line that says that the whole file is locked."""
        if self._file is not None:
            self.write_text([line for line in self.lines() if not line.startswith("* ")])
            self._set(fcntl.LOCK_UN, _ALL)

    def remove(self) -> None:
        """Delete the lock file, unless another process has locked a part of it. A process that waits for it then locks a new file."""
        if self.take_all(wait=False):
            self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Unlock everything and close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    # --- the file's text ---

    def lines(self) -> list[str]:
        """The lines of the file's text; none if the file does not exist yet."""
        if self._file is not None:
            return _text(self._file)
        try:
            file = os.open(self.path, os.O_RDONLY)
        except OSError:
            return []
        try:
            return _text(file)
        finally:
            os.close(file)

    def add_line(self, line: str) -> None:
        """Append a line to the text. Call it while holding a key: then no other process can lock the whole file and rewrite the text."""
        while not self._set(fcntl.LOCK_EX, (_NAMES, 1)):
            time.sleep(0.001)  # others hold this lock only while they write one line
        try:
            self.write_text([*self.lines(), line])
        finally:
            self._set(fcntl.LOCK_UN, (_NAMES, 1))

    def write_text(self, lines: list[str]) -> None:
        """Replace the file's text."""
        assert self._file is not None
        data = "".join(f"{line}\n" for line in lines).encode()
        try:
            os.pwrite(self._file, data, 0)
            os.ftruncate(self._file, len(data))
        except OSError as error:
            raise disk_error(error, self.path) from error

    # --- the kernel ---

    def _set(self, kind: int, part: tuple[int, int]) -> bool:
        """Lock or unlock a part of the file without waiting; False if another process has locked some of it."""
        try:
            while True:
                if self._file is None:
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                    with contextlib.suppress(FileNotFoundError):  # another process has just deleted the empty folder
                        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
                    continue
                changed = self._set_open(self._file, kind, *part)
                if not changed or kind == fcntl.LOCK_UN or os.fstat(self._file).st_nlink:
                    return changed
                self.close()  # another process deleted the file after this one had opened it, so nobody else locks this file
        except OSError as error:
            if error.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                raise FcotError(
                    f"the file system of {self.path.parent} has no working file locks ({error.strerror}): two buyers would pay for the "
                    "same completions. Put the store on a file system with working locks (output_dir=...)"
                ) from error
            raise disk_error(error, self.path) from error

    def _set_open(self, file: int, kind: int, start: int, length: int) -> bool:
        try:
            if not self._plain:
                with contextlib.suppress(InvalidArgument):
                    _set_ofd(file, kind, start, length)
                    return True
                self._plain = True
            fcntl.lockf(file, kind if kind == fcntl.LOCK_UN else kind | fcntl.LOCK_NB, length, start)
        except (BlockingIOError, PermissionError):
            return False
        return True


class InvalidArgument(OSError):
    """The file system does not support open-file-description locks."""


def _set_ofd(file: int, kind: int, start: int, length: int) -> None:
    request = struct.pack(_FLOCK, fcntl.F_UNLCK if kind == fcntl.LOCK_UN else fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
    try:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, request)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise InvalidArgument from error
        raise


def _byte(key: str) -> int:
    return int(key[:_KEY_DIGITS], 16)


def _repeat_last(waits: tuple[float, ...]) -> Iterator[float]:
    yield from waits
    while True:
        yield waits[-1]


def _text(file: int) -> list[str]:
    parts, offset = [], 0
    while part := os.pread(file, 1 << 16, offset):
        parts.append(part)
        offset += len(part)
    return b"".join(parts).decode("utf-8", "replace").splitlines()
