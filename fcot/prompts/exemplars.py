"""Exemplars of few-shot prompts: from a file, or from the rationales that an earlier run kept."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fcot.artifacts import RunDirectory, read_json, read_jsonl
from fcot.errors import FcotError
from fcot.prompts.answers import AnswerRule
from fcot.prompts.teacher import Exemplar, TeacherPrompt
from fcot.records import Problem

DEFAULT_FROM_RUN = 8  # paper A's usual number


def load_exemplars(
    source: str, n: int | None, task: str, prompt: TeacherPrompt, rule: AnswerRule, train: Mapping[int, Problem]
) -> tuple[Exemplar, ...]:
    r"""The exemplars of ``prompt.exemplars``.

    Args:
        source: The authors' file (``{task: {"prompt": "Q: ...\nA: ..."}}``), JSON Lines with ``question``, ``rationale`` and
            ``answer``, or a run's folder: of its kept rationales, one for each of ``n`` problems drawn at random (seed 0).
        n: How many; None takes all of a file, 8 of a run.
        task: Name in the authors' file.
        prompt: Words the exemplars that are not text yet.
        rule: Its trigger depends on the answer type.
        train: The train problems by sample index; a run's rationales of other problems are left out.

    Raises:
        FcotError: The source is unreadable, or holds fewer than ``n`` exemplars of the task.
    """
    path = Path(source)
    if path.is_dir() and not (path / "curated.jsonl").exists():
        raise FcotError(f"prompt.exemplars={path}: not the folder of a run that curated rationales; such as outputs/runs/<run>")
    try:
        if path.is_dir():
            found = _kept(RunDirectory(path), n or DEFAULT_FROM_RUN, prompt, rule, train)
        elif path.suffix == ".jsonl":
            found = [_worded(prompt, rule, row["question"], row["rationale"], row["answer"]) for row in read_jsonl(path)]
        else:
            found = _blocks(read_json(path), task, path)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise FcotError(f"prompt.exemplars={path}: {type(error).__name__}: {error}") from error
    if not found or len(found) < (n or 1):
        raise FcotError(f"prompt.exemplars={path} holds {len(found)} exemplars of {task}; asked for {n or 'at least one'}")
    return tuple(found[:n])


def _worded(prompt: TeacherPrompt, rule: AnswerRule, question: str, rationale: str, answer: str) -> Exemplar:
    return Exemplar(question, f"Q: {question}\nA: {prompt.answer(rationale.strip(), str(answer), rule)}")


def _blocks(file: Any, task: str, path: Path) -> list[Exemplar]:
    """The authors' file: one text for each task, cut where a new question begins."""
    if task not in file:
        raise FcotError(f"prompt.exemplars={path} has nothing for {task}; it has {', '.join(file)}")
    blocks = re.split(r"\n+(?=Q: )", file[task]["prompt"].strip())
    return [Exemplar(block.removeprefix("Q: ").partition("\nA:")[0], block) for block in blocks]


def _kept(run: RunDirectory, n: int, prompt: TeacherPrompt, rule: AnswerRule, train: Mapping[int, Problem]) -> list[Exemplar]:
    first: dict[int, dict[str, Any]] = {}
    for row in read_jsonl(run.curated):
        if row["kept"] and row["sample_index"] in train:  # what is train there may be test here
            first.setdefault(row["sample_index"], row)
    chosen = random.Random(0).sample(sorted(first), min(n, len(first)))
    return [_worded(prompt, rule, train[i].question, first[i]["rationale"], first[i]["answer"]) for i in chosen]
