"""What is signal and what is noise: intervals over seeds and problems, paired comparisons, trends, corrections for many tests.

Correct answers are arrays of ones and zeros, (seeds, problems): the same problems in the same order wherever two are compared.

One standard holds for means, differences and trends over several trainings. The sampling variance of a mean has two parts: that of the
trainings (between the runs' means) and that of the problems (between the problems' means). The noise of single answers is in both and is
counted once. The quantile is Cochran and Cox's: each part's t quantile, weighted by the part. ``benchmarks/report_statistics.py`` measures
coverage, type-I error and power.

Problems that share a template are not independent. Where templates are known they are the units: residuals are summed by template.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

CorrectShares = NDArray[np.float64]
Templates = Sequence[str]  # of each problem; problems of one template are answered alike

_FEW = 5  # right or wrong answers per run, below which their variance says too little
_PERMUTATIONS = 4999
_TAIL = 0.025
_LEAST_P = 1e-100  # smaller ones are rounded up to it: no p-value is 0


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion, as two numbers in 0..1; (0, 1) without observations."""
    if n == 0:
        return 0.0, 1.0
    interval = stats.binomtest(successes, n).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class AccuracyEstimate:
    """An accuracy.

    Attributes:
        mean: Over seeds and problems, 0..1.
        low, high: 95 % interval.
        spread: Standard deviation over seeds, None for one.
    """

    mean: float
    low: float
    high: float
    spread: float | None


def estimate(answers: CorrectShares, templates: Templates | None = None) -> AccuracyEstimate:
    """Mean accuracy and its interval.

    One seed: Wilson's interval, of this trained student. Several: Wilson's formula with the variance of seeds and problems in the place of
    the binomial one, and its quantile. Where a seed has fewer than five right, or wrong, answers, it is at least as wide as one seed's.
    """
    groups = _Groups(answers.shape[1], templates)
    n_seeds, n_problems = answers.shape
    mean = float(answers.mean())
    if n_seeds == 1 and groups.alone:
        return AccuracyEstimate(mean, *wilson_interval(int(answers.sum()), n_problems), None)
    error = _error([answers], [1.0], groups)
    if error.total:
        low, high = _wilson(mean, min(mean * (1 - mean) / error.total, answers.size), error.quantile(_TAIL))
    else:  # all alike, or one template: one observation
        low, high = _wilson(mean, n_problems if groups.n > 1 else 1, float(stats.norm.isf(_TAIL)))
    if min(mean, 1 - mean) * n_problems < _FEW:
        lower, upper = wilson_interval(round(mean * n_problems), n_problems)
        low, high = min(low, lower), max(high, upper)
    return AccuracyEstimate(mean, low, high, float(answers.mean(axis=1).std(ddof=1)) if n_seeds > 1 else None)


def of_counts(accuracies: Sequence[float], n_problems: int) -> AccuracyEstimate:
    """The same of accuracies whose single answers are not known, one for each seed: the noise of answers is in both parts."""
    mean = float(np.mean(accuracies))
    if len(accuracies) == 1:
        return AccuracyEstimate(mean, *wilson_interval(round(mean * n_problems), n_problems), None)
    spread = float(np.std(accuracies, ddof=1))
    error = _Error(spread**2 / len(accuracies), mean * (1 - mean) / n_problems, (len(accuracies) - 1, max(1, n_problems - 1)))
    if not error.total or mean in (0, 1):
        return AccuracyEstimate(mean, *wilson_interval(round(mean * n_problems), n_problems), spread)
    return AccuracyEstimate(mean, *_wilson(mean, mean * (1 - mean) / error.total, error.quantile(_TAIL)), spread)


def _wilson(mean: float, n: float, quantile: float) -> tuple[float, float]:
    """Wilson's interval of a proportion seen in ``n`` observations, which may be a fraction."""
    share = quantile**2 / n
    centre, half = (mean + share / 2) / (1 + share), quantile / (1 + share) * np.sqrt(mean * (1 - mean) / n + share / (4 * n))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


class _Groups:
    """Which problems belong together.

    Attributes:
        n: Number of groups.
        alone: Whether each problem is a group of its own.
    """

    def __init__(self, n_problems: int, templates: Templates | None) -> None:
        names = range(n_problems) if templates is None else templates
        assert len(names) == n_problems
        self._places = np.unique(np.asarray(names), return_inverse=True)[1]
        self.n = int(self._places.max()) + 1
        self.alone = self.n == n_problems

    def sums(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of each group, over its problems."""
        return np.bincount(self._places, weights=values, minlength=self.n).astype(np.float64)

    def variance(self, values: NDArray[np.float64]) -> float:
        """Of the mean of these values, by the groups' sums of residuals; 0 for a single group."""
        if self.n < 2:
            return 0.0
        return float((self.sums(values - values.mean()) ** 2).sum() * self.n / (self.n - 1) / len(values) ** 2)


@dataclass(frozen=True)
class _Error:
    """The sampling variance of a mean.

    Attributes:
        trainings, problems: Its parts.
        freedom: Degrees of freedom of each part.
    """

    trainings: float
    problems: float
    freedom: tuple[float, float]

    @cached_property
    def total(self) -> float:
        """Both parts."""
        return self.trainings + self.problems

    def quantile(self, tail: float) -> float:
        """How many standard errors leave so much on one side: Cochran and Cox's mean of the parts' t quantiles."""
        parts = [(variance, freedom) for variance, freedom in zip((self.trainings, self.problems), self.freedom, strict=True) if variance]
        return float(sum(variance * -special.stdtrit(freedom, tail) for variance, freedom in parts) / self.total)  # stats.t.isf, faster

    def half(self) -> float:
        """Half the width of a 95 % interval."""
        return self.quantile(_TAIL) * float(np.sqrt(self.total))

    def p(self, mean: float) -> float:
        """Two-sided, of this mean where the true one is 0: the level at which the interval would end at 0."""
        distance = abs(mean) / float(np.sqrt(self.total))
        if distance == 0:
            return 1.0
        if self.quantile(_LEAST_P / 2) <= distance:
            return _LEAST_P
        found = optimize.brentq(lambda log: self.quantile(np.exp(log) / 2) - distance, np.log(_LEAST_P), 0.0)
        return float(np.exp(found))


def _error(sides: Sequence[CorrectShares], weights: Sequence[float], groups: _Groups) -> _Error:
    """The sampling variance of a weighted sum of the sides' means; a side of one run brings no variance of trainings."""
    parts = [(weight**2 * _of_trainings(side, groups), len(side) - 1) for side, weight in zip(sides, weights, strict=True) if len(side) > 1]
    trainings = sum(variance for variance, _ in parts)
    spread = sum(variance**2 / freedom for variance, freedom in parts)  # Satterthwaite
    means: NDArray[np.float64] = np.sum([weight * side.mean(axis=0) for side, weight in zip(sides, weights, strict=True)], axis=0)
    return _Error(trainings, groups.variance(means), (trainings**2 / spread if spread else 1, max(1, groups.n - 1)))


def _of_trainings(answers: CorrectShares, groups: _Groups) -> float:
    """The variance that training brings to the mean of several runs, without the noise of single answers, which problems bring too."""
    runs = answers.mean(axis=1)
    noise = answers - runs[:, None] - answers.mean(axis=0) + answers.mean()
    of_noise = sum(groups.variance(row) for row in noise) / (len(answers) * (len(answers) - 1))
    return max(0.0, float(runs.var(ddof=1)) / len(answers) - of_noise)


@dataclass(frozen=True)
class Comparison:
    """One setting against another on the same problems.

    Attributes:
        difference: Of the accuracies, second minus first, -1..1.
        low, high: 95 % interval that goes with the test: where ``p`` is 0.05 or more it holds 0.
        p: Of the two trained students as they are where each side is one run: exact McNemar, or by templates. Else over trainings and
            problems. None where one side was trained once and the other several times: nobody knows how much the one would vary.
        repaired, broken: Sample indices that most seeds answer wrongly in the first and rightly in the second, and the reverse.
    """

    difference: float
    low: float | None
    high: float | None
    p: float | None
    repaired: list[int]
    broken: list[int]


def compare(
    first: CorrectShares,
    second: CorrectShares,
    problems: Sequence[int],
    templates: Templates | None = None,
    fixed: tuple[bool, bool] = (False, False),
) -> Comparison:
    """The second setting against the first.

    Args:
        first: Which answers of the first setting are correct, (seeds, problems).
        second: The same of the second setting.
        problems: Their sample indices.
        templates: Of each problem; None where nobody knows them.
        fixed: Of each side, whether its answers do not depend on the seed: its one run is all there is.
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
        p, interval = _exact(first, second, groups) if groups.alone else _by_template(first, second, groups)
    low, high = (min(interval[0], 0.0), max(interval[1], 0.0)) if p >= 2 * _TAIL else interval
    return Comparison(difference, low, high, p, repaired, broken)


def gain(first: CorrectShares, second: CorrectShares, problems: Sequence[int], templates: Templates | None = None) -> Comparison:
    """As :func:`compare`, where each run of the first side is the beginning of the same run of the second: paired by run."""
    found = compare(first, second, problems, templates)
    if len(first) == 1:
        return found
    groups, each = _Groups(len(problems), templates), second - first
    p, (low, high) = _tested(found.difference, _error([each], [1.0], groups), groups)
    if p >= 2 * _TAIL:
        low, high = min(low, 0.0), max(high, 0.0)
    return replace(found, p=p, low=low, high=high)


def against_published(measured: AccuracyEstimate, n_seeds: int, published: float, n: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy's difference to a published one, which is that of one training on as many problems.

    Both have the sampling error of their problems, and with several seeds the published one has that of one more training. The parts are
    joined by their squares (Newcombe). With one seed the error of training is unknown and left out.
    """
    low, high = wilson_interval(round(published * n), n)
    training = 0.0 if measured.spread is None else float(-special.stdtrit(n_seeds - 1, _TAIL)) * measured.spread
    difference = measured.mean - published
    below = np.linalg.norm([measured.mean - measured.low, high - published, training])
    above = np.linalg.norm([measured.high - measured.mean, published - low, training])
    return max(-1.0, difference - float(below)), min(1.0, difference + float(above))


def detectable(n_problems: int, n_seeds: int, accuracy: float = 0.5, spread: float = 0.03) -> float:
    """The smallest difference of two settings' accuracies that is found with a power of 80 % at p < 0.05.

    Assumes correlations of answers to a problem of 0.4 within a setting and 0.3 between the two, as was seen between students of one kind.

    Args:
        n_problems: Tested, the same for both.
        n_seeds: Trainings of each setting. With one the difference is that of two trained students, without the error of training.
        accuracy: Of the settings.
        spread: Standard deviation of a setting's accuracy over trainings.
    """
    each = accuracy * (1 - accuracy)
    problems = 2 * each * (0.6 / n_seeds + 0.1) / n_problems
    trainings = 2 * spread**2 / n_seeds if n_seeds > 1 else 0.0
    freedom = max(1.0, 1.25 * (n_seeds - 1) - 0.25)  # of twice as many, what is left where two variances are estimated: by simulation
    error = _Error(trainings, problems, (freedom, max(1, n_problems - 1)))
    return (error.quantile(_TAIL) + error.quantile(0.2)) * float(np.sqrt(error.total))


def _comparable(sides: Sequence[CorrectShares], fixed: Sequence[bool]) -> bool:
    """Whether no side is a single training beside several ones."""
    return max(map(len, sides)) == 1 or all(len(side) > 1 or known for side, known in zip(sides, fixed, strict=True))


def _exact(first: CorrectShares, second: CorrectShares, groups: _Groups) -> tuple[float, tuple[float, float]]:
    """McNemar's exact test of one training each, and an interval that does not contradict it.

    It holds the paired t interval, the exact one given how many problems the two differ in, and what may differ though nothing was seen to.
    """
    n, repaired, broken = first.size, int((second > first).sum()), int((first > second).sum())
    mean, error = (repaired - broken) / n, _error([first, second], [-1, 1], groups)
    intervals = [_around(mean, _unseen(n)), _around(mean, error.half() if error.total else 0.0)]
    if differing := repaired + broken:
        share = stats.binomtest(repaired, differing).proportion_ci(0.95, method="exact")
        intervals.append(((2 * share.low - 1) * differing / n, (2 * share.high - 1) * differing / n))
    return _sign_flips((second - first)[0]), (min(low for low, _ in intervals), max(high for _, high in intervals))


def _by_template(first: CorrectShares, second: CorrectShares, groups: _Groups) -> tuple[float, tuple[float, float]]:
    """One training each: the larger p of exchanging the two within whole templates, and of a t test over templates."""
    differences = (second - first)[0]
    p, interval = _tested(float(differences.mean()), _error([first, second], [-1, 1], groups), groups)
    return max(p, _sign_flips(groups.sums(differences))), interval


def _sign_flips(sums: NDArray[np.float64]) -> float:
    """Exact two-sided p of a sum whose whole-number terms might as well have the other sign; McNemar's where they are ones."""
    terms = np.abs(sums[sums != 0]).astype(int)
    chances = np.ones(1)  # of each sum, from -terms.sum() to terms.sum()
    for term in terms:
        longer = np.zeros(len(chances) + 2 * term)
        longer[: len(chances)] += chances / 2
        longer[2 * term :] += chances / 2
        chances = longer
    places = np.abs(np.arange(len(chances)) - len(chances) // 2)
    return float(np.clip(chances[places >= abs(sums.sum())].sum(), _LEAST_P, 1.0))


def _over_trainings(first: CorrectShares, second: CorrectShares, groups: _Groups) -> tuple[float, tuple[float, float]]:
    """Test and interval with the variance of the trainings and that of the problems' differences."""
    return _tested(float(second.mean() - first.mean()), _error([first, second], [-1, 1], groups), groups)


def _tested(mean: float, error: _Error, groups: _Groups) -> tuple[float, tuple[float, float]]:
    """A difference against 0; where nothing varies, by how many groups agree."""
    if error.total:
        return error.p(mean), _around(mean, error.half())
    return _unanimous(mean, groups), _around(mean, _unseen(groups.n))


def _unanimous(mean: float, groups: _Groups) -> float:
    """The p of all groups having one sign."""
    return max(2.0 ** (1 - groups.n), _LEAST_P) if mean else 1.0


def _around(difference: float, half: float) -> tuple[float, float]:
    """An interval, within what differences of shares can be."""
    return max(-1.0, difference - half), min(1.0, difference + half)


def _unseen(n: int) -> float:
    """The largest share of problems that may be otherwise, with 97.5 % confidence, though none of ``n`` was seen to be."""
    return float(1 - 0.025 ** (1 / n))


@dataclass(frozen=True)
class Trend:
    """Whether accuracy moves with an ordered setting.

    Attributes:
        direction: 1 where it rises, -1 where it falls, 0 where it does not move.
        p: Two-sided; None where some levels were trained once and others several times.
        over: ``runs``: a linear contrast over trainings and problems; ``problems``: a permutation of each problem's answers over the
            levels, which takes the trained students as they are; ``none``: no test.
    """

    direction: int
    p: float | None
    over: str


def trend(levels: Sequence[CorrectShares], templates: Templates | None = None, fixed: Sequence[bool] | None = None) -> Trend:
    """The trend over answers in increasing order of the setting.

    Args:
        levels: Which answers are correct at each value of the setting, each (seeds, problems).
        templates: Of each problem; None where nobody knows them.
        fixed: Of each level, whether its answers do not depend on the seed; None: all do.
    """
    groups = _Groups(levels[0].shape[1], templates)
    weights = [place - (len(levels) - 1) / 2 for place in range(len(levels))]
    slope = round(float(np.dot(weights, [answers.mean() for answers in levels])), 12)
    direction = int(np.sign(slope))
    if not _comparable(levels, fixed or [False] * len(levels)):
        return Trend(direction, None, "none")
    if max(map(len, levels)) > 1:
        return Trend(direction, _tested(slope, _error(levels, weights, groups), groups)[0], "runs")
    if direction == 0 or groups.n < 2:
        return Trend(0, 1.0, "problems")
    return Trend(direction, _permuted([groups.sums(answers[0]) for answers in levels], weights), "problems")


def _permuted(levels: Sequence[NDArray[np.float64]], weights: Sequence[float]) -> float:
    """The p of a contrast by exchanging the levels within each problem or template; at least one of the permutations drawn."""

    def rise(*columns: Any, axis: int) -> Any:
        return sum(weight * column.sum(axis=axis) for weight, column in zip(weights, columns, strict=True))

    result = stats.permutation_test(
        tuple(levels), rise, permutation_type="samples", vectorized=True, n_resamples=_PERMUTATIONS, batch=500, rng=np.random.default_rng(0)
    )
    return float(result.pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's correction: p-values of one table that keep their family-wise error. None, no test, stays and does not count."""
    from statsmodels.stats.multitest import multipletests  # here: it brings pandas, which a run has no use for

    tested = [p for p in p_values if p is not None]
    corrected = iter(multipletests(tested, method="holm")[1] if tested else ())
    return [None if p is None else float(next(corrected)) for p in p_values]


def independence(first: Sequence[bool], second: Sequence[bool]) -> tuple[float, float]:
    """Whether two fail on the same problems: the odds ratio of their failures, and Fisher's exact p (one-sided: more than chance)."""
    a, b = np.asarray(first, bool), np.asarray(second, bool)
    table = [[int((a & b).sum()), int((a & ~b).sum())], [int((~a & b).sum()), int((~a & ~b).sum())]]
    result = stats.fisher_exact(table, alternative="greater")
    return float(result.statistic), float(result.pvalue)
