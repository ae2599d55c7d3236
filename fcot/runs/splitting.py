"""Which problems a run trains on, selects a checkpoint with, and is evaluated on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fcot.base.console import say
from fcot.base.errors import FcotError
from fcot.base.records import Problem
from fcot.config.schema import Config
from fcot.methods.table import METHODS
from fcot.tasks.grouping import group_by_template
from fcot.tasks.splits import (  # fmt: skip
    Split,
    check_order,
    hold_out_validation,
    published_split,
    read_split_file,
    read_templates_file,
    sample_split,
    subsample,
    template_split,
)
from fcot.tasks.table import Task

if TYPE_CHECKING:
    from fcot.runs.run import Run

_FAR = 0.2  # of a template split's share from the one asked for


def make_split(config: Config, task: Task, problems: Mapping[int, Problem]) -> tuple[Split, bool]:
    """Train, validation and test of a configuration, and whether the rows' order was verified.

    Problems without a gold answer (``curation.labels=vote``) are trained on where the method asks a teacher, and nothing else.
    """
    mode, method = config.split_mode, METHODS[config.method.name]
    templates = _templates(config, task, problems) if mode.name == "template" else None
    train, test, split_hash = _train_and_test(config, task, problems, templates)
    order_known = check_order(task, [problems[index] for index in sorted(problems)], split_hash)
    if not method.uses_rationales:
        train = [index for index in train if problems[index].labelled]
    chosen = train
    if mode.subset is not None:
        if mode.subset > len(train):
            raise FcotError(f"split_mode.subset={mode.subset}: train has {len(train)} problems")
        chosen = subsample(train, mode.subset)
    if config.dataset.limit is not None:
        chosen = chosen[: config.dataset.limit]
    selects = config.trainer.selection == "validation" and not config.student.remote  # the API returns its last step
    known, labelled = ([index for index in part if problems[index].labelled] for part in (train, chosen))
    if not (selects and method.trains and labelled):
        return Split(chosen, [], test), order_known
    kept, validation = hold_out_validation(known, labelled, mode.validation_fraction, templates)
    held = {templates[index] for index in validation} if templates is not None else set()
    others = [index for index in set(chosen) - set(labelled) if templates is None or templates[index] not in held]
    return Split(sorted([*kept, *others]), validation, test), order_known


def _train_and_test(
    config: Config, task: Task, problems: Mapping[int, Problem], templates: Mapping[int, str] | None
) -> tuple[list[int], list[int], str | None]:
    """The split of the labelled problems; unlabelled ones join train. And a split file's hash of the questions."""
    mode = config.split_mode
    if mode.name == "file":
        assert mode.path is not None
        train, test, split_hash = read_split_file(Path(mode.path), sorted(problems))
        if strange := [index for index in test if not problems[index].labelled]:
            raise FcotError(
                f"split_mode.path={mode.path}: {len(strange)} test problems have no answer, the first is sample index {strange[0]}"
            )
        return train, test, split_hash
    indices = [index for index in sorted(problems) if problems[index].labelled]
    if templates is not None:
        positions = template_split([templates[index] for index in indices], mode.train_fraction)
        if indices and abs(len(positions[0]) / len(indices) - mode.train_fraction) > _FAR:
            n = len(set(templates.values()))
            why = f"the {n} templates of {task.name} are too unlike in size" if n > 1 else f"all problems of {task.name} share a template"
            sizes = f"{len(positions[0])} problems would be trained on and {len(positions[1])} tested"
            raise FcotError(f"split-mode=template: {why}, {sizes}; split-mode=sample")
    else:
        n = len(indices)
        positions = published_split(task, n) if mode.name == "published" else sample_split(n, mode.train_fraction)
    train, test = ([indices[position] for position in part] for part in positions)
    tested = {templates[index] for index in test} if templates is not None else set()
    joining = [index for index in set(problems) - set(indices) if templates is None or templates[index] not in tested]
    return sorted([*train, *joining]), test, None


def templates_of_test(run: Run) -> dict[int, str]:
    """The template of each test problem, as far as the data or the split name it; reports cluster errors by it.

    A report's statistics need no guess: wordings are grouped only where the split itself is by these groups.
    """
    mode, problems = run.config.split_mode, run.problems
    known = {index: name for index in run.split.test if (name := problems[index].template_id) is not None}
    if mode.templates is not None or (mode.name == "template" and not known):
        known = _templates(run.config, run.task, problems)
    return {index: known[index] for index in run.split.test if index in known}


def _templates(config: Config, task: Task, problems: Mapping[int, Problem]) -> dict[int, str]:
    if config.split_mode.templates is not None:
        return read_templates_file(Path(config.split_mode.templates), sorted(problems))
    templates = {index: problem.template_id for index, problem in problems.items() if problem.template_id is not None}
    if not templates:
        templates = group_by_template(problems)
        say(f"{task.name}: nobody labelled its templates; by their wording its problems have {len(set(templates.values())):,}")
    if len(templates) < len(problems):
        raise FcotError(
            f"split-mode=template: {len(problems) - len(templates)} of {len(problems)} problems of {task.name} have no template; "
            'name them in a file, {"template id": [sample indices], ...}: split_mode.templates=FILE'
        )
    return templates
