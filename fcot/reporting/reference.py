"""Published accuracies as a reference: paper A's for other students, teachers or filters, and other papers' for the same model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fcot.methods.table import METHODS
from fcot.reporting.published import anchors_of, find_published, parts, published
from fcot.reporting.settings import Setting
from fcot.reporting.table import Table

_TITLE = "paper A, for reference (%)"


def reference_tables(settings: Sequence[Setting]) -> Iterator[Table | None]:
    """Paper A's tables about the tasks of the settings, as far as the settings vary the same things, and other papers' accuracies."""
    keys = {key for setting in settings for key in setting.varied}
    tasks = {setting["task"] for setting in settings}
    yield _students(settings)
    if "curation" in keys and parts()["table6"]["task"] in tasks:
        yield _filters()
    if "teacher.model" in keys:
        yield _teachers(tasks)
    yield _anchors(settings)


def _students(settings: Sequence[Setting]) -> Table | None:
    """The paper's students, for each task and method in which no setting has a cell of the paper; None if the paper has none."""
    covered = {(setting["task"], setting["method"]) for setting in settings if find_published(setting.runs[0])}
    uncovered = {(setting["task"], setting["method"]) for setting in settings} - covered
    cells = [cell for cell in published() if cell.subset is None and cell.source != "figure9" and (cell.task, cell.method) in uncovered]
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    if not cells:
        return None
    table = Table("paper_students", f"{_TITLE}: other students and another teacher", ("student", "method", *tasks), ("student", "method"))
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for cell in cells:
        title = METHODS[cell.method].title + (", diverse" if cell.diversity is not None and cell.sampled else "")
        rows.setdefault((cell.student, title), {})[cell.task] = cell.percent
    for names, values in rows.items():
        table.add_row(*names, *(f"{values[task]:.2f}" if task in values else "" for task in tasks))
    return table


def _filters() -> Table:
    """The paper's Table 6: accuracy by filter."""
    rows = parts()["table6"]["rows"]
    students = [name for name in rows[0] if name not in ("filter", "samples")]
    table = Table("paper_filters", f"{_TITLE}: Table 6, Date Understanding", ("filter", "samples", *students), ("filter", "samples"))
    for row in rows:
        table.add_row(row["filter"], str(row["samples"]), *(f"{row[name]:.2f}" for name in students))
    return table


def _teachers(tasks: set[str]) -> Table | None:
    """The paper's Figure 5: accuracy by teacher; None if it has none of the tasks."""
    part = parts()["figure5"]
    rows = [row for row in part["rows"] if row["task"] in tasks]
    if not rows:
        return None
    table = Table("paper_teachers", f"{_TITLE}: Figure 5, {part['student']} by teacher", ("task", *part["teachers"]), ("task",))
    for row in rows:
        table.add_row(row["task"], *("" if value is None else f"{value:.2f}" for value in row["values"]))
    return table


def _anchors(settings: Sequence[Setting]) -> Table | None:
    """Other papers' accuracies of the same models on the same tasks; None without any."""
    of_settings = [(setting["task"], anchors_of(setting.runs[0])) for setting in settings]
    anchors = list({id(anchor): anchor for _, of_setting in of_settings for anchor in of_setting}.values())
    tasks = list(dict.fromkeys(task for task, of_setting in of_settings if of_setting))
    if not anchors:
        return None
    left = ("student", "source", "training", "calculator")
    table = Table("anchors", "other papers, same model and task, for reference (%)", (*left, *tasks), left)
    for anchor in anchors:
        calculator = {True: "yes", False: "no", None: "not said"}[anchor.calculator]
        values = (f"{anchor.percents[task]:.2f}" if task in anchor.percents else "" for task in tasks)
        table.add_row(anchor.student, anchor.source, anchor.training, calculator, *values)
    table.notes = ["Data, prompt, steps and selection differ from these runs: no test is made. A calculator alone can double an accuracy."]
    return table
