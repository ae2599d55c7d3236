"""Paper A's published accuracies beside measured ones (``paper_a.yaml``: facts with their sources, unverified cells empty)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fcot.methods.table import METHODS

_ONE_EVALUATION = ("gpt3_", "teacher")  # behind an API: only the last weights could be evaluated
FILE = Path(__file__).with_name("paper_a.yaml")


@dataclass(frozen=True)
class Published:
    """One published accuracy.

    Attributes:
        source: ``table1``, ``table9``, ``figure9``...: a part of the file, which names where it was read.
        diversity: None for methods without a teacher.
        sampled: Whether D = 1 means one sample rather than the greedy rationale.
        subset: Train problems, None for all.
        percent: Accuracy.
    """

    source: str
    task: str
    student: str
    method: str
    diversity: int | None
    sampled: bool
    subset: int | None
    percent: float

    @property
    def best_epoch(self) -> bool:
        """Whether it is the best test accuracy of 20 epochs, as paper A reports fine-tuned open students; else it is one evaluation's."""
        return METHODS[self.method].trains and not self.student.startswith(_ONE_EVALUATION)


@cache
def published() -> tuple[Published, ...]:
    """All verified accuracies by task, student, method and D; Figure 5 (other teachers) and Table 6 are in :func:`parts` only."""
    return tuple(_values(parts()))


@cache
def parts() -> dict[str, Any]:
    """The file as it is."""
    return OmegaConf.to_container(OmegaConf.load(FILE))  # type: ignore[return-value]


def _values(data: Mapping[str, Any]) -> Iterator[Published]:
    def cell(source: str, task: str, student: str, method: str, subset: int | None, percent: float | None) -> Iterator[Published]:
        """Of a table, where ``diverse`` is Fine-tune-CoT with the task's D."""
        diverse = int(data["diverse"].get(task, data["diverse"]["default"]))
        diversity = {"fine_tune_cot": 1, "diverse": diverse}.get(method)
        name = "fine_tune_cot" if method == "diverse" else method
        if percent is not None:
            yield Published(source, task, student, name, diversity, method == "diverse", subset, percent)

    for source in ("table1", "zero_shot_cot_students", "table9"):
        for row in data[source]["rows"]:
            for task, percent in zip(data["tasks"], row["values"], strict=True):
                yield from cell(source, task, row["student"], row["method"], None, percent)
    for row in data["figure9"]["rows"]:
        for diversity, percent in zip(data["figure9"]["diversity"], row["values"], strict=True):
            if percent is not None:
                yield Published("figure9", row["task"], row["student"], "fine_tune_cot", diversity, True, None, percent)
    for row in data["figure4"]["rows"]:
        for size, percent in list(zip(row["sizes"], row["values"], strict=True))[:-1]:  # the last is the whole train split: table 9
            yield from cell("figure4", row["task"], data["figure4"]["student"], row["method"], size, percent)


_OTHER_KIND = ("prompt.", "trainer.", "teacher.", "student.")  # what a sweep over one of these varies, the paper's cells do not


def find_published(metrics: Mapping[str, Any]) -> Published | None:
    """The published accuracy of a run's cell, None where there is none, or the run is of another kind."""
    if not metrics.get("as_published") or any(key.startswith(_OTHER_KIND) for key in metrics.get("swept") or ()):
        return None
    wanted = (metrics["task"], metrics["student"], metrics["method"], metrics["diversity"], metrics["subset"])
    for one in published():
        cell = (one.task, one.student, one.method, one.diversity, one.subset)
        if cell == wanted and (one.diversity is None or one.sampled == metrics["sampled"]):
            return one
    return None
