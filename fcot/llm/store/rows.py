"""Rows of the completion store as lines of files."""

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
    """Append whole lines to a file that nobody else writes, and force them to the disk; a torn last line is sealed.

    Raises:
        FcotError: The disk is full; the file is as it was.
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
    """Begin, end and row of each complete line of an open file from byte ``start`` on; no row for a line that does not parse."""
    rest = b""
    while part := os.pread(handle, 1 << 20, start + len(rest)):
        *whole, rest = (rest + part).split(b"\n")
        for line in whole:
            yield start, start + len(line) + 1, _parse(line)
            start += len(line) + 1


def read_row(handle: int, begin: int) -> StoreRow | None:
    """The row that begins at a byte of an open file."""
    data, size = b"", 1 << 12
    while b"\n" not in data:
        part = os.pread(handle, size, begin + len(data))
        if not part:
            break
        data, size = data + part, 1 << 16
    return _parse(data.partition(b"\n")[0])


def _parse(line: bytes) -> StoreRow | None:
    """A line's row, None where it is none: no JSON, no key, no slot that a list could hold."""
    try:
        row = json.loads(line)
        slot = row["slot"]
        whole = len(bytes.fromhex(row["key"])) == 32 and (slot is None or (type(slot) is int and 0 <= slot < 1 << 20))
        return row if whole else None
    except (ValueError, KeyError, TypeError):
        return None
