"""Exemplars of few-shot prompts: from a file, or from the rationales that an earlier run kept."""

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

DEFAULT_DRAWN = 8  # paper A's usual number
TRAIN = "train"


def load_exemplars(
    source: str, n: int | None, task: str, prompt: TeacherPrompt, rule: AnswerRule, train: Mapping[int, Problem]
) -> tuple[Exemplar, ...]:
    r"""The exemplars of ``prompt.exemplars``.

    Args:
        source: The authors' file (``{task: {"prompt": "Q: ...\nA: ..."}}``), JSON Lines with ``question``, ``rationale`` and
            ``answer``, a run's folder, or ``train``: of the rationales that the run kept, or that humans wrote for the train
            problems, those of ``n`` problems drawn at random (seed 0).
        n: How many; None takes all of a file, 8 otherwise.
        task: Name in the authors' file.
        prompt: Words the exemplars that are not text yet.
        rule: Its trigger depends on the answer type.
        train: The train problems by sample index; a run's rationales of other problems are left out.

    Raises:
        FcotError: The source is unreadable, or holds fewer than ``n`` exemplars of the task.
    """
    path = Path(source)
    if source == TRAIN:
        return tuple(_drawn({index: one.rationale for index, one in train.items() if one.rationale}, n, prompt, rule, train, path))
    if path.is_dir() and not (path / "curated.jsonl").exists():
        raise FcotError(f"prompt.exemplars={path}: not the folder of a run that curated rationales; such as outputs/runs/<run>")
    try:
        if path.is_dir():
            kept = {row["sample_index"]: row for row in reversed(list(read_jsonl(RunDirectory(path).curated))) if row["kept"]}
            found = _drawn({index: row["rationale"] for index, row in kept.items()}, n, prompt, rule, train, path)
        elif path.suffix == ".jsonl":
            found = [_of_row(prompt, rule, row) for row in read_jsonl(path)]
        else:
            found = _blocks(read_json(path), task, path)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise FcotError(f"prompt.exemplars={path}: {type(error).__name__}: {error}") from error
    if not found or len(found) < (n or 1):
        raise FcotError(f"prompt.exemplars={path} holds {len(found)} exemplars of {task}; asked for {n or 'at least one'}")
    return tuple(found[:n])


def _worded(prompt: TeacherPrompt, rule: AnswerRule, question: str, rationale: str, answer: str, index: int | None = None) -> Exemplar:
    return Exemplar(question, f"Q: {question}\nA: {prompt.answer(rationale.strip(), str(answer), rule)}", index)


def _of_row(prompt: TeacherPrompt, rule: AnswerRule, row: Any) -> Exemplar:
    """A row of JSON Lines.

    Raises:
        ValueError: It is no object with two texts and an answer.
    """
    if not isinstance(row, dict) or not isinstance(row.get("question"), str) or not isinstance(row.get("rationale"), str):
        raise ValueError('each line is {"question": TEXT, "rationale": TEXT, "answer": ANSWER}')
    return _worded(prompt, rule, row["question"], row["rationale"], row["answer"])


def _blocks(file: Any, task: str, path: Path) -> list[Exemplar]:
    """The authors' file: one text for each task, cut where a new question begins.

    Raises:
        ValueError: It is no such file.
    """
    if not isinstance(file, dict) or (task in file and not (isinstance(file[task], dict) and isinstance(file[task].get("prompt"), str))):
        raise ValueError('expected {task: {"prompt": "Q: ..."}}')
    if task not in file:
        raise FcotError(f"prompt.exemplars={path} has nothing for {task}; it has {', '.join(file)}")
    blocks = re.split(r"\n+(?=Q: )", file[task]["prompt"].strip())
    indices = file[task].get("sample_indices") or [None] * len(blocks)
    return [Exemplar(block.removeprefix("Q: ").partition("\nA:")[0], block, index) for block, index in zip(blocks, indices, strict=True)]


def _drawn(
    rationales: Mapping[int, str], n: int | None, prompt: TeacherPrompt, rule: AnswerRule, train: Mapping[int, Problem], source: Path
) -> list[Exemplar]:
    """Of rationales by sample index those of ``n`` train problems; what is train elsewhere may be test here."""
    known = sorted(set(rationales) & set(train))
    if len(known) < (n or 1):
        raise FcotError(f"prompt.exemplars={source}: {len(known)} train problems have a rationale; asked for {n or 'at least one'}")
    chosen = random.Random(0).sample(known, min(n or DEFAULT_DRAWN, len(known)))
    return [_worded(prompt, rule, train[i].question, rationales[i], train[i].answer, i) for i in chosen]
