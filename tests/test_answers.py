"""Answer extraction and comparison: one rule per answer type."""

from __future__ import annotations

import pytest

from fcot.prompts.answers import AnswerRule

NUMBER = AnswerRule("number")
PAPER = AnswerRule("number", numbers="paper")
CHOICE = AnswerRule("choice", "ABCDE")
YES_NO = AnswerRule("yes_no")
TEXT = AnswerRule("text")


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ("18", ["18"]),
        ("18.0", ["18"]),
        ("018.", ["18"]),
        ("The answer is 2.50.", ["2.5"]),
        (".5", ["0.5"]),
        ("0", ["0"]),
        ("-0.0", ["0"]),
        # thousands separators, LaTeX's too; a list of numbers has none
        ("1,234,567", ["1234567"]),
        ("1{,}234", ["1234"]),
        (r"1\,234", ["1234"]),
        ("1, 2, 3", ["1", "2", "3"]),
        ("12,34", ["12", "34"]),
        # currency, percent, units
        ("$18.00", ["18"]),
        (r"\$1,234.50", ["1234.5"]),
        ("€ 7", ["7"]),
        ("18£", ["18"]),
        ("50%", ["50"]),
        (r"50\%", ["50"]),
        ("18 apples", ["18"]),
        ("12km", ["12"]),
        # signs
        ("-5", ["-5"]),
        ("\u22125", ["-5"]),
        ("- 5", ["-5"]),
        ("-$5", ["-5"]),
        ("$-5", ["-5"]),
        ("-1,234", ["-1234"]),
        ("x = -5", ["-5"]),
        ("-.5", ["-0.5"]),
        ("+5", ["5"]),
        ("10-5=5", ["10", "5", "5"]),
        ("10 - 5 = 5", ["10", "5", "5"]),
        ("10 apples - 5 apples", ["10", "5"]),
        ("(10)-5", ["10", "5"]),
        ("8-10", ["8", "10"]),
        # fractions and mixed numbers
        ("3/4", ["0.75"]),
        ("-3/4", ["-0.75"]),
        ("9/10 of them", ["0.9"]),
        ("1 1/2", ["1.5"]),
        ("-1 1/2 cups", ["-1.5"]),
        ("05/01/2021", ["5", "1", "2021"]),
        (r"\frac{3}{4}", ["0.75"]),
        (r"-\dfrac{1}{2}", ["-0.5"]),
        (r"\tfrac{-1}{2}", ["-0.5"]),
        (r"\frac12", ["0.5"]),
        (r"1\frac{1}{2}", ["1.5"]),
        (r"1 \frac{1}{2}", ["1.5"]),
        # LaTeX wrappers and Markdown emphasis
        (r"\boxed{42}", ["42"]),
        (r"\boxed{\text{5}}", ["5"]),
        (r"$\boxed{\frac{3}{4}}$", ["0.75"]),
        (r"\(18\text{ apples}\)", ["18"]),
        ("**18**", ["18"]),
        ("*18* and __19__ and `20`", ["18", "19", "20"]),
        ("2 * 3 * 4 = 24", ["2", "3", "4", "24"]),
        # none
        ("", []),
        ("none of them", []),
        ("1/0", []),
        ("9" * 5000, []),
        ("9" * 400 + ".5", []),
    ],
)
def test_numbers(text, answers):
    assert NUMBER.candidates(text) == answers


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ("9/10", ["9", "10"]),
        (".5", ["5"]),
        ("1 1/2", ["1", "1", "2"]),
        ("\u22125", ["5"]),
        ("10-5=5", ["10", "-5", "5"]),
        ("$1,234.50 and 1,2", ["1234.5", "12"]),
    ],
)
def test_the_paper_reading_of_numbers_is_its_own_pattern(text, answers):
    assert PAPER.candidates(text) == answers
    assert NUMBER.candidates(text) != answers


@pytest.mark.parametrize("rule", [NUMBER, PAPER])
@pytest.mark.parametrize("written", ["18", "18.0", "$18.00", "18.", "**18**", "18 dollars"])
@pytest.mark.parametrize("gold", ["18", "18.0", "$18.00"])
def test_18_is_one_answer_however_written(rule, written, gold):
    assert rule.same(rule.first(written), gold)


@pytest.mark.parametrize(
    ("prediction", "gold"), [("18.01", "18"), ("-18", "18"), ("180", "18"), ("0.3333", "1/3"), (None, "18"), ("18", "many")]
)
def test_other_numbers_are_other_answers(prediction, gold):
    assert not NUMBER.same(prediction, gold)


@pytest.mark.parametrize(("written", "gold"), [("1/3", "0.33333333"), ("0.1", "1/10"), ("1000000.5", "1,000,001")])
def test_numbers_are_the_same_up_to_a_millionth(written, gold):
    assert NUMBER.same(NUMBER.first(written), gold)


@pytest.mark.parametrize("digits", [100, 400, 5000])
def test_the_digits_of_a_student_in_a_loop_are_wrong_and_break_nothing(digits):
    assert not NUMBER.same(NUMBER.first("9" * digits), "18")


def test_gold_numbers_are_read_with_the_extended_patterns():
    assert PAPER.gold("9/10") == NUMBER.gold("9/10") == "0.9"
    assert PAPER.same("0.9", "9/10")
    assert not PAPER.same(PAPER.first("9/10"), "9/10")


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ("(A)", ["A"]),
        ("[b]", ["B"]),
        ("{C}", ["C"]),
        ("<D>", ["D"]),
        ("e)", ["E"]),
        ("( a )", ["A"]),
        ("B", ["B"]),
        ("b.", ["B"]),
        ("C: the desert", ["C"]),
        ("**D**", ["D"]),
        ("*(E)*", ["E"]),
        (r"\boxed{C}", ["C"]),
        (r"\text{(D)}", ["D"]),
        ("probably (A), (B), or (D).", ["A", "B", "D"]),
        ("A dog is what (C) says", ["C"]),  # brackets are surer than letters standing alone
        ("The BAD answer is E.", ["E"]),  # and these surer than letters in words
        ("BAD", ["B", "A", "D"]),
        ("(F)", []),
        ("I'd say none", []),
        ("a dog", []),
    ],
)
def test_choices(text, answers):
    assert CHOICE.candidates(text) == answers


def test_only_the_letters_of_the_task_are_choices():
    assert AnswerRule("choice", "ABC").candidates("(D) or (B)") == ["B"]


@pytest.mark.parametrize(("gold", "read"), [("B", "B"), ("(b)", "B"), ("b", "B"), ("Apple", None), ("F", None), ("", None)])
def test_a_gold_choice_is_a_letter_and_no_word_that_contains_one(gold, read):
    assert CHOICE.gold(gold) == read


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ("Yes.", ["yes"]),
        ("NO", ["no"]),
        ("**No**, not yes", ["no", "yes"]),
        (r"\boxed{yes}", ["yes"]),
        ("I know nobody of yesterday", []),
        ("", []),
    ],
)
def test_yes_no(text, answers):
    assert YES_NO.candidates(text) == answers


@pytest.mark.parametrize(
    "text", ["yajo", ' "yajo".', "The answer is “yajo”.", "**yajo**", "*yajo*", "`yajo`", r"\boxed{yajo}", "'yajo'", "y a j o"]
)
def test_free_strings_lose_quotes_emphasis_and_spaces(text):
    assert TEXT.candidates(text) == ["yajo"]
    assert TEXT.same(TEXT.first(text), "yajo")


def test_free_strings_are_compared_exactly():
    assert not TEXT.same(TEXT.first("Yajo"), "yajo")
    assert TEXT.first("The answer is yajo") == "Theanswerisyajo"
    assert TEXT.first(' "". ') is None


@pytest.mark.parametrize(
    ("rule", "text", "answer"),
    [
        (NUMBER, "1 + 2 = 3 --> 4 or 5", "4"),  # the first after the prefix
        (NUMBER, "1 + 2 = 3", "3"),  # the last of the text
        (NUMBER, "3 --> 4 --> 5", "4"),
        (NUMBER, "3 -->", None),  # a prefix with nothing after it is no answer
        (NUMBER, "nothing", None),
        (CHOICE, "not (A) --> (B), not (C)", "B"),
        (CHOICE, "(A), then (B)", "B"),
        (YES_NO, "no --> yes no", "yes"),
        (YES_NO, "yes, no", "no"),
        (TEXT, 'the "x" --> yajo', "yajo"),
        (TEXT, "yajo", "yajo"),
    ],
)
def test_after_takes_the_first_after_the_prefix_else_the_last(rule, text, answer):
    assert rule.after(text, "-->") == answer
