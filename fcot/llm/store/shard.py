"""A shard of the completion store: reading its files, claiming its keys, and appending to it.

Beside the main file ``x.jsonl`` are ``x.lock``, ``x.index`` (see :mod:`fcot.llm.store.index`) and one file per active buyer,
``x.<buyer>.jsonl``, which only that buyer appends to. A buyer claims a problem by locking its key. The last buyer to release its claims
moves the buyers' rows into ``x.jsonl``. Reading needs no lock: lines that do not parse are skipped, and the first row of a (key, slot)
counts. Memory holds only the places of rows whose keys were looked up; the texts stay on disk.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from fcot.base.errors import FcotError
from fcot.base.files import disk_error
from fcot.llm.distributions import TopTokens
from fcot.llm.requests import LOST, SCORED
from fcot.llm.store.buyers import buyer_ended
from fcot.llm.store.distributions import Distributions
from fcot.llm.store.index import COST_ONLY, UNUSABLE, Damaged, Index, IndexEntry, write_index
from fcot.llm.store.keylocks import KeyLocks, signature
from fcot.llm.store.places import EMPTY, KeyPlaces, OpenFile, Place
from fcot.llm.store.rows import StoreRow, append_lines, lines, read_row

_UNINDEXED = 1 << 18  # bytes after the indexed part that are read at each opening; beyond that the index is rebuilt


class Shard:
    """The rows whose step-1 keys begin with one hex digit. Appending requires a claim on a key or on the whole shard.

    Args:
        path: The main file; need not exist.
        buyer: Name of this process in the name of its own file beside the main file.
    """

    def __init__(self, path: Path, buyer: str = "buyer") -> None:
        self.path = path
        self._locks = KeyLocks(path.with_suffix(".lock"))
        self._own = f"{path.stem}.{buyer}.jsonl"
        self.distributions = Distributions(path.with_suffix(".top"), f"{path.stem}.{buyer}.top")
        self._writer: int | None = None
        self._own_end = 0
        self._unsynced = False
        self._claims: set[str] = set()
        self._settled: set[str] = set()  # claims after which all files were read: no other process may append rows of these keys
        self._all = False  # whether the whole shard is claimed
        self._broken = False  # whether file locks were found not to work here
        self._forget()

    def _forget(self) -> None:
        self._entries: dict[bytes, KeyPlaces] = {}
        self._files: dict[str, OpenFile] = {}
        self._index: Index | None = None

    # --- reading ---

    def refresh(self) -> Shard:
        """Read what was appended since the last refresh, complete lines only.

        Raises:
            FcotError: Another process appended rows of a problem that this one has claimed, so file locks do not work here.
        """
        self.distributions.expect_new()
        names = self._names()
        if any(name not in names or not self._same(name) for name in self._files):
            self._forget()  # rows were moved into the main file
        for name in names:  # buyers' files first: rows that are moved meanwhile are then read twice, never missed
            self._read_growth(name)
        self._settled = set(self._claims)
        return self

    def _names(self) -> list[str]:
        """Names of the shard's files: those of buyers, then the main file.

        Names come from the lock file too, because on network file systems the folder's listing shows a new file late.
        """
        listed = (line.partition(" ")[0] for line in self._locks.lines())
        buyers = {name for name in listed if name != "*"} | {path.name for path in self.path.parent.glob(f"{self.path.stem}.*.jsonl")}
        return [*sorted(name for name in buyers if (self.path.parent / name).exists()), *([self.path.name] if self.path.exists() else [])]

    def _same(self, name: str) -> bool:
        """Whether a file is still the one that was read. It is opened again, because network file systems then show its new content."""
        opened = self._files[name]
        try:
            file = io.FileIO(self.path.parent / name)
        except FileNotFoundError:
            return False
        before, now = os.fstat(opened.handle), os.fstat(file.fileno())
        if now.st_ino != before.st_ino or now.st_size < opened.end:
            file.close()
            return False
        opened.file.close()
        opened.file = file
        return True

    def _read_growth(self, name: str) -> None:
        main, own = name == self.path.name, name == self._own
        if name not in self._files:
            try:
                self._files[name] = OpenFile(io.FileIO(self.path.parent / name))
            except FileNotFoundError:  # moved in the meantime: its rows are in the main file, which is read last
                return
            if main and (index := Index.open(self.path.with_suffix(".index"), self._files[name].handle)) is not None:
                self._index = index
                self._files[name].end = index.size
        opened, tail = self._files[name], 0
        for begin, end, row in lines(opened.handle, opened.end):
            opened.end, tail = end, tail + end - begin
            if row is None:
                continue
            if not own and (row.get("root") or row["key"]) in self._settled:
                self._broken = True
                raise FcotError(
                    f"{self.path.parent / name}: another process appended completions of a problem that this one has locked. File locks "
                    "do not work between the two, so both pay for the same completions. Run one purchase at a time, or put the store on "
                    "a file system with working locks (output_dir=...)"
                )
            self._add(row, (name, begin))
        if main and opened.end - (self._index.size if self._index else 0) > _UNINDEXED:
            self._write_index()

    def _write_index(self) -> None:
        """Rebuild the index of the main file. If the disk is full or the folder is not writable, the index stays as it is."""
        main = self._files[self.path.name]
        with contextlib.suppress(FcotError, OSError, Damaged):
            write_index(self.path.with_suffix(".index"), main.handle, main.end, self._main_records())
            index = Index.open(self.path.with_suffix(".index"), main.handle)
            if index is not None:
                self._index = index
                self._entries = {key: entry for key, entry in self._entries.items() if entry.in_other_file(self.path.name)}

    def _main_records(self) -> Iterator[IndexEntry]:
        """Records of the main file's rows: those of the present index, and those of keys that were read since."""
        name = self.path.name
        read = {key[:16] for key in self._entries}
        if self._index is not None:
            yield from (record for record in self._index if record[0] not in read)
        for key, entry in self._entries.items():
            kinds = [
                *enumerate(entry.slots),
                *((UNUSABLE, place) for place in entry.unusable),
                *((COST_ONLY, place) for place in entry.cost_only),
            ]
            yield from ((key[:16], kind, place[1]) for kind, place in kinds if place[0] == name)

    def _entry(self, key: bytes) -> KeyPlaces:
        """The places of a key's rows, whether the index covers them or they were read since."""
        if key in self._entries:
            return self._entries[key]
        records = self._indexed(key)
        if key not in self._entries:  # else the index was damaged, and all rows have been read
            entry = self._entries[key] = KeyPlaces()
            for _, kind, offset in records:
                place = (self.path.name, offset)
                if kind == UNUSABLE:
                    entry.unusable.append(place)
                elif kind == COST_ONLY:
                    entry.cost_only.append(place)
                else:
                    entry.put(kind, place)
        return self._entries[key]

    def _indexed(self, key: bytes) -> list[IndexEntry]:
        if self._index is None:
            return []
        try:
            return self._index.records(key)
        except Damaged:
            self.path.with_suffix(".index").unlink(missing_ok=True)
            self._forget()
            self.refresh()
            return [] if self._index is None else self._index.records(key)

    def _add(self, row: StoreRow, place: Place, new: bool = False) -> None:
        """Record the place of a row, unless the row is a copy of a recorded one. A ``new`` row was just written, so it is no copy."""
        entry, request, slot = self._entry(bytes.fromhex(row["key"])), str(row.get("request")), row["slot"]
        lost, main = slot is None and row.get("refused") == LOST, place[0] == self.path.name
        cost_only = lost or (slot is None and row.get("refused") == SCORED)
        if not new and entry.holds(place):
            return
        if (sent_place := entry.pending.pop(request, None)) is not None:
            entry.cost_only.remove(sent_place)
            if lost and "bound_usd" not in row:  # the try was not charged after all
                return
        if slot is not None and (slot >= len(entry.slots) or entry.slots[slot] == EMPTY):
            entry.put(slot, place)
            return
        recorded = [entry.slots[slot]] if slot is not None else entry.cost_only if cost_only else entry.unusable
        copy = None if new else next((recorded_place for recorded_place in recorded if self._is_copy(row, recorded_place)), None)
        if slot is not None:
            replaces = main and recorded[0][0] != self.path.name  # of two rows, the one in the main file counts
            if copy is None:
                entry.cost_only.append(recorded[0] if replaces else place)
            if replaces:
                entry.slots[slot] = place
        elif copy is None:
            recorded.append(place)
            if lost:
                entry.pending[request] = place
        elif main:
            recorded[recorded.index(copy)] = place

    def _is_copy(self, row: StoreRow, place: Place) -> bool:
        """Whether the row at a place is the same one. There are such copies if a process was killed while it moved rows."""
        if "choice" not in row:
            return False
        recorded = self._read(place)
        return (recorded.get("request"), recorded.get("choice")) == (row["request"], row["choice"])

    def has(self, key: str, slot: int) -> bool:
        """Whether a usable answer fills the slot."""
        slots = self._entry(bytes.fromhex(key)).slots
        return slot < len(slots) and slots[slot] != EMPTY

    def slots(self, key: str) -> list[int]:
        """The filled slots of a key, ascending."""
        return [slot for slot, place in enumerate(self._entry(bytes.fromhex(key)).slots) if place != EMPTY]

    def row(self, key: str, slot: int) -> StoreRow:
        """The row of a filled slot."""
        return self._read(self._entry(bytes.fromhex(key)).slots[slot])

    def n_unusable(self, key: str) -> int:
        """Number of unusable answers to a key."""
        return len(self._entry(bytes.fromhex(key)).unusable)

    def unusable_rows(self, key: str) -> list[StoreRow]:
        """The unusable answers to a key."""
        return [self._read(place) for place in self._entry(bytes.fromhex(key)).unusable]

    def cost_only_rows(self, key: str) -> list[StoreRow]:
        """Rows that only record a cost: tries without an answer that may have been charged, and second answers for a slot."""
        return [self._read(place) for place in self._entry(bytes.fromhex(key)).cost_only]

    def all_rows(self, key: str) -> list[StoreRow]:
        """All rows of a key that count: without copies and superseded rows."""
        return [*(self.row(key, slot) for slot in self.slots(key)), *self.unusable_rows(key), *self.cost_only_rows(key)]

    def files(self) -> list[Path]:
        """Paths of the shard's files, those of buyers first."""
        return [self.path.parent / name for name in self._names()]

    def _read(self, place: Place) -> StoreRow:
        row = read_row(self._files[place[0]].handle, place[1])
        assert row is not None
        return row

    def rows(self) -> Iterator[tuple[Path, int, int, StoreRow | None]]:
        """File, begin, end and row of each complete line of all files. The row of an invalid line is None."""
        for name in self._names():
            with contextlib.suppress(FileNotFoundError), io.FileIO(self.path.parent / name) as file:
                for begin, end, row in lines(file.fileno(), 0):
                    yield self.path.parent / name, begin, end, row

    def is_current(self, row: StoreRow, path: Path, begin: int) -> bool:
        """Whether the row at byte ``begin`` of the file ``path`` counts: no answer has superseded it, and it is no copy of another row."""
        return self._entry(bytes.fromhex(row["key"])).holds((path.name, begin))

    # --- claiming and appending ---

    def claim(self, key: str) -> bool:
        """Claim a problem by its step-1 key; False if another process has claimed it.

        Call :meth:`refresh` afterwards to read the rows that others appended before.
        """
        if self._locks.take(key):
            self._claims.add(key)
            return True
        return False

    @property
    def claimed(self) -> bool:
        """Whether this process has claimed any key."""
        return bool(self._claims)

    def release(self, key: str) -> None:
        """Release the claim on a problem. What was bought for it must have been forced to the disk before (:meth:`sync`)."""
        self._claims.discard(key)
        self._settled.discard(key)
        self._locks.drop(key)

    def lock_all(self, wait: bool) -> bool:
        """Claim the whole shard and read what others appended. False if another process has a claim and ``wait`` is false."""
        if not self._locks.take_all(wait):
            return False
        self._all = True
        self.refresh()
        return True

    def buyers(self) -> str:
        """The current buyers of this shard, or the last ones, for messages."""
        signatures = [line.partition(" ")[2] for line in self._locks.lines()]
        return "; ".join(signatures[-3:]) or f"an older version of fcot, in {self.path.parent}"

    def append(self, rows: Iterable[StoreRow], distributions: Iterable[tuple[StoreRow, TopTokens]] = ()) -> None:
        """Append the rows of one answer in one write. If the disk fills up, complete rows stay and a torn one is removed.

        Args:
            rows: The rows.
            distributions: Rows, new or stored ones, with the distributions of their texts.

        Raises:
            FcotError: The disk is full, or the folder is not writable.
        """
        assert self._claims or self._all, "append needs a claim"
        self.distributions.append(distributions)  # before the rows: a row whose distributions are missing would look as if it had none
        rows = list(rows)
        encoded = [json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows]
        writer = self._open_writer()
        data, written = b"".join(encoded), 0
        try:
            while written < len(data):
                written += os.write(writer, data[written:])
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(writer, self._own_end + data.rfind(b"\n", 0, written) + 1)  # safe: only this process appends to this file
            self.refresh()
            self._own_end = self._files[self._own].end if self._own in self._files else 0
            raise disk_error(error, self.path) from error
        self._unsynced = True
        for row, line in zip(rows, encoded, strict=True):
            self._add(row, (self._own, self._own_end), new=True)
            self._own_end += len(line)
        self._files[self._own].end = self._own_end

    def _open_writer(self) -> int:
        """The descriptor of this process's own file. If another buyer has moved its rows and deleted it, it is created again."""
        path = self.path.parent / self._own
        if self._writer is not None and _inode(path) == os.fstat(self._writer).st_ino:
            return self._writer
        try:
            if self._writer is not None:
                os.close(self._writer)
            self._writer = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            self._writer = None
            raise disk_error(error, path) from error
        self._locks.add_line(f"{self._own} {signature()}")
        self._own_end = os.fstat(self._writer).st_size
        self._files[self._own] = OpenFile(io.FileIO(path), self._own_end)
        return self._writer

    def sync(self) -> None:
        """Force what this process appended to the disk."""
        if self._writer is None or not self._unsynced:
            return
        self._unsynced = False
        self.distributions.sync()
        try:
            os.fsync(self._writer)
        except OSError as error:
            raise disk_error(error, self.path) from error

    def close(self) -> None:
        """Force what was appended to the disk, release all claims, and move buyers' rows if no other process has a claim."""
        try:
            self.sync()
        finally:
            if self._writer is not None:
                os.close(self._writer)
                self._writer = None
            self.distributions.close()
            if not self._all:
                for key in list(self._claims):
                    self.release(key)
            unfolded = self.path.parent.is_dir() and not self._broken and bool(self._buyers_files())
            if self._all or (unfolded and self._locks.take_all(wait=False)):
                with contextlib.suppress(FcotError):  # a full disk: the rows stay where they are
                    self.fold()
                self._locks.drop_all()
            self._all = False
            self._locks.close()

    def _buyers_files(self) -> list[str]:
        return [name for name in self._names() if name != self.path.name]

    def fold(self) -> None:
        """Move the rows of ended buyers' files into the main file. This process must have claimed the whole shard.

        The file of a buyer that may still be running stays, even if no process has a claim: file locks may not work between its host
        and this one. If this process is killed in between, some rows are in two files. Readers and the next call ignore the copies.

        Raises:
            FcotError: The disk is full; nothing was moved.
        """
        now = os.stat(self._locks.path).st_mtime  # by the clock of the file system: the lock file was just written
        buyers = [name for name in self._buyers_files() if name == self._own or buyer_ended(self.path.parent / name, now)]
        if not buyers:
            return
        self.refresh()
        encoded = [
            json.dumps(row, ensure_ascii=False).encode() + b"\n"
            for name in buyers
            for begin, _, row in lines(self._files[name].handle, 0)
            if row is not None and self.is_current(row, self.path.parent / name, begin)
        ]
        self.distributions.fold(buyers)
        append_lines(self.path, encoded)
        for name in buyers:
            (self.path.parent / name).unlink(missing_ok=True)
        self._locks.write_text([line for line in self._locks.lines() if line.partition(" ")[0] not in buyers])
        self._forget()
        self.refresh()


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None
