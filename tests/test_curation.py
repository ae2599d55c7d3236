"""Curation: which completions become reasoning samples, and why the others do not."""

from __future__ import annotations

import pytest

from fcot.curation.filters import Rules, count_reasons, curate, expected_share
from fcot.prompts.answers import AnswerRule
from fcot.records import Completion, CuratedCompletion, Problem

PROBLEMS = {0: Problem(0, "How many?", "$18.00"), 1: Problem(1, "How much?", "5")}
RULE = AnswerRule("number")


def verdicts(filters, *completions: Completion, max_words: int = 5, **rules) -> list[CuratedCompletion]:
    def parse(completion: Completion, rule: AnswerRule) -> str | None:
        return rule.first(completion.answer_text)

    return list(curate(completions, PROBLEMS, RULE, parse, Rules(filters, max_words=max_words, **rules)))


def right(slot: int, rationale: str = "r.", finish_reason: str | None = "stop", problem: int = 0) -> Completion:
    return Completion(problem, slot, rationale, {0: " 18.", 1: " 5."}[problem], finish_reason)


def test_a_kept_completion_trains_on_the_gold_answer_and_the_stripped_rationale():
    assert verdicts(["answer"], Completion(0, 3, " \n r. ", " 18 apples.")) == [
        CuratedCompletion(0, 3, prediction="18", correct=True, kept=True, reason=None, rationale="r.", answer="$18.00")
    ]


@pytest.mark.parametrize(
    ("filters", "completion", "reason"),
    [
        (["answer"], Completion(0, 0, "r.", " 18.01"), "wrong_answer"),
        (["answer"], Completion(0, 0, "r.", " unclear"), "no_answer"),
        (["answer"], Completion(0, 0, "r.", ""), "no_answer"),
        (["answer"], right(0), None),
        (["truncated"], right(0, finish_reason="length"), "truncated"),
        (["truncated"], right(0, finish_reason=None), None),  # the real files do not say
        (["truncated"], right(0), None),
        (["length"], right(0, "one two three four five six"), "over_length"),
        (["length"], right(0, "one two three\nfour   five"), None),
        (["duplicate"], right(0), None),
        ([], Completion(0, 0, "r.", " 99"), None),
        ([], right(0, " \n "), "empty"),
        (["answer"], Completion(0, 0, "", " 99"), "empty"),
    ],
)
def test_each_filter_has_its_reason_code(filters, completion, reason):
    (verdict,) = verdicts(filters, completion)
    assert (verdict.reason, verdict.kept) == (reason, reason is None)


def test_correct_is_told_apart_from_kept():
    (refused,) = verdicts(["truncated"], right(0, finish_reason="length"))
    (wrong,) = verdicts([], Completion(0, 0, "r.", " 99"))
    assert (refused.correct, refused.kept) == (True, False)
    assert (wrong.correct, wrong.kept) == (False, True)


@pytest.mark.parametrize(
    "filters", [["answer", "truncated", "length"], ["length", "truncated", "answer"], ["truncated", "answer", "length"]]
)
def test_the_first_filter_that_refuses_gives_the_reason(filters):
    (verdict,) = verdicts(filters, Completion(0, 0, "one two three four five six", " 99", "length"))
    reasons = {"answer": "wrong_answer", "truncated": "truncated", "length": "over_length"}
    assert verdict.reason == reasons[filters[0]]


def test_duplicates_are_told_by_words_and_only_of_kept_completions_of_the_same_problem():
    curated = verdicts(
        ["answer", "duplicate"],
        Completion(0, 0, "a b c", " 99"),  # refused: whoever repeats it is the first
        right(1, " a  b\nc "),
        right(2, "a b c"),
        right(3, "A b c"),
        right(0, "a b c", problem=1),
        right(1, "a\tb c\n", problem=1),
    )
    assert [verdict.reason for verdict in curated] == ["wrong_answer", None, "duplicate_rationale", None, None, "duplicate_rationale"]


def test_reasons_are_counted_the_most_frequent_first():
    curated = verdicts(
        ["answer", "truncated"], right(0), right(1, ""), Completion(0, 2, "r", "1"), Completion(0, 3, "r", "2"), right(4, "r", "length")
    )
    assert list(count_reasons(curated).items()) == [("wrong_answer", 2), ("empty", 1), ("truncated", 1)]
    assert count_reasons(verdicts(["answer"], right(0))) == {}


@pytest.mark.parametrize(
    ("random_guess", "teacher_accuracy", "share"),
    [(0.0, None, 0.05), (0.0, 78.0, 0.39), (50.0, 91.4, 0.5), (50.0, None, 0.5), (20.0, 64.62, 0.3231), (0.0, 4.0, 0.05)],
)
def test_the_share_to_expect(random_guess, teacher_accuracy, share):
    assert expected_share(random_guess, teacher_accuracy) == pytest.approx(share)
