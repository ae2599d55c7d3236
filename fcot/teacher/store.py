"""The completion store: every generation that was ever paid for, shared by all runs.

The unit is a generation: one choice of one request, filed under the request's key. Samples of one key are exchangeable,
so they fill slots 0..D-1 in the order they arrive and D = 8 is a prefix of D = 64. Files are JSON Lines shards under
``<task>/<model>/<prompt>/``, split by the first hex digit of the step-1 key. In memory there is only an index of where
each row begins: texts stay on disk.

To buy, a process holds the kernel lock of a shard (``fcntl.lockf`` on a ``.lock`` file that nothing else opens: closing
any handle on a POSIX-locked file drops the lock). Reading needs no lock: lines that do not parse are skipped, and the
first row of a (key, slot) wins.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from fcot.artifacts import disk_error, wait_for_lock

Row = dict[str, Any]
_EMPTY = -1


def readable(name: str) -> str:
    """A name as a folder name."""
    return re.sub(r"[^\w.=-]+", "_", name).strip("_.") or "unnamed"


class StoreFolder:
    """The shards of one task, model and prompt, each opened when it is first asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._shards: dict[str, Shard] = {}

    def shard(self, root_key: str) -> Shard:
        """The shard that holds a step-1 key and everything that continues it."""
        name = root_key[0]
        if name not in self._shards:
            self._shards[name] = Shard(self.path / f"{name}.jsonl")
        return self._shards[name]

    def open_batches(self) -> list[Path]:
        """The jobs files of batches that were submitted and not collected yet."""
        return sorted((self.path / "batches").glob("*.jobs.jsonl"))

    def shards(self) -> Iterator[Shard]:
        """Every shard there is."""
        for path in sorted(self.path.glob("?.jsonl")):
            yield self.shard(path.stem)


class Shard:
    """One JSON Lines file: an index of its rows, and the right to append while its lock is held.

    Args:
        path: The file; need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filled: dict[bytes, list[int]] = {}  # key -> offset of the row in each slot
        self._refused: dict[bytes, list[int]] = {}
        self._end = 0
        self._reader: BinaryIO | None = None
        self._lock: int | None = None
        self._appender: int | None = None
        self._synced = 0.0

    # --- reading ---

    def refresh(self) -> Shard:
        """Index what was appended since the last look, complete lines only."""
        for begin, end, row in self.rows(self._end):
            self._end = end
            if row is not None:
                self._add(row, begin)
        return self

    def rows(self, start: int = 0) -> Iterator[tuple[int, int, Row | None]]:
        """Begin, end and row of each complete line from byte ``start`` on; no row for a line that a killed writer tore."""
        reader = self._open()
        if reader is None:
            return
        reader.seek(start)
        for line in reader:
            if not line.endswith(b"\n"):
                return
            yield start, start + len(line), _parse(line)
            start += len(line)

    def _open(self) -> BinaryIO | None:
        if self._reader is None:
            with contextlib.suppress(FileNotFoundError):
                self._reader = self.path.open("rb")
        return self._reader

    def _add(self, row: Row, offset: int) -> None:
        key, slot = bytes.fromhex(row["key"]), row["slot"]
        if slot is None:
            self._refused.setdefault(key, []).append(offset)
            return
        slots = self._filled.setdefault(key, [])
        slots.extend([_EMPTY] * (slot + 1 - len(slots)))
        if slots[slot] == _EMPTY:
            slots[slot] = offset

    def has(self, key: str, slot: int) -> bool:
        """Whether a good row fills the slot."""
        slots = self._filled.get(bytes.fromhex(key), ())
        return slot < len(slots) and slots[slot] != _EMPTY

    def slots(self, key: str) -> list[int]:
        """The filled slots of a key, ascending."""
        return [slot for slot, offset in enumerate(self._filled.get(bytes.fromhex(key), ())) if offset != _EMPTY]

    def row(self, key: str, slot: int) -> Row:
        """The good row of a filled slot."""
        return self._read(self._filled[bytes.fromhex(key)][slot])

    def n_refused(self, key: str) -> int:
        """How many answers to a key were paid for, or asked for, and unusable."""
        return len(self._refused.get(bytes.fromhex(key), ()))

    def refused(self, key: str) -> list[Row]:
        """Those answers."""
        return [self._read(offset) for offset in self._refused.get(bytes.fromhex(key), ())]

    def _read(self, offset: int) -> Row:
        reader = self._open()
        assert reader is not None
        reader.seek(offset)
        return dict(json.loads(reader.readline()))

    # --- appending ---

    def acquire(self, wait: bool) -> bool:
        """Lock the shard for buying and read what others appended; False where another process has it and ``wait`` is false."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o644)
            if not self._try_lock(wait):
                self._close()
                return False
            self._appender = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            size = os.fstat(self._appender).st_size
            if size and os.pread(self._appender, 1, size - 1) != b"\n":
                os.write(self._appender, b"\n")  # seal the line a killed writer tore: readers skip it
            self._synced = time.monotonic()
        except OSError as error:
            self._close()
            raise disk_error(error, self.path) from error
        self.refresh()
        return True

    def _try_lock(self, wait: bool) -> bool:
        assert self._lock is not None
        if wait:
            wait_for_lock(self._lock)
            return True
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def append(self, rows: Iterable[Row]) -> None:
        """Append the rows of one answer in one write; where the disk fills up, whole rows stay and a torn one is taken back."""
        assert self._appender is not None, "append needs the lock"
        rows = list(rows)
        lines = [json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows]
        data, size, written = b"".join(lines), self._end, 0
        try:
            while written < len(data):
                written += os.write(self._appender, data[written:])
            if time.monotonic() - self._synced > 1.0:
                self._sync()
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._appender, size + data.rfind(b"\n", 0, written) + 1)  # the lock is ours: nobody else has appended
            self.refresh()
            raise disk_error(error, self.path) from error
        for row, line in zip(rows, lines, strict=True):
            self._add(row, self._end)
            self._end += len(line)

    def _sync(self) -> None:
        assert self._appender is not None
        os.fsync(self._appender)
        self._synced = time.monotonic()

    def release(self) -> None:
        """Force what was appended to the disk, and let others buy."""
        try:
            if self._appender is not None:
                self._sync()
        except OSError as error:
            raise disk_error(error, self.path) from error
        finally:
            self._close()

    def _close(self) -> None:
        """Close the data file first: the lock goes last."""
        for file in (self._appender, self._lock):
            if file is not None:
                os.close(file)
        self._appender = self._lock = None


def _parse(line: bytes) -> Row | None:
    """A line's row, None where it is none: no JSON, no key, no slot that a list could hold."""
    try:
        row = json.loads(line)
        slot = row["slot"]
        whole = len(bytes.fromhex(row["key"])) == 32 and (slot is None or (type(slot) is int and 0 <= slot < 1 << 20))
        return row if whole else None
    except (ValueError, KeyError, TypeError):
        return None
