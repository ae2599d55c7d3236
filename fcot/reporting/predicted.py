"""The scores of a student's answers to a file of questions, of those rows that have a gold answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fcot.evaluation.statistics import wilson_interval
from fcot.reporting.table import Table

TRAINED = "trained_on"  # key of an answer: whether the student was trained on its question
GROUP = "\0group"  # key of an answer for its group, which no column of a file has


def scores(answers: Sequence[Mapping[str, Any]], group_column: str | None) -> Table:
    """The accuracy of the rows with a gold answer, and of each group of them, with 95 % Wilson intervals.

    Rows that the student was trained on are left out.

    Args:
        answers: Rows of ``fcot.predict.answer``, marked where it is known which ones the student was trained on.
        group_column: The column that names the groups; None for no groups.
    """
    labelled = [row for row in answers if "correct" in row]
    scored = [row for row in labelled if not row.get(TRAINED)]
    groups: dict[str, list[bool]] = {}
    for row in scored if group_column else ():
        groups.setdefault(str(row[GROUP]), []).append(bool(row["correct"]))
    first = group_column or "rows"
    table = Table("scores", "accuracy (%) with its 95 % interval (Wilson)", (first, "acc %", "95 % CI", "correct", "n"), (first,))
    for name, verdicts in [*sorted(groups.items()), ("all", [bool(row["correct"]) for row in scored])]:
        low, high = wilson_interval(sum(verdicts), len(verdicts))
        interval = f"{100 * low:.1f}-{100 * high:.1f}"
        table.add_row(name, f"{100 * sum(verdicts) / len(verdicts):.2f}", interval, f"{sum(verdicts):,}", f"{len(verdicts):,}")
    if len(groups) > 1:
        table.notes.append("Intervals are not corrected for multiple comparisons.")
    if trained := len(labelled) - len(scored):
        table.notes.append(f"Rows that the student was trained on, which are not scored: {trained:,}.")
    elif TRAINED not in labelled[0]:
        table.notes.append("Which rows the student was trained on is not known: no split.json above its folder records them.")
    if without := len(answers) - len(labelled):
        table.notes.append(f"Rows without a readable gold answer, which are not scored: {without:,}.")
    if cut := sum(not row["complete"] for row in scored):
        table.notes.append(f"Answers that were cut at the length limit (max_new_tokens): {cut:,}.")
    return table
