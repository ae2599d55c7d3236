"""Kernel locks on single bytes of a lock file: a byte stands for a key, so that two buyers exclude each other key by key.

A lock of the whole file excludes all of them; older versions take that one to buy, so an old and a new version that share a
store exclude each other. The kernel drops the locks of a process that dies. On Linux they are open-file-description locks
(``F_OFD_SETLK``): unlike plain POSIX locks they survive the closing of another handle on the file, and conflict within a
process. They conflict with POSIX locks as those do with each other. Elsewhere plain POSIX locks are used.
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
_KEY_DIGITS = 15  # of a key, hexadecimal: 60 bits name its byte
_NAMES = 1 << 61  # the byte that guards the file's text
_ALL = (0, 0)  # start and length of the whole file
_WAITS_S = (0.1, 0.2, 0.5, 1.0, 2.0)  # between looks at a lock that another process holds; the last one repeats


def signature() -> str:
    """Who locks: process, host and time, for those who wait."""
    return f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"


class KeyLocks:
    """The locks that this object holds on one lock file; nothing else in the process may use its handle.

    The file's text says who is at work: a line per writer, ``NAME SIGNATURE``, and a first word of ``*`` where one process
    has all of it. It is read and written under a lock, because network file systems show a file's new content to whoever has
    just locked it, and new names in a folder only much later.

    Args:
        path: The lock file; made when it is first needed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None
        self._plain = not hasattr(fcntl, "F_OFD_SETLK")

    def take(self, key: str) -> bool:
        """Lock a key; False where another process has it, or the whole file."""
        return self._set(fcntl.LOCK_EX, (_byte(key), 1))

    def drop(self, key: str) -> None:
        """Unlock a key."""
        self._set(fcntl.LOCK_UN, (_byte(key), 1))

    def take_all(self, wait: bool) -> bool:
        """Lock the whole file, for whoever must be alone; False where another process has any of it and ``wait`` is false."""
        for seconds in _endless(_WAITS_S):
            if self._set(fcntl.LOCK_EX, _ALL):
                break
            if not wait:
                return False
            sleep(seconds)
        self.write_text([*self.lines(), f"* {signature()}"])
        return True

    def drop_all(self) -> None:
        """Unlock everything; the file no longer says that this process has all of it."""
        if self._file is not None:
            self.write_text([line for line in self.lines() if not line.startswith("* ")])
            self._set(fcntl.LOCK_UN, _ALL)

    def close(self) -> None:
        """Unlock everything and close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    # --- the file's text ---

    def lines(self) -> list[str]:
        """The lines of the file's text, none where there is no file yet."""
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
        """Append a line, while holding a key: nobody else rewrites the text meanwhile."""
        while not self._set(fcntl.LOCK_EX, (_NAMES, 1)):
            time.sleep(0.001)  # whoever has it writes one line
        try:
            self.write_text([*self.lines(), line])
        finally:
            self._set(fcntl.LOCK_UN, (_NAMES, 1))

    def write_text(self, lines: list[str]) -> None:
        """Replace the text."""
        assert self._file is not None
        data = "".join(f"{line}\n" for line in lines).encode()
        try:
            os.pwrite(self._file, data, 0)
            os.ftruncate(self._file, len(data))
        except OSError as error:
            raise disk_error(error, self.path) from error

    # --- the kernel ---

    def _set(self, kind: int, part: tuple[int, int]) -> bool:
        """Lock or unlock a part of the file without waiting; False where another one has a part of it."""
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            return self._set_open(self._file, kind, *part)
        except OSError as error:
            if error.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                raise FcotError(
                    f"the file system of {self.path.parent} has no working file locks ({error.strerror}): two buyers would pay for the "
                    "same completions. Put the store on one that has (output_dir=...)"
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
    """The file system does not know open-file-description locks."""


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


def _endless(waits: tuple[float, ...]) -> Iterator[float]:
    yield from waits
    while True:
        yield waits[-1]


def _text(file: int) -> list[str]:
    parts, offset = [], 0
    while part := os.pread(file, 1 << 16, offset):
        parts.append(part)
        offset += len(part)
    return b"".join(parts).decode("utf-8", "replace").splitlines()
