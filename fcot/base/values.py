"""Python values as the values of overrides."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

from fcot.base.errors import FcotError

_PLAIN = re.compile(r"[A-Za-z_/][\w./-]*", re.ASCII)  # texts that mean themselves without quotes, unless they are one of the next
_WORDS = {"true", "false", "null", "nan", "inf", "on", "off", "yes", "no"}


def written(value: Any) -> str:
    """The value of an override that stands for a Python value.

    A text stands for itself: quotes, line ends, commas and ``${`` in it have no further meaning. A function stands for its dotted name.

    Raises:
        FcotError: The value is of a type that no option takes.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | PurePath):
        return _text(str(value))
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_key(str(key))}:{written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence | set | frozenset | range):
        return "[" + ",".join(written(item) for item in value) + "]"
    if isinstance(value, Callable):  # type: ignore[arg-type]
        return f"{value.__module__}.{value.__qualname__}"
    if callable(item := getattr(value, "item", None)):  # a number of numpy or torch
        return written(item())
    raise FcotError(f"{value!r}: no option takes a {type(value).__name__}")


def _text(text: str) -> str:
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    literal = re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)  # for OmegaConf, which reads ${ as an interpolation
    return QuotedString(literal, Quote.single).with_quotes()


def _key(key: str) -> str:
    """The key of a mapping, which Hydra does not allow to be in quotes."""
    return re.sub(r"[\\()\[\]{}:=, \t]", r"\\\g<0>", key)
