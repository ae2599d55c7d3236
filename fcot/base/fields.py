"""What an option has to do with the identity of a run, and which values it may have: in the metadata of its dataclass field.

A plain field counts with its value and may have any. The functions here make the other kinds of fields, and read them.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Collection, Iterator
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

_KEY, _BOUNDS = "identity", "bounds"


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


@dataclass(frozen=True)
class Bounds:
    """The values that a field may have beside None.

    Attributes:
        at_least, above: The smallest value, or what it has to exceed.
        at_most, below: The largest value, or what it has to stay below.
        one_of: The only values.
        file: Whether it names a file that can be read.
        hint: The end of the message about another value.
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    one_of: tuple[str, ...] = ()
    file: bool = False
    hint: str = ""

    def fault(self, value: Any) -> str | None:
        """What is wrong with a value; None where nothing is."""
        if self.one_of:
            return None if value in self.one_of else f"choose from {', '.join(self.one_of)}"
        if self.file:
            return _file_fault(value)
        low, high = self.at_least if self.above is None else self.above, self.at_most if self.below is None else self.below
        too_low = low is not None and (value < low or (self.above is not None and value == low))
        too_high = high is not None and (value > high or (self.below is not None and value == high))
        if not (too_low or too_high):
            return None
        if high is None:
            allowed = f"at least {low}" if self.above is None else f"more than {low}"
        elif (self.above is None) == (self.below is None):
            allowed = f"between {low} and {high}"
        else:
            allowed = f"from {low} to below {high}"
        return allowed + self.hint


def _file_fault(value: str) -> str | None:
    if os.access(value, os.R_OK) and Path(value).is_file():
        return None
    return "a folder, not a file" if Path(value).is_dir() else "not readable" if Path(value).exists() else "no such file"


def bounded(default: Any, **bounds: Any) -> Any:
    """A field that counts with its value, which has :class:`Bounds`; so may those of the other functions."""
    return _made(default, Part("counted"), bounds)


def neutral(default: Any, reason: str, **bounds: Any) -> Any:
    """A field that changes no result."""
    return _made(default, Part("neutral", reason), bounds)


def resolved(default: Any, to: str, **bounds: Any) -> Any:
    """A field that counts with what it is resolved to: the content of a file, not its path; a split, not the fraction it was made by."""
    return _made(default, Part("resolved", to), bounds)


def absent_at(frozen: Any, default: Any = MISSING, **bounds: Any) -> Any:
    """A field that counts except at one value: for an option that is added later, so that it renames no existing run.

    Args:
        frozen: The value at which the code does what it did before the option existed. Never change it.
        default: Where another default is chosen later; it renames the runs that take it.
        bounds: See :class:`Bounds`.
    """
    return _made(frozen if default is MISSING else default, Part("absent_at", frozen=frozen), bounds)


def _made(default: Any, part: Part, bounds: dict[str, Any]) -> Any:
    metadata: dict[str, Any] = {_KEY: part} | ({_BOUNDS: Bounds(**bounds)} if bounds else {})
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def bound_faults(options: Any, group: str) -> Iterator[str]:
    """Each field of a group of options whose value it may not have, as a message.

    Args:
        options: An instance of a configuration's dataclass.
        group: Its name, such as ``split_mode``; empty for the root. The field ``name`` is what chooses it: ``split-mode=NAME``.
    """
    for option in fields(options):
        value = getattr(options, option.name)
        bounds: Bounds | None = option.metadata.get(_BOUNDS)
        if is_dataclass(value) and group:
            yield from bound_faults(value, f"{group}.{option.name}")
        elif bounds is not None and value is not None and (fault := bounds.fault(value)):
            label = group.replace("_", "-") if option.name == "name" else f"{group}.{option.name}".lstrip(".")
            yield f"{label}={value}: {fault}"


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
