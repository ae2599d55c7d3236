"""Loads the exemplars of few-shot prompts: from a file, from the rationales that an earlier run kept, or from human rationales."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fcot.base.errors import FcotError
from fcot.base.files import read_json, read_jsonl
from fcot.base.records import Problem
from fcot.base.run_folder import RunDirectory
from fcot.prompts.answers import AnswerRule
from fcot.prompts.teacher import Exemplar, TeacherPrompt

DEFAULT_N = 8  # paper A's usual number
TRAIN = "train"


def load_exemplars(
    source: str, n: int | None, task: str, prompt: TeacherPrompt, rule: AnswerRule, train: Mapping[int, Problem]
) -> tuple[Exemplar, ...]:
    r"""The exemplars of ``prompt.exemplars``.

    Args:
        source: The authors' file (``{task: {"prompt": "Q: ...\nA: ..."}}``); JSON Lines with ``question``, ``rationale`` and ``answer``;
            a run's folder, for rationales that the run kept; or ``train``, for human rationales of the train problems. From a run or
            from ``train``, ``n`` problems are sampled at random (seed 0).
        n: Number of exemplars; None for all of a file, or for 8 from a run or from ``train``.
        task: Name of the task in the authors' file.
        prompt: The prompt whose answer trigger the exemplars use.
        rule: The task's answer rule, which selects the trigger.
        train: The train problems by sample index. A run's rationales of other problems are left out.

    Raises:
        FcotError: The source cannot be read, or has fewer than ``n`` exemplars of the task.
    """
    path = Path(source)
    if source == TRAIN:
        rationales = {index: problem.rationale for index, problem in train.items() if problem.rationale}
        return tuple(_sampled(rationales, n, prompt, rule, train, path))
    if path.is_dir() and not (path / "curated.jsonl").exists():
        raise FcotError(f"prompt.exemplars={path}: not the folder of a run that curated rationales, such as outputs/runs/<run>")
    try:
        if path.is_dir():
            first_kept = {row["sample_index"]: row for row in reversed(list(read_jsonl(RunDirectory(path).curated))) if row["kept"]}
            exemplars = _sampled({index: row["rationale"] for index, row in first_kept.items()}, n, prompt, rule, train, path)
        elif path.suffix == ".jsonl":
            exemplars = [_from_row(prompt, rule, row, f"{path}, line {line}") for line, row in enumerate(read_jsonl(path), start=1)]
        else:
            exemplars = _blocks(read_json(path), task, path)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise FcotError(f"prompt.exemplars={path}: {type(error).__name__}: {error}") from error
    if len(exemplars) < (n or 1):
        raise FcotError(f"prompt.exemplars={path} has {len(exemplars)} exemplars of {task}; needed: {n or 1} (prompt.n_exemplars)")
    return tuple(exemplars[:n])


def _exemplar(prompt: TeacherPrompt, rule: AnswerRule, question: str, rationale: str, answer: str, index: int | None = None) -> Exemplar:
    return Exemplar(question, f"Q: {question}\nA: {prompt.answer(rationale.strip(), str(answer), rule)}", index)


def _from_row(prompt: TeacherPrompt, rule: AnswerRule, row: Any, where: str) -> Exemplar:
    """The exemplar of a row of JSON Lines.

    Raises:
        FcotError: The row is no object with a question, a rationale and an answer; ``where`` is its file and line.
    """
    texts = isinstance(row, dict) and isinstance(row.get("question"), str) and isinstance(row.get("rationale"), str)
    if not texts or row.get("answer") is None:
        raise FcotError(f'prompt.exemplars={where}: each line is {{"question": TEXT, "rationale": TEXT, "answer": ANSWER}}')
    return _exemplar(prompt, rule, row["question"], row["rationale"], row["answer"])


def _blocks(file: Any, task: str, path: Path) -> list[Exemplar]:
    """The task's exemplars in the authors' file. The file has one text per task, which is split where a new question begins.

    Raises:
        ValueError: The content is not that of the authors' file.
        FcotError: The file has no exemplars of the task.
    """
    if not isinstance(file, dict) or (task in file and not (isinstance(file[task], dict) and isinstance(file[task].get("prompt"), str))):
        raise ValueError('expected {task: {"prompt": "Q: ..."}}')
    if task not in file:
        raise FcotError(f"prompt.exemplars={path} has no exemplars of {task}; it has those of {', '.join(file)}")
    blocks = re.split(r"\n+(?=Q: )", file[task]["prompt"].strip())
    indices = file[task].get("sample_indices") or [None] * len(blocks)
    return [Exemplar(block.removeprefix("Q: ").partition("\nA:")[0], block, index) for block, index in zip(blocks, indices, strict=True)]


def _sampled(
    rationales: Mapping[int, str], n: int | None, prompt: TeacherPrompt, rule: AnswerRule, train: Mapping[int, Problem], source: Path
) -> list[Exemplar]:
    """Exemplars of ``n`` random train problems that have a rationale.

    Rationales of other problems are left out: a train problem of another run may be a test problem of this one.
    """
    candidates = sorted(set(rationales) & set(train))
    if len(candidates) < (n or 1):
        raise FcotError(
            f"prompt.exemplars={source}: {len(candidates)} train problems have a rationale; needed: {n or 1} (prompt.n_exemplars)"
        )
    chosen = random.Random(0).sample(candidates, min(n or DEFAULT_N, len(candidates)))
    return [_exemplar(prompt, rule, train[index].question, rationales[index], train[index].answer, index) for index in chosen]
