"""What a report compares: settings, each with the runs that differ in nothing but the seed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fcot.evaluation.statistics import AccuracyEstimate, Correctness, estimate, estimate_from_accuracies
from fcot.methods.table import METHODS
from fcot.reporting.finished import Loaded
from fcot.reporting.published import Published, find

MetricsRow = Mapping[str, Any]
FEWEST_TEMPLATES = 10  # fewer say too little of how much templates differ
SHOWN = ("task", "student")  # columns where settings differ in them; method and D always have one


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        runs: MetricsRow of its runs, by seed; what a sweep varied is under ``varied``.
        answers: Of each run, whether each test problem was answered rightly, by sample index.
        lengths: Of each run, the tokens of each answer.
    """

    runs: Sequence[MetricsRow]
    answers: Sequence[Mapping[int, bool]]
    lengths: Sequence[Mapping[int, int]]

    def __getitem__(self, name: str) -> Any:
        """What the runs have in common."""
        return self.runs[0].get(name)

    @property
    def title(self) -> str:
        """Method, D and swept values."""
        return self.told(self.varied)

    def told(self, varied: Mapping[str, str]) -> str:
        """Method, D and some of the swept values."""
        method = METHODS[self["method"]].title + (f" D={self['diversity']}" if self["diversity"] else "")
        return ", ".join([method, *(f"{key.removeprefix('method.')}={value}" for key, value in varied.items())])

    @property
    def varied(self) -> Mapping[str, str]:
        """What the sweep varied beside task, student, method, D and seed."""
        return self["varied"] or {}

    @property
    def fixed(self) -> bool:
        """Whether its answers do not depend on the seed: its one run is all there is, and has no variance of trainings."""
        return not depends_on_seed(self.runs[0])

    @cached_property
    def problems(self) -> set[int]:
        """The test problems that all runs answered."""
        return set.intersection(*(set(one) for one in self.answers))

    def correct(self, problems: Sequence[int]) -> Correctness:
        """Answers to these problems, (seeds, problems)."""
        return np.array([[one[index] for index in problems] for one in self.answers], dtype=np.float64)

    def templates(self, problems: Sequence[int]) -> list[str] | None:
        """The template of each of these problems, a name of its own for those without; None where it does not say any, or too few."""
        known = self.runs[0].get("test_templates")
        names = [known.get(index, f"problem {index}") for index in problems] if known else []
        return names if len(set(names)) >= FEWEST_TEMPLATES else None

    @cached_property
    def accuracy(self) -> AccuracyEstimate:
        """Over seeds and problems."""
        problems = sorted(self.problems)
        return estimate(self.correct(problems), self.templates(problems))

    @cached_property
    def best_epoch(self) -> AccuracyEstimate | None:
        """The best test accuracy of all evaluations, None unless every run has it; with the interval of problems and trainings."""
        best = [run.get("accuracy_best_epoch") for run in self.runs]
        return None if None in best else estimate_from_accuracies([float(one) for one in best if one is not None], len(self.problems))

    @cached_property
    def published(self) -> tuple[Published, AccuracyEstimate] | None:
        """Paper A's figure of this cell with the measured one of its kind, best epoch or one evaluation; None without either."""
        cell = find(self.runs[0])
        measured = self.best_epoch if cell is not None and cell.best_epoch else self.accuracy
        return None if cell is None or measured is None else (cell, measured)

    def mean(self, name: str) -> float | None:
        """The mean of a figure over the runs that have it."""
        known = [run[name] for run in self.runs if run.get(name) is not None]
        return sum(known) / len(known) if known else None


def depends_on_seed(run: MetricsRow) -> bool:
    """Whether another seed could change a run's answers. Older runs do not say it: what they are does.

    Untrained and greedy, a pretrained student answers alike under each seed. So does an untrained remote one, whatever it samples: its
    draws have places of their own. A tiny student has random weights.
    """
    if (known := run.get("uses_seed")) is not None:
        return bool(known)
    if run.get("accuracy_checkpoint") != "untrained" or run["student"].startswith("tiny"):
        return True
    return run.get("precision") is not None and run.get("accuracy_single_sample") is not None


def group(runs: Iterable[Loaded]) -> list[Setting]:
    """The settings of some runs, ordered by task, student, method, D and what was varied; a run counts once.

    Runs belong together when their configurations differ in the seed only, whatever their sweeps varied. Runs that do not depend on the
    seed are copies of each other: the first one counts.
    """
    unique = {run[0]["run_id"]: run for run in runs}
    members: dict[str, list[Loaded]] = {}
    for run in sorted(unique.values(), key=lambda run: run[0]["seed"]):
        others = members.setdefault(run[0].get("setting") or run[0]["run_id"], [])
        if not others or depends_on_seed(run[0]) or run[1] != others[0][1]:
            others.append(run)
    settings = [Setting(*zip(*runs_of, strict=True)) for runs_of in members.values()]
    sizes: dict[str, int] = {}  # a student's smallest: the vocabulary of those from scratch depends on their data
    for setting in settings:
        size = setting["n_parameters"] or 0
        sizes[setting["student"]] = min(size, sizes.get(setting["student"], size))
    return sorted(settings, key=lambda setting: (setting["task"], sizes[setting["student"]], *_order(setting)))


def _order(setting: Setting) -> tuple[Any, ...]:
    varied = [(key, _rank(value), value) for key, value in setting.varied.items()]
    method = list(METHODS).index(setting["method"])
    return setting["student"], method, setting["diversity"] or 0, varied, setting["run_id"]


def _rank(value: str) -> float:
    """Numbers by size, then "null", which stands for all."""
    return math.inf if value == "null" else number(value) or 0.0


def number(value: object) -> float | None:
    """A swept value as a number, None where it is none."""
    try:
        return float(str(value))
    except ValueError:
        return None


def alike(settings: Sequence[Setting]) -> list[Setting]:
    """Settings that task, student, method, D and swept values do not tell apart."""
    groups: dict[str, list[Setting]] = {}
    for setting in settings:
        groups.setdefault(f"{setting['task']} {setting['student']} {setting.title}", []).append(setting)
    return [setting for members in groups.values() if len(members) > 1 for setting in members]


def varied_keys(settings: Sequence[Setting]) -> list[str]:
    """What was varied, in the order of the sweeps."""
    return list(dict.fromkeys(key for setting in settings for key in setting.varied))


def label(setting: Setting, settings: Sequence[Setting]) -> str:
    """What tells a setting apart from the others of its task and student: method, D, what differs among them; else its run's hash."""
    return setting.told(differing(setting, settings)) + _hash(setting, settings)


def full_label(setting: Setting, settings: Sequence[Setting]) -> str:
    """The same with all that was varied, which settings of other tasks may share."""
    return setting.title + _hash(setting, settings)


def _hash(setting: Setting, settings: Sequence[Setting]) -> str:
    return f", {setting['run_id'][-10:]}" if setting in alike(settings) else ""


def differing(setting: Setting, settings: Sequence[Setting]) -> dict[str, str]:
    """Of a setting's swept values those that others of its task and student do not share; all where it is the only one."""
    near = [one for one in settings if all(one[name] == setting[name] for name in SHOWN)]
    return {key: value for key, value in setting.varied.items() if len(near) == 1 or any(one.varied.get(key) != value for one in near)}


def named(setting: Setting, settings: Sequence[Setting]) -> str:
    """The label, after task and student where the settings are of several."""
    several = len({tuple(one[name] for name in SHOWN) for one in settings}) > 1
    return (f"{setting['task']}, {setting['student']}: " if several else "") + label(setting, settings)
