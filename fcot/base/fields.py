"""Fields of configuration schemas. Their metadata say how an option enters a run's identity, and which values it may have.

A plain dataclass field enters the identity with its value, and may have any value. The functions here make and read other kinds of fields.
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
    """Reasons that several neutral fields share."""

    NAMED = "only a name; the settings that it selects count"
    PACE = "changes the speed, not the result"
    SERVER = "only where the same model is served"
    SPELLING = "the same limit under another name"
    COST = "changes the cost, not the result"
    STORED = "stored beside the completions, which it does not change; an objective that reads it counts it"
    DEVICES = "only devices and speed; sums are equal up to rounding"


class To:
    """Values of ``to`` (:func:`resolved`) that several fields share."""

    PROBLEMS = "the problems"
    SPLIT = "the split"
    RULE = "the rule for reading answers"
    PROMPT = "the prompt"
    EXEMPLARS = "the exemplars"
    KEY = "the teacher's key: its model and the settings that change the distribution of its answers"


@dataclass(frozen=True)
class Part:
    """How a field enters the identity of a run.

    Attributes:
        kind: ``counted``: with its value. ``neutral``: never. ``resolved``: with the value that it is resolved to, such as a file's
            content; the component that reads the field adds it. ``absent_at``: with its value, except at ``frozen``.
        reason: Why a neutral field changes no result, or what a resolved field is resolved to.
        frozen: The value at which an ``absent_at`` field is left out.
    """

    kind: Literal["counted", "neutral", "resolved", "absent_at"]
    reason: str = ""
    frozen: Any = None


@dataclass(frozen=True)
class Bounds:
    """The values that a field may have. None is always allowed.

    Attributes:
        at_least: The smallest value.
        above: A limit that the value must exceed.
        at_most: The largest value.
        below: A limit that the value must stay below.
        one_of: The allowed values.
        file: Whether the value must be the name of a readable file.
        hint: Appended to the message about a value out of bounds.
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    one_of: tuple[str, ...] = ()
    file: bool = False
    hint: str = ""

    def fault(self, value: Any) -> str | None:
        """What is wrong with a value; None if it is allowed."""
        if self.one_of:
            return None if value in self.one_of else f"choose from {', '.join(self.one_of)}{self.hint}"
        if self.file:
            return _file_fault(value)
        low, high = self.at_least if self.above is None else self.above, self.at_most if self.below is None else self.below
        too_low = low is not None and (value < low or (self.above is not None and value == low))
        too_high = high is not None and (value > high or (self.below is not None and value == high))
        if not (too_low or too_high):
            return None
        limits = (("at least", self.at_least), ("more than", self.above), ("at most", self.at_most), ("below", self.below))
        return " and ".join(f"{word} {limit}" for word, limit in limits if limit is not None) + self.hint


def _file_fault(value: str) -> str | None:
    if os.access(value, os.R_OK) and Path(value).is_file():
        return None
    return "a folder, not a file" if Path(value).is_dir() else "not readable" if Path(value).exists() else "no such file"


def bounded(default: Any, **bounds: Any) -> Any:
    """A field that enters the identity with its value. ``bounds`` are :class:`Bounds`, as in the other functions."""
    return _field(default, Part("counted"), bounds)


def neutral(default: Any, reason: str, **bounds: Any) -> Any:
    """A field that changes no result; ``reason`` says why."""
    return _field(default, Part("neutral", reason), bounds)


def resolved(default: Any, to: str, **bounds: Any) -> Any:
    """A field that counts with the value that it is resolved to, such as a file's content instead of its path. ``to`` names that value."""
    return _field(default, Part("resolved", to), bounds)


def absent_at(frozen: Any, default: Any = MISSING, **bounds: Any) -> Any:
    """A field that counts except at one value. Use it for an option that is added later: it then renames no existing run.

    Args:
        frozen: The value at which the code does the same as before the option existed. Never change it.
        default: The default, if it differs from ``frozen``. Such a default renames the runs that use it.
        bounds: Arguments of :class:`Bounds`.
    """
    return _field(frozen if default is MISSING else default, Part("absent_at", frozen=frozen), bounds)


def _field(default: Any, part: Part, bounds: dict[str, Any]) -> Any:
    metadata: dict[str, Any] = {_KEY: part} | ({_BOUNDS: Bounds(**bounds)} if bounds else {})
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def bound_faults(options: Any, group: str) -> Iterator[str]:
    """A message for each field of a group of options whose value is not allowed.

    Args:
        options: An instance of a schema.
        group: The group's name, such as ``split_mode``; empty for the root. Its field ``name`` is the choice: ``split-mode=NAME``.
    """
    for option in fields(options):
        value = getattr(options, option.name)
        bounds = bounds_of(option)
        if is_dataclass(value) and group:
            yield from bound_faults(value, f"{group}.{option.name}")
        elif bounds is not None and value is not None and (fault := bounds.fault(value)):
            label = group.replace("_", "-") if option.name == "name" else f"{group}.{option.name}".lstrip(".")
            yield f"{label}={value}: {fault}"


def bounds_of(option: Field[Any]) -> Bounds | None:
    """The values that a dataclass field may have; None if it may have any."""
    bounds: Bounds | None = option.metadata.get(_BOUNDS)
    return bounds


def part_of(option: Field[Any]) -> Part:
    """How a dataclass field enters the identity."""
    part: Part = option.metadata.get(_KEY, Part("counted"))
    return part


def names_file(option: Field[Any]) -> bool:
    """Whether a dataclass field names a file or folder of this machine."""
    bounds: Bounds | None = option.metadata.get(_BOUNDS)
    return option.name == "path" or (bounds is not None and bounds.file)


def counted(options: Any, *, only: Collection[str] | None = None, without: Collection[str] = ()) -> dict[str, Any]:
    """The values that count, by field name. A nested group of options has a mapping of its own.

    Args:
        options: An instance of a schema.
        only: Names of the fields to consider; None considers all.
        without: Names of fields that this run does not read.
    """
    values: dict[str, Any] = {}
    for option in fields(options):
        part, value = part_of(option), getattr(options, option.name)
        considered = option.name not in without and (only is None or option.name in only)
        if not considered or part.kind in ("neutral", "resolved") or (part.kind == "absent_at" and value == part.frozen):
            continue
        if not is_dataclass(value):
            values[option.name] = value
        elif nested := counted(value):  # a group of options that was added later is absent as a whole
            values[option.name] = nested
    return values
