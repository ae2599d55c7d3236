"""The second try of ``method.feedback.form=critique``: the teacher names the first wrong step, and the student goes on from the one before.

The steps of a rationale are its sentences or lines. The student's earlier text before the wrong step is kept, and the rest is sampled anew.
The round learns the right answers as the student's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from fcot.base.console import progress, say
from fcot.base.files import read_jsonl, write_jsonl
from fcot.base.records import Feedback, from_row, to_row
from fcot.decoding.engine import DecodingPrompt, Sampling
from fcot.evaluation import scoring
from fcot.methods.tailored.config import TailoredConfig
from fcot.methods.tailored.critique import wrong_step
from fcot.methods.tailored.exam import RETRY_NOISE
from fcot.objectives.pairs import as_completion
from fcot.prompts.steps import before_step
from fcot.prompts.student import StudentFormat
from fcot.runs.run import Run
from fcot.stages.answering import decode_prompts
from fcot.stages.table import Context, Summary
from fcot.stages.training import load_trained
from fcot.student.interface import read_interface
from fcot.student.loading import Student
from fcot.student.tokenization import encode_questions


class _Beginning:
    """A reviser that makes a row begin with given tokens."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = list(ids)

    def revise(self, written: Sequence[int], ended: bool) -> tuple[int, list[int]] | None:
        """Replace the first token by the beginning; change nothing later."""
        beginning, self._ids = self._ids, []
        return (0, beginning) if beginning else None


@dataclass(frozen=True)
class _Try:
    """An answer that the student tries again.

    Attributes:
        row: The critique, which names the first wrong step.
        beginning: What the student wrote before that step; empty if it is the first one.
    """

    row: Feedback
    beginning: str


def retry(context: Context) -> Summary:
    """Let the student try again after each critique; write its right answers to ``retries.jsonl``."""
    run, number, world = context.run, context.round, context.world
    method: TailoredConfig = run.config.method
    previous, directory = run.directory.round(number - 1), run.directory.round(number)
    form, student = read_interface(previous.student).format, load_trained(run, previous)
    feedback = [from_row(Feedback, row) for row in read_jsonl(directory.feedback)]
    critiques = [row for row in feedback if not row.own]
    tries = [
        _Try(row, before_step(form.split(row.mistakes[0])[0], step))
        for row in critiques if (step := wrong_step(f"{row.rationale} {row.answer_text}")) is not None
    ]  # fmt: skip
    if world.rank == 0 and len(tries) < len(critiques):
        say(f"round {number}: {len(critiques) - len(tries)} of {len(critiques)} critiques name no step and are left out")
    prompts = _prompts(run, number, student, form, tries)
    with progress(f"retry {number}", len(prompts), "answers") as bar:
        answers = decode_prompts(run, student, prompts, world, Sampling(method.exam.temperature, method.exam.top_k), bar.advance)
    if world.rank > 0:
        return {}
    slots = Counter(row.sample_index for row in feedback)  # the next completion index of each problem, after those in feedback.jsonl
    rows: dict[tuple[int, str], Feedback] = {}
    n_right = 0
    for position, answer in enumerate(answers):
        row = tries[position // method.feedback.retries].row
        index, text = row.sample_index, answer.text.strip()
        problem = run.problems[index]
        right = scoring.score(problem, answer.text, answer.complete, answer.n_tokens, form, run.task.rule).correct
        n_right += right
        if right and (index, text) not in rows:
            finish_reason = "stop" if answer.complete else "length"
            rows[index, text] = Feedback(index, slots[index], row.mistakes, *form.split(text), finish_reason, own=True, id=problem.id)
            slots[index] += 1
    write_jsonl(directory.retries, map(to_row, sorted(rows.values(), key=lambda row: row.sample_index)))
    return {"critiques": len(critiques), "critiques_read": len(tries), "retries": len(answers), "retries_right": n_right}


def _prompts(run: Run, number: int, student: Student, form: StudentFormat, tries: Sequence[_Try]) -> list[DecodingPrompt]:
    """The prompts of the tries in order, each ``method.feedback.retries`` times with other noise."""
    method: TailoredConfig = run.config.method
    limit = method.exam.max_new_tokens or run.config.student.max_new_tokens
    questions = [run.problems[item.row.sample_index].question for item in tries]
    encoded = encode_questions(student, form, questions, run.config.student.max_prompt_tokens)[0]
    prompts = []
    for item, ids in zip(tries, encoded, strict=True):
        text = as_completion(form, item.beginning) if item.beginning else ""
        beginning = student.tokenizer(text, add_special_tokens=False)["input_ids"][: limit - 1]
        for attempt in range(method.feedback.retries):
            noise = (run.config.seed, item.row.sample_index, attempt, number, RETRY_NOISE, item.row.completion_index)
            prompts.append(DecodingPrompt(ids, limit, noise, reviser=partial(_Beginning, beginning)))
    return prompts
