"""The exam: scores of the answers that a student samples for train problems.

Everything that a student samples in a round has noise of its own. Its seed begins with the run's seed, the problem and the number of the
answer, and ends with the round alone for the exam, the round and :data:`SAMPLER_NOISE`, or the round and :data:`RETRY_NOISE`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from fcot.base.records import ExamResult, Prediction

SAMPLER_NOISE, RETRY_NOISE = 1, 2


def examine(answers: Sequence[Prediction]) -> ExamResult:
    """The result of one problem: its distinct wrong and right completions, and how many answers were right.

    A completion without an answer is wrong (paper B's ``infer_student_wrong.py``).
    """
    first = answers[0]
    wrong = list(dict.fromkeys(answer.completion.strip() for answer in answers if not answer.correct))
    right = list(dict.fromkeys(answer.completion.strip() for answer in answers if answer.correct))
    ended = {answer.completion.strip() for answer in answers if answer.complete}
    return ExamResult(
        first.sample_index, first.question, first.answer, len(answers), sum(answer.correct for answer in answers), wrong, right,
        [text for text in wrong if text not in ended], first.id,
    )  # fmt: skip


def solved(exams: Sequence[Iterable[ExamResult]], n: int | None) -> set[int]:
    """Sample indices of the problems whose answers were all right in the last ``n`` exams that they were part of; none if ``n`` is None.

    A problem that is left out once therefore stays left out.
    """
    in_a_row: dict[int, int] = {}
    for results in exams:
        for result in results:
            in_a_row[result.sample_index] = in_a_row.get(result.sample_index, 0) + 1 if result.n_correct == result.n_answers else 0
    return set() if n is None else {index for index, times in in_a_row.items() if times >= n}


def summarize(results: Iterable[ExamResult]) -> dict[str, Any]:
    """Summarize an exam. ``pass_rate`` is the share of right answers to a problem, averaged over problems (0..1)."""
    examined = list(results)
    return {
        "examined": len(examined),
        "pass_rate": sum(result.n_correct / result.n_answers for result in examined) / max(1, len(examined)),
        "failed_problems": sum(bool(result.mistakes) for result in examined),
        "mistakes": sum(len(result.mistakes) for result in examined),
    }
