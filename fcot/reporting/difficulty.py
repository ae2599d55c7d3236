"""Accuracy by difficulty: the calculations of the gold rationale where the task has one, otherwise how often the teacher is right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from fcot.evaluation.statistics import estimate
from fcot.reporting.settings import Setting, data_name, model_name, report_label
from fcot.reporting.table import Table

_MOST_PARTS = 6  # of a table
_RATES = ("never", "in less than half", "in half or more", "always")  # how often a teacher with several answers is right

Parts = dict[str, list[int]]  # the problems of each degree of difficulty, by its name


def difficulty_tables(settings: Sequence[Setting]) -> Iterator[Table]:
    """A table per set of test problems whose difficulty is known: a row per setting, a column per degree of difficulty."""
    groups: dict[object, list[Setting]] = {}
    for setting in settings:
        groups.setdefault((setting["task"], setting["questions_sha256"]), []).append(setting)
    for number, group in enumerate(groups.values()):
        by_calculations = _by_calculations(group[0])
        teacher = None if by_calculations else next((setting for setting in group if setting["student"] == "teacher"), None)
        parts = _by_pass_rate(teacher) if teacher is not None else by_calculations
        if len(parts) < 2 or group == [teacher]:
            continue
        unit = "calculations in the gold rationale" if teacher is None else f"right answers of the teacher {model_name(teacher)}"
        title = f"{data_name(group[0])}: accuracy (%) by {unit} (in brackets: 95 % interval)"
        columns = ("setting", *(f"{name} (n={len(problems)})" for name, problems in parts.items()))
        table = Table(f"difficulty_{number + 1}", title, columns, ("setting",))
        for setting in group:
            if setting is not teacher:
                table.add_row(report_label(setting, settings), *(_accuracy(setting, problems) for problems in parts.values()))
        table.notes = ["Intervals are not corrected for multiple comparisons."]
        if unknown := len(set.union(*(setting.problems for setting in group)) - {index for part in parts.values() for index in part}):
            lacks = "no calculation in the gold rationale" if teacher is None else "no answer of the teacher"
            table.notes.append(f"Not in the table: {unknown:,} test problem{'s' * (unknown > 1)} with {lacks}.")
        yield table


def _accuracy(setting: Setting, problems: Sequence[int]) -> str:
    answered = [index for index in problems if index in setting.problems]
    if not answered:
        return "-"
    accuracy = estimate(setting.correct(answered), setting.templates(answered))
    return f"{100 * accuracy.mean:.1f} ({100 * accuracy.low:.1f}-{100 * accuracy.high:.1f})"


def _by_calculations(setting: Setting) -> Parts:
    """Problems by their number of calculations. Neighboring numbers are joined where they have few problems."""
    counts: Mapping[int, int] = setting["test_calculations"] or {}
    numbers: dict[int, list[int]] = {}
    for index in sorted(setting.problems & set(counts)):
        numbers.setdefault(counts[index], []).append(index)
    return {str(first) if first == last else f"{first}-{last}": problems for first, last, problems in _joined(numbers)}


Range = tuple[int, int, list[int]]  # the smallest and the largest number of calculations, and the problems with such a number


def _joined(numbers: Mapping[int, list[int]]) -> list[Range]:
    """Join neighboring numbers of calculations to at most ``_MOST_PARTS`` ranges, each with at least half of an equal share of problems."""
    least = sum(map(len, numbers.values())) / _MOST_PARTS / 2
    ranges: list[Range] = []
    for number, problems in sorted(numbers.items()):
        following = (number, number, problems)
        if ranges and (len(ranges[-1][2]) < least or len(ranges) == _MOST_PARTS):
            following = _union(ranges.pop(), following)
        ranges.append(following)
    if len(ranges) > 1 and len(ranges[-1][2]) < least:
        last = ranges.pop()
        ranges.append(_union(ranges.pop(), last))
    return ranges


def _union(lower: Range, upper: Range) -> Range:
    return lower[0], upper[1], lower[2] + upper[2]


def _by_pass_rate(teacher: Setting) -> Parts:
    """Problems by the share of the teacher's answers that are right, from hard to easy. One greedy answer is right or wrong."""
    measured = teacher.runs[0].get("test_at_k") or {}
    parts: Parts = {name: [] for name in _RATES}
    for index in sorted(teacher.problems):
        rate = measured[index][1][1] if index in measured else float(teacher.answers[0][index])
        parts[_rate_in_words(rate)].append(index)
    return {name: problems for name, problems in parts.items() if problems}


def _rate_in_words(rate: float) -> str:
    """The entry of ``_RATES`` for a share of right answers."""
    never, less_than_half, half_or_more, always = _RATES
    if rate in (0, 1):
        return always if rate else never
    return less_than_half if rate < 0.5 else half_or_more
