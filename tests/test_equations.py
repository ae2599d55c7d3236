"""Equations in rationales: which texts are equations, and which equations hold."""

from __future__ import annotations

import json

import pytest

from fcot.curation.equations import equations, wrong_equations

HOLD = [
    "5 + 3 = 8", "5 apples + 3 apples = 8 apples", "$5 x 3 = $15", "12/4=3", "20% x 50 = 10", "10 / 3 = 3.33", "10 / 3 = 3.3",
    "(5 + 3) * 2 = 16", "7 - 9 = -2", "1,200 + 300 = 1,500", "3 * (4 + 2) = 18", "1/2 + 1/4 = 3/4", "24 - 6 - 2 = 16", "007 + 1 = 8",
    "1.66- 0.02= 1.64", "3 × 4 = 12", "8 ÷ 2 = 4", "9 − 4 = 5", "2 + 3 * 4 = 14", "\\$5 + \\$3 = \\$8",
    "0.8333333333333334 + 0.16666666666666666 = 1", "172-158 = 14 t-shirts", "3 boxes x 12 crayons per box = 36 crayons", "n = 5 + 3 = 8",
    "(8 x 3 = 24)", "(5 + 3) * (1 + 1) = 16", "\n- 5 + 3 = 8", "1/3 = 33%", "20% + 5% = 25%",
    "5 + 3 = 8 --> 8", "5 + 3 = 8 apples --> 8", "5 + 3 = 8->8", "10 + 4 = 16 apples - 2 apples",
]  # fmt: skip
WRONG = [
    "5 + 4 = 10", "10/3 = 3", "10 / 3 = 3.34", "3 × 16 + 7 × 12 = 84", "172-186 = 14 t-shirts", "(79-44)/5 = 15 pictures",
    "1/2 + 1/8 = 3/8",
    "967 x 1091 weeks = $1,061,297", "1.05 + 1 = 2.5", "(8 x 3 = 25)", "1/3 = 33.8%", "\n- 5 + 3 = 9",
    "105 green tomatoes + 71 red tomatoes = 175 tomatoes", "5 + 3 = 9 --> 9", "5 + 3 = 9 apples --> 9", "5 + 3 = 9->9",
    "10 + 4 = 15 apples - 2 apples",
]  # fmt: skip
NONE = [
    "x + 3 + 4 = 9", "2x + 3 = 7", "3 + x = 9", "y * 3 + 4 = 9", "12 + 2x = 63", "15 + 48 = 12 + 2x", "8 = 3 + 5", "the answer = 5",
    "25 / 2 = 12 remainder 1", "1 and 1/8 laps + 2 and 1/8 laps = 3 and 1/4 laps", "5 + 3", "7 + 2 = ?", "= 5", "",
    "At least 29 good carrots + at least 16 good carrots = 38", "5 -\n3 = 9",
    "2^3 + 1 = 9", "sqrt(16) + 1 = 5", "100 / 3 = 33 1/3", "1 hour + 30 minutes = 90 minutes", "6 / 2 = 3:1", "5 + 3 = 9 - x",
]  # fmt: skip


@pytest.mark.parametrize("text", HOLD)
def test_correct_equations_hold(text):
    assert [equation.holds for equation in equations(f"We know that {text}. So")] == [True]


@pytest.mark.parametrize("text", WRONG)
def test_wrong_equations_do_not_hold(text):
    assert [equation.holds for equation in equations(f"First, {text}.\nThen")] == [False]
    assert len(wrong_equations(text)) == 1


@pytest.mark.parametrize("text", NONE)
def test_texts_without_a_calculation_have_no_equations(text):
    assert list(equations(text)) == []


@pytest.mark.parametrize("text", [
    r"\( 5 + 3 = 9 \)", "**5 + 3 = 9**", "- **5 + 3 = 9**", "* 5 + 3 = 9", "5 + 3 = **9**", r"5 + 3 = \boxed{9}", r"\frac{10}{2} = 6",
    "5 + 3 = 9 (apples)",
])  # fmt: skip
def test_markup_of_chat_models_is_read(text):
    assert [equation.holds for equation in equations(text)] == [False]
    assert [equation.holds for equation in equations(text.replace("9", "8").replace("= 6", "= 5"))] == [True]


@pytest.mark.parametrize("text", [
    "2(3+4) = 14", "2 1/2 + 1/2 = 3", "12/25/2002 - 1 day = 12/24/2002", "2 million / 4 = 500,000", "100 - 20% = 80",
])  # fmt: skip
def test_expressions_with_another_meaning_are_skipped(text):
    assert list(equations(text)) == []


def test_a_chain_of_equations_is_checked_side_by_side():
    assert [equation.holds for equation in equations("3 + 4 = 7 + 2 = 9")] == [True, True]
    assert [equation.holds for equation in equations("3 + 4 = 8 + 2 = 10")] == [False, True]


@pytest.mark.parametrize(
    "text", ["9" * 5000 + " + 1 = 2", "(" * 3000 + "1 + 1 = 2", "1 / 0 = 3", "1 + " * 2000 + "1 = 5", "1,,2 + 3.4.5 = 9"]
)
def test_malformed_text_raises_no_error(text):
    list(equations(text))


@pytest.mark.parametrize(("task", "n_wrong"), [("svamp", 17), ("multiarith", 8)])
def test_wrong_equations_in_real_rationales(task, n_wrong, shared_data):
    """Each of these equations was checked by hand: all are wrong."""
    (file,) = (shared_data / "completion_data").rglob(f"D_{task}.json")
    rows = [row for rows in json.loads(file.read_text())["data"].values() for row in rows]
    assert abs(sum(bool(wrong_equations(row["reasoning_completion"])) for row in rows) - n_wrong) <= 1
