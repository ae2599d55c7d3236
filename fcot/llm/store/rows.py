"""Reading and appending the rows of the completion store as lines of files."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fcot.base.files import disk_error

StoreRow = dict[str, Any]


def append_lines(path: Path, encoded: Sequence[bytes]) -> None:
    """Append complete lines to a file and force them to the disk. If the file's last line is torn, a line break is added first.

    Args:
        path: A file that no other process writes now.
        encoded: Lines with their line breaks.

    Raises:
        FcotError: The disk is full; the file is unchanged.
    """
    try:
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError as error:
        raise disk_error(error, path) from error
    try:
        size = os.fstat(file).st_size
        torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"
        try:
            data = memoryview((b"\n" if torn else b"") + b"".join(encoded))
            while data:
                data = data[os.write(file, data) :]
            os.fsync(file)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(file, size)
            raise disk_error(error, path) from error
    finally:
        os.close(file)


def lines(handle: int, start: int) -> Iterator[tuple[int, int, StoreRow | None]]:
    """Begin, end and row of each complete line of an open file, from byte ``start`` on. The row of an invalid line is None."""
    incomplete = b""
    while part := os.pread(handle, 1 << 20, start + len(incomplete)):
        *complete, incomplete = (incomplete + part).split(b"\n")
        for line in complete:
            yield start, start + len(line) + 1, _parse(line)
            start += len(line) + 1


def read_row(handle: int, begin: int) -> StoreRow | None:
    """The row that begins at byte ``begin`` of an open file; None if the line is invalid."""
    data, size = b"", 1 << 12
    while b"\n" not in data:
        part = os.pread(handle, size, begin + len(data))
        if not part:
            break
        data, size = data + part, 1 << 16
    return _parse(data.partition(b"\n")[0])


def _parse(line: bytes) -> StoreRow | None:
    """The row of a line; None for a line without valid JSON, a valid key or a slot below 2**20."""
    try:
        row = json.loads(line)
        slot = row["slot"]
        valid = len(bytes.fromhex(row["key"])) == 32 and (slot is None or (type(slot) is int and 0 <= slot < 1 << 20))
        return row if valid else None
    except (ValueError, KeyError, TypeError):
        return None
