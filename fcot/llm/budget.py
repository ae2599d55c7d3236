"""A budget that several processes share, such as a sweep's. Each leases amounts from one ledger, so together they stay within the budget.

The ledger is a folder with a lock and a file per purchase: ``LEASED COMMITTED`` in USD. The committed amount is what the purchase
has paid plus the most that its requests in flight can cost. It is written before each request is sent and never exceeds the
leased amount; leasing more requires the lock. While the process of a purchase runs, its leased amount counts. After it ended or
was killed, its committed amount counts. Each running purchase holds a lock, which the kernel drops when the process ends.
"""

from __future__ import annotations

import errno
import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from fcot.base.files import disk_error
from fcot.llm.store.keylocks import KeyLocks

_SHARE = 0.02  # smallest share of the budget that is leased at once, so that not every request takes the lock
_LINE = 48  # bytes of a purchase's file


@dataclass(frozen=True)
class SharedBudget:
    """A ledger and its limit.

    Attributes:
        folder: The folder of the ledger.
        usd: The most that all purchases, past ones included, may spend together.
        option: The override that sets the budget, for messages.
        command: The command that continues with a larger budget, for messages.
    """

    folder: Path
    usd: float
    option: str
    command: str = "the same command with a larger budget"

    def open(self) -> Lease:
        """Start a purchase from this budget."""
        return Lease(self)

    def spent_usd(self) -> float:
        """What all purchases have committed or leased, in USD."""
        locks = KeyLocks(self.folder / "ledger.lock")
        try:
            return _counted_usd(self.folder, locks, None)
        finally:
            locks.close()


class Lease:
    """The part of a shared budget that one purchase may spend."""

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
        """Whether this purchase may commit ``usd`` in total. Leases more if that is needed and the budget allows it."""
        if usd <= self._leased:
            return True
        ledger = KeyLocks(self.budget.folder / "budget.lock")
        ledger.take_all(wait=True)
        try:
            available = self.budget.usd - _counted_usd(self.budget.folder, self._alive, self._name)
            if usd > available:
                return False
            self._leased = max(usd, min(available, self._leased + _SHARE * self.budget.usd))
            self._write(self._committed)
            return True
        finally:
            ledger.drop_all()
            ledger.close()

    def commit(self, usd: float) -> None:
        """Write the committed amount: what is paid plus the most that the requests in flight can cost.

        Call it before each request is sent and after its answer.
        """
        self._committed = usd
        self._write(usd)

    def _write(self, committed: float) -> None:
        """Write both amounts.

        Raises:
            FcotError: The disk is full, or the file cannot be written.
        """
        line = f"{self._leased:.9f} {committed:.9f}".ljust(_LINE - 1).encode() + b"\n"
        path = self.budget.folder / self._name
        try:
            if os.pwrite(self._file, line, 0) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise disk_error(error, path) from error

    def close(self) -> None:
        """Return what was leased and not committed."""
        self._leased = self._committed
        try:
            self._write(self._committed)
        finally:
            os.close(self._file)
            self._alive.close()


def _counted_usd(folder: Path, locks: KeyLocks, except_name: str | None) -> float:
    """The sum of what counts as spent, in USD: the leased amount of each running purchase and the committed amount of each ended one.

    Args:
        folder: The folder of the ledger.
        locks: Used to find out which purchases are running.
        except_name: Name of a purchase to leave out; None counts all.
    """
    total = 0.0
    for path in folder.glob("*T*-*"):
        if path.name == except_name:
            continue
        line = path.read_text(encoding="utf-8")
        if len(line) < _LINE:  # its process was killed, or its disk was full, before it leased anything
            continue
        leased, committed = map(float, line.split())
        ended = locks.take(_key(path.name))
        if ended:
            locks.drop(_key(path.name))
        total += committed if ended else leased
    return total


def _key(name: str) -> str:
    return name.rpartition("-")[2]
