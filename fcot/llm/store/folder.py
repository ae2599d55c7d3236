"""The completion store: every generation that was ever paid for, shared by all runs.

The unit is a generation: one choice of one request, filed under the request's key. Samples of one key are exchangeable,
so they fill slots 0..D-1 in the order they arrive and D = 8 is a prefix of D = 64. Files are JSON Lines shards under
``<task>/<model>/<prompt>/``, split by the first hex digit of the step-1 key (:mod:`fcot.llm.store.shard`).

Before a request is sent, a row with its id and its maximum cost is appended (``refused: "lost"``). A later row of the same
request takes its place; what a killed process leaves stays, and counts.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from fcot.llm.store.buyers import buyer_name
from fcot.llm.store.shard import Shard as Shard

_SHARD_FILE = re.compile(r"([0-9a-f])(\.[^.]+)?\.jsonl")


def readable(name: str) -> str:
    """A name as a folder name."""
    return re.sub(r"[^\w.=-]+", "_", name).strip("_.") or "unnamed"


def is_shard_file(path: Path) -> bool:
    """Whether a file is one of a shard's, by its name."""
    return _SHARD_FILE.fullmatch(path.name) is not None


def open_folder(path: Path) -> StoreFolder:
    """A folder of the store, opened once in a process: what is known of its files stays known."""
    return _open(path, os.getcwd())


@lru_cache(maxsize=16)
def _open(path: Path, _where: str) -> StoreFolder:
    return StoreFolder(path)


class StoreFolder:
    """The shards of one task, model and prompt, each opened when it is first asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._shards: dict[str, Shard] = {}
        self._buyer = buyer_name()

    def shard(self, root_key: str) -> Shard:
        """The shard that holds a step-1 key and everything that continues it."""
        name = root_key[0]
        if name not in self._shards:
            self._shards[name] = Shard(self.path / f"{name}.jsonl", self._buyer)
        return self._shards[name]

    def refresh(self) -> StoreFolder:
        """Learn of what was appended to any shard since the last look."""
        for shard in {*self._shards.values(), *self.shards()}:  # known ones too: the store may have been moved away
            shard.refresh()
        return self

    def known(self, keys: Sequence[str]) -> str:
        """Of several keys of one request, the first that has a row; the first of all where none has. Refreshed shards are asked."""
        return next((key for key in keys if self.shard(key).slots(key)), keys[0])

    def open_batches(self) -> list[Path]:
        """The jobs files of batches that were submitted and not collected yet."""
        return sorted((self.path / "batches").glob("*.jobs.jsonl"))

    def shards(self) -> Iterator[Shard]:
        """Every shard there is."""
        for name in sorted({path.name[0] for path in self.path.glob("*.jsonl") if is_shard_file(path)}):
            yield self.shard(name)

    def look(self) -> None:
        """Learn of what others appended where this process has claims.

        Raises:
            FcotError: It concerns one of them: locks do not work here.
        """
        for shard in self._shards.values():
            if shard.claimed:
                shard.refresh()

    def sync(self) -> None:
        """Force what this process appended to the disk; may run in another thread than the one that appends."""
        for shard in list(self._shards.values()):
            shard.sync()

    def close(self) -> None:
        """Force everything to the disk, give up all claims, and put buyers' rows in order where nobody else is buying."""
        for shard in self._shards.values():
            shard.close()

    @contextlib.contextmanager
    def alone(self, wait: Callable[[str], object]) -> Iterator[None]:
        """Within, this process has every shard for itself; ``wait`` is told where others are buying. It waits for one only while it
        holds none.
        """
        shards = [self.shard(digit) for digit in "0123456789abcdef"]
        while busy := next((shard for shard in shards if not shard.lock_all(wait=False)), None):
            for shard in shards:
                shard.close()
            wait(f"waiting for another run that is buying from the same part of the store ({busy.buyers()})")
            busy.lock_all(wait=True)
            busy.close()
        try:
            yield
        finally:
            self.close()
