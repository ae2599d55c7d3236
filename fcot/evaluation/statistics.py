"""What is signal and what is noise: intervals over seeds and problems, paired comparisons, trends, corrections for many tests.

Answers are arrays of ones and zeros, (seeds, problems): the same problems in the same order wherever two are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Answers = NDArray[np.float64]

_RESAMPLES = 4000
_FEW = 5  # right or wrong answers, below which a bootstrap's percentiles say too little
_SEEDS = 1  # of the generator that draws runs; that of problems has another
_PERMUTATIONS = 4999


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion, as two numbers in 0..1; (0, 1) without observations."""
    if n == 0:
        return 0.0, 1.0
    interval = stats.binomtest(successes, n).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class Estimate:
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


def estimate(answers: Answers) -> Estimate:
    """Mean accuracy and its interval: Wilson's for one seed, else a hierarchical bootstrap over seeds and, within, problems.

    Where a seed has fewer than five right, or wrong, answers, the bootstrap's interval is too narrow: it is as wide as Wilson's at least.
    """
    n_seeds, n_problems = answers.shape
    mean = float(answers.mean())
    if n_seeds == 1:
        return Estimate(mean, *wilson_interval(int(answers.sum()), n_problems), None)
    low, high = (float(end) for end in np.percentile(_resampled(answers, np.random.default_rng(_SEEDS)), [2.5, 97.5]))
    if min(mean, 1 - mean) * n_problems < _FEW:  # of all or nothing every resample is alike; of next to nothing, nearly
        lower, upper = wilson_interval(round(mean * n_problems), n_problems)
        low, high = min(low, lower), max(high, upper)
    return Estimate(mean, low, high, float(answers.mean(axis=1).std(ddof=1)))


def _resampled(answers: Answers, rng: np.random.Generator) -> NDArray[np.float64]:
    """Means of resamples: seeds with replacement, then problems with replacement, the same ones for all seeds."""
    n_seeds, n_problems = answers.shape
    seeds = rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), size=_RESAMPLES)
    return np.einsum("rp,rp->r", seeds @ answers, _drawn(n_problems)) / (n_seeds * n_problems)


@lru_cache(maxsize=1)
def _drawn(n: int) -> NDArray[np.float64]:
    """How often each of ``n`` problems stands in each resample, the same whatever is resampled: comparisons are paired by it."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=_RESAMPLES).astype(np.float64)


@dataclass(frozen=True)
class Comparison:
    """One setting against another on the same problems.

    Attributes:
        difference: Of the accuracies, second minus first, -1..1.
        low, high: 95 % interval by a paired bootstrap, in which both sides have the same resampled problems, and at least as wide
            as the one that goes with the test: where ``p`` is 0.05 or more it holds 0.
        p: Exact McNemar for one seed each, which takes the two trained students as they are; else Welch's t test with the
            variance of the runs' means and that of the problems' differences together.
        repaired, broken: Sample indices that most seeds answer wrongly in the first and rightly in the second, and the reverse.
    """

    difference: float
    low: float
    high: float
    p: float
    repaired: list[int]
    broken: list[int]


def compare(first: Answers, second: Answers, problems: Sequence[int]) -> Comparison:
    """The second setting against the first, on these sample indices."""
    rng = np.random.default_rng(_SEEDS)
    resampled = np.percentile(_resampled(second, rng) - _resampled(first, rng), [2.5, 97.5])
    before, after = first.mean(axis=0), second.mean(axis=0)
    repaired = [index for index, wrong, right in zip(problems, before < 0.5, after > 0.5, strict=True) if wrong and right]
    broken = [index for index, right, wrong in zip(problems, before > 0.5, after < 0.5, strict=True) if right and wrong]
    test = _exact if len(first) == len(second) == 1 else _welch
    p, tested = test(first, second)
    low, high = min(resampled[0], tested[0]), max(resampled[1], tested[1])
    return Comparison(float(after.mean() - before.mean()), float(low), float(high), p, repaired, broken)


def _exact(first: Answers, second: Answers) -> tuple[float, tuple[float, float]]:
    """McNemar's exact test, and the interval it goes with: of one training each, given how many problems they differ in.

    Where that is none, what share of problems they may differ in nevertheless.
    """
    from statsmodels.stats.contingency_tables import mcnemar  # here: it brings pandas, which a run has no use for

    table = np.array([[((first == a) & (second == b)).sum() for b in (1, 0)] for a in (1, 0)])
    p, n = float(mcnemar(table, exact=True).pvalue), first.size
    broken, repaired = int(table[0, 1]), int(table[1, 0])
    # Of few, that they differ in just so many is chance as well: as wide as where there are none.
    low, high = _around((repaired - broken) / n, _unseen(n))
    if differing := repaired + broken:
        share = stats.binomtest(repaired, differing).proportion_ci(0.95, method="exact")
        low, high = min(low, (2 * share.low - 1) * differing / n), max(high, (2 * share.high - 1) * differing / n)
    return p, (low, high)


def _welch(first: Answers, second: Answers) -> tuple[float, tuple[float, float]]:
    """Welch's t test and interval with the variance of the runs' means and that of the problems' differences together."""
    differences = second.mean(axis=0) - first.mean(axis=0)
    mean, n = float(differences.mean()), len(differences)
    of_runs = [_of_runs(side, other) for side, other in ((first, second), (second, first))]
    parts = [*of_runs, (_variance(differences) / n, n - 1)]
    total = sum(variance for variance, _ in parts)
    if not total:
        return (1.0 if not mean else 0.0), _around(mean, _unseen(n))
    freedom = total**2 / sum(variance**2 / degrees for variance, degrees in parts if variance)  # Welch and Satterthwaite
    error = float(np.sqrt(total))
    return float(2 * stats.t.sf(abs(mean) / error, freedom)), _around(mean, float(stats.t.ppf(0.975, freedom)) * error)


def _around(difference: float, half: float) -> tuple[float, float]:
    """An interval, within what differences of shares can be."""
    return max(-1.0, difference - half), min(1.0, difference + half)


def _unseen(n: int) -> float:
    """The largest share of problems that may be otherwise, with 97.5 % confidence, though none of ``n`` was seen to be."""
    return float(1 - 0.025 ** (1 / n))


def _of_runs(side: Answers, other: Answers) -> tuple[float, int]:
    """The variance of a side's mean that training brings, and its degrees of freedom; one run borrows the other side's spread."""
    known = side if len(side) > 1 else other
    return _variance(known.mean(axis=1)) / len(side), len(known) - 1


def _variance(sample: NDArray[np.float64]) -> float:
    return float(sample.var(ddof=1)) if len(sample) > 1 else 0.0


@dataclass(frozen=True)
class Trend:
    """Whether accuracy moves with an ordered setting.

    Attributes:
        direction: 1 where it rises, -1 where it falls, 0 where it does not move.
        p: Two-sided.
        over: ``runs``: Kendall's tau of the runs' accuracies against the setting, which counts the chance of training; or
            ``problems``: a permutation of each problem's answers over the levels, which takes the trained students as they are.
    """

    direction: int
    p: float
    over: str


def trend(levels: Sequence[Answers]) -> Trend:
    """The trend over answers in increasing order of the setting; by runs where every level has three seeds or more."""
    if min(len(answers) for answers in levels) >= 3:
        places = [place for place, answers in enumerate(levels) for _ in answers]
        tau = stats.kendalltau(places, [mean for answers in levels for mean in answers.mean(axis=1)])
        return Trend(int(np.nan_to_num(np.sign(tau.statistic))), float(np.nan_to_num(tau.pvalue, nan=1.0)), "runs")
    weights = np.arange(len(levels)) - (len(levels) - 1) / 2
    direction = int(np.sign(round(float(weights @ [answers.mean() for answers in levels]), 12)))
    per_problem = tuple(answers.mean(axis=0) for answers in levels)
    if direction == 0 or len(per_problem[0]) < 2:
        return Trend(0, 1.0, "problems")

    def rise(*columns: Any, axis: int) -> Any:
        return sum(weight * column.sum(axis=axis) for weight, column in zip(weights, columns, strict=True))

    result = stats.permutation_test(
        per_problem, rise, permutation_type="samples", vectorized=True, n_resamples=_PERMUTATIONS, batch=500, rng=np.random.default_rng(0)
    )
    return Trend(direction, float(result.pvalue), "problems")


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: p-values of one table that keep their family-wise error."""
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(p_values, method="holm")[1]] if p_values else []


def independence(first: Sequence[bool], second: Sequence[bool]) -> tuple[float, float]:
    """Whether two fail on the same problems: the odds ratio of their failures, and Fisher's exact p (one-sided: more than chance)."""
    a, b = np.asarray(first, bool), np.asarray(second, bool)
    table = [[int((a & b).sum()), int((a & ~b).sum())], [int((~a & b).sum()), int((~a & ~b).sum())]]
    result = stats.fisher_exact(table, alternative="greater")
    return float(result.statistic), float(result.pvalue)
