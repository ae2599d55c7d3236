"""A calculator for students: a wrong number after an equals sign is replaced by the value of the calculation before it.

What counts as an equation, and whether it holds, is decided by :func:`fcot.curation.equations.equations`, as in curation and in error
marks. A number is looked at once it is certain how it ends, that is when the word or sign behind it is complete. Everything that a student
writes besides wrong numbers stays.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from fcot.curation.equations import Equation, equations
from fcot.decoding.encoding import encoder_of

_WINDOW = 256  # tokens before an equals sign that are read: more than a line of reasoning
_MOST_DECIMALS = 6  # a value with more decimals is rounded
_SPACE = r"[^\S\n]"
_OPENING = rf"(?:{_SPACE}|\*\*|\\\(|\\?[$€£¥])*"  # what may stand between an equals sign and its number
_NUMBER = rf"[-−]?{_SPACE}?(?:\d+(?:,\d+)*(?:\.\d+)?|\.\d+)"
_RIGHT = re.compile(rf"(?P<opening>{_OPENING})(?P<number>{_NUMBER})(?P<rest>.*)", re.DOTALL)
_WORD = r"[^\W\d_]+(?:-[^\W\d_]+)*"
_MINUS = rf"[-−–]{_SPACE}*\(*(?:\\?[$€£¥])?{_SPACE}*"  # a minus sign after a unit, up to its number; without a number it is a dash
_UNFINISHED = re.compile(
    rf"{_OPENING}[-−\\*>]?{_SPACE}?"
    rf"|{_OPENING}{_NUMBER}(?:[.,]|{_SPACE}*(?:\*?|-+)|{_SPACE}*{_WORD}(?:-?{_SPACE}*|{_SPACE}*{_MINUS}|{_SPACE}+[xX]{_SPACE}*))"
)
_CALCULATES_ON = re.compile(  # the number is not the value but a part of it
    rf"{_SPACE}*(?:(?!-+>)[-−–:(]|(?:{_WORD}{_SPACE}*)?(?:[+/×÷·^]|\*(?!\*))|(?:{_WORD}{_SPACE}+)?[xX]{_SPACE}*\d|{_WORD}{_SPACE}*{_MINUS}\.?\d)"
)
_PART_OF_CHARACTER = "\ufffd"  # how a tokenizer decodes the first bytes of a character
_WITHOUT_NUMBER = re.compile(rf"{_SPACE}*(?:>>|\Z)")  # not a line break: many rationales write the number on the next line
_UNIT = re.compile(rf"{_SPACE}*(?:%|{_WORD}|\d+)?")


@dataclass
class Equations:
    """What a calculator did.

    Attributes:
        met: Equals signs in the text.
        computed: Those with a calculation before them, whose value was computed.
        changed: Those whose number was wrong or missing, and was written by the calculator.
    """

    met: int = 0
    computed: int = 0
    changed: int = 0

    def __add__(self, other: Equations) -> Equations:
        return Equations(self.met + other.met, self.computed + other.computed, self.changed + other.changed)


class Calculator:
    """Corrects the equations of one row while it is decoded (a :class:`fcot.decoding.engine.Reviser`).

    Args:
        tokenizer: The student's tokenizer.

    Attributes:
        equations: Counts of this row.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.equations = Equations()
        self._tokenizer = tokenizer
        self._n_read = 0  # tokens that were searched for equals signs
        self._sign: int | None = None  # number of the token with the equals sign whose right side is being written

    def revise(self, written: Sequence[int], ended: bool) -> tuple[int, list[int]] | None:
        """Replace the number after the last equals sign if it is complete and wrong."""
        for place in range(self._n_read, len(written)):
            if "=" not in (self._tokenizer.convert_ids_to_tokens(written[place]) or ""):  # None: the vocabulary is shorter than the head
                continue
            if (revision := self._settle(written[: place + 1])) is not None:  # the number between two equals signs
                self._n_read = revision[0] + len(revision[1]) - 1  # the second sign is read again, in its new place
                return revision[0], [*revision[1], *written[place + 1 :]]
            self.equations.met += 1
            self._sign = place
        self._n_read = len(written)
        if self._sign is None or (not ended and _UNFINISHED.fullmatch(self._sides(written)[1].rstrip(_PART_OF_CHARACTER))):
            return None
        revision = self._settle(written)
        if revision is not None:
            self._n_read = revision[0] + len(revision[1])
        return revision

    def _sides(self, written: Sequence[int]) -> tuple[str, str]:
        """The text before the last equals sign, as far as it is read, and the text after it."""
        assert self._sign is not None
        start = max(0, self._sign - _WINDOW)
        left, _, _ = self._text(written[start : self._sign + 1]).rpartition("=")
        return left, self._text(written[start:])[len(left) + 1 :]

    def _settle(self, written: Sequence[int]) -> tuple[int, list[int]] | None:
        """Finish the last equation: how many tokens are kept, and the tokens that follow them; None if there is nothing to correct."""
        if self._sign is None:
            return None
        left, right = self._sides(written)
        start, sign, self._sign = max(0, self._sign - _WINDOW), self._sign, None
        if (correction := self._correction(left, right)) is None:
            return None
        offset, number, value = correction
        begin = len(left) + 1 + offset
        replacement = self._replacement(written[start:], sign - start, begin, begin + len(number), value)
        if replacement is None:
            return None
        self.equations.changed += 1
        return start + replacement[0], replacement[1]

    def _correction(self, left: str, right: str) -> tuple[int, str, str] | None:
        """Where in the right side a number is wrong or missing, this number, and the value; None if there is nothing to correct."""
        left = re.split(r"[=\n]", left)[-1]
        match = _RIGHT.match(right)
        if (_WITHOUT_NUMBER.match(right) is None) if match is None else _CALCULATES_ON.match(match["rest"]):
            return None
        opening, number, rest = match.groups() if match is not None else (" " if left.endswith(" ") else "", "", right)
        unit_match = _UNIT.match(rest)
        unit = unit_match[0] if unit_match else ""
        before_and = unit.strip() == "and"  # "3 and 1/4" is a number of its own, "3 and then" is not
        unit = "" if before_and else unit
        equation = _equation(f"{left}={opening}{number or '0'}{unit}")
        if equation is None or (before_and and equation.value.denominator > 1):
            return None
        self.equations.computed += 1
        percent = unit.strip() == "%"
        text = _formatted(_nearest(equation.value, number) if percent else equation.value, number)
        corrected = _equation(f"{left}={opening}{text}{unit}")
        if (number and equation.holds) or text == number or corrected is None or not (corrected.holds or percent):
            return None
        return (0, "", opening + text) if match is None else (len(opening), number, text)

    def _replacement(self, window: Sequence[int], sign: int, begin: int, end: int, value: str) -> tuple[int, list[int]] | None:
        """The tokens that replace a part of a text; None if the tokenizer cannot write the new text.

        Args:
            window: The tokens of the text.
            sign: Number of the token with the equals sign; the part is not before it.
            begin: Number of characters before the part.
            end: Number of characters up to its end.
            value: What replaces the part.

        Returns:
            The number of tokens that are kept, and the tokens after them. Tokens after the part are those that the student wrote.
        """
        lengths = [len(self._text(window[:n])) for n in range(sign, len(window) + 1)]
        text = self._text(window)
        n_kept = sign + max(place for place, length in enumerate(lengths) if length <= begin or place == 0)
        n_before_rest = sign + next(place for place, length in enumerate(lengths) if length >= end and sign + place >= n_kept)
        kept, rest = list(window[:n_kept]), list(window[n_before_rest:])
        part = text[lengths[n_kept - sign] : begin] + value + text[end : lengths[n_before_rest - sign]]
        for ids in self._candidates(kept, part):
            if (ids or rest) and self._text([*kept, *ids, *rest]) == text[:begin] + value + text[end:]:
                return n_kept, [*ids, *rest]
        return None

    def _candidates(self, kept: Sequence[int], text: str) -> list[list[int]]:
        """Encodings of a text that continues these tokens; the first one that reads as this text is used."""
        texts = encoder_of(self._tokenizer).texts
        candidates = []
        for context in (self._text(kept[-3:]), "=", "0"):
            before, both = texts([context, context + text])
            if both[: len(before)] == before:
                candidates.append(both[len(before) :])
        (alone,) = texts([text])
        zero, *pairs = texts(["0", *(f"0{character}" for character in text)])  # each character by itself, after a digit
        spelled = [number for pair in pairs for number in pair[len(zero) :]]
        return [*candidates, alone, alone[1:], spelled]

    def _text(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _equation(text: str) -> Equation | None:
    """The equation in a text with one equals sign; None if the text is no equation."""
    return next(iter(equations(text)), None)


def _nearest(value: Fraction, number: str) -> Fraction:
    """A value as the number before a percent sign: a share, or already in percent, whichever is nearer to what the student wrote."""
    written = Fraction(re.sub(r"[,\s]", "", number).replace("−", "-")) if number else Fraction(0)
    return min((100 * value, value), key=lambda candidate: abs(candidate - written))


def _formatted(value: Fraction, like: str) -> str:
    """A value in the form of the number that it replaces: with its thousands separators and at least its decimals."""
    decimals = len(like.partition(".")[2])
    exact = next((n for n in range(_MOST_DECIMALS + 1) if (value * 10**n).denominator == 1), None)
    decimals = max(decimals, exact) if exact is not None else decimals or 2
    whole, part = divmod(round(abs(value) * 10**decimals), 10**decimals)
    text = f"{whole:,}" if "," in like else str(whole)
    return ("-" if value < 0 else "") + text + (f".{part:0{decimals}d}" if decimals else "")
