"""The completion store: every generation that was ever paid for, shared by all runs.

The unit is a generation: one choice of one request, stored under the request's key. Generations of one key are exchangeable.
They fill slots 0..D-1 in the order in which they arrive, so D = 8 is a prefix of D = 64. Files are JSON Lines shards under
``<task>/<model>/<prompt>/``, split by the first hex digit of the step-1 key (:mod:`fcot.llm.store.shard`).

Before a request is sent, a row with its id and its maximum cost is appended (``refused: "lost"``). The rows of its answer
supersede that row. If the process is killed before the answer arrives, the row stays and its maximum cost counts as spent.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from fcot.llm.requests import LOST
from fcot.llm.store.buyers import buyer_name
from fcot.llm.store.keylocks import KeyLocks
from fcot.llm.store.rows import lines
from fcot.llm.store.shard import Shard as Shard

_LEVELS = 3  # folders above a folder of the store that belong to the store: model, task, and the store itself
_SHARD_FILE = re.compile(r"([0-9a-f])(\.[^.]+)?\.jsonl")


def readable(name: str) -> str:
    """A valid folder name for any name: characters that are not allowed become ``_``."""
    return re.sub(r"[^\w.=-]+", "_", name).strip("_.") or "unnamed"


def is_shard_file(path: Path) -> bool:
    """Whether a file's name is that of a shard's main file or of a buyer's file beside it."""
    return _SHARD_FILE.fullmatch(path.name) is not None


def open_folder(path: Path) -> StoreFolder:
    """The folder of the store at a path. Each process opens it once, so what was read of its shards stays cached."""
    return _open(path, os.getcwd())


@lru_cache(maxsize=16)
def _open(path: Path, _working_folder: str) -> StoreFolder:
    return StoreFolder(path)


class StoreFolder:
    """The shards of one task, model and prompt. Each is opened when it is first used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._shards: dict[str, Shard] = {}
        self._buyer = buyer_name()

    def shard(self, root_key: str) -> Shard:
        """The shard that holds a step-1 key and the step-2 keys that continue it."""
        name = root_key[0]
        if name not in self._shards:
            self._shards[name] = Shard(self.path / f"{name}.jsonl", self._buyer)
        return self._shards[name]

    def refresh(self) -> StoreFolder:
        """Read what was appended to any shard since the last refresh."""
        for shard in {*self._shards.values(), *self.shards()}:  # also opened shards without a file: the store may have been moved away
            shard.refresh()
        return self

    def first_stored(self, keys: Sequence[str]) -> str:
        """The first of a request's keys that has a row; the first key if none has. Call :meth:`refresh` before."""
        return next((key for key in keys if self.shard(key).slots(key)), keys[0])

    def open_batches(self) -> list[Path]:
        """The jobs files of batches that were submitted and are not collected yet."""
        return sorted((self.path / "batches").glob("*.jobs.jsonl"))

    def shards(self) -> Iterator[Shard]:
        """All shards that have a file."""
        for name in sorted({path.name[0] for path in self.path.glob("*.jsonl") if is_shard_file(path)}):
            yield self.shard(name)

    def refresh_claimed(self) -> None:
        """Read what other processes appended to the shards in which this process has claims.

        Raises:
            FcotError: Another process appended rows of a claimed key, so file locks do not work here.
        """
        for shard in self._shards.values():
            if shard.claimed:
                shard.refresh()

    def sync(self) -> None:
        """Force what this process appended to the disk. May run in another thread than the one that appends."""
        for shard in list(self._shards.values()):
            shard.sync()

    def close(self) -> None:
        """Force everything to the disk, release all claims, and move buyers' rows into shards in which no other process has a claim."""
        for shard in self._shards.values():
            shard.close()

    def discard_if_empty(self) -> None:
        """Delete the folder, and folders above it that are then empty, if nothing was bought in it and nobody buys there now.

        A request that was certainly not charged leaves rows that cost nothing; such rows are deleted too.
        """
        if not self.path.is_dir() or any(path.suffix not in (".lock", ".index", ".jsonl") for path in self.path.iterdir()):
            return
        for shard in list(self.shards()):
            if shard.lock_all(wait=False):
                if all(_costs_nothing(path) for path in shard.files()):
                    for path in (*shard.files(), shard.path.with_suffix(".index")):
                        path.unlink(missing_ok=True)
                shard.close()
        if any(path.suffix != ".lock" for path in self.path.iterdir()):
            return
        for path in self.path.glob("*.lock"):
            KeyLocks(path).remove()
        with contextlib.suppress(OSError):  # not empty
            for folder in (self.path, *self.path.parents[:_LEVELS]):
                folder.rmdir()

    @contextlib.contextmanager
    def exclusive(self, notify: Callable[[str], object]) -> Iterator[None]:
        """Lock all shards while the context is open.

        It releases all locks before it waits for one, so two processes never wait for each other.

        Args:
            notify: Called with a message before it waits for another buyer.
        """
        shards = [self.shard(digit) for digit in "0123456789abcdef"]
        while busy := next((shard for shard in shards if not shard.lock_all(wait=False)), None):
            for shard in shards:
                shard.close()
            notify(f"waiting for another run that is buying from the same part of the store ({busy.buyers()})")
            busy.lock_all(wait=True)
            busy.close()
        try:
            yield
        finally:
            self.close()


def _costs_nothing(path: Path) -> bool:
    """Whether a file of a shard has no rows but those of cancelled requests: they have no answer and no cost."""
    with path.open("rb") as file:
        rows = [row for _, _, row in lines(file.fileno(), 0)]
    cancelled = {row["request"] for row in rows if row and row.get("refused") == LOST and "bound_usd" not in row}
    return all(row is not None and row.get("refused") == LOST and row["request"] in cancelled for row in rows)
