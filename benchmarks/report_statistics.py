"""Measures coverage, type-I error and power of the report's statistics, and of the methods that they replaced.

    python benchmarks/report_statistics.py [DRAWS]

Answers are drawn from a latent probit model. Half of the latent variance belongs to the problem, 0.15 to the interaction of setting and
problem, the rest to the run. A run's accuracy over all problems follows a Beta distribution with the given standard deviation. Prints
Markdown; every rate has its standard error. (A file named statistics.py would hide Python's own module from all scripts in this folder.)
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import ndtri

from fcot.evaluation.statistics import against_published, compare, detectable, estimate, trend, wilson_interval

Array = NDArray[np.float64]
Interval = tuple[float, float]
_RESAMPLES = 500  # resamples of the old bootstrap, which used 4,000
_EVERY = 4  # methods that resample are slow: they get only every fourth draw
_PROBLEM, _PROFILE = 0.5, 0.15  # shares of the latent variance
_SIZES = (111, 405, 1319)
_PAIRS = ("sd", "n", "seeds", "type I, before", "type I, now", "power +10, before", "power +10, now")


# --- simulated answers -----------------------------------------------------------------------------------------------


def run_accuracies(rng: np.random.Generator, mean: float, sd: float, seeds: int) -> Array:
    """Draw the accuracies of several trainings over all problems."""
    if sd == 0:
        return np.full(seeds, mean)
    size = mean * (1 - mean) / sd**2 - 1
    return np.clip(rng.beta(mean * size, (1 - mean) * size, seeds), 1e-6, 1 - 1e-6)


def answers(rng: np.random.Generator, accuracies: Array, problems: Array, problem_share: float = _PROBLEM) -> Array:
    """Draw a setting's answers, (seeds, problems): 1 if correct.

    Args:
        rng: The random generator.
        accuracies: Accuracy of each training over all problems, (seeds,).
        problems: Difficulty of each problem, standard normal, (problems,).
        problem_share: Share of the latent variance that belongs to the problem.
    """
    n = len(problems)
    profile, own = rng.standard_normal(n), rng.standard_normal((len(accuracies), n))
    shared = np.sqrt(problem_share) * problems + np.sqrt(_PROFILE) * profile
    latent = shared + np.sqrt(1 - problem_share - _PROFILE) * own
    return (latent < ndtri(accuracies)[:, None]).astype(np.float64)


def setting(rng: np.random.Generator, mean: float, sd: float, seeds: int, problems: Array) -> Array:
    """Draw a setting's answers, (seeds, problems), with accuracies of this mean and standard deviation."""
    return answers(rng, run_accuracies(rng, mean, sd, seeds), problems)


def by_template(
    rng: np.random.Generator, accuracy: float, templates: int, size: int, template_share: float, level: Array | None = None
) -> Array:
    """Draw one training's answers, (1, problems), to problems that are similar within a template.

    Args:
        rng: The random generator.
        accuracy: Accuracy over all problems.
        templates: Number of templates.
        size: Problems per template.
        template_share: Share of the latent variance that belongs to the template.
        level: The part of the templates' difficulty that all trainings share, (templates,); None: they share none.
    """
    own = rng.standard_normal(templates)
    of_template = own if level is None else np.sqrt(0.5) * (own + level)
    latent = np.sqrt(template_share) * of_template.repeat(size) + np.sqrt(1 - template_share) * rng.standard_normal(templates * size)
    return (latent < ndtri(accuracy)).astype(np.float64)[None]


# --- the replaced methods --------------------------------------------------------------------------------------------


def old_estimate(sample: Array, rng: np.random.Generator) -> Interval:
    """The interval of an accuracy by the percentile bootstrap over seeds and problems."""
    seeds, n = sample.shape
    resampled = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=_RESAMPLES) @ sample
    counts = rng.multinomial(n, np.full(n, 1 / n), size=_RESAMPLES)
    low, high = np.percentile(np.einsum("rp,rp->r", resampled, counts) / (seeds * n), [2.5, 97.5])
    return float(low), float(high)


def old_compare(first: Array, second: Array) -> float:
    """The p-value by Welch's test, which counted the noise of answers twice; a single run borrowed the other side's variance."""
    differences = second.mean(axis=0) - first.mean(axis=0)
    parts = [(float(differences.var(ddof=1)) / len(differences), len(differences) - 1)]
    for side, other in ((first, second), (second, first)):
        known = side if len(side) > 1 else other
        parts.append((float(known.mean(axis=1).var(ddof=1)) / len(side), len(known) - 1))
    total = sum(variance for variance, _ in parts)
    freedom = total**2 / sum(variance**2 / degrees for variance, degrees in parts)
    return float(2 * stats.t.sf(abs(differences.mean()) / np.sqrt(total), freedom))


def old_trend(levels: Sequence[Array], rng: np.random.Generator) -> float:
    """The p-value by Kendall's test over runs with three or more seeds, else by permuting each problem's answers over the levels."""
    if min(map(len, levels)) >= 3:
        places = [place for place, level in enumerate(levels) for _ in level]
        p = stats.kendalltau(places, np.concatenate([level.mean(axis=1) for level in levels])).pvalue
        return float(np.nan_to_num(p, nan=1.0))
    table, weights = np.array([level.mean(axis=0) for level in levels]), np.arange(len(levels)) - (len(levels) - 1) / 2
    slopes = [abs(weights @ rng.permuted(table, axis=0).sum(axis=1)) for _ in range(199)]
    return (1 + sum(slope >= abs(weights @ table.sum(axis=1)) - 1e-9 for slope in slopes)) / 200


# --- the tables ------------------------------------------------------------------------------------------------------


def rate(hits: Sequence[bool]) -> str:
    """The share of hits in percent, with its standard error."""
    share = float(np.mean(hits))
    return f"{100 * share:.1f} ± {100 * np.sqrt(share * (1 - share) / len(hits)):.1f}"


def coverage(rng: np.random.Generator, draws: int) -> Iterator[Sequence[str]]:
    """Coverage of the interval of the mean over trainings and problems."""
    cells = [(accuracy, sd, n, 3) for accuracy in (0.2, 0.5, 0.8) for sd in (0.0, 0.03, 0.08) for n in _SIZES]
    cells += [(0.2, sd, 405, seeds) for seeds in (2, 5) for sd in (0.0, 0.03, 0.08)]
    cells += [(accuracy, sd, 405, 3) for accuracy in (0.02, 0.97) for sd in (0.0, 0.03)]
    for accuracy, sd, n, seeds in cells:
        covered: list[list[bool]] = [[], []]  # before, now
        widths: list[list[float]] = [[], []]
        for number in range(draws):
            sample = setting(rng, accuracy, sd, seeds, rng.standard_normal(n))
            now = estimate(sample)
            intervals = [(1, (now.low, now.high)), *([(0, old_estimate(sample, rng))] if number % _EVERY == 0 else [])]
            for place, (low, high) in intervals:
                covered[place].append(low <= accuracy <= high)
                widths[place].append(100 * (high - low))
        results = (f"{rate(hits)} ({np.mean(width):.0f})" for hits, width in zip(covered, widths, strict=True))
        yield f"{100 * accuracy:.0f} %", f"{100 * sd:.0f}", str(n), str(seeds), *results


def comparisons(rng: np.random.Generator, draws: int) -> Iterator[Sequence[str]]:
    """Comparisons of two settings at 50 %; for power, the second one is 10 points better."""
    cells = [(seeds, sd, n) for seeds in ((2, 2), (3, 3), (5, 5)) for sd in ((0.0,) * 2, (0.03,) * 2, (0.08,) * 2) for n in _SIZES]
    cells += [((3, 3), (0.08, 0.01), 405), ((1, 3), (0.03, 0.03), 405), ((1, 3), (0.08, 0.01), 405)]
    for seeds, sd, n in cells:
        rejected: list[list[bool]] = [[], [], [], []]  # type I before and now, power before and now
        for _ in range(draws):
            for place, gain in ((0, 0.0), (2, 0.1)):
                problems = rng.standard_normal(n)
                first, second = setting(rng, 0.5, sd[0], seeds[0], problems), setting(rng, 0.5 + gain, sd[1], seeds[1], problems)
                rejected[place].append(old_compare(first, second) < 0.05)
                p = compare(first, second, range(n)).p
                rejected[place + 1] += [] if p is None else [p < 0.05]
        spread = f"{100 * sd[0]:.0f}" if sd[0] == sd[1] else f"{100 * sd[0]:.0f} v {100 * sd[1]:.0f}"
        yield spread, str(n), f"{seeds[0]} v {seeds[1]}", *(rate(hits) if hits else "no test" for hits in rejected)


def trends(rng: np.random.Generator, draws: int) -> Iterator[Sequence[str]]:
    """Trends over levels at 50 %; for power, the last level is 10 points higher."""
    for levels, seeds in ((3, 2), (3, 3), (3, 5), (7, 3)):
        for sd in (0.0, 0.03, 0.08):
            for n in (111, 405):
                rejected: list[list[bool]] = [[], [], [], []]  # type I before and now, power before and now
                for number in range(draws):
                    for place, gain in ((0, 0.0), (2, 0.1)):
                        problems = rng.standard_normal(n)
                        samples = [setting(rng, 0.5 + gain * level / (levels - 1), sd, seeds, problems) for level in range(levels)]
                        if seeds > 2 or number % _EVERY == 0:
                            rejected[place].append(old_trend(samples, rng) < 0.05)
                        p = trend(samples).p
                        assert p is not None
                        rejected[place + 1].append(p < 0.05)
                yield f"{100 * sd:.0f}", str(n), f"{levels} x {seeds}", *map(rate, rejected)


def copies(rng: np.random.Generator, draws: int) -> Iterator[Sequence[str]]:
    """Trends over three levels whose runs do not depend on the seed, with three copies of each run.

    The replaced method counted nine runs; the present one counts three.
    """
    for n in (111, 405):
        before, now = [], []
        for _ in range(min(draws, 200)):
            problems = rng.standard_normal(n)
            once = [setting(rng, 0.5, 0.0, 1, problems) for _ in range(3)]
            before.append(old_trend([level.repeat(3, axis=0) for level in once], rng) < 0.05)
            p = trend(once, fixed=[True] * 3).p
            now.append(p is not None and p < 0.05)
        yield str(n), rate(before), rate(now)


def templates(rng: np.random.Generator, draws: int) -> Iterator[Sequence[str]]:
    """Coverage for one training, type-I error of comparing two, and power at +15 points, with similar problems within templates."""
    for groups, size, template_share in ((12, 9, 0.35), (35, 5, 0.42), (64, 6, 0.2), (100, 2, 0.3), (111, 1, 0.0)):
        names = [str(number // size) for number in range(groups * size)]
        covered: list[list[bool]] = [[], []]  # before, now
        rejected: list[list[bool]] = [[], [], [], []]  # type I before and now, power before and now
        for _ in range(draws):
            sample = by_template(rng, 0.4, groups, size, template_share)
            for place, known in enumerate((None, names)):
                interval = estimate(sample, known)
                covered[place].append(interval.low <= 0.4 <= interval.high)
            for gain in (0, 1):
                level = rng.standard_normal(groups)
                sides = [by_template(rng, 0.4 + 0.15 * gain * side, groups, size, template_share, level) for side in (0, 1)]
                for place, known in enumerate((None, names)):
                    p = compare(sides[0], sides[1], range(len(names)), known).p
                    assert p is not None
                    rejected[2 * gain + place].append(p < 0.05)
        yield f"{groups} x {size}", f"{template_share:.2f}", *map(rate, covered), *map(rate, rejected)


def replications(rng: np.random.Generator, draws: int) -> Iterator[Sequence[str]]:
    """How often the report says "not covered" of an exact replication: another training with the same problems."""
    for n, accuracy in ((111, 0.8), (180, 0.15), (300, 0.1), (1319, 0.07)):
        for sd in (0.0, 0.02, 0.04):
            cells: list[str] = []
            for seeds in (1, 3):
                before, now = [], []
                for number in range(draws):
                    problems = rng.standard_normal(n)
                    paper = float(setting(rng, accuracy, sd, 1, problems).mean())
                    ours = answers(rng, run_accuracies(rng, accuracy, sd, seeds), problems)
                    low, high = against_published(estimate(ours), seeds, paper, n)
                    if seeds == 1 or number % _EVERY == 0:
                        old = wilson_interval(int(ours.sum()), n) if seeds == 1 else old_estimate(ours, rng)
                        before.append(not old[0] <= paper <= old[1])
                    now.append(not low <= 0 <= high)
                cells += [rate(before), rate(now)]
            yield f"{100 * accuracy:.0f} %", str(n), f"{100 * sd:.0f}", *cells


def promises(rng: np.random.Generator, draws: int) -> Iterator[Sequence[str]]:
    """The power at the smallest difference that a dry run says can be shown; it should be 80 %."""
    for n in _SIZES:
        for seeds in (1, 3, 5):
            difference, rejected = detectable(n, seeds), []
            sd = 0.03 if seeds > 1 else 0.0
            for _ in range(draws):
                problems = rng.standard_normal(n)
                low, high = (setting(rng, 0.5 + side * difference / 2, sd, seeds, problems) for side in (-1, 1))
                p = compare(low, high, range(n)).p
                rejected.append(p is not None and p < 0.05)
            yield str(n), str(seeds), f"{100 * difference:.1f}", rate(rejected)


Table = Callable[[np.random.Generator, int], Iterator[Sequence[str]]]
_TABLES: Sequence[tuple[str, Table, Sequence[str]]] = (
    ("Coverage of the 95 % interval of an accuracy (width in points)", coverage, ("accuracy", "sd", "n", "seeds", "before", "now")),
    ("Comparisons at 50 %", comparisons, _PAIRS),
    ("Trends at 50 %; levels x seeds", trends, _PAIRS),
    ("Trends over three copies of each of three runs, no trend: rejected", copies, ("n", "before", "now")),
    ("Templates x problems, one training at 40 %", templates, (
        "templates", "template share", "coverage, before", "now", "type I, before", "now", "power +15, before", "now",
    )),
    ("An exact replication is 'not covered'", replications, ("accuracy", "n", "sd", "1 seed, before", "now", "3 seeds, before", "now")),
    ("Power at the difference that a dry run names", promises, ("n", "seeds", "points", "power")),
)  # fmt: skip


def main(draws: int) -> None:
    """Print all tables."""
    began = time.perf_counter()
    for number, (title, table, columns) in enumerate(_TABLES):
        print(f"\n{title}, {draws} draws:\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
        for row in table(np.random.default_rng(number), draws):
            print(f"| {' | '.join(row)} |", flush=True)
    print(f"\n{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 800)
