r"""Extracts answers from texts and compares them, with one rule per answer type.

There are two readings. ``paper`` is paper A's (Ho et al. 2023, ``src/evaluation/evaluator.py``). It collects the *candidates* of the
answer type in a text, and the prompt decides which of them counts. It also accepts part of a number as a number: "9/10" is read as 9 and
".5" as 5. The paper's published figures depend on that, so its tasks keep this reading.

``extended`` reads an answer whole or not at all (:mod:`fcot.prompts.numbers`, :mod:`fcot.prompts.choices`). An answer that a text marks
(``\boxed{}``, ``####``, "Final answer:") takes precedence over other candidates.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from fcot.prompts import choices, numbers
from fcot.prompts.answer_types import AnswerType
from fcot.prompts.numbers import NOTHING, SEVERAL, Reading

NumberReading = Literal["paper", "extended"]

_PAPER_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")

_LATEX_FRACTION = re.compile(r" ?\\[dt]?frac\s*(?:\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}|(\d)(\d))")
_LATEX_WRAPPER = re.compile(r"\\(?:boxed|text|textbf|mathrm|mathbf|fbox)\s*\{([^{}]*)\}")
_EMPHASIS = re.compile(r"(?<![\w*])([*_])(?=\S)([^*_\n]+)(?<=\S)\1(?![\w*])")
_QUOTED = re.compile(r"^[^\"“]*[\"“]([^\"“”]+)[\"”][\s.]*$")
_TEXT_NOISE = re.compile(r"[\"'“”‘’`\n.\s]")
_TRUE_FALSE = re.compile(r"\W*(true|false)\W*", re.IGNORECASE)
_GOLD_LETTER = re.compile(r"\W*([yntf])\W*", re.IGNORECASE)
_EITHER = re.compile(r"\byes\s*(?:or|/|,)\s*no\b|\bno\s*(?:or|/|,)\s*yes\b", re.IGNORECASE)

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_LINE_MARK = re.compile(  # GSM8K's mark, but no heading such as "#### 1. The plan"; "Final answer:"; "Answer:" at the beginning of a line
    r"^[ \t]*####[ \t]*(?=\S)(?!\d+[.)]\s+\S)|\bfinal[\s*_]+answer[\s*_]*(?:is\b[\s*_]*)?[:：]|^[\W_]*answer[\s*_]*[:：]",
    re.IGNORECASE | re.MULTILINE,
)
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.IGNORECASE | re.DOTALL)
_BETWEEN_BOXES = re.compile(r"[\s$.]*(?:and|or|,)[\s$]*")


def strip_markup(text: str) -> str:
    """Remove the markup around an answer: LaTeX wrappers and fractions, Markdown emphasis, unusual minus signs and spaces."""
    text = text.replace("\u2212", "-").replace("\u00a0", " ").replace("\u202f", " ").replace("\\$", "$").replace("\\%", "%")
    text = text.replace("\\(", "").replace("\\)", "")
    text = _LATEX_FRACTION.sub(lambda match: f" {match[1] or match[3]}/{match[2] or match[4]}", text)
    text = numbers.unwrap(_LATEX_WRAPPER, r"\1", text)
    return _EMPHASIS.sub(r"\2", text.replace("**", "").replace("__", "").replace("`", ""))


def _paper_numbers(text: str) -> list[str]:
    values = [_paper_value(digits) for digits in _PAPER_NUMBER.findall(text.replace(",", ""))]
    return [value for value in values if value is not None]


def _paper_value(digits: str) -> str | None:
    try:
        return numbers.canonical(Fraction(digits))
    except ValueError:  # more digits than Python converts, as students in a loop write them
        return None


def _paper_choices(text: str, letters: str) -> list[str]:
    """Choice letters: those in brackets, ``(A) [a] {A} A)``; else those that stand alone; else those inside words.

    The last case is paper A's own pattern, ``[A-E]`` anywhere.
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
    return re.findall(rf"[{upper}]", text)


def _yes_no(text: str) -> list[str]:
    return re.findall(r"(?<![a-z])(yes|no)(?![a-z])", strip_markup(text).lower())


def _texts(text: str) -> list[str]:
    """A free answer: the whole text, or the quoted part if there is one, without white space, quotes and periods."""
    text = unicodedata.normalize("NFC", strip_markup(text))
    if quoted := _QUOTED.match(text):
        text = quoted.group(1)
    cleaned = _TEXT_NOISE.sub("", text)
    return [cleaned] if cleaned else []


def _boolean(text: str) -> str | None:
    """``yes`` if the whole text is True, ``no`` if it is False, otherwise None."""
    match = _TRUE_FALSE.fullmatch(text)
    return {"true": "yes", "false": "no"}[match[1].lower()] if match else None


def gold_letter(text: str) -> str | None:
    """``yes`` if the whole text is Y or T, ``no`` if it is N or F, otherwise None. Data write them; a model that answers does not."""
    match = _GOLD_LETTER.fullmatch(text)
    return {"y": "yes", "t": "yes", "n": "no", "f": "no"}[match[1].lower()] if match else None


def _read_yes_no(text: str) -> Reading:
    """Read the first yes or no. "Yes or no" is no answer. True and False count if they are the whole text."""
    if boolean := _boolean(text):
        return Reading(boolean)
    answers = _yes_no(rest := _EITHER.sub(" ", text))
    return Reading(answers[0]) if answers else Reading(None, SEVERAL) if rest != text else NOTHING


def marked(text: str) -> str | None:
    r"""The text that is marked as the answer: by ``\\boxed{}``, ``####``, "Final answer:" or ``<answer>``. The last mark counts.

    None where nothing is marked. Boxes that are joined by "and", "or" or a comma count as one mark.
    """
    marks: list[tuple[int, str]] = []  # position and content
    boxes = [(match.start(), *_braced(text, match.end())) for match in _BOX.finditer(text)]
    for number, (start, content, _) in enumerate(boxes):
        joined = number and _BETWEEN_BOXES.fullmatch(text[boxes[number - 1][2] : start])
        marks.append((start, f"{marks[-1][1]} and {content}" if joined else content))
    marks += [(match.start(), _rest_of_line(text, match.end())) for match in _LINE_MARK.finditer(text)]
    marks += [(match.start(), match[1]) for match in _TAGGED.finditer(text)]
    return max(marks)[1] if marks else None


def _braced(text: str, start: int) -> tuple[str, int]:
    """The content of the brace that opens just before ``start``, and the position behind its closing brace."""
    depth = 1
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if not depth:
            return text[start:end], end + 1
    return text[start:], len(text)


def _rest_of_line(text: str, start: int) -> str:
    """The rest of the mark's line, or the next line that is not blank."""
    lines = (line for line in text[start:].split("\n") if line.strip(" \t\r*_:"))
    return next(lines, "").strip()


@dataclass(frozen=True)
class AnswerRule:
    r"""How the answers of one task are read and compared.

    Attributes:
        answer_type: ``number``, ``choice``, ``yes_no`` or ``text``.
        choices: The task's letters, such as ``"ABCDE"``; used for ``choice`` only.
        numbers: The reading, for answers of all types. ``extended`` reads an answer whole or not at all. ``paper`` reads as paper A does,
            numbers by ``-?\d+(?:\.\d+)?``. The attribute keeps its narrow name because that is part of the identity of runs.
    """

    answer_type: AnswerType
    choices: str = ""
    numbers: NumberReading = "extended"

    def candidates(self, text: str) -> list[str]:
        """All answers of the rule's type in a text, in their order, in canonical spelling."""
        if self.answer_type == "number" and self.numbers == "paper":
            return _paper_numbers(text)
        if self.answer_type == "number":
            return [number.value for number in numbers.find(numbers.plain(text)) if number.value is not None]
        if self.answer_type == "choice":
            return _paper_choices(text, self.choices) if self.numbers == "paper" else choices.candidates(strip_markup(text), self.choices)
        if self.answer_type == "yes_no":
            return _yes_no(text)
        return _texts(text)

    def read(self, text: str) -> Reading:
        """The answer in a text that begins with the answer: the marked one, or else the first candidate."""
        return self._read(text, first=True)

    def read_last(self, text: str) -> Reading:
        """The answer in a text that ends with the answer: the marked one, or else the last candidate."""
        return self._read(text, first=False)

    def read_after(self, text: str, prefix: str) -> Reading:
        """The answer behind the last ``prefix`` that an answer follows. If the text lacks the prefix, its last answer (paper A)."""
        *parts, last = text.split(prefix)
        if not parts:
            return self.read_last(text)
        readings = [self.read(part) for part in (*parts[1:], last)]
        return next((reading for reading in reversed(readings) if reading != NOTHING), NOTHING)

    def _read(self, text: str, first: bool) -> Reading:
        if self.numbers == "paper":
            candidates = self.candidates(text)
            return Reading(candidates[0 if first else -1]) if candidates else NOTHING
        if (mark := marked(text)) is not None:
            reading = self._by_position(mark, True)
            if reading != NOTHING:
                return reading
        return self._by_position(text, first)

    def _by_position(self, text: str, first: bool) -> Reading:
        if self.answer_type == "number":
            return (numbers.first if first else numbers.last)(numbers.plain(text))
        if self.answer_type == "choice":
            return (choices.first if first else choices.last)(strip_markup(text), self.choices)
        if self.answer_type == "yes_no" and first:
            return _read_yes_no(text)
        candidates = self.candidates(text)
        return Reading(candidates[0 if first else -1]) if candidates else NOTHING

    def first(self, text: str) -> str | None:
        """The value of :meth:`read`."""
        return self.read(text).value

    def after(self, text: str, prefix: str) -> str | None:
        """The value of :meth:`read_after`."""
        return self.read_after(text, prefix).value

    def gold(self, answer: str) -> str | None:
        """The canonical form of a gold answer, or None where it is not of the rule's type.

        Gold answers are data, not model output: a number is read whole or not at all, even in the ``paper`` reading. A text with several
        answers (``"1 000"``, ``"A or B"``) or with a calculation (``"2^3"``) is no gold answer.
        """
        if self.answer_type == "number":
            return numbers.gold(numbers.plain(answer))
        if self.answer_type == "choice":
            return choices.first(strip_markup(answer), self.choices).value
        if self.answer_type == "yes_no" and (word := _boolean(answer) or gold_letter(answer)):
            return word
        candidates = self.candidates(answer)
        return candidates[0] if len(candidates) == 1 else None

    def contains(self, text: str, gold: str) -> bool:
        """Whether the gold answer occurs anywhere in a text. For free answers, white space and quotes are ignored."""
        if self.answer_type == "text":
            return (self.gold(gold) or text) in _TEXT_NOISE.sub("", unicodedata.normalize("NFC", strip_markup(text)))
        return any(self.same(candidate, gold) for candidate in self.candidates(text))

    def same(self, prediction: str | None, gold: str) -> bool:
        """Whether a parsed answer equals the gold answer: numbers within a relative tolerance of 1e-6, everything else exactly.

        In the ``paper`` reading the tolerance of numbers below 1 is absolute.
        """
        expected = self.gold(gold)
        if prediction is None or expected is None:
            return False
        if self.answer_type == "number":
            scale = max(1.0, abs(float(expected))) if self.numbers == "paper" else abs(float(expected))
            return abs(float(prediction) - float(expected)) <= 1e-6 * scale
        return prediction == expected


def votes(predictions: Sequence[str | None]) -> dict[str, int]:
    """The number of votes for each prediction, in decreasing order. Of equally frequent predictions the earlier one comes first."""
    return dict(Counter(prediction for prediction in predictions if prediction is not None).most_common())


def most_frequent(predictions: Sequence[str | None]) -> int:
    """The position of the first vote for the winning prediction; 0 where there are no votes."""
    winner = next(iter(votes(predictions)), None)
    return predictions.index(winner)
