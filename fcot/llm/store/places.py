"""The places of rows in a shard's files."""

from __future__ import annotations

import io
from dataclasses import dataclass, field

Place = tuple[str, int]  # name of a file and the byte where the row begins
EMPTY: Place = ("", -1)  # the place of an empty slot


@dataclass
class KeyPlaces:
    """The places of a key's rows.

    Attributes:
        slots: One place per slot, ``EMPTY`` for an empty one.
        unusable: Answers that cannot be used.
        cost_only: Rows that only record a cost: tries without an answer, and second answers for a slot.
        pending: The tries without an answer, by request id. Only tries whose rows were read, not those that only the index knows.
    """

    slots: list[Place] = field(default_factory=list)
    unusable: list[Place] = field(default_factory=list)
    cost_only: list[Place] = field(default_factory=list)
    pending: dict[str, Place] = field(default_factory=dict)

    def put(self, slot: int, place: Place) -> None:
        """Set the place of a slot."""
        self.slots.extend([EMPTY] * (slot + 1 - len(self.slots)))
        self.slots[slot] = place

    def in_other_file(self, name: str) -> bool:
        """Whether any of the key's rows is in another file than ``name``."""
        return any(place[0] not in (name, "") for place in (*self.slots, *self.unusable, *self.cost_only))

    def holds(self, place: Place) -> bool:
        """Whether the row at a place counts."""
        return place in self.slots or place in self.unusable or place in self.cost_only


@dataclass
class OpenFile:
    """One of a shard's files, open for reading.

    Attributes:
        end: Number of bytes that were read, from the file's beginning.
    """

    file: io.FileIO
    end: int = 0

    @property
    def handle(self) -> int:
        """The file descriptor."""
        return self.file.fileno()
