"""The steps of a rationale: its sentences and lines. A number that stands alone, as in a list, belongs to the step after it."""

from __future__ import annotations

import re
from itertools import pairwise

_END = re.compile(r"(?<=[.!?;])\s+|\n+")
_NUMBERING = re.compile(r"\W*(?:step\s*)?\d{1,3}[.):]\W*", re.IGNORECASE)


def steps_of(rationale: str) -> list[str]:
    """The steps of a rationale, each in one line."""
    starts = [*_starts(rationale), len(rationale)]
    return [" ".join(rationale[start:end].split()) for start, end in pairwise(starts)]


def before_step(rationale: str, number: int) -> str:
    """The beginning of a rationale, up to the step with this number, counted from 1; the whole where it has fewer steps."""
    starts = _starts(rationale)
    return (rationale[: starts[number - 1]] if number <= len(starts) else rationale).strip()


def _starts(rationale: str) -> list[int]:
    """The position of each step's first character."""
    starts: list[int] = []
    begins_after_number = False
    position = 0
    for end in (*(match.span() for match in _END.finditer(rationale)), (len(rationale), len(rationale))):
        part = rationale[position : end[0]]
        if part.strip():
            if not begins_after_number:
                starts.append(position + len(part) - len(part.lstrip()))
            begins_after_number = _NUMBERING.fullmatch(part.strip()) is not None
        position = end[1]
    return starts
