"""The records that stages read and write: frozen dataclasses with a row in a JSON Lines file.

Field names are keys of the files in a run folder. Other programs read them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

Record = TypeVar("Record")
_LEFT_OUT = ("id", "first_wrong_step", "score")  # fields that a row lacks where they are None
REFUSED = "refused:"  # prefix of the finish reason of a completion that the teacher never gave
NO_REPLY = "no_reply"  # why a reply is unusable: the server returned the model's thought only


@dataclass(frozen=True)
class Problem:
    """One row of a task.

    Attributes:
        sample_index: Position in the order of the task's published rows; unique.
        question: The question as the data set words it, with its answer choices.
        answer: The gold answer; blank if there is none.
        rationale: A human-written rationale; None if the task has none.
        template_id: Problems with the same id differ only in numbers or names; None if unknown.
        id: The row's own id in the user's data (``dataset.index_column``); None if it has none.
        group: Problems of one group stay on one side of a split (``dataset.group_column``); None if the data has no groups.
        part: ``train``, ``validation`` or ``test``, where the data has its own split (``dataset.split_column``); None elsewhere.
    """

    sample_index: int
    question: str
    answer: str
    rationale: str | None = None
    template_id: str | None = None
    id: str | None = None
    group: str | None = None
    part: str | None = None

    @property
    def labelled(self) -> bool:
        """Whether the problem has a gold answer."""
        return bool(self.answer.strip())


@dataclass(frozen=True)
class Completion:
    """One raw teacher output for one problem.

    Attributes:
        sample_index: The problem.
        completion_index: Number of the completion among the problem's D completions, 0..D-1.
        rationale: The reasoning text (step 1 of Zero-shot-CoT).
        answer_text: The text that contains the answer (step 2).
        finish_reason: ``stop``, ``length``...; None if the source gives none. ``refused:REASON`` marks a completion that the teacher
            never gave; its texts are empty.
        thought: The reasoning text that a reasoning model returned apart from its reply; empty if there is none.
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
        prediction: The teacher's parsed answer; None if the completion has no readable answer.
        correct: Whether the prediction equals the gold answer.
        kept: Whether the completion became a reasoning sample.
        reason: Reason code of a rejected completion; None if it was kept.
        rationale: The rationale that the student trains on, stripped.
        answer: The label that the student trains on: the gold answer or the majority's.
        question: The problem's question; empty in files of earlier versions.
        id: The problem's own id in the user's data; None if it has none.
        first_wrong_step: The judge's verdict: the number of the first wrong step, 0 if all steps follow; None without a readable verdict.
        score: The value by which it was chosen or left out among its problem's completions, lower is better; None without one.
    """

    sample_index: int
    completion_index: int
    prediction: str | None
    correct: bool
    kept: bool
    reason: str | None
    rationale: str
    answer: str
    question: str = ""
    id: str | None = None
    first_wrong_step: int | None = None
    score: float | None = None


@dataclass(frozen=True)
class TrainingSample:
    """One sample of a student's training data.

    Attributes:
        sample_index: The problem.
        question: The problem's question.
        answer: The label.
        rationale: The teacher's rationale; None to train on the answer only.
        weight: The sample's weight in the loss.
        completion_index: The completion that the rationale comes from, 0..D-1; None without a teacher.
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
        completion: The decoded text without special tokens.
        prediction: The parsed answer; None if the completion has no readable answer.
        correct: Whether the prediction equals the gold answer.
        complete: Whether decoding ended at the end-of-sequence token instead of the length limit.
        n_tokens: Number of generated tokens, including the end-of-sequence token.
        id: The problem's own id in the user's data; None if it has none.
    """

    sample_index: int
    question: str
    answer: str
    completion: str
    prediction: str | None
    correct: bool
    complete: bool
    n_tokens: int
    id: str | None = None


@dataclass(frozen=True)
class ExamResult:
    """A student's answers to one train problem (a row of a round's ``exam.jsonl``).

    Attributes:
        n_answers: Number of sampled answers.
        n_correct: Number of right answers; the pass rate is ``n_correct / n_answers``.
        mistakes: The distinct wrong completions, in the order in which they were sampled. A completion without an answer is wrong.
        right: The distinct right completions.
        unfinished: The mistakes that the length limit cut.
        id: The problem's own id in the user's data; None if it has none.
    """

    sample_index: int
    question: str
    answer: str
    n_answers: int
    n_correct: int
    mistakes: Sequence[str]
    right: Sequence[str]
    unfinished: Sequence[str] = ()
    id: str | None = None


@dataclass(frozen=True)
class Feedback:
    """One completion that a round trains on, after curation (a row of the round's ``feedback.jsonl``).

    ``rationale``, ``answer_text``, ``finish_reason`` and ``thought`` have the same meaning as in :class:`Completion`.

    Attributes:
        completion_index: Number of the completion within its problem and round, from 0.
        mistakes: The student's wrong completions that the prompt showed to the teacher. Empty if the prompt was that of round 1, or if
            the student wrote the completion.
        own: Whether the student wrote the completion itself.
        id: The problem's own id in the user's data; None if it has none.
    """

    sample_index: int
    completion_index: int
    mistakes: Sequence[str]
    rationale: str
    answer_text: str
    finish_reason: str | None
    thought: str = ""
    own: bool = False
    id: str | None = None

    @property
    def completion(self) -> Completion:
        """The completion as curation reads it."""
        return Completion(self.sample_index, self.completion_index, self.rationale, self.answer_text, self.finish_reason, self.thought)


def to_row(record: Any) -> dict[str, Any]:
    """The record as a JSON object, with its fields in the order of their declaration. Nested records are not converted.

    ``id``, ``first_wrong_step`` and ``score`` are left out where they are None: most tasks have no ids, and most runs no judge or scores.
    """
    row = {field.name: getattr(record, field.name) for field in fields(record)}
    return {name: value for name, value in row.items() if value is not None or name not in _LEFT_OUT}


def from_row(kind: type[Record], row: Mapping[str, Any]) -> Record:
    """The record of a JSON object. Unknown keys are ignored, so that files of newer versions stay readable."""
    return kind(**{field.name: row[field.name] for field in fields(kind) if field.name in row})  # type: ignore[arg-type]
