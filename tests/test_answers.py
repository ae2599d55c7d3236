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
        ("12,34", []),
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
        ("(10)-5", ["10"]),
        ("8-10", ["8", "10"]),
        # fractions and mixed numbers
        ("3/4", ["0.75"]),
        ("-3/4", ["-0.75"]),
        ("9/10 of them", ["0.9"]),
        ("1 1/2", ["1.5"]),
        ("-1 1/2 cups", ["-1.5"]),
        ("5\xa0\u200b000/3", []),
        ("5\x0001", ["5", "1"]),
        ("5㏠", []),
        ("5\\boxed{}¼", ["5", "0.25"]),
        ("5×10⁺1", ["5", "1"]),
        ("05/01/2021", []),
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
        # no number
        ("", []),
        ("none of them", []),
        ("1/0", []),
        ("9" * 5000, []),
        ("9" * 400 + ".5", []),
    ],
)
def test_the_extended_reading_finds_numbers(text, answers):
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
def test_the_paper_reading_uses_the_papers_pattern(text, answers):
    assert PAPER.candidates(text) == answers
    assert NUMBER.candidates(text) != answers


@pytest.mark.parametrize("rule", [NUMBER, PAPER])
@pytest.mark.parametrize("spelling", ["18", "18.0", "$18.00", "18.", "**18**", "18 dollars"])
@pytest.mark.parametrize("gold", ["18", "18.0", "$18.00"])
def test_spellings_of_18_are_the_same_answer(rule, spelling, gold):
    assert rule.same(rule.first(spelling), gold)


@pytest.mark.parametrize(
    ("prediction", "gold"), [("18.01", "18"), ("-18", "18"), ("180", "18"), ("0.3333", "1/3"), (None, "18"), ("18", "many")]
)
def test_different_numbers_are_different_answers(prediction, gold):
    assert not NUMBER.same(prediction, gold)


@pytest.mark.parametrize(("spelling", "gold"), [("1/3", "0.33333333"), ("0.1", "1/10"), ("1000000.5", "1,000,001")])
def test_numbers_are_compared_within_one_millionth(spelling, gold):
    assert NUMBER.same(NUMBER.first(spelling), gold)


@pytest.mark.parametrize("digits", [100, 400, 5000])
def test_a_number_of_thousands_of_digits_is_a_wrong_answer_and_no_error(digits):
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
        ("A dog is what (C) says", ["C"]),  # brackets take precedence over single letters
        ("The BAD answer is E.", ["E"]),  # and single letters over letters within words
        ("BAD", []),
        ("(F)", []),
        ("D. Option (B) is wrong", ["D"]),
        ("not (A) but (C)", ["C"]),
        ("I'd say none", []),
        ("a dog", []),
    ],
)
def test_choice_letters_are_found(text, answers):
    assert CHOICE.candidates(text) == answers


def test_only_the_letters_of_the_task_are_choices():
    assert AnswerRule("choice", "ABC").candidates("(D) or (B)") == ["B"]


@pytest.mark.parametrize(("text", "answers"), [("BAD", ["B", "A", "D"]), ("D. Option (B) is wrong", ["B"]), ("A or B", ["A", "B"])])
def test_the_paper_reading_of_choices_uses_the_papers_rule(text, answers):
    assert AnswerRule("choice", "ABCDE", "paper").candidates(text) == answers


@pytest.mark.parametrize(("gold", "letter"), [("B", "B"), ("(b)", "B"), ("b", "B"), ("Apple", None), ("F", None), ("", None)])
def test_a_gold_choice_is_a_letter_and_not_a_word_that_contains_one(gold, letter):
    assert CHOICE.gold(gold) == letter


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
def test_yes_and_no_are_found(text, answers):
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
        (NUMBER, "1 + 2 = 3 --> 4, not 5", "4"),  # the first number after the prefix
        (NUMBER, "1 + 2 = 3 --> 4 or 5", None),
        (NUMBER, "1 + 2 = 3", "3"),  # the last number of the text
        (NUMBER, "3 --> 4 --> 5", "5"),  # the last prefix: the rationale may contain one too
        (PAPER, "3 --> 4 --> 5", "5"),
        (NUMBER, "3 --> \u221a2", None),
        (NUMBER, "3 -->", None),  # a prefix without text after it is not an answer
        (NUMBER, "nothing", None),
        (CHOICE, "not (A) --> (B), not (C)", "B"),
        (CHOICE, "(A), then (B)", "B"),
        (YES_NO, "no --> yes no", "yes"),
        (YES_NO, "yes, no", "no"),
        (TEXT, 'the "x" --> yajo', "yajo"),
        (TEXT, "yajo", "yajo"),
    ],
)
def test_the_first_answer_after_the_prefix_counts_or_else_the_last(rule, text, answer):
    assert rule.after(text, "-->") == answer


# --- a number is read whole or not at all ------------------------------------------------------------------------------

WHOLE_NUMBERS = {
    # vulgar fractions, digits of other scripts, superscripts
    "3½": "3.5", "½": "0.5", "¾": "0.75", "２５": "25", "٢٥": "25", "12.5": "12.5", "１，２３４": "1234",
    # dashes and words for a minus
    "–5": "-5", "—5": "-5", "−5": "-5", "－7": "-7", "‐5": "-5", "negative 5": "-5", "minus 5": "-5", "-$5": "-5", "$-5": "-5",
    # thousands
    "1\u202f234": "1234", "1\u00a0234\u00a0567": "1234567", "1\u2009234": "1234", "1'000": "1000", "1’000": "1000", "1_000": "1000",
    # scale words
    "5k": "5000", "$5K": "5000", "1.5 million": "1500000", "5 thousand dollars": "5000", "$5M": "5000000", "2 hundred": "200",
    # scientific notation, small numbers
    "1e-05": "0.00001", "1.2e3": "1200", "1.2 × 10³": "1200", r"1.2 \times 10^{3}": "1200", "1.5e-7": "0.00000015", "0.000013": "0.000013",
    # units
    "25 cm²": "25", "2 m^2": "2", "90°": "90", r"90^\circ": "90", "12km": "12", "5 km/h": "5", "3rd": "3", "10%": "10", "7 apples": "7",
}  # fmt: skip
NOT_NUMBERS = [
    "√2", r"\sqrt{17}", "x^2", "2³", "10^3", r"-2\pi", "π", "∞", "2x", "x + 5", "5 + x", "3+4", "log 5", "f(2)", r"\frac{x}{2}",
    "5 squared", "5~6", "5~¼", "2 \u221a 3", "±5", ">5", "x > 5", "0.333...", "5 and a half", "2 thirds", "5:30", "5:30 PM", "1,5", "12,34",
    "1.234.567", "1,234,56", "2020-01-05", "12/25/2020", "0x1F", "5'6\"", "5ft 3in", "4 hours and 30 minutes",
    "3 million 500 thousand", "5-6", "5–6", "5 to 6", "1 000", "1/0", "1/2/3", "5 or 6", "5 and 6", "1, 2, 3", "A5", "nan", "two",
    "1e99999999999", "9" * 5000,
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), WHOLE_NUMBERS.items())
def test_the_extended_reading_reads_the_whole_number(text, value):
    assert NUMBER.gold(text) == value
    assert NUMBER.first(text) == value
    assert NUMBER.first(f" {text}.") == value
    assert NUMBER.read_last(f"So there are {text}").value == value
    assert PAPER.gold(text) == value


@pytest.mark.parametrize("text", NOT_NUMBERS)
def test_a_part_of_an_expression_is_not_a_number(text):
    assert NUMBER.gold(text) is None
    assert NUMBER.first(text) is None
    assert NUMBER.first(f" {text}.") is None


@pytest.mark.parametrize("text", ["x = 5", "5!", "2 dozen", "5 x", "= 7", "5\r\u200bⅠ", "5\n①", "Ⅳ: 5", "5 and 三"])
def test_a_gold_number_is_the_only_number_of_its_text(text):
    assert NUMBER.gold(text) is None


@pytest.mark.parametrize("text", ["5 cafe\u0301s", "5 किलो"])
def test_accents_are_not_numerals(text):
    assert NUMBER.gold(text) == "5"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("76 + 53 = 129.", "129"),
        ("10 - 5 = 5", "5"),
        ("5 * (3 + 2) = 25 apples", "25"),
        ("24, because 24 - 18 = 6", "24"),
        ("24 coins (of 30)", "24"),
        ("5 — 3 fewer than 8", "5"),
        ("3/8 or 0.375", "0.375"),
        ("<answer>5</answer>", "5"),
        ("2x + 3 = 60", None),
        ("5 apples and 6 pears", None),
        ("5****1/2", None),
    ],
)
def test_the_answer_of_a_text_counts_and_not_its_first_digits(text, value):
    assert NUMBER.first(text) == value


@pytest.mark.parametrize(("text", "fault"), [("5 or 6", "several_answers"), ("√2", "unreadable_answer"), ("none", None)])
def test_a_reading_without_a_value_has_a_reason(text, fault):
    assert (NUMBER.read(text).value, NUMBER.read(text).fault) == (None, fault)


MARKED = [
    (NUMBER, r"We get \boxed{24}, because 24 - 18 = 6", "24"),
    (NUMBER, r"First \boxed{7}? No.\n\n\boxed{24}", "24"),
    (NUMBER, r"\boxed{3} and \boxed{5}", None),
    (NUMBER, r"\boxed{\sqrt{2}}, not 3", None),
    (NUMBER, "#### 24\nChecked with 3 methods", "24"),
    (NUMBER, "**Final Answer:** 24 coins (of 30)", "24"),
    (NUMBER, "Final answer:\n\n24 coins of 30", "24"),
    (NUMBER, "Answer: 24\nThis took 3 steps", "24"),
    (NUMBER, "<answer>24</answer> in 3 steps", "24"),
    (AnswerRule("choice", "ABCDEFGHIJ"), "**Final Answer:** C. I am sure.", "C"),
    (YES_NO, "Final answer: no, though yes was near", "no"),
    (TEXT, r"The letters give \boxed{yajo}", "yajo"),
]


@pytest.mark.parametrize(("rule", "text", "value"), MARKED)
def test_a_marked_answer_takes_precedence(rule, text, value):
    assert rule.read_last(text).value == value
    assert rule.first(text) == value


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("D. Option (B) is wrong", "D", "D"),
        ("E, since (A) to (D) are ruled out", "E", "E"),
        ("A or B", None, None),
        ("A, B, or D.", None, None),
        ("(A) and (E)", None, None),
        ("It is not (A) but (C)", "C", "C"),
        ("most likely C, airport, but it could also be A, car", None, "A"),
        ("The answer is (B), not (C)", "B", "B"),
        ("A dog is what (C) says", "C", "C"),
        ("the answer is A because of it", "A", "A"),
        ("b. the dog", "B", "B"),
        ("（Ａ）", "A", "A"),
        ("none", None, None),
    ],
)
def test_the_chosen_letter_is_read_and_not_every_letter_mentioned(text, first, last):
    assert CHOICE.read(text).value == first
    assert CHOICE.read_last(text).value == last


def test_a_heading_is_not_an_answer_mark():
    assert NUMBER.read_last("#### 1. The plan\nAdd.\n#### 2. The sum\n3 + 4 = 7").value == "7"


def test_a_word_is_not_an_option():
    rule = AnswerRule("choice", "ABCDEFGHIJ")
    assert rule.read_last("... only in case C. I checked the others.").value == "C"
    assert rule.read("I think (C)").value == "C"
    assert rule.read("I").value == "I"


@pytest.mark.parametrize(
    ("text", "value"), [("True", "yes"), ("False.", "no"), ("it is true", None), ("yes or no? no", "no"), ("yes/no", None)]
)
def test_the_extended_reading_of_yes_and_no(text, value):
    assert YES_NO.first(text) == value


@pytest.mark.parametrize(
    ("gold", "value"), [("Y", "yes"), ("n.", "no"), ("T", "yes"), ("(f)", "no"), ("J", None), ("Y or N", None), ("n/a", None)]
)
def test_a_letter_is_yes_or_no_in_data_only(gold, value):
    assert YES_NO.gold(gold) == value
    assert YES_NO.first(gold) is None


def test_texts_are_equal_in_any_encoding_of_accents():
    assert TEXT.same(TEXT.first("cafe\u0301"), "caf\u00e9")
    assert TEXT.contains("the word cafe\u0301", "caf\u00e9")


def test_small_numbers_are_compared_by_their_digits():
    assert not NUMBER.same("0.0000003", "0.0000001")
    assert PAPER.same("0.0000003", "0.0000001")
