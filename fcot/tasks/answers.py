"""Reads a source's gold answers, and records how they are written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from fcot.prompts.answers import AnswerRule, gold_letter
from fcot.tasks import decimals

YES_NO_WORDS = "or true or false, y or n, t or f"
NO_ANSWER = "no gold answer (blank, NaN or null)"
_MOST_SHAPES = 1000
_MOST_UNREAD = 5
_DIGITS, _LETTERS = re.compile(r"\d+"), re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class Spelling:
    """A way to write answers that are not written as their values.

    Attributes:
        n: How many answers are written in this way.
        written: The first of them, such as ``$3,800``.
        value: Its value, such as ``3800``.
        learned: The text that the student learns for it: ``written``, with a decimal point instead of a decimal comma.
    """

    n: int
    written: str
    value: str
    learned: str


@dataclass(frozen=True)
class Answers:
    """How the gold answers of a source are written, and how they were read.

    Attributes:
        n_missing: Number of rows without an answer.
        n_unread: Number of answers that are not of the task's type.
        unread: The first different answers that are not of the task's type, at most five.
        n_unread_otherwise: How many of these would be numbers with the other decimal mark.
        n_plain: Number of answers that the student learns as their values.
        decimal: The decimal mark, ``point`` or ``comma``.
        detected: Whether it was detected from the answers.
        undecided: Answers such as ``1.200`` that are another number with the other decimal mark; empty if the mark was set, or if other
            answers show which one is meant.
        spellings: The ways to write an answer, the most frequent first.
    """

    n_missing: int = 0
    n_unread: int = 0
    unread: Sequence[str] = ()
    n_unread_otherwise: int = 0
    n_plain: int = 0
    decimal: str = decimals.POINT
    detected: bool = False
    undecided: Sequence[str] = ()
    spellings: Sequence[Spelling] = ()


class AnswerReader:
    """Reads the answers of one source.

    Args:
        rule: The task's rule.
        written: All answers of the source, as they are written.
        decimal: ``point``, ``comma`` or ``auto``; only numbers have one.
        normalize: Whether an answer's text becomes its value. Of a text, only the white space is normalized.
    """

    def __init__(self, rule: AnswerRule, written: Sequence[str], decimal: str, normalize: bool) -> None:
        self._rule, self._normalize = rule, normalize
        self._numbers = rule.answer_type == "number"
        self._gold = lru_cache(maxsize=1 << 16)(rule.gold)
        values = [_split_at_mark(text)[1] for text in written] if self._numbers else []
        self._decimal = decimals.decide(values, self._gold) if decimal == "auto" else decimal
        self._detected = decimal == "auto"
        self._undecided = decimals.undecided(values, self._decimal) if self._detected else []
        self._shapes: dict[str, Spelling] = {}
        self._unread: dict[str, None] = {}
        self._n_missing = self._n_unread = self._n_otherwise = self._n_plain = 0

    def read(self, written: str) -> tuple[str | None, str, str | None]:
        """Read an answer.

        Returns:
            The rationale before the mark ``####``, which GSM8K's own files have, or None; the answer; what is wrong with it, or None.
        """
        rationale, text = _split_at_mark(written) if self._numbers else (None, written)
        if not text.strip():
            self._n_missing += 1
            return rationale, text, NO_ANSWER
        other = decimals.with_point(text) if self._numbers else text
        pointed, otherwise = (other, text) if self._decimal == decimals.COMMA else (text, other)
        value = self._gold(pointed)
        if value is None:
            self._n_unread += 1
            if len(self._unread) < _MOST_UNREAD:
                self._unread[text.strip()] = None
            self._n_otherwise += self._numbers and self._gold(otherwise) is not None
            return rationale, text, f"the gold answer {text!r} is not {expected(self._rule)}"
        is_text = self._rule.answer_type == "text"
        is_letter = self._rule.answer_type == "yes_no" and gold_letter(text) is not None  # no reply is read as a letter: none is learned
        learned = pointed if not (self._normalize or is_letter) else " ".join(pointed.split()) if is_text else value
        self._n_plain += learned == value
        if value != text and not is_text:
            self._count(text, value, learned, text.strip() if is_letter else _LETTERS.sub("a", _DIGITS.sub("9", text)))
        return rationale, learned, None

    def _count(self, written: str, value: str, learned: str, shape: str) -> None:
        known = self._shapes.get(shape)
        if known is not None or len(self._shapes) < _MOST_SHAPES:
            first = known or Spelling(0, written, value, learned)
            self._shapes[shape] = replace(first, n=first.n + 1)

    def summary(self) -> Answers:
        """What was read so far."""
        spellings = sorted(self._shapes.values(), key=lambda spelling: -spelling.n)
        counts = self._n_missing, self._n_unread, tuple(self._unread), self._n_otherwise, self._n_plain
        return Answers(*counts, self._decimal, self._detected, self._undecided, spellings)


def _split_at_mark(written: str) -> tuple[str | None, str]:
    """The rationale and the number of an answer that holds both, joined by ``####`` as in GSM8K's own files."""
    rationale, mark, answer = written.partition("####")
    return (rationale.strip() or None, answer.strip()) if mark else (None, written)


def expected(rule: AnswerRule) -> str:
    """What a gold answer has to be, such as ``a number``."""
    kinds = {"choice": f"one of the letters {', '.join(rule.choices)}", "yes_no": f"yes or no ({YES_NO_WORDS})", "number": "a number"}
    return kinds.get(rule.answer_type, f"a {rule.answer_type}")
