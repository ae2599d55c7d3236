"""The exceptions that the user sees as a message instead of a traceback."""

from __future__ import annotations

from typing import Any


class FcotError(Exception):
    """Bad input, or a condition that the user can fix. The message names the file and line, or the override to change."""


class UsageError(FcotError):
    """The command line cannot be read: an unknown flag, or a word that is no override."""


class BudgetSpent(FcotError):
    """The rest of ``teacher.budget_usd`` does not cover the next request."""

    usage: dict[str, Any] | None = None  # the usage paid so far


class NotFinite(FcotError):
    """A model's loss, parameters or output are inf or nan: its training cannot be used."""


class ConfigFaults(FcotError):
    """Every fault of one configuration, reported together."""

    def __init__(self, faults: list[str]) -> None:
        self.faults = faults
        noun = "fault" if len(faults) == 1 else "faults"
        super().__init__(f"{len(faults)} {noun} in the configuration:\n" + "\n".join(f"  - {fault}" for fault in faults))
