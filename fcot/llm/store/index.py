"""The index beside a shard: where each row begins, sorted by key. With it, the time to open a shard does not depend on its size.

``x.index`` has a header of one JSON line, records of 28 bytes (half a key, slot or kind, offset), and a CRC-32 for each block
of records. It covers the first ``size`` bytes of ``x.jsonl`` and recognizes them by a digest of their beginning and end.
Rows that were appended later are read from the file. A record is read only after its block's checksum was verified. An index
that is damaged or does not match its file is ignored: it can be rebuilt from the shard at any time.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from fcot.base.files import replacing

VERSION = 1
UNUSABLE, COST_ONLY = -1, -2  # kinds of rows without a slot: an unusable answer, and a row that only records a cost
IndexEntry = tuple[bytes, int, int]  # half a key (16 bytes), slot or kind, offset
_RECORD = struct.Struct(">16siQ")
_HEADER = 256  # bytes
_BLOCK = 1024  # records
_ANCHOR = 4096  # bytes at either end by which the indexed file is recognized


class Damaged(Exception):
    """A block's checksum is wrong."""


class Index:
    """An index file, mapped into memory.

    Attributes:
        size: Number of bytes of the shard that the index covers.
    """

    def __init__(self, data: mmap.mmap, size: int, n_records: int) -> None:
        self.size = size
        self._data = data
        self._n = n_records
        self._verified: set[int] = set()  # blocks whose checksums were correct

    @classmethod
    def open(cls, path: Path, shard: int) -> Index | None:
        """The index of an open shard file; None if there is none or it does not match.

        Args:
            path: The index file.
            shard: The shard's file descriptor.
        """
        try:
            with path.open("rb") as file:
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            header = json.loads(data[:_HEADER])
            n, size = int(header["records"]), int(header["size"])
            fits = header["version"] == VERSION and len(data) == _HEADER + n * _RECORD.size + 4 * _blocks(n)
            if not fits or os.fstat(shard).st_size < size or header["anchor"] != _anchor(shard, size):
                return None
            return cls(data, size, n)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def records(self, key: bytes) -> list[IndexEntry]:
        """The records of a key, ordered by slot and offset.

        Raises:
            Damaged: A checksum is wrong; the index has to be rebuilt.
        """
        half, low, high = key[:16], 0, self._n
        while low < high:
            middle = (low + high) // 2
            if self._record(middle)[0] < half:
                low = middle + 1
            else:
                high = middle
        records = []
        while low < self._n and (record := self._record(low))[0] == half:
            records.append(record)
            low += 1
        return records

    def __iter__(self) -> Iterator[IndexEntry]:
        return (self._record(position) for position in range(self._n))

    def _record(self, position: int) -> IndexEntry:
        block = position // _BLOCK
        if block not in self._verified:
            begin, end = _HEADER + block * _BLOCK * _RECORD.size, _HEADER + min(self._n, (block + 1) * _BLOCK) * _RECORD.size
            table = _HEADER + self._n * _RECORD.size + 4 * block
            if zlib.crc32(self._data[begin:end]) != int.from_bytes(self._data[table : table + 4], "big"):
                raise Damaged
            self._verified.add(block)
        half, slot, offset = _RECORD.unpack_from(self._data, _HEADER + position * _RECORD.size)
        return half, slot, offset


def write_index(path: Path, shard: int, size: int, records: Iterable[IndexEntry]) -> None:
    """Write the index of the first ``size`` bytes of an open shard file, atomically.

    Raises:
        FcotError: The disk is full, or the folder is not writable.
    """
    ordered = sorted(records)
    header = json.dumps({"version": VERSION, "records": len(ordered), "size": size, "anchor": _anchor(shard, size)})
    packed = b"".join(_RECORD.pack(*record) for record in ordered)
    step = _BLOCK * _RECORD.size
    sums = b"".join(zlib.crc32(packed[begin : begin + step]).to_bytes(4, "big") for begin in range(0, len(packed), step))
    with replacing(path) as temporary:
        temporary.write_bytes(header.encode().ljust(_HEADER) + packed + sums)


def _blocks(n_records: int) -> int:
    return -(-n_records // _BLOCK)


def _anchor(shard: int, size: int) -> str:
    ends = os.pread(shard, min(_ANCHOR, size), 0) + os.pread(shard, min(_ANCHOR, size), max(0, size - _ANCHOR))
    return hashlib.sha256(ends).hexdigest()
