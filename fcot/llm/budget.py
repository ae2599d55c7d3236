"""A budget that several processes share, such as a sweep's: each takes leases from one ledger, so that together they stay below it.

The ledger is a folder with a lock and a file per purchase: ``LEASED COMMITTED`` in USD. A purchase may commit (what it has paid,
and the most that everything in flight can cost) up to what it has leased, and leases more under the lock. Of a purchase whose
process lives, what it leased counts; of one that ended or was killed, what it had committed: that was written before each
request was sent. Whether it lives is known by its lock, which the kernel drops with its process.
"""

from __future__ import annotations

import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from fcot.base.files import disk_error
from fcot.llm.store.keylocks import KeyLocks

_SHARE = 0.02  # of the budget that is leased at once at least, so that the lock is not taken for every request
_LINE = 48  # bytes of a file


@dataclass(frozen=True)
class SharedBudget:
    """A ledger and its limit.

    Attributes:
        folder: The ledger's.
        usd: The most that all purchases of all times may spend together.
        option: The override that sets it, for messages.
        more: The command that goes on with a larger one.
    """

    folder: Path
    usd: float
    option: str
    more: str = "the same command with a larger budget"

    def open(self) -> Lease:
        """A purchase's part of it."""
        return Lease(self)

    def spent_usd(self) -> float:
        """What is spent, or may be: committed and leased."""
        locks = KeyLocks(self.folder / "ledger.lock")
        try:
            return _taken(self.folder, locks, None)
        finally:
            locks.close()


class Lease:
    """What one purchase may spend of a shared budget.

    Args:
        budget: Whose part it is.
    """

    def __init__(self, budget: SharedBudget) -> None:
        self.budget = budget
        self._name = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{uuid.uuid4().hex}"
        self._alive = KeyLocks(budget.folder / "ledger.lock")
        self._alive.take(_key(self._name))
        self._leased = 0.0
        try:
            self._file = os.open(budget.folder / self._name, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise disk_error(error, budget.folder / self._name) from error
        self.commit(0.0)

    def covers(self, usd: float) -> bool:
        """Whether this purchase may have committed so much in all; leases more where that is needed and there."""
        if usd <= self._leased:
            return True
        ledger = KeyLocks(self.budget.folder / "budget.lock")
        ledger.take_all(wait=True)
        try:
            left = self.budget.usd - _taken(self.budget.folder, self._alive, self._name)
            if usd > left:
                return False
            self._leased = max(usd, min(left, self._leased + _SHARE * self.budget.usd))
            self._write(self._committed)
            return True
        finally:
            ledger.drop_all()
            ledger.close()

    def commit(self, usd: float) -> None:
        """Write down what is paid and the most that may come of everything in flight; before a request is sent, and after its answer."""
        self._committed = usd
        self._write(usd)

    def _write(self, committed: float) -> None:
        os.pwrite(self._file, f"{self._leased:.9f} {committed:.9f}".ljust(_LINE - 1).encode() + b"\n", 0)

    def close(self) -> None:
        """Give back what was leased and not committed."""
        self._leased = self._committed
        self._write(self._committed)
        os.close(self._file)
        self._alive.close()


def _taken(folder: Path, locks: KeyLocks, but: str | None) -> float:
    """What all purchases but one may have spent, in USD."""
    total = 0.0
    for path in folder.glob("*T*-*"):
        if path.name == but:
            continue
        leased, committed = map(float, path.read_text(encoding="utf-8").split())
        ended = locks.take(_key(path.name))
        if ended:
            locks.drop(_key(path.name))
        total += committed if ended else leased
    return total


def _key(name: str) -> str:
    return name.rpartition("-")[2]
