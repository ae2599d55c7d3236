"""maj@k and pass@k: the estimators against brute force, their intervals, and where runs and reports show them."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from fcot.evaluation.at_k import at_k, pass_at_k, summarize
from fcot.evaluation.statistics import estimate, wilson_interval


@pytest.mark.parametrize(("n", "n_right"), [(4, 0), (4, 1), (5, 3), (6, 6), (7, 2)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(n, n_right):
    answers = [True] * n_right + [False] * (n - n_right)
    for k in range(1, n + 1):
        subsets = list(itertools.combinations(answers, k))
        assert pass_at_k(n, n_right, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_one_answer_is_its_accuracy_and_all_answers_are_the_vote():
    answers = [("5", False), ("7", True), (None, False), ("7", True), ("5", False), ("9", False)]
    result = at_k(answers)
    assert sorted(result) == [1, 2, 4, 6]
    assert result[1] == pytest.approx((2 / 6, 2 / 6))
    assert result[6] == (0.0, 1.0)  # 5 and 7 have two votes each, and 5 was drawn first
    assert result[2][0] == pytest.approx(1 / 3)  # 5 before 7; 7 alone votes; 5 before 9


def test_maj_at_k_of_many_samples_agrees_with_the_true_probability():
    generator = random.Random(0)
    answers = [("7", True) if generator.random() < 0.6 else ("5", False) for _ in range(4096)]
    p = sum(right for _, right in answers) / len(answers)
    true = p**4 + 4 * p**3 * (1 - p) + 6 * p**2 * (1 - p) ** 2 / 2  # a tie is won by the answer that was drawn first
    assert at_k(answers)[4][0] == pytest.approx(true, abs=0.02)


def test_a_summary_has_the_sizes_that_all_problems_share_and_none_for_single_answers():
    two, four = at_k([("7", True), ("5", False)]), at_k([("7", True)] * 4)
    assert summarize([two, four]).keys() == {"1", "2"}
    assert summarize([two, four])["2"]["pass"] == 1
    assert summarize([at_k([("7", True)])]) is None
    assert summarize([]) is None


def test_the_interval_of_shares_contains_the_truth_and_is_narrower_than_that_of_single_answers():
    """Problems of different difficulty; 16 answers each. The interval is over problems like these."""
    generator, covered, narrower = np.random.default_rng(0), 0, 0
    for _ in range(300):
        difficulty = generator.beta(2, 2, size=80)
        right = generator.random((80, 16)) < difficulty[:, None]
        shares = estimate(right.mean(axis=1)[None])
        low, high = wilson_interval(int(right[:, 0].sum()), 80)
        covered += shares.low <= 0.5 <= shares.high
        narrower += shares.high - shares.low < high - low
    assert covered >= 0.92 * 300
    assert narrower == 300
