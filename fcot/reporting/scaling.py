"""Scaling: accuracy along an ordered axis (D, train problems, teacher, student...), and whether it shows a trend."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fcot.evaluation.statistics import Trend, holm, trend
from fcot.methods.table import METHODS
from fcot.reporting.numbers import p_value
from fcot.reporting.settings import Setting, number
from fcot.reporting.table import Table

AXES = {  # titles of axes in figures; other axes are titled by their key
    "diversity": "rationales per problem (D)",
    "split_mode.subset": "train problems",
    "n_parameters": "student's parameters",
    "teacher_accuracy": "teacher's accuracy on train",
    "teacher.error_rate": "teacher's error rate",
}
_TEACHER = {"teacher", "teacher.model", "teacher.path", "teacher.error_rate"}


@dataclass(frozen=True)
class Line:
    """Settings that differ along one ordered axis only.

    Attributes:
        axis: A key of :data:`AXES` or an override's key.
        label: What the settings have in common.
        points: (value on the axis, setting), by value.
        trend: Of the accuracy, over the test problems that all settings answered.
    """

    axis: str
    label: str
    points: Sequence[tuple[float, Setting]]
    trend: Trend


def lines(settings: Sequence[Setting]) -> list[Line]:
    """All lines with at least three points."""
    keys = dict.fromkeys(key for setting in settings for key in setting.varied)
    candidates = [line for key in keys for line in _along(key, {key}, lambda setting, key=key: _place(setting, key), settings)]  # type: ignore[misc]
    candidates += _along("diversity", {"D"}, lambda setting: setting["diversity"], settings)
    candidates += _along("n_parameters", {"student", "student.width"}, lambda setting: setting["n_parameters"], settings)
    if not {line.axis for line in candidates} & _TEACHER:
        candidates += _along("teacher_accuracy", _TEACHER, lambda setting: setting.mean("teacher_accuracy"), settings)
    # Of lines through the same settings the first stays: a student's width, for example, also changes its number of parameters.
    unique = {frozenset(setting["run_id"] for _, setting in line.points): line for line in reversed(candidates)}
    return list(reversed(unique.values()))


def family(student: str) -> str:
    """A student's name without its size."""
    return re.sub(r"[_-](?:small|base|medium|large|xl|nano|mini|[\d_.]+[mb])$", "", student)


def _place(setting: Setting, key: str) -> float | None:
    """A setting's value on the axis of a swept key, None if it is no number; ``split_mode.subset=null`` means all train problems."""
    if key == "split_mode.subset" and setting.varied.get(key) == "null":
        return float(setting["n_train_problems"])
    return number(setting.varied.get(key))


def _along(axis: str, dropped: set[str], value: Callable[[Setting], Any], settings: Sequence[Setting]) -> Iterator[Line]:
    """Lines along an axis. The settings of a line differ in nothing else.

    Args:
        axis: The axis.
        dropped: The keys that may differ along the axis.
        value: A setting's value on the axis; None leaves it out.
        settings: All settings.
    """
    groups: dict[tuple[str, ...], list[tuple[float, Setting]]] = {}
    for setting in settings:
        if (place := value(setting)) is not None:
            words = {
                "student": setting["student"],
                "family": family(setting["student"]),
                "D": f"D={setting['diversity']}" if setting["diversity"] else "",
            }
            words |= {key: f"{key}={varied}" for key, varied in setting.varied.items()}
            if "student" not in dropped:
                del words["family"]
            common = (
                setting["questions_sha256"],
                setting["task"],
                setting["method_title"] or METHODS[setting["method"]].title,
                *(word for key, word in words.items() if key not in dropped),
            )
            groups.setdefault(common, []).append((float(place), setting))
    for common, points in groups.items():
        if len({place for place, _ in points}) < max(3, len(points)):  # too few points, or two settings with the same value
            continue
        points = sorted(points, key=lambda point: point[0])
        problems = sorted(set.intersection(*(setting.problems for _, setting in points)))
        if not problems:
            continue
        members = [setting for _, setting in points]
        fixed = [member.fixed for member in members]
        measured = trend([member.correct(problems) for member in members], members[0].templates(problems), fixed)
        yield Line(axis, ", ".join(word for word in common[1:] if word), points, measured)


def trend_table(scaling: Sequence[Line]) -> Table:
    """A row per line: its accuracies, and whether they rise or fall significantly, with Holm's correction over the table."""
    title = "scaling (over problems: these trained students only; over runs: other trainings too)"
    table = Table("scaling", title, ("axis", "line", "values", "acc %", "trend", "p (Holm)", "over"), ("axis", "line", "trend", "over"))
    for line, p in zip(scaling, holm([line.trend.p for line in scaling]), strict=True):
        verdict = "no test" if p is None else {1: "rises", -1: "falls", 0: "none"}[line.trend.direction] if p < 0.05 else "none shown"
        table.add_row(
            AXES.get(line.axis, line.axis), line.label, " ".join(f"{place:g}" for place, _ in line.points),
            " ".join(f"{100 * setting.accuracy.mean:.1f}" for _, setting in line.points), verdict, p_value(p), line.trend.over,
        )  # fmt: skip
    if any(line.trend.p is None for line in scaling):
        table.notes.append("no test: some points of the line were trained once and others several times; train all of them several times.")
    return table
