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
    """The completion files of ``teacher.path``: the file itself, or all ``*.json`` files below a folder.

    Raises:
        FcotError: There is no such file, or the folder has no such files.
    """
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
        task: The task. Files with another ``dataset_key`` than its name are not read.
        questions: The task's questions by sample index. The questions in the file must equal them, apart from whitespace.

    Returns:
        The completions, and the name of the model that wrote them.

    Raises:
        FcotError: There is no file of this task, or a file has an unknown problem, another question or a duplicate completion.
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
                    + (" (several files of the folder have it: set teacher.path to one file)" if path.is_dir() else "")
                )
            slots[completion.completion_index] = completion
    if not by_problem:
        content = (
            f"completions of {', '.join(sorted(other_tasks))}, not of {task.name}" if other_tasks else f"no completions of {task.name}"
        )
        raise FcotError(f"teacher.path={path} holds {content}")
    return {index: [slots[slot] for slot in sorted(slots)] for index, slots in by_problem.items()}, "+".join(sorted(models))


def choose(
    completions: Mapping[int, Sequence[Completion]], problems: Iterable[Problem], diversity: int, source: str, start: int = 0
) -> list[Completion]:
    """Choose D completions of each problem, and renumber them 0..D-1.

    Args:
        completions: Completions by sample index, ordered by completion index.
        problems: The problems to choose for.
        diversity: D.
        source: Name of the file, for messages.
        start: Position of the first completion to choose, from 0.

    Raises:
        FcotError: The file has too few completions of a problem, or none.
    """
    problems = list(problems)
    missing = [problem.sample_index for problem in problems if problem.sample_index not in completions]
    if missing:
        raise FcotError(
            f"{source} holds no completion for {len(missing)} of the {len(problems)} training problems "
            f"(the first is sample index {missing[0]}); use a file with all of them"
        )
    fewest = min((len(completions[problem.sample_index]) for problem in problems), default=0)
    if problems and start and fewest < start + diversity:
        raise FcotError(
            f"redraw_rationales=true with this seed takes completions {start} to {start + diversity - 1} of each problem, "
            f"and {source} holds {fewest}: use a smaller seed or diversity"
        )
    if problems and fewest < diversity:
        raise FcotError(
            f"diversity={diversity} is more than {source} holds: {fewest} completion{'s' if fewest != 1 else ''} "
            f"per problem (use diversity={fewest} or a file sampled at temperature 0.7)"
        )
    return [
        Completion(chosen.sample_index, slot, chosen.rationale, chosen.answer_text, chosen.finish_reason, chosen.thought)
        for problem in problems
        for slot, chosen in enumerate(completions[problem.sample_index][start : start + diversity])
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
            fault = f"has {row[name]!r} as" if name in row else "lacks"
            raise FcotError(f"{file}: a completion {fault} {name} (sample index {row.get('sample_index')})")
    index, slot, question = row["sample_index"], row["completion_index"], row["question"]
    if index not in questions:
        raise FcotError(f"{file}: sample index {index} does not exist in the data set")
    if question.split() != questions[index].split():
        raise FcotError(
            f"{file}: the question of sample index {index} is not the data set's. File: {question[:80]!r}; "
            f"data: {questions[index][:80]!r}. Was the file made from rows in another order?"
        )
    rationale, answer = (row[name].encode("utf-8", "replace").decode() for name in ("reasoning_completion", "completion"))
    thought, rationale_text, _ = separate(rationale)
    return Completion(index, slot, rationale_text, separate(answer).rest, row.get("finish_reason"), thought)
