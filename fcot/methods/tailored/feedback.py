"""Feedback (paper B): which mistakes a teacher is shown, how the request is worded, and the stage that generates what a round learns.

A request is a problem whose question is the whole case, so that store, budget and resuming are those of any other request.
Paper B publishes no prompt for it; what is known of its parts (the problem, the wrong rationale, the answer as a hint, the request
for a corrected rationale) is in the default template. Two ablations replace the feedback: further plain rationales of the same problems,
and the student's own correct answers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fcot.base.console import progress
from fcot.base.errors import BudgetSpent
from fcot.base.files import read_json, read_jsonl, write_jsonl
from fcot.base.records import Completion, ExamResult, Feedback, Problem, from_row, to_row
from fcot.llm.generate import generate_completions
from fcot.llm.money import FREE, paid
from fcot.llm.plan import Plan
from fcot.llm.store.folder import StoreFolder
from fcot.methods.tailored.config import TailoredConfig
from fcot.prompts.answers import AnswerRule
from fcot.prompts.student import StudentFormat
from fcot.prompts.teacher import HINT, STUDENTS_ANSWER, TeacherPrompt
from fcot.runs.run import Run
from fcot.stages.first_look import FirstLook, remedies_of, remedies_of_feedback
from fcot.stages.table import Context, Summary
from fcot.student.interface import read_interface

_CUE = "\n\nReasoning:"  # for endpoints that continue a text
_NEXT = "\nQuestion:"  # with what such a text may go on
_NOTHING_PAID = {"served_from_store": 0, "identical_rationales": 0}


@dataclass(frozen=True)
class Case:
    """One request: a problem and the mistakes on it that the teacher is shown."""

    problem: Problem
    mistakes: Sequence[str]


def cases(
    results: Sequence[ExamResult], problems: Mapping[int, Problem], mistakes: int, requests: int, max_requests: int | None
) -> list[Case]:
    """What a round asks about, in the order of the exam.

    Args:
        results: Of the exam.
        problems: By sample index.
        mistakes: Shown in one request at most.
        requests: Of one problem at most, each about other mistakes.
        max_requests: In all; each problem's first comes before any second, the problems that fail most come first.
    """
    found = []
    for position, result in enumerate(results):
        shown = [result.mistakes[start : start + mistakes] for start in range(0, len(result.mistakes), mistakes)][:requests]
        rate = result.n_correct / result.n_answers
        found += [((number, rate, position), Case(problems[result.sample_index], part)) for number, part in enumerate(shown)]
    chosen = sorted(found, key=lambda item: item[0])[:max_requests]
    return [case for _, case in sorted(chosen, key=lambda item: (item[0][2], item[0][0]))]


def feedback_prompt(max_tokens: int, prompt: TeacherPrompt, chat: bool) -> TeacherPrompt:
    """How a teacher is asked: one request, its answer behind the run's own trigger."""
    template, stop = ("{question}", ()) if chat else ("{question}" + _CUE, (_NEXT,))
    return TeacherPrompt("feedback", template, prompt.answer_triggers, False, max_tokens, stop=stop)


def as_question(case: Case, template: str, hint: bool, form: StudentFormat, prompt: TeacherPrompt, rule: AnswerRule) -> Problem:
    """The problem whose question is the case.

    Args:
        case: What to ask about.
        template: Text around ``{question}`` and ``{mistakes}``; ``{hint}`` and ``{trigger}`` where it has them.
        hint: Whether the gold answer is told.
        form: The student's, by which a mistake is taken apart.
        prompt: Whose answer trigger the teacher is to use.
        rule: The task's.
    """
    values = {
        "question": case.problem.question,
        "mistakes": "\n\n".join(_shown(text, form, number, len(case.mistakes)) for number, text in enumerate(case.mistakes, 1)),
        "hint": f"{HINT} {case.problem.answer}.\n\n" if hint else "",
        "trigger": prompt.trigger(rule),
    }
    text = re.sub(r"\{(question|mistakes|hint|trigger)\}", lambda match: values[match[1]], template)
    return replace(case.problem, question=text)


def _shown(text: str, form: StudentFormat, number: int, n: int) -> str:
    rationale, answer = form.split(text)
    heading = STUDENTS_ANSWER if n == 1 else f"{STUDENTS_ANSWER} {number}"
    return f"{heading}: {rationale}\nThe student's conclusion: {answer or 'none'}"


# --- the stage ----------------------------------------------------------------------------------------------------


def feedback(context: Context) -> Summary:
    """Ask for what the round learns, or take it from its exam; a row per completion goes into ``feedback.jsonl``."""
    run, number = context.run, context.round
    method: TailoredConfig = run.config.method
    asked, results = method.feedback, exam_results(run, number)
    form = read_interface(run.directory.round(number - 1).student).format
    if asked.source == "self":
        learnt: list[Learnt] = [
            (one.sample_index, (), Completion(one.sample_index, 0, *form.split(text), "stop")) for one in results for text in one.right
        ]
        usage = paid((), FREE) | _NOTHING_PAID
    else:
        chosen = cases(results, run.problems, asked.mistakes, asked.requests, asked.max_requests)
        learnt, usage = _on_mistakes(run, number, chosen, form) if asked.source == "feedback" else _plain(run, number, chosen)
    seen: Counter[int] = Counter()
    rows = []
    for index, mistakes, one in sorted(learnt, key=lambda item: item[0]):  # what curation reads stands together
        rows.append(Feedback(index, seen[index], mistakes, one.rationale, one.answer_text, one.finish_reason, one.thought))
        seen[index] += 1
    write_jsonl(run.directory.round(number).feedback, map(to_row, rows))
    characters = usage.pop("prompt_characters", None)
    return {"asked": len(rows), "teacher_usage": usage} | ({} if characters is None else {"prompt_characters": characters})


Learnt = tuple[int, Sequence[str], Completion]  # sample index, mistakes that the teacher was shown, what it wrote


def _on_mistakes(run: Run, number: int, chosen: Sequence[Case], form: StudentFormat) -> tuple[list[Learnt], Summary]:
    """The teacher's replies; to a mistake that it was shown before it is asked for another one."""
    prompt, hint = feedback_prompt_of(run), run.config.method.feedback.hint
    had = _had(run, number, lambda row: (row["sample_index"], *row["mistakes"]))
    requests = [
        (as_question(case, run.request_text, hint, form, prompt, run.task.rule), had[case.problem.sample_index, *case.mistakes], 1)
        for case in chosen
    ]
    plan, look = replace(run.plan, prompt=prompt), FirstLook(run, prompt.read, run.rules, remedies_of_feedback(run), 1)
    replies, usage = _further(run, number, plan, run.store_of(prompt.name), requests, look)
    learnt = [(case.problem.sample_index, case.mistakes, one) for case, drawn in zip(chosen, replies, strict=True) for one in drawn]
    return learnt, usage | {"prompt_characters": sum(len(problem.question) for problem, _, _ in requests)}


def _plain(run: Run, number: int, chosen: Sequence[Case]) -> tuple[list[Learnt], Summary]:
    """As many further plain rationales of the same problems (the ablation without feedback)."""
    had = _had(run, number, lambda row: row["sample_index"])
    wanted = Counter(case.problem.sample_index for case in chosen)
    requests = [(run.problems[index], run.config.diversity + had[index], n) for index, n in wanted.items()]
    look = FirstLook(run, run.prompt.read, run.rules, remedies_of(run), 1)
    replies, usage = _further(run, number, run.plan, run.store, requests, look)
    return [(index, (), one) for index, drawn in zip(wanted, replies, strict=True) for one in drawn], usage


def _had(run: Run, number: int, request: Callable[[dict[str, Any]], Hashable]) -> Counter[Hashable]:
    """How many completions earlier rounds have asked for, by what was asked."""
    rows = (row for earlier in range(2, number) for row in read_jsonl(run.directory.round(earlier).feedback))
    return Counter(map(request, rows))


def _further(
    run: Run, number: int, plan: Plan, folder: StoreFolder, requests: Sequence[tuple[Problem, int, int]], look: FirstLook
) -> tuple[list[list[Completion]], Summary]:
    """For each request, with how many completions there are and how many more are wanted, those more; and what they cost.

    Raises:
        BudgetSpent: With what was paid until then.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for place, (_, had, n) in enumerate(requests):
        groups.setdefault((had, n), []).append(place)
    replies: list[list[Completion]] = [[] for _ in requests]
    usages: list[Summary] = []
    left = budget_left(run, number)
    for (had, n), places in groups.items():
        problems = [requests[place][0] for place in places]
        # Rows carry the round, so that what an earlier one paid for is not counted again.
        larger = replace(plan, diversity=had + n, run_id=f"{run.run_id}/round_{number}", budget_usd=left, resample_identical=False)
        try:
            with progress(f"feedback {number}", len(problems) * larger.diversity, "completions") as bar:
                bought = generate_completions(larger, folder, problems, bar.advance, look, bar.watch)
        except BudgetSpent as error:
            error.usage = add([*usages, error.usage or {}])
            raise
        drawn = list(bought)
        for group, place in enumerate(places):
            replies[place] = drawn[group * larger.diversity + had : (group + 1) * larger.diversity]
        usage, before = bought.usage(), replace(bought, plan=replace(larger, diversity=had)).usage() if had else {}
        for name in ("served_from_store", "identical_rationales", "used_prompt_tokens", "used_completion_tokens"):
            usage[name] = None if usage[name] is None or before.get(name, 0) is None else usage[name] - before.get(name, 0)
        usages.append(usage)
        left = None if left is None else left - (usage["usd"] or 0.0)
    look.report()
    return replies, add(usages) if usages else paid((), FREE) | _NOTHING_PAID


def budget_left(run: Run, number: int) -> float | None:
    """What earlier rounds have left of the budget, in USD; None without a limit."""
    budget = run.plan.budget_usd
    if budget is None:
        return None
    stages = [(earlier, "generate" if earlier == 1 else "feedback") for earlier in range(1, number)]
    spent = (read_json(run.directory.round(earlier).stage(name))["teacher_usage"]["usd"] for earlier, name in stages)
    return float(budget - sum(spent))


def add(records: Sequence[Summary]) -> Summary:
    """Records added up by key, records inside them likewise; None where a number is unknown."""
    keys = dict.fromkeys(key for record in records for key in record)
    return {key: _sum([record[key] for record in records if key in record]) for key in keys}


def _sum(values: Sequence[Any]) -> Any:
    if any(value is None for value in values):
        return None
    return add(values) if isinstance(values[0], dict) else sum(values)


def exam_results(run: Run, number: int) -> list[ExamResult]:
    """What the round's exam found."""
    return [from_row(ExamResult, row) for row in read_jsonl(run.directory.round(number).exam)]


def feedback_prompt_of(run: Run) -> TeacherPrompt:
    """How the run's teacher is asked about mistakes."""
    chat = run.teacher is not None and run.teacher.chat
    return feedback_prompt(run.config.method.feedback.max_tokens, run.prompt, chat)
