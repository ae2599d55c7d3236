"""Feedback: which mistakes a teacher is shown, and how it is asked about them.

A request is a problem whose question is the whole case, so that store, budget and resuming are those of any other request.
Paper B ships no prompt for it; what is known of its parts (the problem, the wrong rationale, the answer as a hint, the request
for a corrected rationale) is in the default template.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fcot.base.records import ExamResult, Problem
from fcot.prompts.answers import AnswerRule
from fcot.prompts.student import StudentFormat
from fcot.prompts.teacher import HINT, STUDENTS_ANSWER, TeacherPrompt

_CUE = "\n\nReasoning:"  # for endpoints that continue a text
_NEXT = "\nQuestion:"  # with what such a text may go on


@dataclass(frozen=True)
class Case:
    """One request: a problem and the mistakes on it that the teacher is shown."""

    problem: Problem
    mistakes: Sequence[str]


def cases(
    results: Sequence[ExamResult], problems: Mapping[int, Problem], mistakes: int, requests: int, max_requests: int | None
) -> list[Case]:
    """What a round asks about, in the order of the exam.

    Args:
        results: Of the exam.
        problems: By sample index.
        mistakes: Shown in one request at most.
        requests: Of one problem at most, each about other mistakes.
        max_requests: In all; each problem's first comes before any second, the problems that fail most come first.
    """
    found = []
    for position, result in enumerate(results):
        shown = [result.mistakes[start : start + mistakes] for start in range(0, len(result.mistakes), mistakes)][:requests]
        rate = result.n_correct / result.n_answers
        found += [((number, rate, position), Case(problems[result.sample_index], part)) for number, part in enumerate(shown)]
    chosen = sorted(found, key=lambda item: item[0])[:max_requests]
    return [case for _, case in sorted(chosen, key=lambda item: (item[0][2], item[0][0]))]


def feedback_prompt(max_tokens: int, prompt: TeacherPrompt, chat: bool) -> TeacherPrompt:
    """How a teacher is asked: one request, its answer behind the run's own trigger."""
    template, stop = ("{question}", ()) if chat else ("{question}" + _CUE, (_NEXT,))
    return TeacherPrompt("feedback", template, prompt.answer_triggers, False, max_tokens, stop=stop)


def as_question(case: Case, template: str, hint: bool, form: StudentFormat, prompt: TeacherPrompt, rule: AnswerRule) -> Problem:
    """The problem whose question is the case.

    Args:
        case: What to ask about.
        template: Text around ``{question}`` and ``{mistakes}``; ``{hint}`` and ``{trigger}`` where it has them.
        hint: Whether the gold answer is told.
        form: The student's, by which a mistake is taken apart.
        prompt: Whose answer trigger the teacher is to use.
        rule: The task's.
    """
    values = {
        "question": case.problem.question,
        "mistakes": "\n\n".join(_shown(text, form, number, len(case.mistakes)) for number, text in enumerate(case.mistakes, 1)),
        "hint": f"{HINT} {case.problem.answer}.\n\n" if hint else "",
        "trigger": prompt.trigger(rule),
    }
    text = re.sub(r"\{(question|mistakes|hint|trigger)\}", lambda match: values[match[1]], template)
    return replace(case.problem, question=text)


def _shown(text: str, form: StudentFormat, number: int, n: int) -> str:
    rationale, answer = form.split(text)
    heading = STUDENTS_ANSWER if n == 1 else f"{STUDENTS_ANSWER} {number}"
    return f"{heading}: {rationale}\nThe student's conclusion: {answer or 'none'}"
