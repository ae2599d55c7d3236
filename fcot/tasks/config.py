"""The options of ``dataset`` and ``split-mode``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from omegaconf import MISSING

from fcot.base.fields import Bounds, To, resolved
from fcot.prompts.answer_types import ANSWER_TYPES

if TYPE_CHECKING:  # what --help and --cfg job need not wait for
    from fcot.base.records import Problem
    from fcot.tasks.loaders import Columns
    from fcot.tasks.table import Task


class DatasetConfig(Protocol):
    """What the options of any data have to offer.

    Attributes:
        limit: Train on the first N train problems; None for all.
        toy: Whether the problems are generated here.
    """

    name: str
    limit: int | None
    toy: ClassVar[bool]

    def task(self) -> Task:
        """The task, with its answer rule."""

    def problems(self, task: Task, unlabelled: bool) -> list[Problem]:
        """All problems, in the order of the data.

        Args:
            task: By :meth:`task`, with the rule by which answers are read.
            unlabelled: Whether problems without a gold answer are allowed.
        """


@dataclass
class PublishedDatasetConfig:
    """One of paper A's 12 tasks."""

    name: str = MISSING
    path: str | None = resolved(None, To.PROBLEMS, file=True)  # the authors' JSON, JSON Lines, CSV or Parquet; null loads from the hub
    limit: int | None = resolved(None, To.SPLIT, at_least=1)  # train on the first N train problems; null for all

    toy: ClassVar[bool] = False

    def task(self) -> Task:
        """The task, with its answer rule."""
        from fcot.tasks.table import TASKS

        return TASKS[self.name]

    def problems(self, task: Task, unlabelled: bool) -> list[Problem]:
        """All problems, in the order of the data.

        Args:
            task: By :meth:`task`, with the rule by which answers are read.
            unlabelled: Whether problems without a gold answer are allowed; never here.
        """
        from fcot.tasks.loaders import Columns

        return list(read_once(task, self.path, Columns(), False, _version(self.path)))


@dataclass
class ToyDatasetConfig:
    """A toy task written here."""

    name: str = MISSING
    n_problems: int = resolved(MISSING, To.PROBLEMS, at_least=10)  # problems in all, before the split
    generator_seed: int = resolved(0, To.PROBLEMS)
    limit: int | None = resolved(None, To.SPLIT, at_least=1)

    toy: ClassVar[bool] = True

    def task(self) -> Task:
        """The task, with its answer rule."""
        from fcot.tasks.table import TASKS

        return TASKS[self.name]

    def problems(self, task: Task, unlabelled: bool) -> list[Problem]:
        """All problems; those of another number of problems begin the same."""
        from fcot.tasks.toy import TOY_TASKS, make_problems

        return make_problems(TOY_TASKS[self.name], self.n_problems, self.generator_seed)


@dataclass
class CustomDatasetConfig:
    """A user's own data."""

    name: str = "custom"
    path: str = resolved(MISSING, To.PROBLEMS)  # a file, or a hub id owner/name or owner/name:config
    answer_type: str = resolved(MISSING, To.RULE, one_of=ANSWER_TYPES)  # number, choice, yes_no or text
    choices: str = resolved("", To.RULE)  # the letters of answer_type=choice, such as ABCD
    question_column: str = resolved("question", To.PROBLEMS)
    answer_column: str = resolved("answer", To.PROBLEMS)
    rationale_column: str = resolved("rationale", To.EXEMPLARS)
    template_column: str = resolved("template_id", To.SPLIT)
    limit: int | None = resolved(None, To.SPLIT, at_least=1)

    toy: ClassVar[bool] = False

    def faults(self) -> Iterator[str]:
        """What is wrong beside the bounds of single options."""
        from fcot.tasks.loaders import is_hub_id

        if self.answer_type == "choice" and not (self.choices.isalpha() and self.choices.isupper()):
            yield "dataset.answer_type=choice needs its letters in capitals: dataset.choices=ABCD"
        if not is_hub_id(self.path) and (fault := Bounds(file=True).fault(self.path)):
            yield f"dataset.path={self.path}: {fault}"

    def task(self) -> Task:
        """The task, with its answer rule."""
        from fcot.prompts.answers import AnswerRule
        from fcot.tasks.table import custom_task

        return custom_task(self.name, AnswerRule(self.answer_type, self.choices))  # type: ignore[arg-type]

    def problems(self, task: Task, unlabelled: bool) -> list[Problem]:
        """All problems, in the order of the data.

        Args:
            task: By :meth:`task`, with the rule by which answers are read.
            unlabelled: Whether problems without a gold answer are allowed.
        """
        from fcot.tasks.loaders import Columns

        columns = Columns(self.question_column, self.answer_column, self.rationale_column, self.template_column)
        return list(read_once(task, self.path, columns, unlabelled, _version(self.path)))


@dataclass
class SplitConfig:
    """How train, validation and test are made."""

    name: str = resolved(MISSING, To.SPLIT, one_of=("sample", "published", "template", "file"))
    train_fraction: float = resolved(0.7, To.SPLIT, above=0, below=1)  # of problems (sample) or templates (template)
    path: str | None = resolved(None, To.SPLIT, file=True)  # file: {"train": [...], "test": [...]}
    # template: {"template id": [sample indices]}; null: the task's own, else by wording
    templates: str | None = resolved(None, To.SPLIT, file=True)
    subset: int | None = resolved(None, To.SPLIT, at_least=1)  # few-shot subset of train, in problems: paper A uses 8, 32, 128
    validation_fraction: float = resolved(0.1, To.SPLIT, above=0, below=1)  # of train; trainer=paper holds out none

    def faults(self) -> Iterator[str]:
        """What is wrong beside the bounds of single options."""
        if self.name == "file" and self.path is None:
            yield 'split-mode=file needs split_mode.path=FILE with {"train": [...], "test": [...]}'
        if self.name != "file" and self.path is not None:
            yield f"split_mode.path is read by split-mode=file only, not by split-mode={self.name}"
        if self.name != "template" and self.templates is not None:
            yield f"split_mode.templates is read by split-mode=template only, not by split-mode={self.name}"


def _version(source: str | None) -> tuple[int, int] | None:
    """Time and size of a file, which change with its content; None for what is no file here."""
    path = Path(source) if source is not None else None
    return (path.stat().st_mtime_ns, path.stat().st_size) if path is not None and path.is_file() else None


@lru_cache(maxsize=4)
def read_once(task: Task, source: str | None, columns: Columns, unlabelled: bool, _version: tuple[int, int] | None) -> tuple[Problem, ...]:
    """Problems that the runs of a sweep share: a plan holds all of its runs at once."""
    from fcot.tasks.loaders import load_problems

    return tuple(load_problems(task, source, columns, unlabelled=unlabelled))


SCHEMAS = {
    ("dataset", "published"): PublishedDatasetConfig,
    ("dataset", "toy"): ToyDatasetConfig,
    ("dataset", "custom"): CustomDatasetConfig,
    ("split-mode", "split_mode"): SplitConfig,
}
