"""Tables about wrong answers: their error marks, failures shared with the teacher, and accuracy by answer length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fcot.evaluation.errors import MARKS
from fcot.evaluation.statistics import holm, independence
from fcot.methods.table import METHODS
from fcot.reporting.numbers import p_value
from fcot.reporting.settings import Setting, report_label
from fcot.reporting.table import Table

_QUARTERS = 4
_EXPLAINED = {  # marks whose names need an explanation
    "right_reasoning": "the reasoning's last line has the gold answer, but the given answer differs",
    "foreign_number": "a number that is neither in the question nor the result of a calculation",
    "skipped_number": "a number of the question is not in the reasoning",
    "loops": "a sentence is repeated several times",
}


def error_table(settings: Sequence[Setting]) -> Table | None:
    """How many of the wrong answers have each error mark, in percent; None if all answers are right."""
    wrong = [setting for setting in settings if any(run.get("errors") for run in setting.runs)]
    if not wrong:
        return None
    marks = [name for name in MARKS if any(name in (run.get("errors") or {}) for setting in wrong for run in setting.runs)]
    columns = ("setting", "wrong", *(name.replace("_", " ") for name in marks))
    seeds = " of all seeds" if any(len(setting.runs) > 1 for setting in wrong) else ""
    table = Table("errors", f"wrong answers{seeds}, by mark (% of them; an answer may have several)", columns, ("setting",))
    table.notes = [f"{name.replace('_', ' ')}: {_EXPLAINED[name]}." for name in marks if name in _EXPLAINED]
    for setting in wrong:
        n = sum(not right for answers in setting.answers for right in answers.values())
        shares = [100 * sum((run.get("errors") or {}).get(name, 0) for run in setting.runs) / n for name in marks]
        table.add_row(report_label(setting, settings), str(n), *(f"{share:.0f}" if share else "" for share in shares))
    return table


def aligned_table(settings: Sequence[Setting]) -> Table | None:
    """Whether students fail on the teacher's failures more often than by chance; None if no setting evaluates the teacher."""
    pairs = [
        (teacher, student) for teacher in settings if teacher["student"] == "teacher"
        for student in settings if student["student"] != "teacher" and student["questions_sha256"] == teacher["questions_sha256"]
        if student.problems & teacher.problems and 0 < student.accuracy.mean < 1
    ]  # fmt: skip
    if not pairs:
        return None
    columns = ("teacher", "setting", "both wrong", "by chance", "odds ratio", "p (Holm)")
    table = Table("failures_with_teacher", "failures shared with the teacher, on the same problems", columns, ("teacher", "setting"))
    rows, p_values = [], []
    for teacher, student in pairs:
        problems = sorted(teacher.problems & student.problems)
        wrong = [setting.correct(problems).mean(axis=0) < 0.5 for setting in (teacher, student)]
        odds, p = independence(*(flags.tolist() for flags in wrong))
        chance = wrong[0].mean() * wrong[1].mean() * len(problems)
        rows.append((teacher.title, report_label(student, settings), f"{int((wrong[0] & wrong[1]).sum())}", f"{chance:.1f}", f"{odds:.2f}"))
        p_values.append(p)
    for row, corrected in zip(rows, holm(p_values), strict=True):
        table.add_row(*row, p_value(corrected))
    return table


def length_table(settings: Sequence[Setting]) -> Table | None:
    """Accuracy by answer length, in quarters from short to long; None if no method's answers hold a rationale."""
    methods = [METHODS[setting["student_method"] or setting["method"]] for setting in settings]
    reasoning = [setting for setting, method in zip(settings, methods, strict=True) if method.prompted or method.uses_rationales]
    reasoning = [setting for setting in reasoning if any(any(lengths.values()) for lengths in setting.lengths)]
    if not reasoning:
        return None
    columns = ("setting", *(f"quarter {number}" for number in range(1, _QUARTERS + 1)))
    title = "accuracy (%) by length of the answer, quarters from short to long (in brackets: mean tokens; number of answers)"
    table = Table("lengths_of_answers", title, columns, ("setting",))
    for setting in reasoning:
        pairs = [
            (tokens, answers[index]) for answers, lengths in zip(setting.answers, setting.lengths, strict=True)
            for index, tokens in lengths.items()
        ]  # fmt: skip
        table.add_row(report_label(setting, settings), *_quarters(np.array(pairs, dtype=np.float64)))
    return table


def _quarters(pairs: NDArray[np.float64]) -> list[str]:
    """Accuracy, mean length and size of each quarter. Answers of equal length stay in one quarter: that of their middle rank.

    Args:
        pairs: (answers, 2): tokens, and 1 for a right answer.
    """
    _, inverse, counts = np.unique(pairs[:, 0], return_inverse=True, return_counts=True)
    middles = (np.cumsum(counts) - counts / 2) / len(pairs)
    quarter = np.minimum((middles * _QUARTERS).astype(int), _QUARTERS - 1)[inverse]
    parts = [pairs[quarter == number] for number in range(_QUARTERS)]
    return [f"{100 * part[:, 1].mean():.0f} ({part[:, 0].mean():.0f}; {len(part)})" if len(part) else "-" for part in parts]
