r"""Answer extraction and comparison, one rule per answer type.

Extraction follows paper A (Ho et al. 2023, ``src/evaluation/evaluator.py``): every answer type has *candidates* in a
text, and the elicitation decides which one counts. What goes beyond the upstream patterns (bracket styles, Markdown,
``\boxed{}``) only widens what is recognised; for numbers the reading is a choice, because paper A's pattern takes
"9/10" for 9 and ".5" for 5, and its published figures depend on that.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

AnswerType = Literal["number", "choice", "yes_no", "text"]
NumberReading = Literal["paper", "extended"]
ANSWER_TYPES: tuple[str, ...] = get_args(AnswerType)

_PAPER_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")

_LATEX_FRACTION = re.compile(r" ?\\[dt]?frac\s*(?:\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}|(\d)(\d))")
_LATEX_WRAPPER = re.compile(r"\\(?:boxed|text|textbf|mathrm|mathbf|fbox)\s*\{([^{}]*)\}")
_THOUSANDS = re.compile(r"(?<=\d)(?:,|\{,\}|\\,)(?=\d{3}(?!\d))")
# A minus is a sign only where a number can start: in "10-5" and "10 apples - 5 apples" it is an operator.
_SIGN = r"(?:-(?!\s)|(?<![\w.)%]\s)-)?"
_UNSIGNED = r"(?:\d+ \d+/\d+(?![\d/])|\d+/\d+(?![\d/])|\d+(?:\.\d+)?|\.\d+)"
_NUMBER = re.compile(rf"(?<![\w.)/]){_SIGN}[\s$€£¥]{{0,2}}{_UNSIGNED}|\d+(?:\.\d+)?")
_EMPHASIS = re.compile(r"(?<![\w*])([*_])(?=\S)([^*_\n]+)(?<=\S)\1(?![\w*])")
_QUOTED = re.compile(r"^[^\"“]*[\"“]([^\"“”]+)[\"”][\s.]*$")
_TEXT_NOISE = re.compile(r"[\"'“”‘’`\n.\s]")


def strip_markup(text: str) -> str:
    """Strip the mark-up that hides an answer: LaTeX wrappers and fractions, Markdown emphasis, exotic minus signs."""
    text = text.replace("\u2212", "-").replace("\u00a0", " ").replace("\u202f", " ").replace("\\$", "$").replace("\\%", "%")
    text = text.replace("\\(", "").replace("\\)", "")
    text = _LATEX_FRACTION.sub(lambda match: f" {match[1] or match[3]}/{match[2] or match[4]}", text)
    for _ in range(3):  # wrappers nest: \boxed{\text{5}}
        text, count = _LATEX_WRAPPER.subn(r"\1", text)
        if not count:
            break
    return _EMPHASIS.sub(r"\2", text.replace("**", "").replace("__", "").replace("`", ""))


def _canonical_number(text: str) -> str | None:
    """The shortest spelling of one number: ``"18.0"``, ``"$18.00"`` and ``"018"`` give ``"18"``; ``"1 1/2"`` gives ``"1.5"``.

    None for what has no value: "1/0", and digits without end, as students in a loop write them.
    """
    text = re.sub(r"[$€£¥]", "", text).strip()
    sign = -1 if text.startswith("-") else 1
    text = text.lstrip("- ")
    try:
        value = sign * sum((Fraction(part) for part in text.split()), Fraction(0))
        return str(value.numerator) if value.denominator == 1 else repr(float(value))
    except (ZeroDivisionError, OverflowError, ValueError):  # ValueError: more digits than Python converts
        return None


def _numbers(text: str, reading: NumberReading) -> list[str]:
    if reading == "paper":
        found = _PAPER_NUMBER.findall(text.replace(",", ""))
    else:
        found = [match.group() for match in _NUMBER.finditer(_THOUSANDS.sub("", strip_markup(text)))]
    return [number for match in found if (number := _canonical_number(match)) is not None]


def _choices(text: str, letters: str, inside_words: bool = True) -> list[str]:
    """Choice letters by decreasing certainty: bracketed ``(A) [a] {A} A)``, then standing alone, then inside a word.

    The last step is upstream's ``[A-E]`` anywhere; it is reached only by texts that name no letter otherwise, and
    never for gold answers.
    """
    text = strip_markup(text)
    upper, either = letters, letters + letters.lower()
    bracketed = re.findall(rf"[(\[{{<]\s*([{either}])\s*[)\]}}>]|(?<!\w)([{either}])\)", text)
    if bracketed:
        return [(first or second).upper() for first, second in bracketed]
    alone = re.findall(rf"(?<![\w'’])([{upper}])(?![\w'’])", text)
    if alone:
        return alone
    if lower := re.fullmatch(rf"\W*([{letters.lower()}])\W*", text):
        return [lower.group(1).upper()]
    return re.findall(rf"[{upper}]", text) if inside_words else []


def _yes_no(text: str) -> list[str]:
    return re.findall(r"(?<![a-z])(yes|no)(?![a-z])", strip_markup(text).lower())


def _texts(text: str) -> list[str]:
    """A free answer is the whole text, or what it puts in quotes, without spaces, quotes and full stops."""
    text = strip_markup(text)
    if quoted := _QUOTED.match(text):
        text = quoted.group(1)
    cleaned = _TEXT_NOISE.sub("", text)
    return [cleaned] if cleaned else []


@dataclass(frozen=True)
class AnswerRule:
    r"""How the answers of one task are read and compared.

    Attributes:
        answer_type: ``number``, ``choice``, ``yes_no`` or ``text``.
        choices: The task's letters (``"ABCDE"``); read for ``choice`` only.
        numbers: ``extended`` reads fractions, mixed numbers and ".5"; ``paper`` is paper A's ``-?\d+(?:\.\d+)?``.
    """

    answer_type: AnswerType
    choices: str = ""
    numbers: NumberReading = "extended"

    def candidates(self, text: str) -> list[str]:
        """All answers of the rule's type named in a text, in their order, in canonical spelling."""
        if self.answer_type == "number":
            return _numbers(text, self.numbers)
        if self.answer_type == "choice":
            return _choices(text, self.choices)
        if self.answer_type == "yes_no":
            return _yes_no(text)
        return _texts(text)

    def first(self, text: str) -> str | None:
        """The first candidate: the rule for texts that consist of an answer (paper A, no answer prefix)."""
        found = self.candidates(text)
        return found[0] if found else None

    def after(self, text: str, prefix: str) -> str | None:
        """The first candidate after ``prefix``; where it is missing, the last candidate of the text (paper A)."""
        before, found, answer = text.partition(prefix)
        if found:
            return self.first(answer)
        remaining = self.candidates(before)
        return remaining[-1] if remaining else None

    def gold(self, answer: str) -> str | None:
        """The canonical form of a gold answer, or None where it is not of the rule's type.

        Gold answers are data, not model output: numbers are read with the extended patterns whatever ``numbers`` is, and
        an answer that names several (``"1 000"``, ``"1e3"``) is none.
        """
        if self.answer_type == "choice":
            return next(iter(_choices(answer, self.choices, inside_words=False)), None)
        found = AnswerRule(self.answer_type, self.choices).candidates(answer)
        return found[0] if len(found) == 1 else None

    def contains(self, text: str, gold: str) -> bool:
        """Whether the gold answer is named anywhere in a text; for free strings, as a part of it without white space."""
        if self.answer_type == "text":
            return (self.gold(gold) or text) in _TEXT_NOISE.sub("", strip_markup(text))
        return any(self.same(candidate, gold) for candidate in self.candidates(text))

    def same(self, prediction: str | None, gold: str) -> bool:
        """Whether a parsed answer equals the gold one: numbers to 1e-6 (relative above 1), everything else exactly."""
        expected = self.gold(gold)
        if prediction is None or expected is None:
            return False
        if self.answer_type == "number":
            return abs(float(prediction) - float(expected)) <= 1e-6 * max(1.0, abs(float(expected)))
        return prediction == expected


def votes(predictions: Sequence[str | None]) -> dict[str, int]:
    """How often each prediction was given, the most frequent first, of equals the one drawn first."""
    return dict(Counter(prediction for prediction in predictions if prediction is not None).most_common())


def most_frequent(predictions: Sequence[str | None]) -> int:
    """Where the winner of a vote stands first; 0 where nobody votes."""
    winner = next(iter(votes(predictions)), None)
    return predictions.index(winner)
