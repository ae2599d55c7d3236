r"""Writes arithmetic test questions with other numbers, to test whether a model solves problems or remembers them from its training.

    python benchmarks/contamination.py DATA/multiarith.json FOLDER

For each test problem (paper A's split) whose solution can be inferred, FOLDER gets the question unchanged (``original.jsonl``) and with
other numbers and the new answer (``renumbered.jsonl``), under the same sample index. ``split.json`` puts all problems into test. Then
answer the questions with a trained student, or with an untrained model or a teacher:

    python -m fcot.predict student=RUN/student file=FOLDER/renumbered.jsonl output=ANSWERS.jsonl
    python -m fcot.run dataset=custom dataset.path=FOLDER/renumbered.jsonl dataset.answer_type=number split-mode=file \
        split_mode.path=FOLDER/split.json method=zero_shot_cot ...

A solution is an expression that uses every number of the question once and gives its answer. It is inferred if all such expressions
agree on other numbers too ("2 + 2" and "2 * 2" do not). Questions with numbers in words are left out.
"""

from __future__ import annotations

import argparse
import json
import operator
import random
import re
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

from fcot.tasks.loaders import load_problems
from fcot.tasks.splits import sample_split
from fcot.tasks.table import TASKS

Numbers = Sequence[Fraction]
# Returns the value (None after a division by zero), and whether the results of all steps are positive integers.
Expression = Callable[[Numbers], tuple[Fraction | None, bool]]

NUMBER = re.compile(r"(?<![\w.,-])\d+(?!\w|[.,]\d)")
WORDS = re.compile(r"\b(two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|half|twice|double|triple|dozen)\b", re.IGNORECASE)
TRIALS = 5  # sets of other numbers on which expressions must agree
DRAWS = 10_000


def expressions(places: Sequence[int]) -> Iterator[Expression]:
    """All expressions that use each of the numbers at these places once; feasible for two to four numbers."""
    if len(places) == 1:
        yield lambda numbers: (numbers[places[0]], True)
        return
    for chosen in range(1, 2 ** len(places) - 1):
        left = [place for bit, place in enumerate(places) if chosen >> bit & 1]
        right = [place for bit, place in enumerate(places) if not chosen >> bit & 1]
        for first in expressions(left):
            for second in expressions(right):
                if left < right:  # commutative operations: only one order of the operands
                    yield combined(first, second, operator.add)
                    yield combined(first, second, operator.mul)
                yield combined(first, second, operator.sub)
                yield combined(first, second, operator.truediv)


def combined(first: Expression, second: Expression, operation: Callable[[Fraction, Fraction], Fraction]) -> Expression:
    """The expression that applies an operation to the values of two expressions."""

    def value(numbers: Numbers) -> tuple[Fraction | None, bool]:
        (a, a_is_valid), (b, b_is_valid) = first(numbers), second(numbers)
        if a is None or b is None or (operation is operator.truediv and b == 0):
            return None, False
        result = operation(a, b)
        return result, a_is_valid and b_is_valid and result.denominator == 1 and result > 0

    return value


def others(numbers: Numbers, draw: random.Random) -> list[Fraction]:
    """Draw other numbers with the same numbers of digits; a single digit is 2 to 9."""
    return [Fraction(draw.randint(max(2, 10 ** (len(str(number)) - 1)), 10 ** len(str(number)) - 1)) for number in numbers]


def solutions(numbers: Numbers, answer: Fraction, draw: random.Random) -> list[Expression]:
    """The expressions that give the answer in positive integer steps; an empty list if they differ on other numbers."""
    candidates = [expression for expression in expressions(range(len(numbers))) if expression(numbers) == (answer, True)]
    trials = [others(numbers, draw) for _ in range(TRIALS)]
    values = {tuple(expression(trial)[0] for trial in trials) for expression in candidates}
    return candidates if len(values) == 1 else []


def renumbered(question: str, answer: str, draw: random.Random) -> tuple[str, str] | None:
    """Replace the numbers of a question; returns the question and its answer, or None if the solution cannot be inferred."""
    numbers = [Fraction(match[0]) for match in NUMBER.finditer(question)]
    if not 2 <= len(numbers) <= 4 or WORDS.search(question) or re.search(r"\d", NUMBER.sub("", question)):
        return None
    candidates = solutions(numbers, Fraction(answer), draw)
    for _ in range(DRAWS if candidates else 0):
        new_numbers = others(numbers, draw)
        value = next((value for value, is_valid in (expression(new_numbers) for expression in candidates) if is_valid), None)
        differs = all(new != old for new, old in zip(new_numbers, numbers, strict=True)) and len({*new_numbers}) == len(new_numbers)
        if value is not None and value != Fraction(answer) and differs:
            replacements = iter(new_numbers)
            return NUMBER.sub(lambda _, rest=replacements: str(next(rest)), question), str(value)  # type: ignore[misc]
    return None


def main() -> None:
    """Write the two sets of questions and the split."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="an arithmetic task in the authors' format")
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    problems = load_problems(TASKS[options.data.stem], str(options.data))
    draw = random.Random(0)
    _, test = sample_split(len(problems))
    rows = []
    for index in test:
        problem = problems[index]
        changed = renumbered(problem.question, problem.answer, draw)
        if changed:
            rows.append((index, (problem.question, problem.answer), changed))
    options.output.mkdir(parents=True, exist_ok=True)
    for at, name in ((1, "original"), (2, "renumbered")):
        lines = [json.dumps({"sample_index": row[0], "question": row[at][0], "answer": row[at][1]}) for row in rows]
        (options.output / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (options.output / "split.json").write_text(json.dumps({"train": [], "test": [row[0] for row in rows]}))
    print(f"{len(rows)} of {len(test)} test problems in {options.output}")
    for index, (question, answer), (new, value) in rows[:3]:
        print(f"\n{index}: {question} {answer}\n    {new} {value}")


if __name__ == "__main__":
    main()
