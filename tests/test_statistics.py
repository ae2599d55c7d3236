"""Intervals, comparisons and trends: known values, invariances, and coverage of what was simulated."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, norm

from fcot.evaluation.statistics import against_published, compare, detectable, estimate, gain, holm, independence, trend, wilson_interval


def answers(*counts: int, n: int = 100) -> np.ndarray:
    """The first problems of each seed are right."""
    return np.array([[float(index < count) for index in range(n)] for count in counts])


def test_one_seed_has_wilsons_interval():
    found = estimate(answers(30))
    assert (found.mean, found.spread) == (0.3, None)
    assert (found.low, found.high) == wilson_interval(30, 100)


def test_seeds_widen_the_interval_that_problems_alone_would_give():
    alike, apart = estimate(answers(50, 50, 50)), estimate(answers(20, 50, 80))
    assert alike.spread == 0
    assert apart.spread == pytest.approx(0.3)
    assert apart.high - apart.low > 1.5 * (alike.high - alike.low)
    assert alike.low == pytest.approx(0.40, abs=0.015)  # as a binomial proportion of 100 problems
    assert alike.high == pytest.approx(0.60, abs=0.015)


@pytest.mark.parametrize("right", [0, 100])
def test_all_or_nothing_still_has_an_interval(right):
    found = estimate(answers(right, right))
    assert (found.low, found.high) == pytest.approx(wilson_interval(right, 100))


def test_few_right_answers_leave_no_less_room_than_none():
    none, one = estimate(answers(0, 0, n=66)), estimate(np.array([answers(1, n=66)[0], answers(1, n=66)[0][::-1]]))
    assert one.mean == pytest.approx(1 / 66)
    assert one.high > none.high
    assert one.high >= wilson_interval(1, 66)[1]


@pytest.mark.parametrize(("first", "second"), [(0, 0), (60, 60), (0, 60)])
def test_a_difference_that_all_problems_share_still_has_an_interval(first, second):
    for seeds in (1, 3):
        found = compare(answers(*[first] * seeds, n=60), answers(*[second] * seeds, n=60), range(60))
        assert found.low <= found.difference <= found.high
        assert 0.05 < found.high - found.low < 0.13


def pair(repaired: int, broken: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """One training each, that differ in so many problems."""
    first = np.array([[0.0] * repaired + [1.0] * broken + [1.0] * (n - repaired - broken)])
    return first, np.array([[1.0] * repaired + [0.0] * broken + [1.0] * (n - repaired - broken)])


def test_interval_and_test_do_not_contradict_each_other():
    for n in (48, 200):
        widths = []
        for repaired in range(12):
            for broken in range(6):
                found = compare(*pair(repaired, broken, n), range(n))
                assert (found.low <= 0 <= found.high) == (found.p >= 0.05), (repaired, broken)
                assert -1 <= found.low <= found.difference <= found.high <= 1
            widths.append(compare(*pair(repaired, 0, n), range(n)).high - compare(*pair(repaired, 0, n), range(n)).low)
        assert min(widths) == widths[0], "to differ in none is not less certain than to differ in some"
    rng = np.random.default_rng(3)
    for shift in np.linspace(0, 0.3, 30):
        first, second = ((rng.random((2, 60)) < 0.3 + side).astype(float) for side in (0, shift))
        found = compare(first, second, range(60))
        assert found.p < 0.05 or found.low <= 0 <= found.high


def test_mcnemar_is_exact():
    first, second = np.array([[1.0] * 10 + [0.0] * 20]), np.array([[1.0] * 8 + [0.0] * 2 + [1.0] * 11 + [0.0] * 9])
    found = compare(first, second, range(30))
    assert found.p == pytest.approx(2 * binom.cdf(2, 13, 0.5))  # 11 repaired, 2 broken
    assert (found.broken, found.repaired) == ([8, 9], list(range(10, 21)))
    assert found.difference == pytest.approx(9 / 30)
    assert found.low < 9 / 30 < found.high


def test_a_comparison_turned_round_changes_its_sign_only():
    rng = np.random.default_rng(1)
    first, second = (rng.random((1, 200)) < 0.5).astype(float), (rng.random((1, 200)) < 0.6).astype(float)
    there, back = compare(first, second, range(200)), compare(second, first, range(200))
    assert there.difference == pytest.approx(-back.difference)
    assert there.p == pytest.approx(back.p)
    assert (there.repaired, there.broken) == (back.broken, back.repaired)


def test_problems_on_which_seeds_are_split_are_neither_repaired_nor_broken():
    split, none = np.array([[1.0, 0, 1, 0], [0, 1, 0, 1]]), np.array([[1.0, 1, 0, 0], [1, 1, 0, 0]])
    for first, second in ((split, none), (none, split)):
        found = compare(first, second, range(4))
        assert found.repaired == found.broken == []


def test_what_is_equal_differs_by_nothing():
    found = compare(answers(40, 60), answers(60, 40), range(100))
    assert found.difference == pytest.approx(0)
    assert found.p == 1
    assert found.repaired == found.broken == []


@pytest.mark.parametrize("noise", [0.0, 0.06])
def test_several_seeds_are_not_mistaken_for_several_students(noise):
    """Two equal methods whose trainings differ: a difference is seldom called one."""
    rng, n, found = np.random.default_rng(5), 150, 0
    hard = rng.uniform(0.2, 0.9, n)

    def side():
        return np.array([rng.random(n) < np.clip(hard + rng.normal(0, noise), 0, 1) for _ in range(3)], dtype=float)

    for _ in range(200):
        found += compare(side(), side(), range(n)).p < 0.05
    assert found <= 20  # 5 % of 200, and three standard deviations


def test_paired_intervals_use_the_pairing():
    """Two students that agree on all but five of 200 problems are told apart far better than by their own intervals."""
    rng = np.random.default_rng(0)
    first = (rng.random((1, 200)) < 0.5).astype(float)
    second = first.copy()
    second[0, np.flatnonzero(first[0] == 0)[:5]] = 1.0
    found, own = compare(first, second, range(200)), estimate(first)
    assert found.high - found.low < (own.high - own.low) / 2


def test_one_training_against_several_is_no_test_unless_the_seed_changes_nothing():
    one, several = answers(50), answers(60, 62, 64)
    untested = compare(one, several, range(100))
    assert (untested.p, untested.low, untested.high) == (None, None, None)
    assert untested.difference == pytest.approx(0.12)
    assert compare(several, one, range(100)).p is None
    fixed = compare(one, several, range(100), fixed=(True, False))
    assert fixed.p is not None
    assert fixed.p < compare(one[:, ::-1].repeat(2, axis=0), several, range(100)).p
    assert (trend([one, several, several]).p, trend([one, several, several]).over) == (None, "none")
    assert trend([one, several, several], fixed=[True, False, False]).over == "runs"


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


def test_a_published_accuracy_has_its_own_error():
    one, three = estimate(answers(50)), estimate(answers(48, 50, 52))
    low, high = against_published(one, 1, 0.5, 100)
    assert low == pytest.approx(-high)
    assert high == pytest.approx((one.high - one.low) / np.sqrt(2), rel=0.01), "two equal errors"
    assert against_published(three, 3, 0.5, 100)[1] > (three.high - three.low) / 2, "one more training"
    assert against_published(one, 1, 0.0, 100)[0] > 0.3


def test_what_can_be_detected_falls_with_problems_and_seeds():
    assert detectable(111, 3) > detectable(405, 3) > detectable(1319, 3)
    assert detectable(405, 3) > detectable(405, 5)
    assert detectable(405, 3, spread=0.08) > detectable(405, 3)
    assert 0.05 < detectable(405, 3) < 0.15


def test_no_p_value_is_zero():
    for seeds, n in ((3, 3), (2, 1), (1, 3), (3, 400), (1, 1300), (3, 1300)):
        nothing, all_of_it = np.zeros((seeds, n)), np.ones((seeds, n))
        found = compare(nothing, all_of_it, range(n))
        assert 0 < found.p <= 1
        assert found.p == pytest.approx(max(2.0 ** (1 - n), 1e-100)), "all problems agree: as exact with several seeds as with one"
        assert (found.low <= 0 <= found.high) == (found.p >= 0.05)
        assert 0 < trend([nothing, nothing, all_of_it]).p <= 1
    assert trend([np.ones((1, 1)), np.zeros((1, 1))]).p == 1
    right = np.array([[1.0] * 400] * 3)
    wrong = 1 - right
    wrong[0, 0] = 1.0
    assert 0 < compare(wrong, right, range(400)).p < 1e-50


def clustered(rng, n_groups: int, size: int, shift: float = 0.0) -> np.ndarray:
    """One training whose problems of a template are nearly alike."""
    level = rng.normal(shift, 1.5, n_groups).repeat(size)
    return (rng.normal(0, 1, (1, n_groups * size)) < level).astype(float)


def test_templates_widen_intervals_where_their_problems_are_alike():
    rng = np.random.default_rng(2)
    templates = [str(number // 9) for number in range(108)]
    one = clustered(rng, 12, 9)
    plain, by_template = estimate(one), estimate(one, templates)
    assert by_template.mean == plain.mean
    assert by_template.high - by_template.low > 1.3 * (plain.high - plain.low)
    alone = [str(number) for number in range(108)]
    assert estimate(one, alone) == plain
    several = np.concatenate([one, clustered(rng, 12, 9)])
    assert estimate(several, alone) == estimate(several)
    assert estimate(np.ones((1, 9)), ["same"] * 9).low < 0.3, "one template is one observation"


def test_clustered_tests_keep_their_level():
    """Two equally good students whose answers go by template: McNemar's test alone would reject 15 % (12 templates of 9)."""
    rng = np.random.default_rng(4)
    templates = [str(number // 9) for number in range(108)]
    plain = clustered_found = steps = 0
    for _ in range(300):
        first, second, third = (clustered(rng, 12, 9) for _ in range(3))
        plain += compare(first, second, range(108)).p < 0.05
        found = compare(first, second, range(108), templates)
        assert (found.low <= 0 <= found.high) == (found.p >= 0.05)
        clustered_found += found.p < 0.05
        steps += _ < 60 and trend([first, second, third], templates).p < 0.05
    assert plain > 60
    assert clustered_found <= 26  # 5 % of 300, and three standard deviations
    assert steps <= 9


def test_sign_flips_of_single_problems_are_mcnemars_test():
    alone = [str(number) for number in range(50)]
    for repaired, broken in ((0, 0), (3, 0), (7, 2), (12, 12)):
        first, second = pair(repaired, broken, 50)
        p = min(1.0, 2 * binom.cdf(min(repaired, broken), repaired + broken, 0.5))
        assert compare(first, second, range(50)).p == compare(first, second, range(50), alone).p == pytest.approx(p)


def test_the_interval_ends_at_zero_where_p_is_five_percent():
    rng = np.random.default_rng(6)
    for _ in range(40):
        first, second = ((rng.random((3, 80)) < level).astype(float) for level in (0.4, 0.55))
        found = compare(first, second, range(80))
        assert (found.low <= 0 <= found.high) == (found.p >= 0.05)


@pytest.mark.parametrize(("accuracy", "sd", "n"), [(0.2, 0.0, 111), (0.5, 0.03, 405), (0.8, 0.08, 111), (0.35, 0.05, 1319)])
def test_three_seeds_intervals_cover_what_they_promise(accuracy, sd, n):
    """The mean over trainings and problems, in at least 92 % of 300 draws (and three standard deviations fewer)."""
    rng, covered = np.random.default_rng(7), 0
    for _ in range(300):
        runs = np.clip(rng.normal(accuracy, sd, 3), 0.001, 0.999)
        latent = np.sqrt(0.65) * rng.normal(size=n) + np.sqrt(0.35) * rng.normal(size=(3, n))
        found = estimate((latent < norm.ppf(runs)[:, None]).astype(float))
        covered += found.low <= accuracy <= found.high
    assert covered >= 300 * 0.92 - 3 * np.sqrt(300 * 0.92 * 0.08)


@pytest.mark.parametrize(("levels", "direction"), [((0.2, 0.4, 0.6), 1), ((0.6, 0.4, 0.2), -1)])
def test_a_trend_is_found_over_problems_and_over_runs(levels, direction):
    rng = np.random.default_rng(0)
    one = trend([(rng.random((1, 200)) < level).astype(float) for level in levels])
    assert (one.direction, one.over) == (direction, "problems")
    assert one.p < 0.01
    three = trend([(rng.random((3, 200)) < level).astype(float) for level in levels])
    assert (three.direction, three.over) == (direction, "runs")
    assert three.p < 0.01


def test_no_trend_is_seldom_found_where_there_is_none():
    rng = np.random.default_rng(0)
    found = [trend([(rng.random((1, 100)) < 0.3).astype(float) for _ in range(3)]).p < 0.05 for _ in range(100)]
    assert sum(found) <= 12  # 5 expected; 13 or more has a probability of 0.1 %
    assert trend([answers(50), answers(50), answers(50)]).p == 1


def test_holm_is_its_definition():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.01, None, 0.03]) == [pytest.approx(0.02), None, pytest.approx(0.03)]


def test_common_failures_are_held_against_chance():
    wrong = [index < 20 for index in range(100)]
    together, apart = independence(wrong, wrong), independence(wrong, [index >= 80 for index in range(100)])
    assert together[1] < 1e-10
    assert apart[1] > 0.99
