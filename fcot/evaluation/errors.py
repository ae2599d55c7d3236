"""Error marks: why an answer is wrong, as far as a program can tell (after paper A, appendix D)."""

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
_SPELLED = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
          "nineteen twenty").split()  # fmt: skip
_DIGITS = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d)|\d+(?:\.\d+)?"
_HARMLESS = {1.0, 2.0, 100.0}  # numbers that a rationale may introduce: "one of them", "a pair", "percent"
_LOOP = 3  # repetitions
_MOST_WORDS = 300  # words of a rationale that are checked: students in a loop write thousands
_NEAR = 0.006  # tolerance of a result that is rounded to two decimals


@dataclass(frozen=True)
class Marked:
    """The marks of a wrong prediction (a row of ``errors.jsonl``).

    Attributes:
        sample_index: Sample index of the problem.
        marks: The marks that apply, in the order of :data:`MARKS`; ``other`` alone where no other mark applies.
        equation: The first wrong equation of the reasoning; None where all are right.
        id: The problem's own id in the user's data; None if it has none.
    """

    sample_index: int
    marks: Sequence[str]
    equation: str | None
    id: str | None = None


def mark(prediction: Prediction, rule: AnswerRule, separator: str | None) -> Marked:
    """The marks of a wrong prediction.

    Args:
        prediction: A wrong prediction.
        rule: The task's answer rule.
        separator: The text between reasoning and answer. None where the completion is the answer alone; then no mark of the reasoning
            applies.
    """
    reasoning = prediction.completion.partition(separator)[0] if separator else ""
    slips = wrong_equations(reasoning)
    question = _numbers(prediction.question)
    last = rule.candidates(reasoning.strip().splitlines()[-1]) if reasoning.strip() else []
    applies = {
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
    marks = [name for name in MARKS if applies.get(name)]
    return Marked(prediction.sample_index, marks or ["other"], slips[0] if slips else None, prediction.id)


def count(marked: Iterable[Marked]) -> dict[str, int]:
    """The number of wrong predictions with each mark, without marks that never apply. A prediction may have several marks."""
    counts = Counter(name for prediction in marked for name in prediction.marks)
    return {name: counts[name] for name in MARKS if counts[name]}


def _numbers(text: str) -> list[float]:
    """The numbers of a text in their order, including those up to twenty that are spelled out."""
    words = re.findall(rf"{_DIGITS}|[a-z]+", text.lower())
    return [
        float(_SPELLED.index(word) if word in _SPELLED else word.replace(",", ""))
        for word in words if word[0].isdigit() or word in _SPELLED
    ]  # fmt: skip


def _in_digits(text: str) -> set[float]:
    """The numbers of a text that are written in digits. Spelled-out numbers such as "one" are often ordinary words of a question."""
    return {float(number.replace(",", "")) for number in re.findall(_DIGITS, text)}


def _foreign(question: Sequence[float], reasoning: str) -> list[float]:
    """The numbers of the reasoning that have no source, from left to right.

    A number has a source if it is known, if it follows an equals sign, or if one operation on two known numbers gives it. The numbers
    of the question are known, and so are all earlier numbers of the reasoning, right or wrong.
    """
    known, foreign = _KnownNumbers(question), []
    for word in list(re.finditer(rf"(=\s*[$€£]?\s*-?)?({_DIGITS}|[a-z]+)", reasoning.lower()))[:_MOST_WORDS]:
        for number in _numbers(word[2]):
            if not word[1] and number not in known.numbers and number not in _HARMLESS and not known.give(number):
                foreign.append(number)
            known.add(number)
    return foreign


class _KnownNumbers:
    """A set of known numbers that answers whether an operation on two of them gives another number.

    For each known number, the second operand that the result needs is looked up in a sorted list: faster than to try all pairs.
    """

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
        """Whether a + b, a - b, a * b or a / b is the number, for known a and b; a and b may be the same."""
        return any(self._has(partner, tolerance) for operand in self._ordered for partner, tolerance in _partners(operand, number))

    def _has(self, value: float, tolerance: float) -> bool:
        """Whether a known number differs from ``value`` by less than ``tolerance``."""
        place = bisect.bisect_right(self._ordered, value - tolerance)
        return place < len(self._ordered) and self._ordered[place] < value + tolerance


def _partners(a: float, number: float) -> Iterator[tuple[float, float]]:
    """The second operands with which ``a`` gives ``number``, each with the tolerance of that operand."""
    yield number - a, _NEAR  # a + b
    yield a - number, _NEAR  # a - b
    if a:
        yield number / a, _NEAR / abs(a)  # a * b
        yield number * a, _NEAR * abs(a)  # b / a
    elif abs(number) < _NEAR:
        yield 0.0, float("inf")  # 0 * b


def _repeats(question: str, completion: str) -> bool:
    """Whether the completion repeats at least half of the question word for word."""
    words, text = question.lower().split(), " ".join(completion.lower().split())
    half = max(6, (len(words) + 1) // 2)
    return any(" ".join(words[start : start + half]) in text for start in range(len(words) - half + 1))
