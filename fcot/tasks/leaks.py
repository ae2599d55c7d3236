"""Leaks: test problems that stand in a prompt as examples, and those that train nearly has.

Near-duplicates have the wording of a train problem but for its numbers, or for all that a template leaves open. A student can
learn their solutions by heart; on a split by templates it cannot. They are found by hashing, in linear time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping

from fcot.base.records import Problem
from fcot.prompts.teacher import TeacherPrompt
from fcot.tasks.grouping import mask
from fcot.tasks.splits import Split, folded

_WORDS = 4  # of a question that is looked for in templates: shorter ones may stand there by chance
_NUMBER = re.compile(r"\d+(?:[.,/:]\d+)*")
_CHOICES = re.compile(r"\s*Answer Choices:.*", re.DOTALL)


def near_duplicates(problems: Mapping[int, Problem], split: Split) -> dict[str, int]:
    """How many test problems have a near-duplicate in train or validation, as entries of ``metrics.json``.

    Answer choices do not count as wording. A problem that is the same but for its numbers is also of one template.

    Args:
        problems: By sample index.
        split: Their parts.
    """
    return {
        "test_questions_in_train_but_for_numbers": _shared(problems, split, _without_numbers),
        "test_questions_of_a_train_template": _shared(problems, split, mask),
    }


def _shared(problems: Mapping[int, Problem], split: Split, form: Callable[[str], Hashable]) -> int:
    trained = {form(_stem(problems[index])) for index in split.train + split.validation}
    return sum(form(_stem(problems[index])) in trained for index in split.test)


def _stem(problem: Problem) -> str:
    return _CHOICES.sub("", folded(problem.question))


def _without_numbers(question: str) -> str:
    return _NUMBER.sub("#", question)


def without_leaks(
    test: list[int], problems: Mapping[int, Problem], prompt: TeacherPrompt, feedback_template: str, order_known: bool
) -> list[int]:
    """The test problems that neither teacher nor student is shown as examples.

    Args:
        test: Sample indices.
        problems: By sample index.
        prompt: Its exemplars are compared by their questions, its template is searched for whole questions.
        feedback_template: Searched likewise; empty for none.
        order_known: Whether the exemplars' sample indices are those of these problems: then they count too.
    """
    indices = {exemplar.sample_index for exemplar in prompt.exemplars} if order_known else set()
    questions = {folded(exemplar.question) for exemplar in prompt.exemplars}
    templates = folded(f"{prompt.template} {feedback_template}")

    def shown(index: int) -> bool:
        question = folded(problems[index].question)
        return index in indices or question in questions or (len(question.split()) >= _WORDS and question in templates)

    return [index for index in test if not shown(index)]
