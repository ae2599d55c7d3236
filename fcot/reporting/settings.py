"""Settings, which a report compares: each is a group of runs that differ in the seed only."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fcot.evaluation.statistics import AccuracyEstimate, Correctness, estimate, estimate_from_accuracies
from fcot.methods.table import METHODS, title_of
from fcot.reporting.finished import Loaded
from fcot.reporting.published import Published, find_published

MetricsRow = Mapping[str, Any]
FEWEST_TEMPLATES = 10  # with fewer, the variance between templates cannot be estimated
SHOWN = ("task", "student")  # shown as columns only if settings differ in them; method and D always are


def data_name(setting: Setting) -> str:
    """The task's name for titles; own data without a name of its own is named by its file."""
    return str((setting["data_file"] if setting["task"] == "custom" else None) or setting["task"])


def model_name(setting: Setting) -> str:
    """The model that the student is made from, for titles; the student's name if it is made from none."""
    return str(setting["base_model"] or setting["student"])


@dataclass(frozen=True)
class Setting:
    """Runs that differ in the seed only.

    Attributes:
        runs: The metrics of each run, by seed; ``varied`` holds what a sweep varied.
        answers: Of each run: whether the answer to each test problem is right, by sample index.
        lengths: Of each run: the tokens of each answer, by sample index.
    """

    runs: Sequence[MetricsRow]
    answers: Sequence[Mapping[int, bool]]
    lengths: Sequence[Mapping[int, int]]

    def __getitem__(self, name: str) -> Any:
        """A metric of the first run, for metrics that all runs share; None if it is missing."""
        return self.runs[0].get(name)

    @property
    def title(self) -> str:
        """Method, D and swept values."""
        return self.title_with(self.varied)

    def title_with(self, varied: Mapping[str, str]) -> str:
        """Method, D and these swept values."""
        method = method_title(self.runs[0]) + (f" D={self['diversity']}" if self["diversity"] else "")
        return ", ".join([method, *(f"{key.removeprefix('method.')}={value}" for key, value in varied.items())])

    @cached_property
    def varied(self) -> Mapping[str, str]:
        """The values that the sweep varied, except task, student, method, D and seed. A path that the seed changes has a ``*`` there."""
        return {key: _shared([str(run["varied"].get(key, "")) for run in self.runs]) for key in self["varied"] or {}}

    @property
    def fixed(self) -> bool:
        """Whether the answers do not depend on the seed, so that there is no variance between trainings."""
        return not depends_on_seed(self.runs[0])

    @cached_property
    def problems(self) -> set[int]:
        """The test problems that all runs answered."""
        return set.intersection(*(set(of_run) for of_run in self.answers))

    @cached_property
    def questions(self) -> frozenset[object]:
        """What identifies these problems across versions of the data: their questions, or sample indices where these are unknown."""
        known = self.runs[0].get("questions") or {}
        return frozenset(known.get(index, (self["questions_sha256"], index)) for index in self.problems)

    def correct(self, problems: Sequence[int]) -> Correctness:
        """Right (1) and wrong (0) answers to these problems, (seeds, problems)."""
        return np.array([[of_run[index] for index in problems] for of_run in self.answers], dtype=np.float64)

    def templates(self, problems: Sequence[int]) -> list[str] | None:
        """The template of each problem; a problem without one counts as its own. None if there are fewer than FEWEST_TEMPLATES."""
        known = self.runs[0].get("test_templates")
        names = [known.get(index, f"problem {index}") for index in problems] if known else []
        return names if len(set(names)) >= FEWEST_TEMPLATES else None

    @cached_property
    def accuracy(self) -> AccuracyEstimate:
        """Test accuracy over seeds and problems, with its interval."""
        problems = sorted(self.problems)
        return estimate(self.correct(problems), self.templates(problems))

    def at_k(self, k: int) -> tuple[AccuracyEstimate, AccuracyEstimate] | None:
        """maj@k and pass@k over seeds and problems, with their intervals; None unless every problem of every run has k answers."""
        problems, runs = sorted(self.problems), [run.get("test_at_k") or {} for run in self.runs]
        if not all(k in run.get(index, {}) for run in runs for index in problems):
            return None
        maj, passed = np.moveaxis(np.array([[run[index][k] for index in problems] for run in runs]), -1, 0)
        return estimate(maj, self.templates(problems)), estimate(passed, self.templates(problems))

    @cached_property
    def best_epoch(self) -> AccuracyEstimate | None:
        """The best test accuracy of all evaluations with its interval over problems and trainings; None unless every run has it."""
        best = [run.get("accuracy_best_epoch") for run in self.runs]
        accuracies = [float(accuracy) for accuracy in best if accuracy is not None]
        return estimate_from_accuracies(accuracies, len(self.problems)) if len(accuracies) == len(best) else None

    @cached_property
    def published(self) -> tuple[Published, AccuracyEstimate] | None:
        """Paper A's accuracy for this setting, and the measured accuracy of the same kind (best epoch or not); None without both."""
        cell = find_published(self.runs[0])
        measured = self.best_epoch if cell is not None and cell.best_epoch else self.accuracy
        return None if cell is None or measured is None else (cell, measured)

    def mean(self, name: str) -> float | None:
        """The mean of a metric over the runs that have it; None if no run does."""
        known = [run[name] for run in self.runs if run.get(name) is not None]
        return sum(known) / len(known) if known else None


def method_title(run: MetricsRow) -> str:
    """The name of a run's method. For a finished student, the method that trained it and the task that it was trained on."""
    return title_of(run) if run.get("student_method") is None else f"{title_of(run)} on {run['student_task']}"


def depends_on_seed(run: MetricsRow) -> bool:
    """Whether another seed could change a run's answers. Older runs do not record it, so it is derived from other metrics.

    An untrained pretrained student that decodes greedily gives the same answers with every seed. So does an untrained remote student, even
    if it samples: its samples are stored by their number. A tiny student has random weights, which depend on the seed.
    """
    if (known := run.get("uses_seed")) is not None:
        return bool(known)
    if run.get("accuracy_checkpoint") != "untrained" or run["student"].startswith("tiny"):
        return True
    return run.get("precision") is not None and run.get("accuracy_single_sample") is not None


def group(runs: Iterable[Loaded]) -> list[Setting]:
    """Group runs into settings, ordered by task, student, method, D and varied values. A run that is given twice counts once.

    Runs whose configurations differ in the seed only belong together, whatever their sweeps varied. Of runs that do not depend on the seed,
    only the first counts: the others are copies of it.
    """
    unique = {run[0]["run_id"]: run for run in runs}
    members: dict[str, list[Loaded]] = {}
    for run in sorted(unique.values(), key=lambda run: run[0]["seed"]):
        others = members.setdefault(run[0].get("setting") or run[0]["run_id"], [])
        if not others or depends_on_seed(run[0]) or run[1] != others[0][1]:
            others.append(run)
    settings = [Setting(*zip(*runs_of, strict=True)) for runs_of in members.values()]
    sizes: dict[str, int] = {}  # a student's smallest size: a vocabulary made from scratch depends on the data
    for setting in settings:
        size = setting["n_parameters"] or 0
        sizes[setting["student"]] = min(size, sizes.get(setting["student"], size))
    return sorted(settings, key=lambda setting: (setting["task"], sizes[setting["student"]], *_order(setting)))


def _order(setting: Setting) -> tuple[Any, ...]:
    varied = [(key, _rank(value), value) for key, value in setting.varied.items()]
    method = list(METHODS).index(setting["method"])
    return setting["student"], method, setting["method_title"] or "", setting["diversity"] or 0, varied, setting["run_id"]


def _shared(values: Sequence[str]) -> str:
    """What the values of all seeds have in common: the value itself, or its beginning and end around a ``*``."""
    if len(set(values)) == 1:
        return values[0]
    start = _common_start(values)
    end = _common_start([value[len(start) :][::-1] for value in values])[::-1]
    return f"{start}*{end}"


def _common_start(texts: Sequence[str]) -> str:
    equal = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False))
    return "".join(letters[0] for letters in equal)


def _rank(value: str) -> float:
    """The sort key of a varied value: numbers by size, then "null", which stands for all."""
    return math.inf if value == "null" else number(value) or 0.0


def number(value: object) -> float | None:
    """A swept value as a number; None if it is not one."""
    try:
        return float(str(value))
    except ValueError:
        return None


def ambiguous(settings: Sequence[Setting]) -> list[Setting]:
    """Settings that share task, student, method, D and swept values with another one, although their configurations differ."""
    groups: dict[str, list[Setting]] = {}
    for setting in settings:
        groups.setdefault(f"{setting['task']} {setting['student']} {setting.title}", []).append(setting)
    return [setting for members in groups.values() if len(members) > 1 for setting in members]


def varied_keys(settings: Sequence[Setting]) -> list[str]:
    """The varied keys, in the order of the sweeps."""
    return list(dict.fromkeys(key for setting in settings for key in setting.varied))


def label(setting: Setting, settings: Sequence[Setting]) -> str:
    """A setting's name among those of its task and student: method, D, the values that differ and, if it is ambiguous, a run's hash."""
    return setting.title_with(differing(setting, settings)) + _hash(setting, settings)


def full_label(setting: Setting, settings: Sequence[Setting]) -> str:
    """A setting's name with all varied values, so that settings of different tasks can share it."""
    return setting.title + _hash(setting, settings)


def _hash(setting: Setting, settings: Sequence[Setting]) -> str:
    return f", {setting['run_id'][-10:]}" if setting in ambiguous(settings) else ""


def differing(setting: Setting, settings: Sequence[Setting]) -> dict[str, str]:
    """The swept values of a setting that not all settings of its task and student share; all of them if it is the only one."""
    peers = [other for other in settings if all(other[name] == setting[name] for name in SHOWN)]
    return {
        key: value for key, value in setting.varied.items() if len(peers) == 1 or any(other.varied.get(key) != value for other in peers)
    }


def report_label(setting: Setting, settings: Sequence[Setting]) -> str:
    """A setting's name in a report: its label, preceded by task and student if the settings have several."""
    several = len({tuple(other[name] for name in SHOWN) for other in settings}) > 1
    return (f"{setting['task']}, {setting['student']}: " if several else "") + label(setting, settings)
