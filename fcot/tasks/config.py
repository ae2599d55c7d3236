"""The options of ``dataset`` and ``split-mode``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from omegaconf import MISSING

from fcot.fields import Bounds, To, resolved
from fcot.prompts.answers import ANSWER_TYPES


@dataclass
class PublishedDatasetConfig:
    """One of paper A's 12 tasks."""

    name: str = MISSING
    path: str | None = resolved(None, To.PROBLEMS, file=True)  # the authors' JSON, JSON Lines, CSV or Parquet; null loads from the hub
    limit: int | None = resolved(None, To.SPLIT, at_least=1)  # train on the first N train problems; null for all


@dataclass
class ToyDatasetConfig:
    """A toy task written here."""

    name: str = MISSING
    n_problems: int = resolved(MISSING, To.PROBLEMS, at_least=10)  # problems in all, before the split
    generator_seed: int = resolved(0, To.PROBLEMS)
    limit: int | None = resolved(None, To.SPLIT, at_least=1)


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

    def faults(self) -> Iterator[str]:
        """What is wrong beside the bounds of single options."""
        from fcot.tasks.loaders import is_hub_id

        if self.answer_type == "choice" and not (self.choices.isalpha() and self.choices.isupper()):
            yield "dataset.answer_type=choice needs its letters in capitals: dataset.choices=ABCD"
        if not is_hub_id(self.path) and (fault := Bounds(file=True).fault(self.path)):
            yield f"dataset.path={self.path}: {fault}"


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
