"""Gold answers with decimal commas: ``1.200,50`` is 1200.5, ``1,5`` is 1.5."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

MARKED = re.compile(r"\d[.,][\d-]|(?<!\w)[.,]\d")  # an answer that the choice of the decimal mark can change
_MARK = re.compile(r"[.,](?=\d)")
_NO_CENTS = re.compile(r"(?<=\d)[.,][-–—]+(?!\d)")  # the end of a price such as "12,-"
_THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])")
_THREE_DIGITS = {mark: re.compile(rf"[^\d.,]*[1-9]\d{{0,2}}\{mark}\d{{3}}(?![\d.,]?\d)\D*") for mark in ".,"}
_DECIDED = {  # answers that can be read with this decimal mark only
    ".": re.compile(r"\d\.\d{1,2}(?!\d)|\d\.\d{4,}|(?<!\d)0\.\d|\d,\d{3}\.\d|\d,\d{3},\d{3}"),
    ",": re.compile(r"\d,\d{1,2}(?!\d)|\d,\d{4,}|(?<!\d)0,\d|\d\.\d{3},\d|\d\.\d{3}\.\d{3}"),
}
POINT, COMMA = "point", "comma"


def with_point(answer: str) -> str:
    """An answer with a decimal comma in the usual spelling: ``€1.200,50`` becomes ``€1,200.50``."""
    return _MARK.sub(lambda mark: "," if mark[0] == "." else ".", _NO_CENTS.sub("", answer))


def decide(answers: Iterable[str], gold: Callable[[str], str | None]) -> str:
    """The decimal mark of some answers: ``comma`` if some are numbers with a comma only and none speaks against it, else ``point``.

    Args:
        answers: The answers as they are written. One that is a number with a point only, or has thousands as in ``3,800``, speaks against
            the comma: one wrong answer among many must not change all others.
        gold: Reads a number with a decimal point; None where it is none.
    """
    comma = False
    for answer in answers:
        if MARKED.search(answer):
            with_comma = gold(with_point(answer)) is not None
            if _THOUSANDS.search(answer) or (not with_comma and gold(answer) is not None):
                return POINT
            comma |= with_comma and gold(answer) is None
    return COMMA if comma else POINT


def undecided(answers: Iterable[str], decimal: str) -> list[str]:
    """The answers such as ``1.200`` that are another number with the other decimal mark.

    Empty if some answer shows which mark is meant, as ``2.5`` does.
    """
    mark = "." if decimal == POINT else ","
    marked = [answer for answer in answers if MARKED.search(answer)]
    if any(_DECIDED[mark].search(answer) for answer in marked):
        return []
    return [answer for answer in marked if _THREE_DIGITS[mark].fullmatch(answer)]
