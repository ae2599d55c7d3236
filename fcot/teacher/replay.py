"""Reads completions from files in the format that paper A's authors released. No request is sent, and nothing is stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fcot.base.errors import FcotError
from fcot.base.files import read_json
from fcot.base.records import Completion, Problem
from fcot.prompts.thinking import separate
from fcot.tasks.table import Task

_FIELDS = {"sample_index": int, "completion_index": int, "question": str, "reasoning_completion": str, "completion": str}


def find_files(path: Path) -> list[Path]:
    """The completion files of ``teacher.path``: the file itself, or all ``*.json`` files below a folder."""
    if path.is_file():
        return [path]
    files = sorted(path.rglob("*.json"))
    if not files:
        raise FcotError(f"teacher.path={path}: no such file, or a folder without .json files")
    return files


def read_completions(path: Path, task: Task, questions: Mapping[int, str]) -> tuple[dict[int, list[Completion]], str]:
    """All completions of a task in a file or folder, by sample index, ordered by completion index.

    Args:
        path: A completion file, or a folder from which the files of this task are read.
        task: The task. Its name has to be the file's ``dataset_key``.
        questions: The task's questions by sample index; those in the file must be the same.

    Returns:
        The completions, and the name of the model that wrote them.

    Raises:
        FcotError: No file of this task, unknown problems, other questions, or a duplicate completion.
    """
    by_problem: dict[int, dict[int, Completion]] = {}
    models, other_tasks = set(), set()
    for file in find_files(path):
        if path.is_dir() and not _is_completion_file(file):
            continue
        metadata, data = _read_file(file)
        key = metadata.get("dataset_key")
        if key != task.name:
            other_tasks.add(str(key))
            continue
        models.add(str(metadata.get("base_model", "unknown")))
        for row in data:
            completion = _to_completion(row, file, questions)
            slots = by_problem.setdefault(completion.sample_index, {})
            if completion.completion_index in slots:
                raise FcotError(
                    f"{file}: sample index {completion.sample_index} has completion {completion.completion_index} twice"
                    + (" (several files of the folder hold it: point teacher.path to one)" if path.is_dir() else "")
                )
            slots[completion.completion_index] = completion
    if not by_problem:
        content = (
            f"completions of {', '.join(sorted(other_tasks))}, not of {task.name}" if other_tasks else f"no completions of {task.name}"
        )
        raise FcotError(f"teacher.path={path} holds {content}")
    return {index: [slots[slot] for slot in sorted(slots)] for index, slots in by_problem.items()}, "+".join(sorted(models))


def choose(
    completions: Mapping[int, Sequence[Completion]], problems: Iterable[Problem], diversity: int, source: str, first: int = 0
) -> list[Completion]:
    """D completions of each problem, renumbered 0..D-1.

    Args:
        completions: Completions by sample index, ordered by completion index.
        problems: The problems to choose for.
        diversity: D.
        source: Name of the file, for messages.
        first: Position of the first completion to take.

    Raises:
        FcotError: The file holds fewer than D completions of a problem, or lacks a problem.
    """
    problems = list(problems)
    missing = [problem.sample_index for problem in problems if problem.sample_index not in completions]
    if missing:
        raise FcotError(
            f"{source} holds no completion for {len(missing)} of the {len(problems)} training problems "
            f"(the first is sample index {missing[0]})"
        )
    fewest = min((len(completions[problem.sample_index]) for problem in problems), default=0)
    if problems and first and fewest < first + diversity:
        raise FcotError(
            f"redraw_rationales=true with this seed takes completions {first} to {first + diversity - 1} of each problem, "
            f"and {source} holds {fewest}: use a smaller seed or diversity"
        )
    if problems and fewest < diversity:
        raise FcotError(
            f"diversity={diversity} is more than {source} holds: {fewest} completion{'s' if fewest != 1 else ''} "
            f"a problem (use diversity={fewest} or a file sampled at temperature 0.7)"
        )
    return [
        Completion(chosen.sample_index, slot, chosen.rationale, chosen.answer_text, chosen.finish_reason, chosen.thought)
        for problem in problems
        for slot, chosen in enumerate(completions[problem.sample_index][first : first + diversity])
    ]


def _is_completion_file(file: Path) -> bool:
    """Whether a JSON file has the format of completions. A folder may hold others, such as data sets."""
    try:
        data = read_json(file)
    except ValueError:
        return False
    return isinstance(data, dict) and isinstance(data.get("data"), dict)


def _read_file(file: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The metadata and the rows of a completion file."""
    try:
        data = read_json(file)
    except ValueError as error:
        raise FcotError(f"{file}: not JSON ({error})") from error
    if not isinstance(data, dict) or not isinstance(data.get("metadata"), dict) or not isinstance(data.get("data"), dict):
        raise FcotError(f'{file}: not a completion file ({{"metadata": {{"dataset_key": ...}}, "data": {{"0": [...]}}}})')
    rows = [row for rows in data["data"].values() for row in (rows if isinstance(rows, list) else [rows])]
    if invalid := [row for row in rows if not isinstance(row, dict)]:
        raise FcotError(f"{file}: a completion is a JSON object, not {str(invalid[0])[:80]!r}")
    return data["metadata"], rows


def _to_completion(row: Mapping[str, Any], file: Path, questions: Mapping[int, str]) -> Completion:
    for name, kind in _FIELDS.items():
        if not isinstance(row.get(name), kind):
            problem = f"has {row[name]!r} as" if name in row else "lacks"
            raise FcotError(f"{file}: a completion {problem} {name} (sample index {row.get('sample_index')})")
    index, slot, question = row["sample_index"], row["completion_index"], row["question"]
    if index not in questions:
        raise FcotError(f"{file}: sample index {index} does not exist in the data set")
    if question.split() != questions[index].split():
        raise FcotError(
            f"{file}: the question of sample index {index} is not the data set's. File: {question[:80]!r}; "
            f"data: {questions[index][:80]!r}. Was it made from rows in another order?"
        )
    rationale, answer = (row[name].encode("utf-8", "replace").decode() for name in ("reasoning_completion", "completion"))
    thought, rationale_text, _ = separate(rationale)
    return Completion(index, slot, rationale_text, separate(answer).rest, row.get("finish_reason"), thought)
