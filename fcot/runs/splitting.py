"""The split of a run: the problems to train on, to select the checkpoint with, and to evaluate on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fcot.base.console import say
from fcot.base.errors import FcotError
from fcot.base.records import Problem
from fcot.config.schema import Config
from fcot.curation.equations import n_calculations
from fcot.methods.table import method_of
from fcot.tasks.grouping import group_by_template
from fcot.tasks.loaders import PARTS
from fcot.tasks.splits import (  # fmt: skip
    Split,
    check_order,
    folded,
    hash_split,
    hashed,
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

_SPLIT_MODE = re.compile(r"^split_mode:\n(?: .*\n)*? +name: (\w+)$", re.MULTILINE)
_MAX_DEVIATION = 0.2  # of a template split's train share from split_mode.train_fraction


def make_split(config: Config, task: Task, problems: Mapping[int, Problem]) -> tuple[Split, bool]:
    """Split the problems into train, validation and test. Also returns whether the order of the rows was verified.

    Problems without a gold answer (``curation.labels=vote``) can only be train problems, and only if the method uses rationales.
    """
    mode, method = config.split_mode, method_of(config)
    validates = config.trainer.selection == "validation" and not config.student.remote  # the API returns its last checkpoint
    if mode.name == "hash":
        return _split_by_hash(config, task, problems, validates and method.trains, method.uses_rationales), False
    templates = _templates(config, task, problems) if mode.name == "template" else None
    train, test, split_hash = _train_and_test(config, task, problems, templates)
    order_known = check_order(task, [problems[index] for index in sorted(problems)], split_hash)
    if not method.uses_rationales:
        train = [index for index in train if problems[index].labelled]
    selected = train
    if mode.subset is not None:
        _check_subset(mode.subset, train)
        selected = subsample(train, mode.subset)
    if config.dataset.limit is not None:
        selected = selected[: config.dataset.limit]
    labelled_train = [index for index in train if problems[index].labelled]
    labelled = [index for index in selected if problems[index].labelled]
    if not (validates and method.trains and labelled):
        return Split(selected, [], test), order_known
    remaining, validation = hold_out_validation(labelled_train, labelled, mode.validation_fraction, templates)
    validation_templates = {templates[index] for index in validation} if templates is not None else set()
    unlabelled = [index for index in set(selected) - set(labelled) if templates is None or templates[index] not in validation_templates]
    return Split(sorted([*remaining, *unlabelled]), validation, test), order_known


def _split_by_hash(config: Config, task: Task, problems: Mapping[int, Problem], validates: bool, unlabelled: bool) -> Split:
    """Split by :func:`hash_split`, or as the data itself says (``dataset.split_column``).

    ``subset`` and ``dataset.limit`` take the first train problems in the order of their hashes.

    Args:
        config: The configuration.
        task: The task, for messages.
        problems: The problems by sample index.
        validates: Whether validation problems are held out; otherwise they are train problems.
        unlabelled: Whether problems without a gold answer are used. They are train problems.
    """
    mode = config.split_mode
    keys = {index: problem.group or problem.template_id or folded(problem.question) for index, problem in problems.items()}
    labelled = {index: key for index, key in keys.items() if problems[index].labelled}
    if any(problem.part is not None for problem in problems.values()):
        train, validation, test = _own_parts(problems, labelled, mode.validation_fraction)
    else:
        train, validation, test = hash_split(labelled, mode.train_fraction, mode.validation_fraction)
        if labelled and not (train and test):
            group = config.dataset.group_column if config.dataset.own else None
            n, what = len(set(labelled.values())), "different problems" if group is None else f"groups in the column {group!r}"
            sizes = f"train would have {len(train)} problems and test {len(test)}"
            remedy = "use split-mode=sample"
            if group is not None:
                remedy = f"leave out dataset.group_column={group}, alone or with split-mode=sample, or add rows of more groups (20 or more)"
            raise FcotError(f"split-mode=hash: {task.name} has too few {what} ({n}), {sizes}; {remedy}")
    if not validates:
        train, validation = [*train, *validation], []
    if unlabelled:
        train += [index for index in keys if index not in labelled]
    train = hashed(train, keys)
    if mode.subset is not None:
        _check_subset(mode.subset, train)
    limits = [limit for limit in (mode.subset, config.dataset.limit) if limit is not None]
    return Split(sorted(train[: min(limits, default=len(train))]), sorted(validation), sorted(test))


def _check_subset(subset: int, train: Sequence[int]) -> None:
    if subset > len(train):
        raise FcotError(f"split_mode.subset={subset}: train has {len(train)} problems; set split_mode.subset to at most that")


def _own_parts(
    problems: Mapping[int, Problem], keys: Mapping[int, str], validation_fraction: float
) -> tuple[list[int], list[int], list[int]]:
    """The parts that the data itself names. If it names no validation problems, they are held out from train by hash.

    Args:
        problems: The problems by sample index.
        keys: The texts that are hashed, by sample index; only of problems with a gold answer.
        validation_fraction: Expected share of train that is held out.
    """
    train, validation, test = ([index for index in keys if problems[index].part == part] for part in PARTS)
    if not validation:
        train, validation, _ = hash_split({index: keys[index] for index in train}, 1.0, validation_fraction)
    return train, validation, test


def split_in_words(config: Config) -> str:
    """The option that made the split, such as ``split-mode=hash`` or ``dataset.split_column=part``."""
    column = config.dataset.split_column if config.dataset.own else None
    return f"split-mode={config.split_mode.name}" if column is None else f"dataset.split_column={column}"


def validation_notes(config: Config, split: Split) -> list[str]:
    """A note on own data whose split by hash has no validation problems, although the checkpoint would be chosen by them."""
    validates = config.trainer.selection == "validation" and not config.student.remote and method_of(config).trains
    if not (config.dataset.own and config.split_mode.name == "hash" and validates and split.train) or split.validation:
        return []
    why = "there are few groups" if config.dataset.group_column else "there are few problems"
    return [
        f"no validation problems, because {why}: the last checkpoint is reported, not the best. A larger share of train, such as "
        "split_mode.validation_fraction=0.2, may hold some out"
    ]


def former_split_note(run: Run) -> list[str]:
    """A note for the first run on own data that is split by hash, if earlier runs on it were split by index, as was the default.

    Returns:
        One sentence with the number of problems whose stored completions the new split does not use, or nothing.
    """
    mode = run.config.split_mode
    if mode.name != "hash" or run.task.split != "hash" or run.plan.teacher is None or run.config.dataset.split_column is not None:
        return []
    others = [path for path in run.outputs.glob(f"runs/{run.task.name}-*/config.yaml") if path != run.directory.config]
    modes = {match[1] for path in others if (match := _SPLIT_MODE.search(path.read_text(encoding="utf-8", errors="replace")))}
    if modes != {"sample"}:
        return []
    indices, used = sorted(index for index, problem in run.problems.items() if problem.labelled), set(run.split.train)
    former = [indices[position] for position in sample_split(len(indices), mode.train_fraction)[0]]
    store = run.store.refresh()
    stored = [index for index in former if store.shard(key := run.plan.root_key(store, run.problems[index])).slots(key)]
    unused = sum(index not in used for index in stored)
    if not unused:  # such as runs of another task whose name begins alike
        return []
    return [
        f"own data is now split by its questions (split-mode=hash), so that rows can be added or moved; earlier runs on {run.task.name} "
        f"were split by row number (split-mode=sample, which still does). Of the {len(stored):,} problems with stored completions, "
        f"{unused:,} are validation or test problems now"
    ]


def _train_and_test(
    config: Config, task: Task, problems: Mapping[int, Problem], templates: Mapping[int, str] | None
) -> tuple[list[int], list[int], str | None]:
    """Sample indices of train and test, and the questions' hash in the split file (None without one). Train gets unlabelled problems."""
    mode = config.split_mode
    if mode.name == "file":
        assert mode.path is not None
        train, test, split_hash = read_split_file(Path(mode.path), sorted(problems))
        if unlabelled := [index for index in test if not problems[index].labelled]:
            raise FcotError(
                f"split_mode.path={mode.path}: {len(unlabelled)} test problems have no answer, the first is sample index {unlabelled[0]}"
            )
        return train, test, split_hash
    indices = [index for index in sorted(problems) if problems[index].labelled]
    if templates is not None:
        positions = template_split([templates[index] for index in indices], mode.train_fraction)
        if indices and abs(len(positions[0]) / len(indices) - mode.train_fraction) > _MAX_DEVIATION:
            n = len(set(templates.values()))
            why = f"the {n} templates of {task.name} differ too much in size" if n > 1 else f"all problems of {task.name} share a template"
            sizes = f"train would have {len(positions[0])} problems and test {len(positions[1])}"
            raise FcotError(f"split-mode=template: {why}, {sizes}; use split-mode=sample")
    elif mode.name == "all":
        positions = [], list(range(len(indices)))
    else:
        n = len(indices)
        positions = published_split(task, n) if mode.name == "published" else sample_split(n, mode.train_fraction)
    train, test = ([indices[position] for position in part] for part in positions)
    test_templates = {templates[index] for index in test} if templates is not None else set()
    unlabelled = [index for index in set(problems) - set(indices) if templates is None or templates[index] not in test_templates]
    return sorted([*train, *unlabelled]), test, None


def calculations_of_test(run: Run) -> dict[int, int]:
    """The number of calculations in the gold rationale of each test problem that has any. Reports show accuracy by it."""
    problems = run.select(run.split.test)
    counts = {problem.sample_index: n_calculations(problem.rationale) for problem in problems if problem.rationale}
    return {index: count for index, count in counts.items() if count}


def templates_of_test(run: Run) -> dict[int, str]:
    """The group or template of each test problem for which it is known. Reports cluster standard errors by it.

    Templates are guessed from the wording only if the split itself uses these guesses.
    """
    mode, problems = run.config.split_mode, run.problems
    templates = {
        index: name for index in run.split.test if (name := problems[index].group or problems[index].template_id) is not None
    }  # fmt: skip
    if mode.templates is not None or (mode.name == "template" and not templates):
        templates = _templates(run.config, run.task, problems)
    return {index: templates[index] for index in run.split.test if index in templates}


def _templates(config: Config, task: Task, problems: Mapping[int, Problem]) -> dict[int, str]:
    """The template of each problem, by sample index: from the user's file, else from the data, else guessed from the wording."""
    if config.split_mode.templates is not None:
        return read_templates_file(Path(config.split_mode.templates), sorted(problems))
    templates = {index: problem.template_id for index, problem in problems.items() if problem.template_id is not None}
    if not templates:
        templates = group_by_template(problems)
        n = len(set(templates.values()))
        say(f"{task.name}: the data has no template ids; grouping its problems by their wording gives {n:,} templates")
    if len(templates) < len(problems):
        raise FcotError(
            f"split-mode=template: {len(problems) - len(templates)} of {len(problems)} problems of {task.name} have no template; "
            'name them in a file, {"template id": [sample indices], ...}: split_mode.templates=FILE'
        )
    return templates
