"""Why an answer is wrong: marks that a program can give (after paper A, appendix D)."""

from __future__ import annotations

import bisect
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from fcot.base.records import Prediction
from fcot.curation.equations import wrong_equations
from fcot.curation.filters import most_repeated, stutters
from fcot.prompts.answers import AnswerRule

MARKS = (
    "no_answer", "truncated", "repeats_question", "loops", "arithmetic_slip", "right_reasoning", "foreign_number", "skipped_number",
    "other",
)  # fmt: skip
_SPELT = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
          "nineteen twenty").split()  # fmt: skip
_DIGITS = r"\d+(?:,\d+)*(?:\.\d+)?"
_HARMLESS = {1.0, 2.0, 100.0}  # numbers that a rationale may bring along: of one, of a pair, in percent
_LOOP = 3
_MOST_WORDS = 300  # of a rationale that are looked at: students in a loop write thousands
_NEAR = 0.006  # two decimals are enough for a rounded result


@dataclass(frozen=True)
class Marked:
    """A wrong prediction and what is wrong with it (a row of ``errors.jsonl``).

    Attributes:
        marks: Of :data:`MARKS`, in their order; ``other`` where none of them fits.
        equation: The first wrong equation of an arithmetic slip.
    """

    sample_index: int
    marks: Sequence[str]
    equation: str | None


def mark(prediction: Prediction, rule: AnswerRule, separator: str | None) -> Marked:
    """The marks of a wrong prediction.

    Args:
        prediction: Wrong.
        rule: The task's.
        separator: What stands between reasoning and answer, None where the completion is the answer. Marks of the reasoning
            are given only with one.
    """
    reasoning = prediction.completion.partition(separator)[0] if separator else ""
    slips = wrong_equations(reasoning)
    question = _numbers(prediction.question)
    last = rule.candidates(reasoning.strip().splitlines()[-1]) if reasoning.strip() else []
    told = {
        "no_answer": prediction.prediction is None,
        "truncated": not prediction.complete,
        "repeats_question": _repeats(prediction.question, prediction.completion),
        "loops": most_repeated(prediction.completion) >= _LOOP or stutters(prediction.completion),
        "arithmetic_slip": bool(slips),
        "right_reasoning": bool(last) and rule.same(last[-1], prediction.answer),
        "foreign_number": rule.answer_type == "number" and bool(_foreign([*question, *_numbers(prediction.answer)], reasoning)),
        "skipped_number": rule.answer_type == "number"
        and bool(reasoning.strip() and _in_digits(prediction.question) - set(_numbers(reasoning))),
    }
    marks = [name for name in MARKS if told.get(name)]
    return Marked(prediction.sample_index, marks or ["other"], slips[0] if slips else None)


def count(marked: Iterable[Marked]) -> dict[str, int]:
    """How many wrong predictions have each mark; one may have several."""
    found = Counter(name for one in marked for name in one.marks)
    return {name: found[name] for name in MARKS if found[name]}


def _numbers(text: str) -> list[float]:
    """The numbers of a text, in their order; words up to twenty are numbers too."""
    found = re.findall(rf"{_DIGITS}|[a-z]+", text.lower())
    return [float(_SPELT.index(one) if one in _SPELT else one.replace(",", "")) for one in found if one[0].isdigit() or one in _SPELT]


def _in_digits(text: str) -> set[float]:
    """The numbers of a text that are written in digits: "one" and "second" are words of many a question."""
    return {float(one.replace(",", "")) for one in re.findall(_DIGITS, text)}


def _foreign(question: Sequence[float], reasoning: str) -> list[float]:
    """Numbers of a reasoning, from left to right, that are neither known nor a result nor come of two known ones by one operation.

    Known are those of the question, and every result, right or wrong, once it was reached.
    """
    known, foreign = _KnownNumbers(question), []
    for found in list(re.finditer(rf"(=\s*[$€£]?\s*-?)?({_DIGITS}|[a-z]+)", reasoning.lower()))[:_MOST_WORDS]:
        for number in _numbers(found[2]):
            if not found[1] and number not in known.numbers and number not in _HARMLESS and not known.give(number):
                foreign.append(number)
            known.add(number)
    return foreign


class _KnownNumbers:
    """Known numbers, and whether two of them give another one by one operation: for each of them the other one is looked up."""

    def __init__(self, numbers: Iterable[float]) -> None:
        self.numbers: set[float] = set()
        self._ordered: list[float] = []
        for number in numbers:
            self.add(number)

    def add(self, number: float) -> None:
        if number not in self.numbers:
            self.numbers.add(number)
            bisect.insort(self._ordered, number)

    def give(self, number: float) -> bool:
        """Whether a + b, a - b, a * b or a / b is the number, for known a and b, equal ones too."""
        return any(self._has(other, error) for one in self._ordered for other, error in _partners(one, number))

    def _has(self, value: float, error: float) -> bool:
        """Whether a known number is closer to a value than so much."""
        place = bisect.bisect_right(self._ordered, value - error)
        return place < len(self._ordered) and self._ordered[place] < value + error


def _partners(a: float, number: float) -> Iterator[tuple[float, float]]:
    """What a second number must be so that it and ``a`` give ``number``, and by how much it may miss that."""
    yield number - a, _NEAR  # a + b
    yield a - number, _NEAR  # a - b
    if a:
        yield number / a, _NEAR / abs(a)  # a * b
        yield number * a, _NEAR * abs(a)  # b / a
    elif abs(number) < _NEAR:
        yield 0.0, float("inf")  # 0 * b


def _repeats(question: str, completion: str) -> bool:
    """Whether half of the question or more stands in the completion, word for word."""
    words, text = question.lower().split(), " ".join(completion.lower().split())
    half = max(6, (len(words) + 1) // 2)
    return any(" ".join(words[start : start + half]) in text for start in range(len(words) - half + 1))
