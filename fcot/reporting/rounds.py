"""Tailored learning's rounds (paper B): a table of what each found, asked, kept and reached."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from fcot.evaluation.statistics import Comparison, Correctness, estimate, gain, holm
from fcot.reporting.numbers import equal_to, signed, signed_interval
from fcot.reporting.settings import MetricsRow, Setting, named
from fcot.reporting.table import Table

ENDED = {
    "rounds": "after method.rounds",
    "patience": "validation accuracy no longer rose",
    "few_mistakes": "too few mistakes were left",
    "nothing_kept": "nothing new was kept",
    "budget": "the budget was spent",
}
_EXPLAINED = (
    "failed: train problems with a wrong answer in the exam, pass %: its right answers, both of the student before the round; samples: "
    "of all rounds so far, unless they are not accumulated; contrasted: samples with another rationale and a mistake; $: paid by these runs"
)
_COLUMNS = (
    "round", "test %", "95 % CI", "validation %", "failed", "pass %", "mistakes", "asked", "kept", "samples", "contrasted %", "$", "runs",
    "s",
)  # fmt: skip


def rounds_tables(settings: Sequence[Setting]) -> Iterator[Table]:
    """One for each setting that has rounds: means over its runs, test accuracy with its interval, the kept round against the first."""
    held_by = [(setting, runs) for setting in settings if (runs := [run for run in setting.runs if run.get("rounds")])]
    gains = [_gain(setting, runs) for setting, runs in held_by]
    corrected = holm([found.p if found else None for found in gains])
    several = " after Holm's correction over the settings" if sum(found is not None for found in gains) > 1 else ""
    for (setting, runs), found, p in zip(held_by, gains, corrected, strict=True):
        rounds = [run["rounds"] for run in runs]
        table = Table(f"rounds_{setting['run_id'][-10:]}", f"rounds of {named(setting, settings)}", _COLUMNS, always=("test %", "95 % CI"))
        for number in range(max(map(len, rounds))):
            held = [one[number] for one in rounds if len(one) > number]
            table.add_row(*_cells(setting, held))
        table.notes = [_EXPLAINED, *map(_told, runs), *_gained(found, p, several)]
        yield table


def _cells(setting: Setting, held: Sequence[MetricsRow]) -> list[str]:
    """A row: one round of several runs."""

    def mean(value: Callable[[MetricsRow], Any], form: str) -> str:
        known = [found for one in held if (found := value(one)) is not None]
        return form.format(sum(known) / len(known)) if known else "-"

    accuracy = estimate(_answers(held), setting.templates(sorted(held[0]["answers"]))) if _same(held) else None
    return [
        str(held[0]["round"]),
        mean(lambda one: 100 * one["accuracy"], "{:.2f}"),
        f"{100 * accuracy.low:.1f}-{100 * accuracy.high:.1f}" if accuracy else "-",
        mean(lambda one: None if one["validation_accuracy"] is None else 100 * one["validation_accuracy"], "{:.2f}"),
        mean(lambda one: one["failed_problems"], "{:,.0f}"),
        mean(lambda one: None if one["pass_rate"] is None else 100 * one["pass_rate"], "{:.1f}"),
        mean(lambda one: one["mistakes"], "{:,.0f}"),
        mean(lambda one: one["completions_asked"], "{:,.0f}"),
        mean(lambda one: one["completions_kept"], "{:,.0f}"),
        mean(lambda one: one["n_reasoning_samples"], "{:,.0f}"),
        mean(lambda one: None if one["reflection_share"] is None else 100 * one["reflection_share"], "{:.0f}"),
        mean(lambda one: one["teacher_usage"]["usd"], "{:,.4f}"),
        str(len(held)),
        mean(lambda one: sum(one["seconds"].values()), "{:.0f}"),
    ]


def _same(held: Sequence[MetricsRow]) -> bool:
    return all("answers" in one and set(one["answers"]) == set(held[0]["answers"]) for one in held)


def _answers(held: Sequence[MetricsRow]) -> Correctness:
    """(rounds, problems)."""
    return np.array([[one["answers"][index] for index in sorted(held[0]["answers"])] for one in held], dtype=np.float64)


def _told(run: MetricsRow) -> str:
    """Which round's student a run kept, and why it held no more."""
    exam = run.get("exam_of_no_round")
    left = f" ({exam['failed_problems']:,} problems were failed)" if exam else ""
    return f"seed {run['seed']}: the student of round {run['best_round']} is kept; ended: {ENDED[run['rounds_ended']]}{left}"


def _gain(setting: Setting, runs: Sequence[MetricsRow]) -> Comparison | None:
    """The kept rounds against the first ones, run by run, where there are others."""
    first = [run["rounds"][0] for run in runs]
    kept = [run["rounds"][run["best_round"] - 1] for run in runs]
    if all(run["best_round"] == 1 for run in runs) or not _same([*first, *kept]):
        return None
    problems = sorted(kept[0]["answers"])
    return gain(_answers(first), _answers(kept), problems, setting.templates(problems))


def _gained(found: Comparison | None, p: float | None, corrected: str) -> list[str]:
    if found is None or p is None:
        return []
    return [
        f"the kept round against the first, which had fewer steps and samples: {signed(found.difference, 2)} points "
        f"(95 % CI {signed_interval(found.low, found.high)}), {equal_to(p)}{corrected}"
    ]
