"""Tailored learning's rounds (paper B): a table of what each found, asked, kept and reached."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from fcot.evaluation.statistics import Answers, compare, estimate
from fcot.reporting.frame import framed
from fcot.reporting.settings import Metrics, Setting, named

ENDED = {
    "rounds": "after method.rounds",
    "patience": "validation accuracy no longer rose",
    "few_mistakes": "too few mistakes were left",
    "nothing_kept": "nothing new was kept",
    "budget": "the budget was spent",
}
_COLUMNS = (
    "round", "failed", "pass %", "mistakes", "asked", "kept", "$", "samples", "contrasted %", "validation %", "test %", "95 % CI", "runs",
    "s",
)  # fmt: skip


def rounds_tables(settings: Sequence[Setting]) -> Iterator[Table]:
    """One for each setting that has rounds: means over its runs, test accuracy with its interval, the last round against the first."""
    for setting in settings:
        if not (rounds := [run["rounds"] for run in setting.runs if run.get("rounds")]):
            continue
        table = framed(f"rounds of {named(setting, settings)}", _COLUMNS)
        for number in range(max(map(len, rounds))):
            held = [one[number] for one in rounds if len(one) > number]
            table.add_row(*_cells(held))
        ended = dict.fromkeys(ENDED[run["rounds_ended"]] for run in setting.runs if run.get("rounds"))
        best = ", ".join(str(run["best_round"]) for run in setting.runs if run.get("rounds"))
        table.caption = f"kept: the student of round {best}; ended: {', '.join(ended)}{_gain(rounds)}"
        table.caption_justify = "left"
        yield table


def _cells(held: Sequence[Metrics]) -> list[str]:
    """A row: one round of several runs."""

    def mean(value: Callable[[Metrics], Any], form: str) -> str:
        known = [found for one in held if (found := value(one)) is not None]
        return form.format(sum(known) / len(known)) if known else "-"

    accuracy = estimate(np.concatenate([_answers([one]) for one in held])) if _same(held) else None
    return [
        str(held[0]["round"]),
        mean(lambda one: one["failed_problems"], "{:,.0f}"),
        mean(lambda one: None if one["pass_rate"] is None else 100 * one["pass_rate"], "{:.1f}"),
        mean(lambda one: one["mistakes"], "{:,.0f}"),
        mean(lambda one: one["completions_asked"], "{:,.0f}"),
        mean(lambda one: one["completions_kept"], "{:,.0f}"),
        mean(lambda one: one["teacher_usage"]["usd"], "{:,.4f}"),
        mean(lambda one: one["n_reasoning_samples"], "{:,.0f}"),
        mean(lambda one: None if one["reflection_share"] is None else 100 * one["reflection_share"], "{:.0f}"),
        mean(lambda one: None if one["validation_accuracy"] is None else 100 * one["validation_accuracy"], "{:.2f}"),
        mean(lambda one: 100 * one["accuracy"], "{:.2f}"),
        f"{100 * accuracy.low:.1f}-{100 * accuracy.high:.1f}" if accuracy else "-",
        str(len(held)),
        mean(lambda one: sum(one["seconds"].values()), "{:.0f}"),
    ]


def _same(held: Sequence[Metrics]) -> bool:
    return all("answers" in one and set(one["answers"]) == set(held[0]["answers"]) for one in held)


def _answers(held: Sequence[Metrics]) -> Answers:
    """(rounds, problems)."""
    return np.array([[one["answers"][index] for index in sorted(held[0]["answers"])] for one in held], dtype=np.float64)


def _gain(rounds: Sequence[Sequence[Metrics]]) -> str:
    """The last round against the first, where there are two."""
    several = [one for one in rounds if len(one) > 1]
    ends = [[one[place] for one in several] for place in (0, -1)]
    if not several or not _same([*ends[0], *ends[1]]):
        return ""
    first, last = map(_answers, ends)
    found = compare(first, last, sorted(ends[0][0]["answers"]))
    return (
        f"\nthe last round against the first: {100 * found.difference:+.2f} points (95 % CI {100 * found.low:+.1f} to "
        f"{100 * found.high:+.1f}), p = {found.p:.2g}"
    )
