r"""Answer extraction and comparison, one rule per answer type.

There are two readings. ``paper`` is paper A's (Ho et al. 2023, ``src/evaluation/evaluator.py``): every answer type has *candidates* in a
text, the elicitation decides which of them counts, and a part of a number counts as a number: its pattern takes "9/10" for 9 and ".5"
for 5. The paper's published figures depend on that, so its tasks keep this reading. ``extended`` reads an answer whole or not at all
(:mod:`fcot.prompts.numbers`, :mod:`fcot.prompts.choices`), and an answer that a text marks (``\boxed{}``, ``####``, "Final answer:")
wins over its position.
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
_EITHER = re.compile(r"\byes\s*(?:or|/|,)\s*no\b|\bno\s*(?:or|/|,)\s*yes\b", re.IGNORECASE)

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_LINE_MARK = re.compile(  # GSM8K's mark, which is no heading ("#### 1. The plan"); "Final answer:"; "Answer:" at the beginning of a line
    r"^[ \t]*####[ \t]*(?=\S)(?!\d+[.)]\s+\S)|\bfinal[\s*_]+answer[\s*_]*(?:is\b[\s*_]*)?[:：]|^[\W_]*answer[\s*_]*[:：]",
    re.IGNORECASE | re.MULTILINE,
)
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.IGNORECASE | re.DOTALL)
_BETWEEN_BOXES = re.compile(r"[\s$.]*(?:and|or|,)[\s$]*")


def strip_markup(text: str) -> str:
    """Strip the mark-up that hides an answer: LaTeX wrappers and fractions, Markdown emphasis, exotic minus signs."""
    text = text.replace("\u2212", "-").replace("\u00a0", " ").replace("\u202f", " ").replace("\\$", "$").replace("\\%", "%")
    text = text.replace("\\(", "").replace("\\)", "")
    text = _LATEX_FRACTION.sub(lambda match: f" {match[1] or match[3]}/{match[2] or match[4]}", text)
    text = numbers.unwrap(_LATEX_WRAPPER, r"\1", text)
    return _EMPHASIS.sub(r"\2", text.replace("**", "").replace("__", "").replace("`", ""))


def _paper_numbers(text: str) -> list[str]:
    found = _PAPER_NUMBER.findall(text.replace(",", ""))
    values = [_paper_value(match) for match in found]
    return [value for value in values if value is not None]


def _paper_value(digits: str) -> str | None:
    try:
        return numbers.canonical(Fraction(digits))
    except ValueError:  # more digits than Python converts, as students in a loop write them
        return None


def _paper_choices(text: str, letters: str) -> list[str]:
    """Choice letters by decreasing certainty: bracketed ``(A) [a] {A} A)``, then standing alone, then inside a word.

    The last step is upstream's ``[A-E]`` anywhere; it is reached only by texts that name no letter otherwise.
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
    """A free answer is the whole text, or what it puts in quotes, without spaces, quotes and full stops."""
    text = unicodedata.normalize("NFC", strip_markup(text))
    if quoted := _QUOTED.match(text):
        text = quoted.group(1)
    cleaned = _TEXT_NOISE.sub("", text)
    return [cleaned] if cleaned else []


def _boolean(text: str) -> str | None:
    """Yes for True and no for False, where that is the whole text."""
    whole = _TRUE_FALSE.fullmatch(text)
    return {"true": "yes", "false": "no"}[whole[1].lower()] if whole else None


def _read_yes_no(text: str) -> Reading:
    """The first of yes and no; "yes or no" is neither. True and False count where they are the whole text."""
    if boolean := _boolean(text):
        return Reading(boolean)
    answers = _yes_no(rest := _EITHER.sub(" ", text))
    return Reading(answers[0]) if answers else Reading(None, SEVERAL) if rest != text else NOTHING


def marked(text: str) -> str | None:
    r"""What a text marks as its answer: the content of the last ``\\boxed{}``, behind the last ``####`` or "Final answer:"; or None."""
    found: list[tuple[int, str]] = []
    boxes = [(match.start(), *_braced(text, match.end())) for match in _BOX.finditer(text)]
    for number, (start, content, _) in enumerate(boxes):
        joined = number and _BETWEEN_BOXES.fullmatch(text[boxes[number - 1][2] : start])
        found.append((start, f"{found[-1][1]} and {content}" if joined else content))
    found += [(match.start(), _rest_of_line(text, match.end())) for match in _LINE_MARK.finditer(text)]
    found += [(match.start(), match[1]) for match in _TAGGED.finditer(text)]
    return max(found)[1] if found else None


def _braced(text: str, start: int) -> tuple[str, int]:
    """The content of a brace that was opened before ``start``, and where it is closed."""
    depth = 1
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if not depth:
            return text[start:end], end + 1
    return text[start:], len(text)


def _rest_of_line(text: str, start: int) -> str:
    """The line behind a mark, or the next one where nothing stands behind it."""
    lines = (line for line in text[start:].split("\n") if line.strip(" \t\r*_:"))
    return next(lines, "").strip()


@dataclass(frozen=True)
class AnswerRule:
    r"""How the answers of one task are read and compared.

    Attributes:
        answer_type: ``number``, ``choice``, ``yes_no`` or ``text``.
        choices: The task's letters (``"ABCDE"``); read for ``choice`` only.
        numbers: ``extended`` reads an answer of any type whole or not at all; ``paper`` reads as paper A does, numbers by
            ``-?\d+(?:\.\d+)?``. (The name is older than its meaning: it counts in the identity of runs.)
    """

    answer_type: AnswerType
    choices: str = ""
    numbers: NumberReading = "extended"

    def candidates(self, text: str) -> list[str]:
        """All answers of the rule's type named in a text, in their order, in canonical spelling."""
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
        """The answer in a text that consists of an answer: its first candidate, or what it marks."""
        return self._read(text, first=True)

    def read_last(self, text: str) -> Reading:
        """The answer in a text that ends with one: its last candidate, or what it marks."""
        return self._read(text, first=False)

    def read_after(self, text: str, prefix: str) -> Reading:
        """The answer behind the last ``prefix`` with something to read behind it; without a prefix the last of the text (paper A)."""
        *parts, last = text.split(prefix)
        if not parts:
            return self.read_last(text)
        readings = [self.read(part) for part in (*parts[1:], last)]
        return next((reading for reading in reversed(readings) if reading != NOTHING), NOTHING)

    def _read(self, text: str, first: bool) -> Reading:
        if self.numbers == "paper":
            found = self.candidates(text)
            return Reading(found[0 if first else -1]) if found else NOTHING
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
        found = self.candidates(text)
        return Reading(found[0 if first else -1]) if found else NOTHING

    def first(self, text: str) -> str | None:
        """The value of :meth:`read`."""
        return self.read(text).value

    def after(self, text: str, prefix: str) -> str | None:
        """The value of :meth:`read_after`."""
        return self.read_after(text, prefix).value

    def gold(self, answer: str) -> str | None:
        """The canonical form of a gold answer, or None where it is not of the rule's type.

        Gold answers are data, not model output: they are read whole whatever ``numbers`` is, and an answer that names several
        (``"1 000"``, ``"A or B"``) or that has to be worked out (``"2^3"``) is none.
        """
        if self.answer_type == "number":
            return numbers.gold(numbers.plain(answer))
        if self.answer_type == "choice":
            return choices.first(strip_markup(answer), self.choices).value
        if self.answer_type == "yes_no" and (boolean := _boolean(answer)):
            return boolean
        found = self.candidates(answer)
        return found[0] if len(found) == 1 else None

    def contains(self, text: str, gold: str) -> bool:
        """Whether the gold answer is named anywhere in a text; for free strings, as a part of it without white space."""
        if self.answer_type == "text":
            return (self.gold(gold) or text) in _TEXT_NOISE.sub("", unicodedata.normalize("NFC", strip_markup(text)))
        return any(self.same(candidate, gold) for candidate in self.candidates(text))

    def same(self, prediction: str | None, gold: str) -> bool:
        """Whether a parsed answer equals the gold one: numbers to one part in a million, everything else exactly.

        In the ``paper`` reading numbers below 1 are compared to an absolute 1e-6.
        """
        expected = self.gold(gold)
        if prediction is None or expected is None:
            return False
        if self.answer_type == "number":
            scale = max(1.0, abs(float(expected))) if self.numbers == "paper" else abs(float(expected))
            return abs(float(prediction) - float(expected)) <= 1e-6 * scale
        return prediction == expected


def votes(predictions: Sequence[str | None]) -> dict[str, int]:
    """How often each prediction was given, the most frequent first, of equals the one drawn first."""
    return dict(Counter(prediction for prediction in predictions if prediction is not None).most_common())


def most_frequent(predictions: Sequence[str | None]) -> int:
    """Where the winner of a vote stands first; 0 where nobody votes."""
    winner = next(iter(votes(predictions)), None)
    return predictions.index(winner)
