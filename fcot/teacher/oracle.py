"""The oracle: a program that solves the toy tasks and phrases each rationale in many ways, so that a run needs no network."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fcot.base.errors import FcotError
from fcot.llm.requests import NO_ACCOUNT, Account, Choice, Reply, Request
from fcot.prompts.judge import MARK
from fcot.prompts.teacher import FIRST_WRONG_STEP, HINT, STUDENTS_ANSWER
from fcot.tasks.toy import TOY_TASKS, ToyTask

VERSION = 2  # increase it when wordings change: it is part of the store's keys


class Oracle:
    """A teacher for one toy task. Each slot of a problem has another wording, until all wordings of the task are used.

    Args:
        task: Name of the toy task.
        error_rate: Share of rationales (0..1) with one wrong step and therefore a wrong answer.
        temperature: Part of the store's keys; changes no answer.
    """

    chat = False
    concurrency = 1
    max_choices = 64
    older_identities: Sequence[Mapping[str, Any]] = ()

    def __init__(self, task: str, error_rate: float, temperature: float) -> None:
        if task not in TOY_TASKS:
            raise FcotError(f"teacher=oracle solves the toy tasks only ({', '.join(TOY_TASKS)}), not {task}")
        self._task = TOY_TASKS[task]
        self._error_rate = error_rate
        self.identity: Mapping[str, Any] = {
            "model": f"oracle-v{VERSION}", "error_rate": error_rate, "temperature": temperature,
        }  # fmt: skip

    async def generate(self, request: Request, n: int, seed: int, account: Account = NO_ACCOUNT) -> Reply:
        """Answer a request. Step 1 gets the wordings of slots ``seed``, ``seed + 1``...; step 2 gets the rationale's conclusion.

        A prompt that ends with "A:" is answered in one step: in the format of its exemplars, or with the answer alone if it has none.
        """
        if request.rationale is not None:
            return Reply([Choice(f" {self._task.conclusion(request.rationale)}.", "stop")] * n)
        assert request.problem is not None
        if is_judged(request.problem.question):
            return Reply([Choice(judged(self._task, request.problem.question), "stop")] * n)
        if STUDENTS_ANSWER in request.problem.question:
            return Reply([Choice(self._feedback(request.problem.question, seed + i), "stop") for i in range(n)])
        rationales = [self._rationale(request.problem.question, seed + i) for i in range(n)]
        prompt = request.prompt if isinstance(request.prompt, str) else ""
        if not prompt.endswith("A:"):
            return Reply([Choice(rationale, "stop") for rationale in rationales])
        has_exemplars = "The answer is" in prompt
        answers = [self._task.conclusion(rationale) for rationale in rationales]
        texts = [
            f"{rationale} The answer is {answer}." if has_exemplars else f" {answer}."
            for rationale, answer in zip(rationales, answers, strict=True)
        ]
        return Reply([Choice(text, "stop") for text in texts])

    def _rationale(self, question: str, slot: int) -> str:
        wordings = random.Random(question).sample(range(self._task.n_wordings), self._task.n_wordings)
        rng = random.Random(f"{question} {slot}")
        slip = rng if rng.random() < self._error_rate else None
        return " " + self._task.rationale(question, wordings[slot % len(wordings)], slip, None)

    def _feedback(self, case: str, slot: int) -> str:
        """A rationale that explains the student's first wrong step in smaller steps. It has no error if the request contains the answer.

        Args:
            case: The request's text: the question, the student's mistakes and maybe the right answer as a hint.
            slot: Another slot may have another wording and another error.

        Raises:
            FcotError: The request does not contain the question where the oracle looks for it.
        """
        request, _, mistakes = case.partition(STUDENTS_ANSWER)
        match = re.search(r"Question: (.+)", request)
        if match is None:
            raise FcotError(
                'teacher=oracle looks for the question behind "Question: " in a request for feedback; method.feedback.template must have it'
            )
        question, rng = match[1].strip(), random.Random(f"{case} {slot}")
        slip = rng if HINT not in case and rng.random() < self._error_rate else None
        mistake = mistakes.partition(": ")[2]
        if FIRST_WRONG_STEP in case:
            return self._critique(question, mistakes, slip)
        explained = self._task.first_wrong(question, mistake)
        rationale = self._task.rationale(question, rng.randrange(self._task.n_wordings), slip, explained)
        return f" {rationale} The answer is {self._task.conclusion(rationale)}."

    def _critique(self, question: str, mistakes: str, slip: random.Random | None) -> str:
        """A critique that names the first wrong one of the numbered lines of a mistake; with ``slip`` any of them."""
        steps = re.findall(r"^\d+\. (.*)$", mistakes, re.MULTILINE)
        last = max(1, len(steps))
        number = slip.randint(1, last) if slip else _first_wrong_step(self._task, question, steps) or last
        return f" This step does not follow. {FIRST_WRONG_STEP}: {number}"

    def status(self) -> str:
        """An empty text: there is nothing to show."""
        return ""

    def halt(self) -> None:
        """Do nothing: no call waits for its turn."""

    async def close(self) -> None:
        """Do nothing: there are no connections."""


def is_judged(text: str) -> bool:
    """Whether the text of a request shows numbered steps and demands a verdict on them."""
    return MARK in text and re.search(r"^Step 1: ", text, re.MULTILINE) is not None


def judged(task: ToyTask, text: str) -> str:
    """The verdict on the numbered steps in a request to a judge.

    Args:
        task: The toy task of the question.
        text: The text of the request.

    Raises:
        FcotError: The request does not contain the question where the oracle looks for it.
    """
    question, steps = re.search(r"Question: (.+)", text), re.findall(r"^Step \d+: (.*)", text, re.MULTILINE)
    if question is None:
        raise FcotError(
            'teacher=oracle looks for the question behind "Question: " in a request to a judge; curation.judge_path must have it'
        )
    number = _first_wrong_step(task, question[1].strip(), steps)
    return f"{MARK} all steps follow" if number is None else f"{MARK} step {number} is wrong"


def _first_wrong_step(task: ToyTask, question: str, steps: Sequence[str]) -> int | None:
    """The number of the step with the first wrong result, from 1; None if no result is wrong.

    If a result is missing, it is the last step, which concludes too early.
    """
    wrong = task.first_wrong(question, "\n".join(steps))
    if wrong is None:
        return None
    return next((number for number in range(1, len(steps) + 1) if len(task.results("\n".join(steps[:number]))) > wrong), len(steps))
