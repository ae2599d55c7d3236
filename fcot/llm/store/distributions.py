"""The distributions beside a shard: binary records of :mod:`fcot.llm.distributions`, bound to rows by key, slot and text.

Beside ``x.jsonl`` is ``x.top``, and ``x.<buyer>.top`` for each active buyer, which only that buyer appends to. A record is appended
before its row. A killed buyer may leave a record without a row, which no reader finds, because the hash of the text is part of it.
Files are opened at the first use, so runs without distributions do not pay for them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from fcot.base.files import disk_error, replacing
from fcot.llm.distributions import Header, TopTokens, decode, encode, read_header
from fcot.llm.store.rows import StoreRow

_Id = tuple[bytes, int, bytes]  # key, slot and hash of the text


class Distributions:
    """The distributions of one shard.

    Args:
        path: The main file, ``x.top``; need not exist.
        own: Name of this process's own file beside it.
    """

    def __init__(self, path: Path, own: str) -> None:
        self.path = path
        self._own = own
        self._writer: int | None = None
        self._current = False  # whether all records were read that are known to be there
        self._files: dict[str, io.FileIO] = {}
        self._ends: dict[str, int] = {}  # bytes that were read of each file
        self._places: dict[_Id, tuple[str, int]] = {}

    def get(self, row: StoreRow) -> TopTokens | None:
        """The distributions of a row's text; None if there are none, or if their record is damaged."""
        if (record := self._record(row)) is None:
            return None
        file, begin, header = record
        return decode(header, os.pread(file, header.content_bytes, begin + Header.SIZE))

    def has(self, row: StoreRow) -> bool:
        """Whether there is a record for the row's text."""
        return self._place(row) is not None

    def n_bytes(self, row: StoreRow) -> int:
        """Size of a row's record; 0 if it has none."""
        record = self._record(row)
        return 0 if record is None else Header.SIZE + record[2].content_bytes

    def expect_new(self) -> None:
        """Look for new records before the next one is read. Otherwise a row without a record costs no look into the folder."""
        self._current = False

    def _place(self, row: StoreRow) -> tuple[str, int] | None:
        """The file and the byte where a row's record begins; None if there is none."""
        if not self._current:
            self.refresh()
        return self._places.get(_id_of(row)) if self._places and row["slot"] is not None else None

    def _record(self, row: StoreRow) -> tuple[int, int, Header] | None:
        """The descriptor of the file, the byte where the record begins, and its header; None if a row has no record."""
        if (place := self._place(row)) is None:
            return None
        file = self._files[place[0]].fileno()
        header = read_header(os.pread(file, Header.SIZE, place[1]))
        assert header is not None
        return file, place[1], header

    def refresh(self) -> None:
        """Read the headers of what was appended since the last call."""
        self._current = True
        names = self.names()
        if any(name not in names or not _same(self.path.parent / name, file) for name, file in self._files.items()):
            self._forget()  # records were moved into the main file
        for name in names:
            if name not in self._files:
                with contextlib.suppress(FileNotFoundError):  # moved in the meantime: its records are in the main file, which is read last
                    self._files[name] = io.FileIO(self.path.parent / name)
            if name in self._files:
                for begin, end, header in records(self._files[name].fileno(), self._ends.get(name, 0)):
                    self._places.setdefault((header.key, header.slot, header.text), (name, begin))
                    self._ends[name] = end

    def _forget(self) -> None:
        for file in self._files.values():
            file.close()
        self._files, self._ends, self._places = {}, {}, {}

    def names(self) -> list[str]:
        """Names of the files: those of buyers, then the main file."""
        buyers = sorted(path.name for path in self.path.parent.glob(f"{self.path.stem}.*.top"))
        return [*buyers, *([self.path.name] if self.path.exists() else [])]

    def append(self, distributions: Iterable[tuple[StoreRow, TopTokens]]) -> None:
        """Append the distributions of rows that will be appended next, in one write.

        Raises:
            FcotError: The disk is full; no record was added.
        """
        data = b"".join(encode_for(row, top) for row, top in distributions)
        if not data:
            return
        path = self.path.parent / self._own
        try:
            if not path.exists():
                self.close()  # another process has moved its records
            if self._writer is None:
                self._writer = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            raise disk_error(error, path) from error
        _append(self._writer, data, path)
        self.expect_new()

    def sync(self) -> None:
        """Force what this process appended to the disk."""
        if self._writer is not None:
            try:
                os.fsync(self._writer)
            except OSError as error:
                raise disk_error(error, self.path) from error

    def close(self) -> None:
        """Close this process's own file."""
        if self._writer is not None:
            os.close(self._writer)
            self._writer = None

    def fold(self, buyers: Iterable[str]) -> None:
        """Move the records of buyers into the main file. The whole shard must be locked; their rows are moved afterwards.

        Args:
            buyers: Names of the buyers' files of rows, ``x.<buyer>.jsonl``.
        """
        names = [Path(buyer).with_suffix(".top").name for buyer in buyers]
        self.move([self.path.parent / name for name in names if (self.path.parent / name).exists()])

    def move(self, files: Iterable[Path]) -> None:
        """Append the valid records of files to the main file, then delete the files. A torn end of the main file is cut off before."""
        for source in files:
            with source.open("rb") as file:
                end = max((end for _, end, _ in records(file.fileno(), 0)), default=0)
                self.add(file.read(end))
            source.unlink(missing_ok=True)

    def add(self, data: bytes) -> None:
        """Append complete records to the main file and force them to the disk. The whole shard must be locked."""
        if not data:
            return
        try:
            target = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            raise disk_error(error, self.path) from error
        try:
            os.ftruncate(target, max((end for _, end, _ in records(target, 0)), default=0))
            _append(target, data, self.path)
            os.fsync(target)
        finally:
            os.close(target)
            self.expect_new()

    def compact(self, rows: Iterable[StoreRow]) -> None:
        """Rewrite the main file with the distributions of these rows only. The whole shard must be locked."""
        if not self.path.exists():
            return
        with replacing(self.path) as temporary, temporary.open("wb") as file:
            for row in rows:
                if (top := self.get(row)) is not None:
                    file.write(encode_for(row, top))
        self.refresh()

    def faults(self) -> Iterator[tuple[Path, str]]:
        """File and description of each damaged record, and of bytes at the end of a file that are none."""
        for name in self.names():
            path, end = self.path.parent / name, 0
            with path.open("rb") as file:
                for begin, last, header in records(file.fileno(), 0):
                    end = last
                    content = os.pread(file.fileno(), header.content_bytes, begin + Header.SIZE)
                    if decode(header, content) is None:
                        yield path, f"a damaged record at byte {begin:,}"
            if path.stat().st_size > end:
                yield path, f"no record at byte {end:,}"


def records(handle: int, start: int) -> Iterator[tuple[int, int, Header]]:
    """Begin, end and header of each complete record of an open file, from byte ``start`` on."""
    size = os.fstat(handle).st_size
    while header := read_header(os.pread(handle, Header.SIZE, start)):
        end = start + Header.SIZE + header.content_bytes
        if end > size:
            return
        yield start, end, header
        start = end


def _append(handle: int, data: bytes, path: Path) -> None:
    """Write all bytes, or none."""
    size = os.fstat(handle).st_size
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[os.write(handle, rest) :]
    except OSError as error:
        with contextlib.suppress(OSError):
            os.ftruncate(handle, size)
        raise disk_error(error, path) from error


def encode_for(row: StoreRow, top: TopTokens) -> bytes:
    """The record of a row's distributions."""
    return encode(*_id_of(row), top)


def _id_of(row: StoreRow) -> tuple[bytes, int, bytes]:
    return bytes.fromhex(row["key"])[:16], row["slot"], hashlib.sha256(row["text"].encode()).digest()[:8]


def _same(path: Path, file: io.FileIO) -> bool:
    """Whether the file at a path is still the one that was opened."""
    try:
        return path.stat().st_ino == os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return False
