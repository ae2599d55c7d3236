"""The records every stage speaks: frozen dataclasses that go to JSON Lines and back.

A stage is records in, records out. Field names are the file contract of a run directory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

Record = TypeVar("Record")
REFUSED = "refused:"  # begins the finish reason of a completion the teacher never gave


@dataclass(frozen=True)
class Problem:
    """One row of a task.

    Attributes:
        sample_index: Position in the task's upstream row order; unique.
        question: The question as upstream writes it, answer choices included.
        answer: The gold answer; blank where there is none.
        rationale: A human-written rationale, where the task has one.
        template_id: Problems that share it are the same text with other numbers or names.
    """

    sample_index: int
    question: str
    answer: str
    rationale: str | None = None
    template_id: str | None = None

    @property
    def labelled(self) -> bool:
        """Whether it has a gold answer."""
        return bool(self.answer.strip())


@dataclass(frozen=True)
class Completion:
    """One raw teacher output for one problem.

    Attributes:
        sample_index: The problem it answers.
        completion_index: 0..D-1, the draw among the problem's D completions.
        rationale: The reasoning text (step 1 of Zero-shot-CoT).
        answer_text: The text that holds the answer (step 2).
        finish_reason: ``stop``, ``length``..., None where the source does not tell; ``refused:REASON`` for a completion
            the teacher never gave, which is empty.
        thought: What a reasoning model thought before it wrote the rationale; empty where it did not think.
    """

    sample_index: int
    completion_index: int
    rationale: str
    answer_text: str
    finish_reason: str | None = None
    thought: str = ""


@dataclass(frozen=True)
class CuratedCompletion:
    """Curation's verdict on one completion (a row of ``curated.jsonl``).

    Attributes:
        prediction: The teacher's parsed answer, None where none was found.
        correct: Whether the prediction equals the gold answer.
        kept: Whether it became a reasoning sample.
        reason: Why it was refused (a reason code), None where it was kept.
        rationale: The text the student trains on, stripped.
        answer: The gold answer the student trains on.
    """

    sample_index: int
    completion_index: int
    prediction: str | None
    correct: bool
    kept: bool
    reason: str | None
    rationale: str
    answer: str


@dataclass(frozen=True)
class TrainingSample:
    """What a student learns from one problem.

    Attributes:
        sample_index: The problem.
        question: Its question.
        answer: Its gold answer.
        rationale: The teacher's reasoning; None where only the answer is learnt.
        weight: The sample's weight in the loss.
        completion_index: The completion that it comes from, counted from 0 within its problem; None without a teacher.
    """

    sample_index: int
    question: str
    answer: str
    rationale: str | None = None
    weight: float = 1.0
    completion_index: int | None = None


@dataclass(frozen=True)
class Prediction:
    """The student's answer to one test problem (a row of ``predictions.jsonl``).

    Attributes:
        completion: The decoded text, special tokens removed.
        prediction: Its parsed answer, None where none was found.
        correct: Whether the prediction equals the gold answer.
        complete: Whether decoding ended at the end-of-sequence token rather than at the length limit.
        n_tokens: Generated tokens, the end-of-sequence token included.
    """

    sample_index: int
    question: str
    answer: str
    completion: str
    prediction: str | None
    correct: bool
    complete: bool
    n_tokens: int


@dataclass(frozen=True)
class ExamResult:
    """A student's answers to one train problem (a row of a round's ``exam.jsonl``).

    Attributes:
        n_answers: How many were drawn.
        n_correct: How many were right; the pass rate is their share.
        mistakes: The distinct wrong completions, those without an answer included, in the order in which they were drawn.
        right: The distinct right ones.
        unfinished: Of the mistakes those that the length limit ended.
    """

    sample_index: int
    question: str
    answer: str
    n_answers: int
    n_correct: int
    mistakes: Sequence[str]
    right: Sequence[str]
    unfinished: Sequence[str] = ()


@dataclass(frozen=True)
class Feedback:
    """One completion that a round learns from (a row of its ``feedback.jsonl``).

    Attributes:
        completion_index: Counted from 0 within problem and round.
        mistakes: Completions of the student that the teacher was shown; none where it was asked as in round 1, or not at all.
        rationale: As :class:`Completion` has it.
        answer_text: Likewise.
        finish_reason: Likewise.
        thought: Likewise.
    """

    sample_index: int
    completion_index: int
    mistakes: Sequence[str]
    rationale: str
    answer_text: str
    finish_reason: str | None
    thought: str = ""

    @property
    def completion(self) -> Completion:
        """What curation judges."""
        return Completion(self.sample_index, self.completion_index, self.rationale, self.answer_text, self.finish_reason, self.thought)


def to_row(record: Any) -> dict[str, Any]:
    """The record as a JSON object, fields in declaration order (records are flat: no recursion)."""
    return {field.name: getattr(record, field.name) for field in fields(record)}


def from_row(kind: type[Record], row: Mapping[str, Any]) -> Record:
    """The record back from its JSON object; unknown keys are ignored so that newer files stay readable."""
    return kind(**{field.name: row[field.name] for field in fields(kind) if field.name in row})  # type: ignore[arg-type]
