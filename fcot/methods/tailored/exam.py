"""The exam: what a student's drawn answers to train problems say about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from fcot.base.records import ExamResult, Prediction


def examine(answers: Sequence[Prediction]) -> ExamResult:
    """The result of one problem: its distinct wrong and right completions, and how many answers were right.

    A completion without an answer is wrong (paper B's ``infer_student_wrong.py``).
    """
    first = answers[0]
    wrong, right = (dict.fromkeys(one.completion.strip() for one in answers if one.correct is verdict) for verdict in (False, True))
    ended = {one.completion.strip() for one in answers if one.complete}
    return ExamResult(
        first.sample_index, first.question, first.answer, len(answers), sum(one.correct for one in answers), list(wrong), list(right),
        [text for text in wrong if text not in ended],
    )  # fmt: skip


def summarise(results: Iterable[ExamResult]) -> dict[str, Any]:
    """Numbers of an exam; ``pass_rate``: the mean over problems of the share of right answers (0..1)."""
    known = list(results)
    return {
        "examined": len(known),
        "pass_rate": sum(one.n_correct / one.n_answers for one in known) / max(1, len(known)),
        "failed_problems": sum(bool(one.mistakes) for one in known),
        "mistakes": sum(len(one.mistakes) for one in known),
    }
