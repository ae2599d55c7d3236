"""Published accuracies, each with its source: paper A's (``paper_a.yaml``; unverified cells are empty) and others' (``anchors.yaml``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fcot.methods.table import METHODS

_ONE_EVALUATION = ("gpt3_", "teacher")  # models behind an API: only their final weights could be evaluated
_OTHER_KIND = ("prompt.", "trainer.", "teacher.", "student.")  # runs of a sweep over one of these have no cell in the paper
FILE = Path(__file__).with_name("paper_a.yaml")
ANCHORS_FILE = Path(__file__).with_name("anchors.yaml")


@dataclass(frozen=True)
class Published:
    """One published accuracy.

    Attributes:
        source: The part of the file, which names the place in the paper: ``table1``, ``table9``, ``figure9``...
        task: The task's name in fcot.
        student: The student's name in fcot, or the GPT-3 model's.
        method: The method's name in fcot.
        diversity: D; None for methods without a teacher.
        sampled: Whether the rationales were sampled; otherwise D = 1 is the greedy rationale.
        subset: Number of train problems; None for all.
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
        """Whether this is the best test accuracy of 20 epochs, which paper A reports for fine-tuned open students."""
        return METHODS[self.method].trains and not self.student.startswith(_ONE_EVALUATION)


@cache
def published() -> tuple[Published, ...]:
    """All verified accuracies, except Figure 5 (other teachers) and Table 6 (filters), which are in :func:`parts` only."""
    return tuple(_values(parts()))


@cache
def parts() -> dict[str, Any]:
    """The content of ``paper_a.yaml``."""
    return OmegaConf.to_container(OmegaConf.load(FILE))  # type: ignore[return-value]


def _values(data: Mapping[str, Any]) -> Iterator[Published]:
    def cell(source: str, task: str, student: str, method: str, subset: int | None, percent: float | None) -> Iterator[Published]:
        """A table's cell; the method ``diverse`` is Fine-tune-CoT with the D that the paper used for the task."""
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


def find_published(metrics: Mapping[str, Any]) -> Published | None:
    """The published accuracy for a run's task, student, method, D and subset; None if the paper has none for such a run."""
    if not metrics.get("as_published") or any(key.startswith(_OTHER_KIND) for key in metrics.get("swept") or ()):
        return None
    wanted = (metrics["task"], metrics["student"], metrics["method"], metrics["diversity"], metrics["subset"])
    for cell in published():
        key = (cell.task, cell.student, cell.method, cell.diversity, cell.subset)
        if key == wanted and (cell.diversity is None or cell.sampled == metrics["sampled"]):
            return cell
    return None


@dataclass(frozen=True)
class Anchor:
    """Published accuracies of a student in a setting other than paper A's. They give orientation and are not compared with runs.

    Attributes:
        source: Who published it.
        seen: Where the values were read.
        student: The student's name in fcot, or that of a model that fcot has no choice for.
        hub_id: Its model on the hub; None if the source does not name it.
        training: What it was trained on, or how.
        calculator: Whether the values after equals signs were computed while decoding; None: the source does not say.
        percents: Accuracy by task.
    """

    source: str
    seen: str
    student: str
    hub_id: str | None
    training: str
    calculator: bool | None
    percents: Mapping[str, float]


@cache
def anchors() -> tuple[Anchor, ...]:
    """The published accuracies of ``anchors.yaml``."""
    data: Any = OmegaConf.to_container(OmegaConf.load(ANCHORS_FILE))

    def anchor(source: Mapping[str, Any], row: Mapping[str, Any]) -> Anchor:
        model = data["models"][row["student"]]
        return Anchor(source["name"], source["seen"], row["student"], model, row["training"], row["calculator"], row["values"])

    return tuple(anchor(source, row) for source in data["sources"] for row in source["rows"])


def anchors_of(metrics: Mapping[str, Any]) -> list[Anchor]:
    """The anchors of a run's kind: of the same model, trained, and with a value for the run's task."""
    if not METHODS[metrics.get("student_method") or metrics["method"]].trains:
        return []
    names = {metrics["student"], metrics.get("base_model")} - {None}
    return [anchor for anchor in anchors() if metrics["task"] in anchor.percents and names & {anchor.student, anchor.hub_id}]
