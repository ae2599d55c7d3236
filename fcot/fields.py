"""What an option has to do with the identity of a run, said where the option stands: in the metadata of its dataclass field.

A plain field counts with its value. The functions here make the other kinds of fields, and read them.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import Any, Literal

_KEY = "identity"


class Why:
    """Reasons of neutral fields that several share."""

    NAMED = "names a choice; what it stands for counts"
    PACE = "how fast, not what"
    SERVER = "where the same model is served"
    SPELLING = "the same limit under another name"
    COST = "what it costs"
    DEVICES = "where and how fast; sums are the same up to rounding"


class To:
    """What several resolved fields are resolved to."""

    PROBLEMS = "the problems"
    SPLIT = "the split"
    RULE = "the rule by which answers are read"
    PROMPT = "the prompt"
    EXEMPLARS = "the exemplars"
    KEY = "the teacher's key: its model and what changes the distribution of its answers"


@dataclass(frozen=True)
class Part:
    """How a field takes part in the identity.

    Attributes:
        kind: ``counted``: with its value. ``neutral``: never. ``resolved``: with what it is resolved to, such as a file's content,
            which the component that reads it adds. ``absent_at``: with its value, except at ``frozen``.
        reason: Why a neutral field changes no result, or what a resolved field is resolved to.
        frozen: The value at which an ``absent_at`` field is left out.
    """

    kind: Literal["counted", "neutral", "resolved", "absent_at"]
    reason: str = ""
    frozen: Any = None


def neutral(default: Any, reason: str) -> Any:
    """A field that changes no result."""
    return _made(default, Part("neutral", reason))


def resolved(default: Any, to: str) -> Any:
    """A field that counts with what it is resolved to: the content of a file, not its path; a split, not the fraction it was made by."""
    return _made(default, Part("resolved", to))


def absent_at(frozen: Any, default: Any = MISSING) -> Any:
    """A field that counts except at one value: for an option that is added later, so that it renames no existing run.

    Args:
        frozen: The value at which the code does what it did before the option existed. Never change it.
        default: Where another default is chosen later; it renames the runs that take it.
    """
    return _made(frozen if default is MISSING else default, Part("absent_at", frozen=frozen))


def _made(default: Any, part: Part) -> Any:
    metadata = {_KEY: part}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def part_of(option: Field[Any]) -> Part:
    """How a dataclass field takes part in the identity."""
    part: Part = option.metadata.get(_KEY, Part("counted"))
    return part


def counted(options: Any, *, only: Collection[str] | None = None, without: Collection[str] = ()) -> dict[str, Any]:
    """The values that count, by field name; those of nested groups of options inside them.

    Args:
        options: An instance of a configuration's dataclass.
        only: Names to look at; None for all.
        without: Names to leave out because this run does not read them.
    """
    values: dict[str, Any] = {}
    for option in fields(options):
        part, value = part_of(option), getattr(options, option.name)
        looked_at = option.name not in without and (only is None or option.name in only)
        if not looked_at or part.kind in ("neutral", "resolved") or (part.kind == "absent_at" and value == part.frozen):
            continue
        if not is_dataclass(value):
            values[option.name] = value
        elif inner := counted(value):  # a group of options that was added later is absent as a whole
            values[option.name] = inner
    return values
