"""The one exception that reaches the user as a message instead of a traceback."""

from __future__ import annotations

from typing import Any


class FcotError(Exception):
    """Bad input or a condition the user can mend; the message names the file and line, or the override to change."""


class BudgetSpent(FcotError):
    """What is left of ``teacher.budget_usd`` does not pay the next request; ``usage`` is what was paid until then."""

    usage: dict[str, Any] | None = None


class NotFinite(FcotError):
    """A model's loss, weights or output are inf or nan: what it has learnt is worth nothing."""


class ConfigFaults(FcotError):
    """Every fault of one configuration, reported together."""

    def __init__(self, faults: list[str]) -> None:
        self.faults = faults
        noun = "fault" if len(faults) == 1 else "faults"
        super().__init__(f"{len(faults)} {noun} in the configuration:\n" + "\n".join(f"  - {fault}" for fault in faults))
