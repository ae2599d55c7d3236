"""Statistics: confidence intervals over seeds and problems, paired comparisons, trends, and corrections for multiple tests.

Answers are arrays, (seeds, problems), of ones (right), zeros (wrong) or shares. Compared arrays hold the same problems in the same order.

Means, differences and trends over several trainings use one method. The sampling variance of a mean has two components: that of the
trainings (between the runs' means) and that of the problems (between the problems' means). The noise of single answers would enter both
components; it is counted once. The quantile is that of Cochran and Cox: the mean of the components' t quantiles, weighted by the
components. ``benchmarks/report_statistics.py`` measures coverage, type-I error and power.

Problems that share a template are not independent. Where templates are known, they are the sampling units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

Correctness = NDArray[np.float64]
Templates = Sequence[str]  # the template id of each problem; answers to problems of one template are correlated

_FEW = 5  # with fewer right (or wrong) answers per run than this, their variance is a poor estimate
_PERMUTATIONS = 4999
_TAIL = 0.025  # probability on each side of a 95 % interval
_LEAST_P = 1e-100  # smaller p-values are raised to this one, so that none is 0


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion: its ends in 0..1, which are (0, 1) without observations."""
    if n == 0:
        return 0.0, 1.0
    interval = stats.binomtest(successes, n).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class AccuracyEstimate:
    """An accuracy with its 95 % interval.

    Attributes:
        mean: Mean over seeds and problems, 0..1.
        low, high: Ends of the 95 % interval.
        spread: Standard deviation over seeds; None for a single seed.
    """

    mean: float
    low: float
    high: float
    spread: float | None


def estimate(answers: Correctness, templates: Templates | None = None) -> AccuracyEstimate:
    """Mean accuracy and its 95 % interval.

    With one seed it is Wilson's interval, which is about this one trained student. With several seeds, Wilson's formula gets the variance
    over seeds and problems, with its quantile, instead of the binomial variance. Where a seed has fewer than five right (or wrong) answers
    on average, the interval is at least as wide as that of one seed.

    Args:
        answers: Which answers are correct, (seeds, problems).
        templates: The template of each problem; None where templates are unknown.
    """
    groups = _Groups(answers.shape[1], templates)
    n_seeds, n_problems = answers.shape
    mean, single = float(answers.mean()), bool(np.isin(answers, (0, 1)).all())  # shares vary less than single answers
    if n_seeds == 1 and groups.singletons and single:
        return AccuracyEstimate(mean, *wilson_interval(int(answers.sum()), n_problems), None)
    variance = _sampling_variance([answers], [1.0], groups)
    if variance.total:
        low, high = _wilson(mean, min(mean * (1 - mean) / variance.total, answers.size if single else np.inf), variance.quantile(_TAIL))
    else:  # the answers do not vary; or there is a single template, which counts as one observation
        low, high = _wilson(mean, n_problems if groups.n > 1 else 1, float(stats.norm.isf(_TAIL)))
    if min(mean, 1 - mean) * n_problems < _FEW:
        lower, upper = wilson_interval(round(mean * n_problems), n_problems)
        low, high = min(low, lower), max(high, upper)
    return AccuracyEstimate(mean, low, high, float(answers.mean(axis=1).std(ddof=1)) if n_seeds > 1 else None)


def estimate_from_accuracies(accuracies: Sequence[float], n_problems: int) -> AccuracyEstimate:
    """Mean accuracy and its 95 % interval where only accuracies are known, not the answers to single problems.

    The noise of single answers is counted in both components, so the interval is wider than that of :func:`estimate`.

    Args:
        accuracies: The accuracy of each seed, 0..1.
        n_problems: Number of test problems.
    """
    mean = float(np.mean(accuracies))
    if len(accuracies) == 1:
        return AccuracyEstimate(mean, *wilson_interval(round(mean * n_problems), n_problems), None)
    spread = float(np.std(accuracies, ddof=1))
    variance = _Variance(spread**2 / len(accuracies), mean * (1 - mean) / n_problems, (len(accuracies) - 1, max(1, n_problems - 1)))
    if not variance.total or mean in (0, 1):
        return AccuracyEstimate(mean, *wilson_interval(round(mean * n_problems), n_problems), spread)
    return AccuracyEstimate(mean, *_wilson(mean, mean * (1 - mean) / variance.total, variance.quantile(_TAIL)), spread)


def _wilson(mean: float, n: float, quantile: float) -> tuple[float, float]:
    """Wilson's interval of a proportion in ``n`` observations; an effective ``n`` need not be a whole number."""
    share = quantile**2 / n
    center, half = (mean + share / 2) / (1 + share), quantile / (1 + share) * np.sqrt(mean * (1 - mean) / n + share / (4 * n))
    return max(0.0, float(center - half)), min(1.0, float(center + half))


class _Groups:
    """Partition of the problems into templates, or into single problems where templates are unknown.

    Attributes:
        n: Number of groups.
        singletons: Whether each group has a single problem.
    """

    def __init__(self, n_problems: int, templates: Templates | None) -> None:
        names = range(n_problems) if templates is None else templates
        assert len(names) == n_problems
        self._group_of = np.unique(np.asarray(names), return_inverse=True)[1]
        self.n = int(self._group_of.max()) + 1
        self.singletons = self.n == n_problems

    def sums(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sum of the values of each group's problems, (groups,)."""
        return np.bincount(self._group_of, weights=values, minlength=self.n).astype(np.float64)

    def variance(self, values: NDArray[np.float64]) -> float:
        """The variance of the mean of the values, from the groups' sums of residuals; 0 for a single group."""
        if self.n < 2:
            return 0.0
        return float((self.sums(values - values.mean()) ** 2).sum() * self.n / (self.n - 1) / len(values) ** 2)


@dataclass(frozen=True)
class _Variance:
    """The sampling variance of a mean.

    Attributes:
        trainings, problems: The two components of the variance.
        freedom: Degrees of freedom of each component.
    """

    trainings: float
    problems: float
    freedom: tuple[float, float]

    @cached_property
    def total(self) -> float:
        """The sum of the components."""
        return self.trainings + self.problems

    def quantile(self, tail: float) -> float:
        """The number of standard errors with probability ``tail`` beyond it: Cochran and Cox's mean of the components' t quantiles."""
        components = [part for part in zip((self.trainings, self.problems), self.freedom, strict=True) if part[0]]
        weighted = sum(variance * -special.stdtrit(freedom, tail) for variance, freedom in components)  # stats.t.isf is slower
        return float(weighted / self.total)

    def half(self) -> float:
        """Half the width of a 95 % interval."""
        return self.quantile(_TAIL) * float(np.sqrt(self.total))

    def p(self, mean: float) -> float:
        """The two-sided p-value of a mean under the hypothesis that the true mean is 0: the level at which the interval ends at 0."""
        distance = abs(mean) / float(np.sqrt(self.total))
        if distance == 0:
            return 1.0
        if self.quantile(_LEAST_P / 2) <= distance:
            return _LEAST_P
        log_p = optimize.brentq(lambda log: self.quantile(np.exp(log) / 2) - distance, np.log(_LEAST_P), 0.0)
        return float(np.exp(log_p))


def _sampling_variance(sides: Sequence[Correctness], weights: Sequence[float], groups: _Groups) -> _Variance:
    """The sampling variance of a weighted sum of the sides' means. A side of one run adds no variance of trainings."""
    components = [
        (weight**2 * _training_variance(side, groups), len(side) - 1)
        for side, weight in zip(sides, weights, strict=True) if len(side) > 1
    ]  # fmt: skip
    trainings = sum(variance for variance, _ in components)
    spread = sum(variance**2 / freedom for variance, freedom in components)  # Satterthwaite
    means: NDArray[np.float64] = np.sum([weight * side.mean(axis=0) for side, weight in zip(sides, weights, strict=True)], axis=0)
    return _Variance(trainings, groups.variance(means), (trainings**2 / spread if spread else 1, max(1, groups.n - 1)))


def _training_variance(answers: Correctness, groups: _Groups) -> float:
    """The variance of the mean of several runs that comes from training.

    The noise of single answers is subtracted, because the variance of the problems contains it already.
    """
    runs = answers.mean(axis=1)
    noise = answers - runs[:, None] - answers.mean(axis=0) + answers.mean()
    noise_variance = sum(groups.variance(row) for row in noise) / (len(answers) * (len(answers) - 1))
    return max(0.0, float(runs.var(ddof=1)) / len(answers) - noise_variance)


@dataclass(frozen=True)
class Comparison:
    """A paired comparison of two settings on the same problems.

    Attributes:
        difference: Accuracy of the second setting minus that of the first, -1..1.
        low, high: Ends of the 95 % interval, consistent with the test: the interval contains 0 where ``p`` is 0.05 or more. None where
            ``p`` is.
        p: Two-sided p-value. Where each setting is one run, it compares these two trained students: McNemar's exact test, or a test by
            templates. Otherwise it accounts for trainings and problems. None where one setting was trained once and the other several
            times, because the variance of the single training is unknown.
        repaired: Sample indices that most seeds of the first setting answer wrong and most of the second right.
        broken: Sample indices that most seeds of the first setting answer right and most of the second wrong.
    """

    difference: float
    low: float | None
    high: float | None
    p: float | None
    repaired: list[int]
    broken: list[int]


def compare(
    first: Correctness,
    second: Correctness,
    problems: Sequence[int],
    templates: Templates | None = None,
    fixed: tuple[bool, bool] = (False, False),
) -> Comparison:
    """Compare the second setting with the first.

    Args:
        first: Which answers of the first setting are correct, (seeds, problems).
        second: Which answers of the second setting are correct, (seeds, problems).
        problems: The sample index of each problem.
        templates: The template of each problem; None where templates are unknown.
        fixed: For each setting, whether its answers do not depend on the seed. A single run of such a setting has no variance of
            training.
    """
    before, after = first.mean(axis=0), second.mean(axis=0)
    repaired = [index for index, wrong, right in zip(problems, before < 0.5, after > 0.5, strict=True) if wrong and right]
    broken = [index for index, right, wrong in zip(problems, before > 0.5, after < 0.5, strict=True) if right and wrong]
    difference, groups = float(after.mean() - before.mean()), _Groups(len(problems), templates)
    if not _comparable((first, second), fixed):
        return Comparison(difference, None, None, None, repaired, broken)
    if len(first) > 1 or len(second) > 1:
        p, interval = _over_trainings(first, second, groups)
    else:
        p, interval = _mcnemar(first, second, groups) if groups.singletons else _by_template(first, second, groups)
    low, high = (min(interval[0], 0.0), max(interval[1], 0.0)) if p >= 2 * _TAIL else interval
    return Comparison(difference, low, high, p, repaired, broken)


def gain(first: Correctness, second: Correctness, problems: Sequence[int], templates: Templates | None = None) -> Comparison:
    """Compare two states of the same runs, such as two rounds: as :func:`compare`, but paired by run as well as by problem.

    Args:
        first: Which answers of the earlier state are correct, (runs, problems).
        second: Which answers of the later state are correct, with the runs in the same order.
        problems: The sample index of each problem.
        templates: The template of each problem; None where templates are unknown.
    """
    comparison = compare(first, second, problems, templates)
    if len(first) == 1:
        return comparison
    groups, gains = _Groups(len(problems), templates), second - first
    p, (low, high) = _test(comparison.difference, _sampling_variance([gains], [1.0], groups), groups)
    if p >= 2 * _TAIL:
        low, high = min(low, 0.0), max(high, 0.0)
    return replace(comparison, p=p, low=low, high=high)


def against_published(measured: AccuracyEstimate, n_seeds: int, published: float, n: int) -> tuple[float, float]:
    """The 95 % interval of the difference between a measured and a published accuracy (measured minus published).

    Both accuracies have the sampling error of their problems. The published one is that of a single training; with several measured
    seeds, their spread estimates its training error. The errors are combined by the root of their squares (Newcombe). With one seed the
    training error is unknown and left out.

    Args:
        measured: The measured accuracy.
        n_seeds: Trainings behind the measured accuracy.
        published: The published accuracy, 0..1.
        n: Number of test problems of the published accuracy.
    """
    low, high = wilson_interval(round(published * n), n)
    training = 0.0 if measured.spread is None else float(-special.stdtrit(n_seeds - 1, _TAIL)) * measured.spread
    difference = measured.mean - published
    below = np.linalg.norm([measured.mean - measured.low, high - published, training])
    above = np.linalg.norm([measured.high - measured.mean, published - low, training])
    return max(-1.0, difference - float(below)), min(1.0, difference + float(above))


def detectable(n_problems: int, n_seeds: int, accuracy: float = 0.5, spread: float = 0.03) -> float:
    """The smallest difference between the accuracies of two settings that a test at p < 0.05 detects with a power of 80 %.

    Answers to a problem are assumed to correlate by 0.4 within a setting and by 0.3 between the two settings. These correlations were
    measured between students of the same kind.

    Args:
        n_problems: Number of test problems, the same ones for both settings.
        n_seeds: Trainings of each setting. With one training the difference is that between two trained students, and the training error
            is left out.
        accuracy: Accuracy of the settings, 0..1.
        spread: Standard deviation of a setting's accuracy over trainings.
    """
    answer_variance = accuracy * (1 - accuracy)
    problems = 2 * answer_variance * (0.6 / n_seeds + 0.1) / n_problems
    trainings = 2 * spread**2 / n_seeds if n_seeds > 1 else 0.0
    freedom = max(1.0, 1.25 * (n_seeds - 1) - 0.25)  # effective degrees where both settings' variances are estimated, found by simulation
    variance = _Variance(trainings, problems, (freedom, max(1, n_problems - 1)))
    return (variance.quantile(_TAIL) + variance.quantile(0.2)) * float(np.sqrt(variance.total))


def _comparable(sides: Sequence[Correctness], fixed: Sequence[bool]) -> bool:
    """Whether a test exists: either every side is one run, or every side with one run is fixed, so that it has no training variance."""
    return max(map(len, sides)) == 1 or all(len(side) > 1 or is_fixed for side, is_fixed in zip(sides, fixed, strict=True))


def _mcnemar(first: Correctness, second: Correctness, groups: _Groups) -> tuple[float, tuple[float, float]]:
    """McNemar's exact test of two settings with one training each, and an interval that is consistent with it.

    The interval contains three others: the paired t interval, the exact interval given the number of problems on which the two differ,
    and the interval of differences that ``n`` problems can miss.
    """
    n, repaired, broken = first.size, int((second > first).sum()), int((first > second).sum())
    mean, variance = (repaired - broken) / n, _sampling_variance([first, second], [-1, 1], groups)
    intervals = [_interval(mean, _undetected_share(n)), _interval(mean, variance.half() if variance.total else 0.0)]
    if differing := repaired + broken:
        share = stats.binomtest(repaired, differing).proportion_ci(0.95, method="exact")
        intervals.append(((2 * share.low - 1) * differing / n, (2 * share.high - 1) * differing / n))
    return _sign_flips((second - first)[0]), (min(low for low, _ in intervals), max(high for _, high in intervals))


def _by_template(first: Correctness, second: Correctness, groups: _Groups) -> tuple[float, tuple[float, float]]:
    """Test of two settings with one training each: the larger p of a permutation test that exchanges templates and a t test over them."""
    differences = (second - first)[0]
    p, interval = _test(float(differences.mean()), _sampling_variance([first, second], [-1, 1], groups), groups)
    return max(p, _sign_flips(groups.sums(differences))), interval


def _sign_flips(sums: NDArray[np.float64]) -> float:
    """Exact two-sided p-value of a sum of integers whose signs are equally likely + or -; for terms of 1 it is McNemar's test."""
    terms = np.abs(sums[sums != 0]).astype(int)
    chances = np.ones(1)  # the probability of each sum, from -terms.sum() to terms.sum()
    for term in terms:
        longer = np.zeros(len(chances) + 2 * term)
        longer[: len(chances)] += chances / 2
        longer[2 * term :] += chances / 2
        chances = longer
    distances = np.abs(np.arange(len(chances)) - len(chances) // 2)
    return float(np.clip(chances[distances >= abs(sums.sum())].sum(), _LEAST_P, 1.0))


def _over_trainings(first: Correctness, second: Correctness, groups: _Groups) -> tuple[float, tuple[float, float]]:
    """Test and interval from the variance of the trainings and that of the problems' differences."""
    return _test(float(second.mean() - first.mean()), _sampling_variance([first, second], [-1, 1], groups), groups)


def _test(mean: float, variance: _Variance, groups: _Groups) -> tuple[float, tuple[float, float]]:
    """The p-value and the 95 % interval of a difference. Without any variance they follow from the number of groups that agree."""
    if variance.total:
        return variance.p(mean), _interval(mean, variance.half())
    return _unanimous_p(mean, groups), _interval(mean, _undetected_share(groups.n))


def _unanimous_p(mean: float, groups: _Groups) -> float:
    """The two-sided p-value where the differences of all groups have the same sign; 1 where all are 0."""
    return max(2.0 ** (1 - groups.n), _LEAST_P) if mean else 1.0


def _interval(difference: float, half: float) -> tuple[float, float]:
    """The interval of ``half`` to each side of a difference, cut at -1 and 1."""
    return max(-1.0, difference - half), min(1.0, difference + half)


def _undetected_share(n: int) -> float:
    """The upper 97.5 % confidence limit of the share of an event that occurs at none of ``n`` problems."""
    return float(1 - _TAIL ** (1 / n))


@dataclass(frozen=True)
class Trend:
    """Trend of the accuracy with the levels of an ordered setting.

    Attributes:
        direction: 1 where the accuracy rises, -1 where it falls, 0 where it does not change.
        p: Two-sided p-value; None where some levels were trained once and others several times.
        over: The test. ``runs``: a linear contrast, with the variance of trainings and problems. ``problems``: a permutation of each
            problem's answers over the levels, which holds for these trained students only. ``none``: no test.
    """

    direction: int
    p: float | None
    over: str


def trend(levels: Sequence[Correctness], templates: Templates | None = None, fixed: Sequence[bool] | None = None) -> Trend:
    """Test the trend of the accuracy with an ordered setting.

    Args:
        levels: Which answers are correct at each level, in increasing order of the setting; each (seeds, problems).
        templates: The template of each problem; None where templates are unknown.
        fixed: For each level, whether its answers do not depend on the seed. None: the answers of all levels do.
    """
    groups = _Groups(levels[0].shape[1], templates)
    weights = [place - (len(levels) - 1) / 2 for place in range(len(levels))]
    slope = round(float(np.dot(weights, [answers.mean() for answers in levels])), 12)
    direction = int(np.sign(slope))
    if not _comparable(levels, fixed or [False] * len(levels)):
        return Trend(direction, None, "none")
    if max(map(len, levels)) > 1:
        return Trend(direction, _test(slope, _sampling_variance(levels, weights, groups), groups)[0], "runs")
    if direction == 0 or groups.n < 2:
        return Trend(0, 1.0, "problems")
    return Trend(direction, _permutation_p([groups.sums(answers[0]) for answers in levels], weights), "problems")


def _permutation_p(levels: Sequence[NDArray[np.float64]], weights: Sequence[float]) -> float:
    """The p-value of a contrast from random permutations of the levels within each problem or template; never 0."""

    def slope(*columns: Any, axis: int) -> Any:
        return sum(weight * column.sum(axis=axis) for weight, column in zip(weights, columns, strict=True))

    options: dict[str, Any] = {"permutation_type": "samples", "vectorized": True, "n_resamples": _PERMUTATIONS, "batch": 500}
    result = stats.permutation_test(tuple(levels), slope, **options, rng=np.random.default_rng(0))
    return float(result.pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's correction of the p-values of one table for multiple tests. None means no test: it stays None and does not count."""
    from statsmodels.stats.multitest import multipletests  # imported here because it loads pandas, which a run does not need

    tested = [p for p in p_values if p is not None]
    corrected = iter(multipletests(tested, method="holm")[1] if tested else ())
    return [None if p is None else float(next(corrected)) for p in p_values]


def independence(first: Sequence[bool], second: Sequence[bool]) -> tuple[float, float]:
    """Whether two systems fail on the same problems more often than by chance.

    Args:
        first: Whether the first system fails on each problem.
        second: Whether the second system fails on each problem.

    Returns:
        The odds ratio of the failures, and the one-sided p-value of Fisher's exact test.
    """
    a, b = np.asarray(first, bool), np.asarray(second, bool)
    table = [[int((a & b).sum()), int((a & ~b).sum())], [int((~a & b).sum()), int((~a & ~b).sum())]]
    result = stats.fisher_exact(table, alternative="greater")
    return float(result.statistic), float(result.pvalue)
