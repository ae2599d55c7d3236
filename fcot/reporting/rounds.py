"""Tables of the rounds of tailored learning (paper B): mistakes, completions, accuracy and cost of each round."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from fcot.evaluation.statistics import Comparison, Correctness, estimate, gain, holm
from fcot.reporting.numbers import equal_to, signed, signed_interval
from fcot.reporting.settings import MetricsRow, Setting, report_label
from fcot.reporting.table import Table

ENDED = {
    "rounds": "after method.rounds",
    "patience": "validation accuracy no longer rose",
    "few_mistakes": "too few mistakes remained",
    "nothing_kept": "nothing new was kept",
    "budget": "the budget was spent",
}
_EXPLAINED = (
    "failed: train problems with a wrong answer in the exam; pass %: right answers in the exam; both are of the student before the round; "
    "samples: of all rounds so far, unless they are not accumulated; contrasted: samples to which self-reflection applies; "
    "$: paid by these runs"
)
_LEFT_OUT = "left out: train problems that the exam left out, because they were solved in earlier ones (method.skip_solved)"
_COLUMNS = (
    "round", "test %", "95 % CI", "validation %", "failed", "pass %", "mistakes", "asked", "kept", "samples", "contrasted %", "$", "runs",
    "s",
)  # fmt: skip


def rounds_tables(settings: Sequence[Setting]) -> Iterator[Table]:
    """A table for each setting with rounds: means over its runs, and the best round compared with the first."""
    with_rounds = [(setting, runs) for setting in settings if (runs := [run for run in setting.runs if run.get("rounds")])]
    gains = [_gain(setting, runs) for setting, runs in with_rounds]
    corrected = holm([comparison.p if comparison else None for comparison in gains])
    correction = " after Holm's correction over the settings" if sum(comparison is not None for comparison in gains) > 1 else ""
    for (setting, runs), comparison, p in zip(with_rounds, gains, corrected, strict=True):
        rounds = [run["rounds"] for run in runs]
        skips = any("left_out" in metrics for of_run in rounds for metrics in of_run)
        columns = (*_COLUMNS, "left out") if skips else _COLUMNS
        title = f"rounds of {report_label(setting, settings)}"
        table = Table(f"rounds_{setting['run_id'][-10:]}", title, columns, always=("test %", "95 % CI"))
        for number in range(max(map(len, rounds))):
            table.add_row(*_cells(setting, [of_run[number] for of_run in rounds if len(of_run) > number], skips))
        table.notes = [_EXPLAINED, *([_LEFT_OUT] if skips else []), *map(_outcome, runs), *_gain_note(comparison, p, correction)]
        yield table


def _cells(setting: Setting, rounds: Sequence[MetricsRow], skips: bool) -> list[str]:
    """The cells of a row.

    Args:
        setting: The setting.
        rounds: The metrics of the same round of each run.
        skips: Whether there is a column for problems that the exam left out.
    """

    def mean(value: Callable[[MetricsRow], Any], form: str) -> str:
        known = [number for metrics in rounds if (number := value(metrics)) is not None]
        return form.format(sum(known) / len(known)) if known else "-"

    def count(name: str) -> str:
        return mean(lambda metrics: metrics.get(name), "{:,.0f}")

    def percent(name: str, form: str) -> str:
        return mean(lambda metrics: None if metrics[name] is None else 100 * metrics[name], form)

    accuracy = estimate(_answers(rounds), setting.templates(sorted(rounds[0]["answers"]))) if _have_same_problems(rounds) else None
    return [
        str(rounds[0]["round"]),
        percent("accuracy", "{:.2f}"),
        f"{100 * accuracy.low:.1f}-{100 * accuracy.high:.1f}" if accuracy else "-",
        percent("validation_accuracy", "{:.2f}"),
        count("failed_problems"),
        percent("pass_rate", "{:.1f}"),
        count("mistakes"),
        count("completions_asked"),
        count("completions_kept"),
        count("n_reasoning_samples"),
        percent("reflection_share", "{:.0f}"),
        mean(lambda metrics: metrics["teacher_usage"]["usd"], "{:,.4f}"),
        str(len(rounds)),
        mean(lambda metrics: sum(metrics["seconds"].values()), "{:.0f}"),
        *([count("left_out")] if skips else []),
    ]


def _have_same_problems(rounds: Sequence[MetricsRow]) -> bool:
    return all("answers" in metrics and set(metrics["answers"]) == set(rounds[0]["answers"]) for metrics in rounds)


def _answers(rounds: Sequence[MetricsRow]) -> Correctness:
    """Right (1) and wrong (0) answers, (rounds, problems)."""
    return np.array([[metrics["answers"][index] for index in sorted(rounds[0]["answers"])] for metrics in rounds], dtype=np.float64)


def _outcome(run: MetricsRow) -> str:
    """Which round's student a run kept, and why its rounds ended."""
    exam = run.get("exam_of_no_round")
    failed = f" ({exam['failed_problems']:,} problems were failed)" if exam else ""
    return f"seed {run['seed']}: the student of round {run['best_round']} is kept; ended: {ENDED[run['rounds_ended']]}{failed}"


def _gain(setting: Setting, runs: Sequence[MetricsRow]) -> Comparison | None:
    """Compare each run's best round with its first; None if all runs kept the first round, or the problems differ."""
    first = [run["rounds"][0] for run in runs]
    kept = [run["rounds"][run["best_round"] - 1] for run in runs]
    if all(run["best_round"] == 1 for run in runs) or not _have_same_problems([*first, *kept]):
        return None
    problems = sorted(kept[0]["answers"])
    return gain(_answers(first), _answers(kept), problems, setting.templates(problems))


def _gain_note(comparison: Comparison | None, p: float | None, correction: str) -> list[str]:
    if comparison is None or p is None:
        return []
    return [
        f"the kept round against the first, which had fewer steps and samples: {signed(comparison.difference, 2)} points "
        f"(95 % CI {signed_interval(comparison.low, comparison.high)}), {equal_to(p)}{correction}"
    ]
