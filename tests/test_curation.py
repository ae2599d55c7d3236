"""Curation: which completions become reasoning samples, and why the others are rejected."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from fcot.base.errors import FcotError
from fcot.base.records import Completion, CuratedCompletion, Problem
from fcot.curation.filters import Rules, curate, expected_kept_rate, most_repeated, undersample
from fcot.curation.golden import read_golden
from fcot.prompts.answers import AnswerRule
from fcot.prompts.numbers import Reading

PROBLEMS = {0: Problem(0, "How many?", "$18.00"), 1: Problem(1, "How much?", "5")}
RULE = AnswerRule("number")


def verdicts(filters, *completions: Completion, max_words: int = 5, golden=None, labels="gold") -> list[CuratedCompletion]:
    def read(completion: Completion, rule: AnswerRule) -> Reading:
        return rule.read(completion.answer_text)

    settings = {"max_words": max_words, "max_repeats": 2, "golden": golden or {}}
    return list(curate(completions, PROBLEMS, RULE, read, Rules(filters, labels, settings=settings)))


def correct(slot: int, rationale: str = "r.", finish_reason: str | None = "stop", problem: int = 0) -> Completion:
    return Completion(problem, slot, rationale, {0: " 18.", 1: " 5."}[problem], finish_reason)


def test_a_kept_completion_trains_on_the_gold_answer_and_the_stripped_rationale():
    assert verdicts(["answer"], Completion(0, 3, " \n r. ", " 18 apples.")) == [
        CuratedCompletion(
            0, 3, prediction="18", correct=True, kept=True, reason=None, rationale="r.", answer="$18.00", question=PROBLEMS[0].question
        )
    ]


@pytest.mark.parametrize(
    ("filters", "completion", "reason"),
    [
        (["answer"], Completion(0, 0, "r.", " 18.01"), "wrong_answer"),
        (["answer"], Completion(0, 0, "r.", " unclear"), "no_answer"),
        (["answer"], Completion(0, 0, "r.", ""), "no_answer"),
        (["answer"], correct(0), None),
        (["truncated"], correct(0, finish_reason="length"), "truncated"),
        (["truncated"], correct(0, finish_reason=None), None),  # the authors' files do not record it
        (["truncated"], correct(0), None),
        (["length"], correct(0, "one two three four five six"), "over_length"),
        (["length"], correct(0, "one two three\nfour   five"), None),
        (["duplicate"], correct(0), None),
        ([], Completion(0, 0, "r.", " 99"), None),
        ([], correct(0, " \n "), "empty"),
        (["answer"], Completion(0, 0, "", " 99"), "empty"),
    ],
)
def test_each_filter_has_its_reason_code(filters, completion, reason):
    (verdict,) = verdicts(filters, completion)
    assert (verdict.reason, verdict.kept) == (reason, reason is None)


def test_correct_and_kept_are_independent():
    (rejected,) = verdicts(["truncated"], correct(0, finish_reason="length"))
    (incorrect,) = verdicts([], Completion(0, 0, "r.", " 99"))
    assert (rejected.correct, rejected.kept) == (True, False)
    assert (incorrect.correct, incorrect.kept) == (False, True)


@pytest.mark.parametrize(
    "filters", [["answer", "truncated", "length"], ["length", "truncated", "answer"], ["truncated", "answer", "length"]]
)
def test_the_first_filter_that_rejects_gives_the_reason(filters):
    (verdict,) = verdicts(filters, Completion(0, 0, "one two three four five six", " 99", "length"))
    reasons = {"answer": "wrong_answer", "truncated": "truncated", "length": "over_length"}
    assert verdict.reason == reasons[filters[0]]


def test_duplicates_have_the_words_of_a_kept_rationale_of_the_same_problem():
    curated = verdicts(
        ["answer", "duplicate"],
        Completion(0, 0, "a b c", " 99"),  # rejected: the next completion with these words is no duplicate
        correct(1, " a  b\nc "),
        correct(2, "a b c"),
        correct(3, "A b c"),
        correct(0, "a b c", problem=1),
        correct(1, "a\tb c\n", problem=1),
    )
    assert [verdict.reason for verdict in curated] == ["wrong_answer", None, "duplicate_rationale", None, None, "duplicate_rationale"]


@pytest.mark.parametrize(
    ("random_guess", "teacher_accuracy", "share"),
    [(0.0, None, 0.05), (0.0, 78.0, 0.39), (50.0, 91.4, 0.5), (50.0, None, 0.5), (20.0, 64.62, 0.3231), (0.0, 4.0, 0.05)],
)
def test_expected_kept_rate(random_guess, teacher_accuracy, share):
    assert expected_kept_rate(random_guess, teacher_accuracy) == pytest.approx(share)


@pytest.mark.parametrize(("filters", "rationale", "reason"), [
    (["arithmetic"], "9 + 9 = 18", None), (["arithmetic"], "9 + 9 = 19", "wrong_equation"),
    (["repetition"], "He has 3. He has 3. So 18.", None), (["repetition"], "He has 3. He has 3.\nhe  has 3. So 18.", "repetitive"),
])  # fmt: skip
def test_filters_of_the_rationale_itself(filters, rationale, reason):
    (verdict,) = verdicts(filters, correct(0, rationale), max_words=99)
    assert verdict.reason == reason


def test_repetition_counts_sentences_not_words():
    assert most_repeated("No. No. No. A b. A  B.") == 2
    assert most_repeated("") == 0


def test_golden_ids_name_problems_or_completions():
    completions = [correct(slot, f"r {slot}") for slot in range(3)] + [correct(0, problem=1)]
    reasons = [verdict.reason for verdict in verdicts(["golden"], *completions, golden={0: frozenset({1})})]
    assert reasons == ["not_golden", None, "not_golden", "not_golden"]
    assert [verdict.kept for verdict in verdicts(["golden"], *completions, golden={0: None})] == [True, True, True, False]


@pytest.mark.parametrize(("text", "ids"), [
    ("[3, 5]", {3: None, 5: None}), ('{"3": [0, 2], "5": []}', {3: frozenset({0, 2}), 5: frozenset()}),
])  # fmt: skip
def test_a_golden_file_names_problems_or_completions(text, ids, tmp_path):
    (tmp_path / "golden.json").write_text(text)
    assert read_golden(tmp_path / "golden.json") == ids


@pytest.mark.parametrize("text", ["{", '"3"', '["a"]', "[true]", '{"3": 1}', '{"a": [1]}', "[1.5]"])
def test_an_invalid_golden_file_gets_one_message(text, tmp_path):
    (tmp_path / "golden.json").write_text(text)
    with pytest.raises(FcotError, match=r"curation.golden=.*golden.json: expected \["):
        read_golden(tmp_path / "golden.json")


ROWS = [
    {"sample_index": 0, "completion_index": 2, "question": "How many?", "rationale": "So."},
    {"sample_index": 1, "completion_index": 0, "question": "How much?"},
    {"sample_index": 0, "completion_index": 1, "question": "How many?"},
]  # fmt: skip


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_golden_rows_are_found_by_their_question_after_the_data_was_reordered(tmp_path):
    path = write_rows(tmp_path / "golden.jsonl", ROWS)
    assert read_golden(path, PROBLEMS) == {0: {1, 2}, 1: {0}}
    moved = {3: replace(PROBLEMS[1], sample_index=3), 1: replace(PROBLEMS[0], sample_index=1), 0: Problem(0, "New?", "1")}
    assert read_golden(path, moved) == {1: {1, 2}, 3: {0}}
    assert read_golden(write_rows(path, ROWS[:1]), PROBLEMS) == {0: {2}}


def test_all_golden_rows_whose_question_is_gone_are_in_one_message(tmp_path):
    path = write_rows(tmp_path / "golden.jsonl", ROWS)
    with pytest.raises(FcotError) as raised:
        read_golden(path, {0: Problem(0, "How many?", "3"), 1: Problem(1, "How far?", "3")})
    assert str(raised.value).startswith(f"{path}, line 2: no problem has its question any more: 'How much?'\nRemove")
    with pytest.raises(FcotError, match="line 2: 'completion_index'"):
        read_golden(write_rows(path, [ROWS[0], {"sample_index": 1}]), PROBLEMS)


def test_concise_keeps_the_shortest_rationale_that_the_other_filters_kept():
    curated = verdicts(
        ["answer", "concise"],
        correct(0, "a b c"),
        correct(1, "a b"),
        Completion(0, 2, "a", " 99"),
        correct(3, "c d"),
        correct(0, "x y z", problem=1),
    )
    assert [verdict.reason for verdict in curated] == ["not_shortest", None, "wrong_answer", "not_shortest", None]


def drawn_answers(*answers: str) -> list[Completion]:
    return [Completion(0, slot, f"r {slot}", f" {answer}") for slot, answer in enumerate(answers)]


def test_vote_labels_only_problems_without_a_gold_answer(monkeypatch):
    monkeypatch.setitem(PROBLEMS, 0, Problem(0, "How many?", ""))
    curated = verdicts(["answer"], *drawn_answers("7", "8", "8", "?"), labels="vote")
    assert [(verdict.reason, verdict.answer) for verdict in curated] == [("outvoted", "8"), (None, "8"), (None, "8"), ("no_answer", "8")]
    assert not any(verdict.correct for verdict in curated)
    assert {verdict.reason for verdict in verdicts([], *drawn_answers("7", "8", "9"), labels="vote")} == {"no_majority"}


def test_vote_all_ignores_the_gold_answer():
    answers = drawn_answers("7", "8", "8", "18")
    assert [verdict.kept for verdict in verdicts(["answer"], *answers, labels="vote")] == [False, False, False, True]
    curated = verdicts(["answer"], *answers, labels="vote_all")
    assert [verdict.kept for verdict in curated] == [False, True, True, False]
    assert [verdict.correct for verdict in curated] == [False, False, False, True]


def test_undersampling_is_deterministic_and_smaller_samples_are_subsets():
    ids = [(index, slot) for index in range(50) for slot in range(2)]
    ten, thirty = undersample(ids, 10), undersample(reversed(ids), 30)
    assert (len(ten), len(thirty)) == (10, 30)
    assert ten < thirty < set(ids)
    assert undersample(ids, 1000) == set(ids)


def test_a_rationale_that_the_vocabulary_cannot_write_is_rejected():
    completions = [Completion(0, 0, "It ends </s> here.", "18"), Completion(0, 1, "It ends here.", "18")]
    rules = Rules(["answer"], writable=lambda text: "</s>" not in text)
    rows = curate(completions, PROBLEMS, RULE, lambda completion, rule: rule.read(completion.answer_text), rules)
    assert [row.reason for row in rows] == ["special_token", None]
