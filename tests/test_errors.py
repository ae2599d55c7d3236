"""Error marks: each applies to its kind of error and to no other."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcot.base.records import Prediction
from fcot.evaluation import errors
from fcot.evaluation.errors import MARKS, Marked, count, mark
from fcot.prompts.answers import AnswerRule

QUESTION = "Ada has 13 coins. Ben gives her 4 and Cleo takes 6. How many coins has Ada now?"
NUMBER = AnswerRule("number")


def marks(completion: str, prediction: str | None = "12", complete: bool = True, separator: str | None = "-->", rule=NUMBER, answer="11"):
    return mark(Prediction(7, QUESTION, answer, completion, prediction, False, complete, 9), rule, separator).marks


@pytest.mark.parametrize(("expected", "marked"), [
    (["no_answer"], lambda: marks("She counts 13, 4 and 6.", None)),
    (["truncated", "right_reasoning"], lambda: marks("13 + 4 = 17. 17 - 6 = 11 and then", complete=False)),
    (["repeats_question", "right_reasoning"], lambda: marks(f"{QUESTION} It is 11. --> 12")),
    (["loops"], lambda: marks("13 + 4 = 17 now. She has coins. She has coins. She has coins. Then 6 go. --> 12")),
    (["arithmetic_slip"], lambda: marks("13 + 4 = 18, 18 - 6 = 12. --> 12")),
    (["right_reasoning"], lambda: marks("13 + 4 = 17, 17 - 6 = 11. --> 12")),
    (["foreign_number"], lambda: marks("13 + 4 = 17, 17 - 6 = 11, and 50 more. --> 12")),
    (["foreign_number"], lambda: marks("13 + 4 = 17, 17 + 350 - 6 = 361. --> 361", "361")),
    (["foreign_number"], lambda: marks("13 + 350 = 363, 363 - 4 - 6 = 353. --> 353", "353")),
    (["loops"], lambda: marks("13 + 4 - 6 gives " + "= " * 20 + "--> 12")),
    (["loops"], lambda: marks("13 + 4 - 6 gives coins " + "and so it goes on " * 5 + "--> 12")),
    (["skipped_number"], lambda: marks("13 + 4 = 17. --> 17", "17")),
    (["other"], lambda: marks("17", "17", separator=None)),
    (["other"], lambda: marks("Thirteen and four, less six, is some. --> 12")),
    (["other"], lambda: marks("It is heads. --> no", "no", rule=AnswerRule("yes_no"), answer="yes")),
])  # fmt: skip
def test_each_mark_applies_to_its_error(expected, marked):
    assert marked() == expected


@pytest.mark.parametrize(("text", "numbers"), [
    ("1,2,3", {1, 2, 3}), ("1,234.5", {1234.5}), ("12,345,678", {12345678}), ("1,2345", {1, 2345}), ("10,000,5", {10000, 5}),
])  # fmt: skip
def test_a_comma_joins_groups_of_three_digits_only(text, numbers):
    assert errors._in_digits(text) == numbers


def test_an_arithmetic_slip_names_the_first_wrong_equation():
    marked = mark(Prediction(7, QUESTION, "11", "13 + 4 = 18, so 18 - 6 = 12. --> 12", "12", False, True, 9), NUMBER, "-->")
    assert marked == Marked(7, ["arithmetic_slip"], "13 + 4 = 18")


def test_counts_of_marks_are_in_the_order_of_marks():
    counts = count([Marked(0, ["loops", "truncated"], None), Marked(1, ["truncated"], None), Marked(2, ["other"], None)])
    assert counts == {"truncated": 2, "loops": 1, "other": 1}
    assert list(counts) == [name for name in MARKS if name in counts]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.one_of(st.integers(0, 60), st.sampled_from([0.5, 1.25, 12.01, 99.995])), max_size=6),
    st.lists(st.one_of(st.integers(0, 400), st.sampled_from([0.25, 33.33, 7.5])), max_size=8),
)
def test_a_number_is_foreign_if_no_operation_on_two_known_numbers_gives_it(question, answer):
    """Compares with the definition: every operation on every pair of known numbers."""
    known, expected = set(map(float, question)), []
    for number in map(float, answer):
        pairs = [(a, b) for a in known for b in known]
        results = [x for a, b in pairs for x in (a + b, a - b, b - a, a * b, *((a / b,) if b else ()))]
        if number not in known | errors._HARMLESS and not any(abs(number - x) < errors._NEAR for x in results):
            expected.append(number)
        known.add(number)
    assert errors._foreign(list(map(float, question)), " and ".join(f"{number:f}" for number in map(float, answer))) == expected


def test_marking_a_long_answer_takes_quadratic_time_at_most(monkeypatch):
    """For 2,000 unrelated numbers, the work grows with the number of pairs, not of triples."""
    calls = 0
    partners = errors._partners

    def counted(a, number):
        nonlocal calls
        calls += 1
        return partners(a, number)

    monkeypatch.setattr(errors, "_partners", counted)
    errors._foreign([3.0], " and ".join(str(1000 + 7919 * n % 100003) for n in range(2000)))
    assert calls <= errors._MOST_WORDS**2
