"""Curation: pure filters from completions to reasoning samples, each refusal with a reason code.

The ``answer`` filter alone is paper A's rule: keep a completion iff its parsed answer equals the gold one; the student
then trains on the gold answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from fcot.prompts.answers import AnswerRule
from fcot.records import REFUSED, Completion, CuratedCompletion, Problem

Parse = Callable[[Completion, AnswerRule], str | None]


@dataclass
class _Judged:
    """What a filter may look at: the completion, its verdict so far, and the rationales kept before it."""

    completion: Completion
    rationale: str
    prediction: str | None
    correct: bool
    max_words: int
    kept_before: set[str]


def _answer(judged: _Judged) -> str | None:
    if judged.prediction is None:
        return "no_answer"
    return None if judged.correct else "wrong_answer"


def _truncated(judged: _Judged) -> str | None:
    return "truncated" if judged.completion.finish_reason == "length" else None


def _duplicate(judged: _Judged) -> str | None:
    return "duplicate_rationale" if " ".join(judged.rationale.split()) in judged.kept_before else None


def _length(judged: _Judged) -> str | None:
    return "over_length" if len(judged.rationale.split()) > judged.max_words else None


FILTERS: dict[str, Callable[[_Judged], str | None]] = {
    "answer": _answer,
    "truncated": _truncated,
    "duplicate": _duplicate,
    "length": _length,
}


def curate(
    completions: Iterable[Completion],
    problems: Mapping[int, Problem],
    rule: AnswerRule,
    parse: Parse,
    filters: Sequence[str],
    max_words: int,
) -> Iterator[CuratedCompletion]:
    """The verdict on each completion as it comes; the first filter that refuses gives the reason.

    Args:
        completions: Raw teacher outputs; those of one problem follow each other.
        problems: By sample index, for the gold answers.
        rule: How answers are compared.
        parse: The prompt's parser.
        filters: Names in :data:`FILTERS`, applied in this order. A completion the teacher never gave is refused
            whatever they are, for the reason it was not given (``empty``, ``content_filter``, ``too_long``...).
        max_words: The ``length`` filter's limit on a rationale, in words.
    """
    current: int | None = None
    kept: set[str] = set()
    for completion in completions:
        if completion.sample_index != current:
            current, kept = completion.sample_index, set()
        gold = problems[completion.sample_index].answer
        rationale = completion.rationale.strip()
        prediction = parse(completion, rule)
        correct = rule.same(prediction, gold)
        judged = _Judged(completion, rationale, prediction, correct, max_words, kept)
        if rationale:
            reason = next((reason for name in filters if (reason := FILTERS[name](judged))), None)
        else:
            _, never_given, why = (completion.finish_reason or "").rpartition(REFUSED)
            reason = why if never_given else "empty"
        if reason is None:
            kept.add(" ".join(rationale.split()))
        yield CuratedCompletion(
            completion.sample_index, completion.completion_index, prediction, correct, reason is None, reason, rationale, gold
        )


def count_reasons(curated: Iterable[CuratedCompletion]) -> dict[str, int]:
    """Refused completions by reason code, the most frequent first."""
    return dict(Counter(row.reason for row in curated if row.reason).most_common())


def expected_share(random_guess: float, teacher_accuracy: float | None) -> float:
    """The kept share (0 to 1) below which something is probably wrong.

    Half of what text-davinci-002 reached on the task, or what guessing reaches, whichever is more; 5 % where nothing
    is known.
    """
    return max(0.05, random_guess / 100, 0.5 * (teacher_accuracy or 0.0) / 100)
