"""Scoring of a completion, the Wilson interval, and the rates of a summary."""

from __future__ import annotations

import math

import pytest

from fcot.base.records import Problem
from fcot.evaluation.scoring import accuracy, score, summarize
from fcot.evaluation.statistics import wilson_interval
from fcot.methods.table import METHODS
from fcot.prompts.answers import AnswerRule

COT = METHODS["fine_tune_cot"].formats["decoder"]
ANSWER_ONLY = METHODS["fine_tune"].formats["decoder"]
NUMBER = AnswerRule("number")


def scored(text: str, complete: bool = True, answer: str = "18", text_format=COT):
    return score(Problem(3, "How many?", answer), text, complete, 7, text_format, NUMBER)


@pytest.mark.parametrize(
    ("text", "prediction", "correct"),
    [
        (" 20 - 2 = 18 --> 18", "18", True),
        (" 20 --> $18.00 of 20", "18", True),
        (" 18 --> 20", "20", False),
        (" so it is 18", "18", True),
        ("", None, False),
    ],
)
def test_a_completion_is_scored_by_the_parser_of_its_format(text, prediction, correct):
    result = scored(text)
    assert (result.prediction, result.correct) == (prediction, correct)
    assert (result.sample_index, result.question, result.answer, result.completion) == (3, "How many?", "18", text)
    assert (result.complete, result.n_tokens) == (True, 7)


def test_without_an_answer_prefix_the_first_answer_counts():
    assert scored(" 18, not 20", text_format=ANSWER_ONLY).correct
    assert not scored(" 20, not 18", text_format=ANSWER_ONLY).correct


@pytest.mark.parametrize(
    ("successes", "n", "interval"),
    [  # by hand, z = 1.959964
        (0, 10, (0.0, 0.277533)),  # 0 .. z2 / (n + z2)
        (10, 10, (0.722467, 1.0)),  # its mirror
        (5, 10, (0.236593, 0.763407)),  # 1/2 +- z / (2 sqrt(n + z2))
        (1, 1, (0.206549, 1.0)),  # 1 / (1 + z2) .. 1
        (1, 4, (0.045587, 0.699358)),
    ],
)
def test_the_wilson_interval_has_known_values(successes, n, interval):
    assert wilson_interval(successes, n) == pytest.approx(interval, abs=1e-6)


@pytest.mark.parametrize(("successes", "n"), [(142, 180), (621, 1000), (3, 225), (1318, 1319)])
def test_the_wilson_interval_agrees_with_its_formula(successes, n):
    z, share = 1.959963984540054, successes / n
    center = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    assert wilson_interval(successes, n) == pytest.approx((center - half, center + half), abs=1e-12)


def test_summaries_without_predictions_have_no_rates():
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert accuracy([]) is None
    assert summarize([], COT, NUMBER) == {
        "n_test": 0, "accuracy": None, "accuracy_ci95": [0.0, 1.0],
        "answer_in_completion": None, "well_formed": None, "complete": None,
    }  # fmt: skip


def test_a_summary_has_the_rates_of_its_predictions():
    predictions = [
        scored(" 20 - 2 = 18 --> 18"),  # right
        scored(" 18 --> 20"),  # wrong, but 18 is mentioned
        scored(" it is 18.0"),  # right without a prefix: not well-formed
        scored(" 1 --> 2 --> 3", complete=False),  # the last prefix counts
        scored(" round and round", complete=False),
    ]
    summary = summarize(predictions, COT, NUMBER)
    assert summary == {
        "n_test": 5, "accuracy": 0.4, "accuracy_ci95": list(wilson_interval(2, 5)),
        "answer_in_completion": 0.6, "well_formed": 0.6, "complete": 0.6,
    }  # fmt: skip
    assert accuracy(predictions) == 0.4
