"""The options of ``dataset`` and ``split-mode``."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from fcot.fields import To, resolved


@dataclass
class PublishedDatasetConfig:
    """One of paper A's 12 tasks."""

    name: str = MISSING
    path: str | None = resolved(None, To.PROBLEMS)  # the authors' JSON, JSON Lines, CSV or Parquet; null loads from the hub
    limit: int | None = resolved(None, To.SPLIT)  # train on the first N train problems; null for all


@dataclass
class ToyDatasetConfig:
    """A toy task written here."""

    name: str = MISSING
    n_problems: int = resolved(MISSING, To.PROBLEMS)  # problems in all, before the split
    generator_seed: int = resolved(0, To.PROBLEMS)
    limit: int | None = resolved(None, To.SPLIT)


@dataclass
class CustomDatasetConfig:
    """A user's own data."""

    name: str = "custom"
    path: str = resolved(MISSING, To.PROBLEMS)  # a file, or a hub id owner/name or owner/name:config
    answer_type: str = resolved(MISSING, To.RULE)  # number, choice, yes_no or text
    choices: str = resolved("", To.RULE)  # the letters of answer_type=choice, such as ABCD
    question_column: str = resolved("question", To.PROBLEMS)
    answer_column: str = resolved("answer", To.PROBLEMS)
    rationale_column: str = resolved("rationale", To.EXEMPLARS)
    template_column: str = resolved("template_id", To.SPLIT)
    limit: int | None = resolved(None, To.SPLIT)


@dataclass
class SplitConfig:
    """How train, validation and test are made."""

    name: str = resolved(MISSING, To.SPLIT)
    train_fraction: float = resolved(0.7, To.SPLIT)  # of problems (sample) or templates (template)
    path: str | None = resolved(None, To.SPLIT)  # file: {"train": [...], "test": [...]}
    templates: str | None = resolved(None, To.SPLIT)  # template: {"template id": [sample indices]}; null: the task's own, else by wording
    subset: int | None = resolved(None, To.SPLIT)  # few-shot subset of train, in problems: paper A uses 8, 32, 128
    validation_fraction: float = resolved(0.1, To.SPLIT)  # of train; trainer=paper holds out none
