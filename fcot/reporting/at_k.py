"""The table of several sampled answers per problem: maj@k and pass@k of students, and of teachers on the train problems."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fcot.reporting.settings import MetricsRow, Setting, data_name, report_label
from fcot.reporting.table import Table

_COLUMNS = ("answers of", "k", "maj@k %", "95 % CI of maj", "pass@k %", "95 % CI of pass")
_NOTE = (
    "maj@k: the majority of k sampled answers is right; pass@k: at least one of them is (estimator of Chen et al. 2021). k = 1 is a single "
    "sampled answer. Intervals are over problems, and over trainings where there are several seeds."
)


def at_k_table(settings: Sequence[Setting]) -> Table | None:
    """A row per k of each setting and each teacher with several answers per problem; None without any."""
    table = Table("at_k", "several answers per problem", _COLUMNS, ("answers of",), notes=[_NOTE], always=("k", "maj@k %", "pass@k %"))
    for setting in settings:
        sizes = sorted({k for by_k in (setting["test_at_k"] or {}).values() for k in by_k})
        for k in sizes:
            if (estimates := setting.at_k(k)) is not None:
                cells = [(estimate.mean, estimate.low, estimate.high) for estimate in estimates]
                table.add_row(report_label(setting, settings), str(k), *_percents(*cells[0]), *_percents(*cells[1]))
    for name, run in _teachers(settings):
        for k, row in run["teacher_at_k"].items():
            table.add_row(name, k, *_percents(row["maj"], *row["maj_ci95"]), *_percents(row["pass"], *row["pass_ci95"]))
    return table if table.rows else None


def _teachers(settings: Sequence[Setting]) -> Iterator[tuple[str, MetricsRow]]:
    """Name and run of each combination of teacher, D and train problems. Runs with the same completions count once."""
    unique: dict[str, tuple[str, MetricsRow]] = {}
    for setting in settings:
        run = next((run for run in setting.runs if run.get("teacher_at_k")), None)
        if run is not None:
            name = f"teacher {run['teacher']} on {run['n_train_problems']:,} train problems of {data_name(setting)}"
            unique.setdefault(f"{name} {run['teacher_at_k']}", (name, run))
    yield from unique.values()


def _percents(mean: float, low: float, high: float) -> tuple[str, str]:
    return f"{100 * mean:.2f}", f"{100 * low:.1f}-{100 * high:.1f}"
