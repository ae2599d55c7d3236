"""Leaks: test problems that a prompt shows as examples, and test problems with a near-duplicate in train.

A near-duplicate differs from a train problem only in its numbers, or only in the words that a template leaves open. A student can
memorize its solution. A split by templates avoids that as far as templates are known. Near-duplicates are found by hashing, in linear time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping

from fcot.base.console import watched
from fcot.base.records import Problem
from fcot.prompts.teacher import TeacherPrompt
from fcot.tasks.grouping import mask
from fcot.tasks.splits import Split, folded

_MIN_WORDS = 4  # shorter questions are not searched for in templates: they may occur there by chance
_NUMBER = re.compile(r"\d+(?:[.,/:]\d+)*")
_CHOICES = re.compile(r"\s*Answer Choices:.*", re.DOTALL)


def near_duplicates(problems: Mapping[int, Problem], split: Split) -> dict[str, int]:
    """The numbers of test problems with each kind of near-duplicate in train or validation, as entries of ``metrics.json``.

    Answer choices are not compared. Questions that differ only in numbers count in both entries.

    Args:
        problems: Problems by sample index.
        split: The split of these problems.
    """
    return {
        "test_questions_in_train_but_for_numbers": _shared(problems, split, "compare but for numbers", _without_numbers),
        "test_questions_of_a_train_template": _shared(problems, split, "compare wordings", mask),
    }


def _shared(problems: Mapping[int, Problem], split: Split, what: str, normalize: Callable[[str], Hashable]) -> int:
    """The number of test problems whose normalized question equals that of a train or validation problem."""
    trained = {normalize(_stem(problems[index])) for index in watched([*split.train, *split.validation], what, "questions")}
    return sum(normalize(_stem(problems[index])) in trained for index in watched(split.test, what, "questions"))


def _stem(problem: Problem) -> str:
    """The question without its answer choices."""
    return _CHOICES.sub("", folded(problem.question))


def _without_numbers(question: str) -> str:
    return _NUMBER.sub("#", question)


def without_leaks(
    test: list[int], problems: Mapping[int, Problem], prompt: TeacherPrompt, feedback_template: str, order_known: bool
) -> list[int]:
    """Remove the test problems that a prompt of the teacher or the student shows as examples.

    Args:
        test: Sample indices of the test problems.
        problems: Problems by sample index.
        prompt: The run's prompt. A problem is removed if an exemplar has its question, or if the template contains it.
        feedback_template: A further template, searched for questions as well; empty for none.
        order_known: Whether the exemplars' sample indices refer to these problems. If so, problems with such an index are removed too.

    Returns:
        Sample indices of the remaining test problems, in order.
    """
    indices = {exemplar.sample_index for exemplar in prompt.exemplars} if order_known else set()
    questions = {folded(exemplar.question) for exemplar in prompt.exemplars}
    templates = folded(f"{prompt.template} {feedback_template}")

    def shown(index: int) -> bool:
        question = folded(problems[index].question)
        return index in indices or question in questions or (len(question.split()) >= _MIN_WORDS and question in templates)

    return [index for index in test if not shown(index)]
