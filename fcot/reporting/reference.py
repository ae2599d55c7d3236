"""Paper A's figures beside settings that have no cell of their own in it: other students, other teachers, other filters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fcot.methods.table import METHODS
from fcot.reporting.published import find_published, parts, published
from fcot.reporting.settings import Setting
from fcot.reporting.table import Table

_TITLE = "paper A, for reference (%)"


def reference_tables(settings: Sequence[Setting]) -> Iterator[Table | None]:
    """What of the paper speaks of the same tasks."""
    keys = {key for setting in settings for key in setting.varied}
    tasks = {setting["task"] for setting in settings}
    yield _students(settings)
    if "curation" in keys and parts()["table6"]["task"] in tasks:
        yield _filters()
    if "teacher.model" in keys:
        yield _teachers(tasks)


def _students(settings: Sequence[Setting]) -> Table | None:
    """Its students on the tasks and methods of settings whose own student it did not have; None where there are none."""
    strangers = {(one["task"], one["method"]) for one in settings} - {
        (one["task"], one["method"]) for one in settings if find_published(one.runs[0])
    }
    cells = [one for one in published() if one.subset is None and one.source != "figure9" and (one.task, one.method) in strangers]
    tasks = list(dict.fromkeys(one.task for one in cells))
    if not cells:
        return None
    table = Table("paper_students", f"{_TITLE}: other students and another teacher", ("student", "method", *tasks), ("student", "method"))
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for one in cells:
        title = METHODS[one.method].title + (", diverse" if one.diversity is not None and one.sampled else "")
        rows.setdefault((one.student, title), {})[one.task] = one.percent
    for names, values in rows.items():
        table.add_row(*names, *(f"{values[task]:.2f}" if task in values else "" for task in tasks))
    return table


def _filters() -> Table:
    """Table 6."""
    rows = parts()["table6"]["rows"]
    students = [name for name in rows[0] if name not in ("filter", "samples")]
    table = Table("paper_filters", f"{_TITLE}: Table 6, Date Understanding", ("filter", "samples", *students), ("filter", "samples"))
    for row in rows:
        table.add_row(row["filter"], str(row["samples"]), *(f"{row[name]:.2f}" for name in students))
    return table


def _teachers(tasks: set[str]) -> Table | None:
    """Figure 5."""
    part = parts()["figure5"]
    rows = [row for row in part["rows"] if row["task"] in tasks]
    if not rows:
        return None
    table = Table("paper_teachers", f"{_TITLE}: Figure 5, {part['student']} by teacher", ("task", *part["teachers"]), ("task",))
    for row in rows:
        table.add_row(row["task"], *("" if value is None else f"{value:.2f}" for value in row["values"]))
    return table
