"""The completion store: every generation that was ever paid for, shared by all runs.

The unit is a generation: one choice of one request, filed under the request's key. Samples of one key are exchangeable,
so they fill slots 0..D-1 in the order they arrive and D = 8 is a prefix of D = 64. Files are JSON Lines shards under
``<task>/<model>/<prompt>/``, split by the first hex digit of the step-1 key.

To buy, a process holds the kernel lock of a shard (``fcntl.lockf`` on a ``.lock`` file that nothing else opens: closing
any handle on a POSIX-locked file drops the lock). Reading needs no lock: lines that do not parse are skipped, and the
first row of a (key, slot) wins.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from fcot.artifacts import disk_error
from fcot.progress import say

Row = dict[str, Any]


def readable(name: str) -> str:
    """A name as a folder name."""
    return re.sub(r"[^\w.=-]+", "_", name).strip("_.") or "unnamed"


class StoreFolder:
    """The shards of one task, model and prompt."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: dict[str, dict[int, Row]] = {}
        self._refused: dict[str, list[Row]] = {}
        self._read_up_to: dict[str, int] = {}

    def shard_of(self, root_key: str) -> str:
        """The shard that holds a step-1 key and everything that continues it."""
        return root_key[0]

    def refresh(self, shard: str) -> None:
        """Read what was appended to a shard since the last look; complete lines only."""
        path = self.path / f"{shard}.jsonl"
        start = self._read_up_to.get(shard, 0)
        try:
            with path.open("rb") as file:
                file.seek(start)
                data = file.read()
        except FileNotFoundError:
            return
        end = data.rfind(b"\n") + 1
        self._read_up_to[shard] = start + end
        for line in data[:end].splitlines():
            try:
                row = json.loads(line)
                self._add(row)
            except (ValueError, KeyError, TypeError):
                continue  # a torn line that its writer's successor sealed

    def _add(self, row: Row) -> None:
        key = row["key"]
        if row["slot"] is None:
            self._refused.setdefault(key, []).append(row)
        else:
            self._rows.setdefault(key, {}).setdefault(row["slot"], row)

    def appended(self, shard: str, size: int, rows: Iterable[Row]) -> None:
        """Take over rows this process wrote itself; ``size`` is the shard's length in bytes after them."""
        for row in rows:
            self._add(row)
        self._read_up_to[shard] = size

    def filled(self, key: str) -> Mapping[int, Row]:
        """Good rows of a key by slot, as of the last refresh."""
        return self._rows.get(key, {})

    def refused(self, key: str) -> Sequence[Row]:
        """Answers to a key that were paid for and unusable, as of the last refresh."""
        return self._refused.get(key, ())

    @contextlib.contextmanager
    def buying(self, shards: Iterable[str]) -> Iterator[dict[str, ShardWriter]]:
        """Writers for as many of ``shards`` as are free now; waits for one of them where none is.

        Holding some, it never waits for another, so two processes cannot wait for each other.
        """
        wanted = sorted(set(shards))
        writers: dict[str, ShardWriter] = {}
        with contextlib.ExitStack() as stack:
            for wait in (False, True):
                if wait:
                    say(f"waiting for another run that is buying from the same part of the store ({self.path})")
                for shard in wanted:
                    lock = _lock(self.path / f"{shard}.lock", wait=wait) if not (wait and writers) else None
                    if lock is not None:
                        stack.callback(lock.close)
                        writers[shard] = ShardWriter(self, shard)
                        stack.callback(writers[shard].close)
                if writers or not wanted:
                    break
            for shard in writers:
                self.refresh(shard)
            yield writers


def _lock(path: Path, wait: bool) -> TextIO | None:
    """An open, exclusively locked lock file; None where another process has it and ``wait`` is false."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a", encoding="utf-8")
    except OSError as error:
        raise disk_error(error, path) from error
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        file.close()
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return None
        raise disk_error(error, path) from error
    return file


class ShardWriter:
    """Appends to one shard under its lock: one write per answer, fsync each second and at the end."""

    def __init__(self, folder: StoreFolder, shard: str) -> None:
        self._folder = folder
        self._shard = shard
        self._path = folder.path / f"{shard}.jsonl"
        self._synced = time.monotonic()
        try:
            self._file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            size = os.fstat(self._file).st_size
            if size and os.pread(self._file, 1, size - 1) != b"\n":
                os.write(self._file, b"\n")  # seal the line a killed writer tore: readers skip it
        except OSError as error:
            raise disk_error(error, self._path) from error

    def append(self, rows: Iterable[Row]) -> None:
        """Append the rows of one answer; where the disk fills up, whole rows stay and a torn one is taken back."""
        rows = list(rows)
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        size, written = os.fstat(self._file).st_size, 0
        try:
            while written < len(data):
                written += os.write(self._file, data[written:])
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, size + data.rfind(b"\n", 0, written) + 1)  # the lock is ours: nobody else has appended
            raise disk_error(error, self._path) from error
        self._folder.appended(self._shard, size + len(data), rows)
        if time.monotonic() - self._synced > 1.0:
            self.sync()

    def sync(self) -> None:
        """Force what was appended to the disk."""
        try:
            os.fsync(self._file)
        except OSError as error:
            raise disk_error(error, self._path) from error
        self._synced = time.monotonic()

    def close(self) -> None:
        """Sync and close the data file; the lock is released by whoever took it."""
        self.sync()
        os.close(self._file)
