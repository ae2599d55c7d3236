"""maj@k and pass@k: how well a model answers a problem with k sampled answers, estimated without bias from n of them.

pass@k is the probability that at least one of k answers is right, by the estimator of Chen et al. (2021). maj@k is the probability that the
majority of k answers is right: the mean over groups of k successive answers, each of which votes. maj@1 and pass@1 are both the accuracy of
a single answer, and maj@n is the accuracy of the vote over all n.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from typing import Any

from fcot.prompts.answers import most_frequent

ScoredAnswer = tuple[str | None, bool]  # a sampled answer: its prediction, None if it has none, and whether it is right
AtK = dict[int, tuple[float, float]]  # maj@k and pass@k of one problem (0..1), by k


def at_k(answers: Sequence[ScoredAnswer]) -> AtK:
    """maj@k and pass@k of one problem for k = 1, 2, 4, ... and for all n answers.

    Args:
        answers: The sampled answers, in the order in which they were drawn; one or more.
    """
    n, n_right = len(answers), sum(right for _, right in answers)
    sizes = sorted({2**power for power in range(n.bit_length())} | {n})
    return {k: (_maj(answers, k), pass_at_k(n, n_right, k)) for k in sizes}


def pass_at_k(n: int, n_right: int, k: int) -> float:
    """The probability that at least one of ``k`` answers is right, drawn without replacement from ``n`` of which ``n_right`` are."""
    return 1 - comb(n - n_right, k) / comb(n, k)


def _maj(answers: Sequence[ScoredAnswer], k: int) -> float:
    groups = [answers[start : start + k] for start in range(0, len(answers) - k + 1, k)]
    return sum(group[most_frequent([prediction for prediction, _ in group])][1] for group in groups) / len(groups)


def summarize(problems: Sequence[AtK]) -> dict[str, dict[str, Any]] | None:
    """The means over problems with their 95 % intervals, by k; None if the problems have no k above 1 in common.

    Args:
        problems: Of each problem, what :func:`at_k` returns.
    """
    import numpy as np

    from fcot.evaluation.statistics import estimate  # imported here because it loads scipy, which curation does not need

    sizes = sorted(set.intersection(*map(set, problems))) if problems else []
    if not sizes or sizes[-1] == 1:
        return None
    summary: dict[str, dict[str, Any]] = {}
    for k in sizes:
        maj, passed = (estimate(np.array([[problem[k][place] for problem in problems]])) for place in (0, 1))
        summary[str(k)] = {
            "maj": maj.mean, "maj_ci95": [maj.low, maj.high], "pass": passed.mean, "pass_ci95": [passed.low, passed.high],
        }  # fmt: skip
    return summary
