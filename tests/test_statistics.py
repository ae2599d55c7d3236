"""Intervals, comparisons and trends: known values, invariances, and coverage in simulations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, norm

from fcot.evaluation.statistics import against_published, compare, detectable, estimate, gain, holm, independence, trend, wilson_interval


def answers(*counts: int, n: int = 100) -> np.ndarray:
    """Answers of which the first ``count`` problems of each seed are right."""
    return np.array([[float(index < count) for index in range(n)] for count in counts])


def test_one_seed_gets_the_wilson_interval():
    estimated = estimate(answers(30))
    assert (estimated.mean, estimated.spread) == (0.3, None)
    assert (estimated.low, estimated.high) == wilson_interval(30, 100)


def test_differences_between_seeds_widen_the_interval():
    similar, different = estimate(answers(50, 50, 50)), estimate(answers(20, 50, 80))
    assert similar.spread == 0
    assert different.spread == pytest.approx(0.3)
    assert different.high - different.low > 1.5 * (similar.high - similar.low)
    assert similar.low == pytest.approx(0.40, abs=0.015)  # as a binomial proportion of 100 problems
    assert similar.high == pytest.approx(0.60, abs=0.015)


@pytest.mark.parametrize("right", [0, 100])
def test_an_accuracy_of_0_or_1_still_has_an_interval(right):
    estimated = estimate(answers(right, right))
    assert (estimated.low, estimated.high) == pytest.approx(wilson_interval(right, 100))


def test_one_right_answer_raises_the_upper_end_of_the_interval():
    zero, single = estimate(answers(0, 0, n=66)), estimate(np.array([answers(1, n=66)[0], answers(1, n=66)[0][::-1]]))
    assert single.mean == pytest.approx(1 / 66)
    assert single.high > zero.high
    assert single.high >= wilson_interval(1, 66)[1]


@pytest.mark.parametrize(("first", "second"), [(0, 0), (60, 60), (0, 60)])
def test_a_difference_that_all_problems_share_still_has_an_interval(first, second):
    for seeds in (1, 3):
        comparison = compare(answers(*[first] * seeds, n=60), answers(*[second] * seeds, n=60), range(60))
        assert comparison.low <= comparison.difference <= comparison.high
        assert 0.05 < comparison.high - comparison.low < 0.13


def pair(repaired: int, broken: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Answers of two trainings to ``n`` problems: the second repairs some problems of the first and breaks others."""
    first = np.array([[0.0] * repaired + [1.0] * broken + [1.0] * (n - repaired - broken)])
    return first, np.array([[1.0] * repaired + [0.0] * broken + [1.0] * (n - repaired - broken)])


def test_an_interval_contains_0_exactly_where_p_is_5_percent_or_more():
    for n in (48, 200):
        widths = []
        for repaired in range(12):
            for broken in range(6):
                comparison = compare(*pair(repaired, broken, n), range(n))
                assert (comparison.low <= 0 <= comparison.high) == (comparison.p >= 0.05), (repaired, broken)
                assert -1 <= comparison.low <= comparison.difference <= comparison.high <= 1
            widths.append(compare(*pair(repaired, 0, n), range(n)).high - compare(*pair(repaired, 0, n), range(n)).low)
        assert min(widths) == widths[0], "the interval is narrowest where the two do not differ"
    rng = np.random.default_rng(3)
    for shift in np.linspace(0, 0.3, 30):
        first, second = ((rng.random((2, 60)) < 0.3 + side).astype(float) for side in (0, shift))
        comparison = compare(first, second, range(60))
        assert comparison.p < 0.05 or comparison.low <= 0 <= comparison.high


def test_mcnemar_is_exact():
    first, second = np.array([[1.0] * 10 + [0.0] * 20]), np.array([[1.0] * 8 + [0.0] * 2 + [1.0] * 11 + [0.0] * 9])
    comparison = compare(first, second, range(30))
    assert comparison.p == pytest.approx(2 * binom.cdf(2, 13, 0.5))  # 11 repaired, 2 broken
    assert (comparison.broken, comparison.repaired) == ([8, 9], list(range(10, 21)))
    assert comparison.difference == pytest.approx(9 / 30)
    assert comparison.low < 9 / 30 < comparison.high


def test_exchanging_the_students_only_changes_the_sign():
    rng = np.random.default_rng(1)
    first, second = (rng.random((1, 200)) < 0.5).astype(float), (rng.random((1, 200)) < 0.6).astype(float)
    forward, backward = compare(first, second, range(200)), compare(second, first, range(200))
    assert forward.difference == pytest.approx(-backward.difference)
    assert forward.p == pytest.approx(backward.p)
    assert (forward.repaired, forward.broken) == (backward.broken, backward.repaired)


def test_problems_on_which_seeds_disagree_are_neither_repaired_nor_broken():
    split, none = np.array([[1.0, 0, 1, 0], [0, 1, 0, 1]]), np.array([[1.0, 1, 0, 0], [1, 1, 0, 0]])
    for first, second in ((split, none), (none, split)):
        comparison = compare(first, second, range(4))
        assert comparison.repaired == comparison.broken == []


def test_equal_accuracies_have_difference_0_and_p_1():
    comparison = compare(answers(40, 60), answers(60, 40), range(100))
    assert comparison.difference == pytest.approx(0)
    assert comparison.p == 1
    assert comparison.repaired == comparison.broken == []


@pytest.mark.parametrize("noise", [0.0, 0.06])
def test_equal_methods_are_rarely_reported_as_different(noise):
    """The trainings of both methods vary; about 5 % of comparisons may be significant."""
    rng, n, n_significant = np.random.default_rng(5), 150, 0
    hard = rng.uniform(0.2, 0.9, n)

    def side():
        return np.array([rng.random(n) < np.clip(hard + rng.normal(0, noise), 0, 1) for _ in range(3)], dtype=float)

    for _ in range(200):
        n_significant += compare(side(), side(), range(n)).p < 0.05
    assert n_significant <= 20  # 5 % of 200, plus three standard deviations


def test_a_paired_interval_is_narrower_than_those_of_both_students():
    """The two students agree on all but five of 200 problems."""
    rng = np.random.default_rng(0)
    first = (rng.random((1, 200)) < 0.5).astype(float)
    second = first.copy()
    second[0, np.flatnonzero(first[0] == 0)[:5]] = 1.0
    comparison, own = compare(first, second, range(200)), estimate(first)
    assert comparison.high - comparison.low < (own.high - own.low) / 2


def test_one_training_is_tested_against_several_only_if_it_does_not_depend_on_the_seed():
    single, several = answers(50), answers(60, 62, 64)
    untested = compare(single, several, range(100))
    assert (untested.p, untested.low, untested.high) == (None, None, None)
    assert untested.difference == pytest.approx(0.12)
    assert compare(several, single, range(100)).p is None
    fixed = compare(single, several, range(100), fixed=(True, False))
    assert fixed.p is not None
    assert fixed.p < compare(single[:, ::-1].repeat(2, axis=0), several, range(100)).p
    assert (trend([single, several, several]).p, trend([single, several, several]).over) == (None, "none")
    assert trend([single, several, several], fixed=[True, False, False]).over == "runs"


def test_gains_are_paired_by_run():
    rng = np.random.default_rng(8)
    hard = rng.random(200)
    skills = np.array([[0.2], [0.5], [0.8]])
    first = (hard < skills).astype(float)
    later = (hard < skills + 0.1).astype(float)
    paired, unpaired = gain(first, later, range(200)), compare(first, later, range(200))
    assert paired.difference == pytest.approx(unpaired.difference)
    assert paired.p < 0.01 < unpaired.p, "runs differ more than their gains"
    assert paired.low > 0 > unpaired.low
    assert gain(first[:1], later[:1], range(200)) == compare(first[:1], later[:1], range(200))


def test_the_interval_to_a_published_accuracy_includes_the_published_error():
    single, three = estimate(answers(50)), estimate(answers(48, 50, 52))
    low, high = against_published(single, 1, 0.5, 100)
    assert low == pytest.approx(-high)
    assert high == pytest.approx((single.high - single.low) / np.sqrt(2), rel=0.01), "two equal errors"
    assert against_published(three, 3, 0.5, 100)[1] > (three.high - three.low) / 2, "includes the error of the published training"
    assert against_published(single, 1, 0.0, 100)[0] > 0.3


def test_more_problems_or_seeds_detect_smaller_differences():
    assert detectable(111, 3) > detectable(405, 3) > detectable(1319, 3)
    assert detectable(405, 3) > detectable(405, 5)
    assert detectable(405, 3, spread=0.08) > detectable(405, 3)
    assert 0.05 < detectable(405, 3) < 0.15


def test_no_p_value_is_zero():
    for seeds, n in ((3, 3), (2, 1), (1, 3), (3, 400), (1, 1300), (3, 1300)):
        zeros, ones = np.zeros((seeds, n)), np.ones((seeds, n))
        comparison = compare(zeros, ones, range(n))
        assert 0 < comparison.p <= 1
        assert comparison.p == pytest.approx(max(2.0 ** (1 - n), 1e-100)), (
            "all problems agree, so that p does not depend on the number of seeds"
        )
        assert (comparison.low <= 0 <= comparison.high) == (comparison.p >= 0.05)
        assert 0 < trend([zeros, zeros, ones]).p <= 1
    assert trend([np.ones((1, 1)), np.zeros((1, 1))]).p == 1
    right = np.array([[1.0] * 400] * 3)
    wrong = 1 - right
    wrong[0, 0] = 1.0
    assert 0 < compare(wrong, right, range(400)).p < 1e-50


def clustered(rng, n_groups: int, size: int, shift: float = 0.0) -> np.ndarray:
    """One training whose problems of a template have strongly correlated answers."""
    level = rng.normal(shift, 1.5, n_groups).repeat(size)
    return (rng.normal(0, 1, (1, n_groups * size)) < level).astype(float)


def test_templates_widen_intervals_where_answers_correlate_within_templates():
    rng = np.random.default_rng(2)
    templates = [str(number // 9) for number in range(108)]
    single = clustered(rng, 12, 9)
    plain, by_template = estimate(single), estimate(single, templates)
    assert by_template.mean == plain.mean
    assert by_template.high - by_template.low > 1.3 * (plain.high - plain.low)
    singletons = [str(number) for number in range(108)]
    assert estimate(single, singletons) == plain
    several = np.concatenate([single, clustered(rng, 12, 9)])
    assert estimate(several, singletons) == estimate(several)
    assert estimate(np.ones((1, 9)), ["same"] * 9).low < 0.3, "one template is one observation"


def test_tests_by_template_keep_their_level():
    """Two equally good students whose answers correlate within 12 templates of 9 problems. McNemar's test rejects too often."""
    rng = np.random.default_rng(4)
    templates = [str(number // 9) for number in range(108)]
    n_plain = n_by_template = n_trends = 0
    for number in range(300):
        first, second, third = (clustered(rng, 12, 9) for _ in range(3))
        n_plain += compare(first, second, range(108)).p < 0.05
        comparison = compare(first, second, range(108), templates)
        assert (comparison.low <= 0 <= comparison.high) == (comparison.p >= 0.05)
        n_by_template += comparison.p < 0.05
        n_trends += number < 60 and trend([first, second, third], templates).p < 0.05
    assert n_plain > 60
    assert n_by_template <= 26  # 5 % of 300, plus three standard deviations
    assert n_trends <= 9


def test_templates_of_one_problem_each_give_mcnemars_test():
    singletons = [str(number) for number in range(50)]
    for repaired, broken in ((0, 0), (3, 0), (7, 2), (12, 12)):
        first, second = pair(repaired, broken, 50)
        p = min(1.0, 2 * binom.cdf(min(repaired, broken), repaired + broken, 0.5))
        assert compare(first, second, range(50)).p == compare(first, second, range(50), singletons).p == pytest.approx(p)


def test_the_interval_ends_at_zero_where_p_is_five_percent():
    rng = np.random.default_rng(6)
    for _ in range(40):
        first, second = ((rng.random((3, 80)) < level).astype(float) for level in (0.4, 0.55))
        comparison = compare(first, second, range(80))
        assert (comparison.low <= 0 <= comparison.high) == (comparison.p >= 0.05)


@pytest.mark.parametrize(("accuracy", "sd", "n"), [(0.2, 0.0, 111), (0.5, 0.03, 405), (0.8, 0.08, 111), (0.35, 0.05, 1319)])
def test_intervals_of_three_seeds_cover_the_true_accuracy(accuracy, sd, n):
    """At least 92 % of 300 intervals cover it, minus three standard deviations."""
    rng, covered = np.random.default_rng(7), 0
    for _ in range(300):
        runs = np.clip(rng.normal(accuracy, sd, 3), 0.001, 0.999)
        latent = np.sqrt(0.65) * rng.normal(size=n) + np.sqrt(0.35) * rng.normal(size=(3, n))
        estimated = estimate((latent < norm.ppf(runs)[:, None]).astype(float))
        covered += estimated.low <= accuracy <= estimated.high
    assert covered >= 300 * 0.92 - 3 * np.sqrt(300 * 0.92 * 0.08)


@pytest.mark.parametrize(("levels", "direction"), [((0.2, 0.4, 0.6), 1), ((0.6, 0.4, 0.2), -1)])
def test_trends_are_detected_for_single_and_for_several_runs(levels, direction):
    rng = np.random.default_rng(0)
    single = trend([(rng.random((1, 200)) < level).astype(float) for level in levels])
    assert (single.direction, single.over) == (direction, "problems")
    assert single.p < 0.01
    three = trend([(rng.random((3, 200)) < level).astype(float) for level in levels])
    assert (three.direction, three.over) == (direction, "runs")
    assert three.p < 0.01


def test_a_trend_is_rarely_reported_where_there_is_none():
    rng = np.random.default_rng(0)
    significant = [trend([(rng.random((1, 100)) < 0.3).astype(float) for _ in range(3)]).p < 0.05 for _ in range(100)]
    assert sum(significant) <= 12  # 5 expected; 13 or more has a probability of 0.1 %
    assert trend([answers(50), answers(50), answers(50)]).p == 1


def test_holm_corrects_p_values_and_skips_missing_ones():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.01, None, 0.03]) == [pytest.approx(0.02), None, pytest.approx(0.03)]


def test_common_failures_are_compared_with_chance():
    wrong = [index < 20 for index in range(100)]
    common, disjoint = independence(wrong, wrong), independence(wrong, [index >= 80 for index in range(100)])
    assert common[1] < 1e-10
    assert disjoint[1] > 0.99
