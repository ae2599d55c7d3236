"""Feedback (paper B): which mistakes the teacher sees, how a request is worded, and the stage that generates a round's completions.

A request is a :class:`Problem` whose question holds the whole text. Store, budget and resuming therefore treat it like any other request.
Paper B publishes no prompt for feedback. The default template has the parts that the paper names: the problem, the wrong rationale, the
answer as a hint, and the request for a corrected rationale. Two ablations replace the feedback: further rationales of the run's own prompt
for the same problems (``plain``), and the student's own right answers (``self``). ``both`` has feedback and own right answers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fcot.base.console import progress
from fcot.base.errors import BudgetSpent
from fcot.base.files import read_json, read_jsonl, write_jsonl
from fcot.base.records import Completion, ExamResult, Feedback, Problem, from_row, to_row
from fcot.llm.generate import generate_completions
from fcot.llm.money import FREE, paid, sum_by_key
from fcot.llm.plan import Plan
from fcot.llm.store.folder import StoreFolder
from fcot.methods.tailored.config import TailoredConfig
from fcot.methods.tailored.critique import numbered, read_critique
from fcot.prompts.answers import AnswerRule
from fcot.prompts.student import StudentFormat
from fcot.prompts.teacher import HINT, STUDENTS_ANSWER, TeacherPrompt
from fcot.runs.run import Run
from fcot.stages.first_look import FirstLook, remedies_of, remedies_of_feedback
from fcot.stages.table import Context, Summary
from fcot.student.interface import read_interface

_CUE = "\n\nReasoning:"  # for endpoints that continue a text
_NEXT = "\nQuestion:"  # such an endpoint may continue with a further question
_NOTHING_PAID = paid((), FREE) | {"served_from_store": 0, "identical_rationales": 0}


@dataclass(frozen=True)
class Case:
    """A problem, and the mistakes on it that one request shows to the teacher."""

    problem: Problem
    mistakes: Sequence[str]


def cases(
    results: Sequence[ExamResult], problems: Mapping[int, Problem], mistakes: int, requests: int, max_requests: int | None
) -> list[Case]:
    """Choose the cases of a round: what each request shows. They are in the order of the exam.

    Args:
        results: The exam's result for each problem.
        problems: Problems by sample index.
        mistakes: Most mistakes in one request.
        requests: Most requests per problem. Each shows other mistakes.
        max_requests: Most requests in all; None for no limit. First requests take precedence over second ones, then problems with a
            lower pass rate over others.
    """
    ranked = []
    for position, result in enumerate(results):
        shown = [result.mistakes[start : start + mistakes] for start in range(0, len(result.mistakes), mistakes)][:requests]
        pass_rate = result.n_correct / result.n_answers
        ranked += [((number, pass_rate, position), Case(problems[result.sample_index], part)) for number, part in enumerate(shown)]
    chosen = sorted(ranked, key=lambda item: item[0])[:max_requests]
    return [case for _, case in sorted(chosen, key=lambda item: (item[0][2], item[0][0]))]


def feedback_prompt(max_tokens: int, prompt: TeacherPrompt, chat: bool) -> TeacherPrompt:
    """The prompt of feedback: one request per completion. Its replies are parsed by the answer trigger of the run's own prompt.

    Args:
        max_tokens: Limit of a reply, in tokens.
        prompt: The run's own prompt.
        chat: Whether the endpoint takes chat messages; others get a cue to continue.
    """
    template, stop = ("{question}", ()) if chat else ("{question}" + _CUE, (_NEXT,))
    return TeacherPrompt("feedback", template, prompt.answer_triggers, False, max_tokens, stop=stop, system=prompt.system)


def as_question(
    case: Case, template: str, hint: bool, form: StudentFormat, prompt: TeacherPrompt, rule: AnswerRule, *, earlier: str = "",
    numbers_steps: bool = False,
) -> Problem:  # fmt: skip
    """Word a case's request, as a problem whose question is the text of the request.

    Args:
        case: The problem and the mistakes to show.
        template: Text around ``{question}`` and ``{mistakes}``; may hold ``{earlier}``, ``{hint}`` and ``{trigger}``.
        hint: Whether the request states the gold answer.
        form: The student's format, which splits a mistake into rationale and answer.
        prompt: The prompt whose answer trigger the teacher has to use.
        rule: The task's answer rule, which selects the trigger.
        earlier: The teacher's earlier rationale of the problem; empty if there is none.
        numbers_steps: Whether the steps of mistakes are numbered.
    """
    values = {
        "question": case.problem.question,
        "mistakes": "\n\n".join(
            _shown(text, form, number, len(case.mistakes), numbers_steps) for number, text in enumerate(case.mistakes, 1)
        ),
        "earlier": f"Your earlier reasoning: {earlier}\n\n" if earlier else "",
        "hint": f"{HINT} {case.problem.answer}.\n\n" if hint else "",
        "trigger": prompt.trigger(rule),
    }
    text = re.sub(r"\{(question|mistakes|earlier|hint|trigger)\}", lambda match: values[match[1]], template)
    return replace(case.problem, question=text)


def _shown(text: str, form: StudentFormat, number: int, n: int, numbers_steps: bool) -> str:
    """A mistake as the request shows it: the ``number``-th of ``n``, from 1."""
    rationale, answer = form.split(text)
    rationale = "\n" + numbered(rationale) if numbers_steps else rationale
    heading = STUDENTS_ANSWER if n == 1 else f"{STUDENTS_ANSWER} {number}"
    return f"{heading}: {rationale}\nThe student's conclusion: {answer or 'none'}"


# --- the stage ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """A completion that the round may learn from.

    Attributes:
        sample_index: The problem.
        mistakes: The mistakes that the request showed to the teacher, if any.
        completion: The completion.
        own: Whether the student wrote it.
    """

    sample_index: int
    mistakes: Sequence[str]
    completion: Completion
    own: bool = False


def feedback(context: Context) -> Summary:
    """Request the completions that the round learns from, or take them from its exam, and write them to ``feedback.jsonl``."""
    run, number = context.run, context.round
    method: TailoredConfig = run.config.method
    options, results = method.feedback, exam_results(run, number)
    form = read_interface(run.directory.round(number - 1).student).format
    sources, usage = list[Source](), dict(_NOTHING_PAID)
    if options.source != "self":
        chosen = cases(results, run.problems, options.mistakes, options.requests, options.max_requests)
        sources, usage = _plain(run, number, chosen) if options.source == "plain" else _on_mistakes(run, number, chosen, form)
    if options.source in ("self", "both"):
        sources += _own_answers(_read_results(run.directory.round(number).own) if method.has_sampler else results, form)
    rows = _rows(run, sources)
    write_jsonl(run.directory.round(number).feedback, map(to_row, rows))
    characters = usage.pop("prompt_characters", None)
    return {"asked": len(rows), "teacher_usage": usage} | ({} if characters is None else {"prompt_characters": characters})


def _rows(run: Run, sources: Sequence[Source]) -> list[Feedback]:
    """The rows of ``feedback.jsonl``. Those of one problem are adjacent, because curation reads them together."""
    rows, counts = [], Counter[int]()
    for source in sorted(sources, key=lambda source: source.sample_index):
        index, completion = source.sample_index, source.completion
        texts = completion.rationale, completion.answer_text, completion.finish_reason, completion.thought
        rows.append(Feedback(index, counts[index], source.mistakes, *texts, source.own, run.problems[index].id))
        counts[index] += 1
    return rows


def _own_answers(results: Sequence[ExamResult], form: StudentFormat) -> list[Source]:
    """The student's right answers."""
    return [
        Source(result.sample_index, (), Completion(result.sample_index, 0, *form.split(text), "stop"), own=True)
        for result in results for text in result.right
    ]  # fmt: skip


def _on_mistakes(run: Run, number: int, chosen: Sequence[Case], form: StudentFormat) -> tuple[list[Source], Summary]:
    """The teacher's replies and their usage. A request that an earlier round sent already gets a further completion."""
    prompt, hint = feedback_prompt_of(run), run.config.method.feedback.hint
    earlier = _earlier_completions(run, number, lambda row: (row["sample_index"], *row["mistakes"]))
    kind = run.config.method.feedback.form
    rationales = _first_rationales(run) if kind == "rewrite" else {}

    def request(case: Case) -> Problem:
        rationale = rationales.get(case.problem.sample_index, "")
        return as_question(case, run.request_text, hint, form, prompt, run.task.rule, earlier=rationale, numbers_steps=kind == "critique")

    requests = [(request(case), earlier[case.problem.sample_index, *case.mistakes], 1) for case in chosen]
    read = read_critique if kind == "critique" else prompt.read
    plan, first_look = replace(run.plan, prompt=prompt), FirstLook(run, read, run.rules, remedies_of_feedback(run), 1)
    replies, usage = _generate_further(run, number, plan, run.store_of(prompt.name), requests, first_look)
    sources = [
        Source(case.problem.sample_index, case.mistakes, reply)
        for case, case_replies in zip(chosen, replies, strict=True) for reply in case_replies
    ]  # fmt: skip
    return sources, usage | {"prompt_characters": sum(len(problem.question) for problem, _, _ in requests)}


def _first_rationales(run: Run) -> dict[int, str]:
    """The first kept rationale of each problem in round 1, by sample index. All rounds rewrite this one, so that a request can repeat."""
    rows = (row for row in read_jsonl(run.directory.round(1).curated) if row["kept"])
    return {row["sample_index"]: row["rationale"] for row in reversed(list(rows))}


def _plain(run: Run, number: int, chosen: Sequence[Case]) -> tuple[list[Source], Summary]:
    """Further rationales of the run's own prompt, as many per problem as feedback would request, and their usage."""
    earlier = _earlier_completions(run, number, lambda row: row["sample_index"])
    n_needed = Counter(case.problem.sample_index for case in chosen)
    requests = [(run.problems[index], run.config.diversity + earlier[index], n) for index, n in n_needed.items()]
    first_look = FirstLook(run, run.prompt.read, run.rules, remedies_of(run), 1)
    replies, usage = _generate_further(run, number, run.plan, run.store, requests, first_look)
    return [Source(index, (), reply) for index, completions in zip(n_needed, replies, strict=True) for reply in completions], usage


def _earlier_completions(run: Run, number: int, request: Callable[[dict[str, Any]], Hashable]) -> Counter[Hashable]:
    """The number of completions that earlier rounds requested, by request.

    Args:
        run: The run.
        number: The present round.
        request: Returns the key of the request that a row of ``feedback.jsonl`` answers.
    """
    rows = (row for earlier in range(2, number) for row in read_jsonl(run.directory.round(earlier).feedback))
    return Counter(map(request, rows))


def _generate_further(
    run: Run, number: int, plan: Plan, folder: StoreFolder, requests: Sequence[tuple[Problem, int, int]], first_look: FirstLook
) -> tuple[list[list[Completion]], Summary]:
    """Generate completions of requests, after those that earlier rounds generated.

    Args:
        run: The run.
        number: The present round.
        plan: Its diversity, run id and budget are replaced by those of the round.
        folder: The store's folder for the prompt.
        requests: For each request the problem, the number of completions generated so far, and the number of further ones.
        first_look: Checks the first completions of the purchase.

    Returns:
        The further completions of each request, and the usage of the round.

    Raises:
        BudgetSpent: The budget is not enough; ``usage`` holds what the round has spent.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for place, (_, n_earlier, n) in enumerate(requests):
        groups.setdefault((n_earlier, n), []).append(place)
    replies: list[list[Completion]] = [[] for _ in requests]
    usages: list[Summary] = []
    remaining = remaining_budget(run, number)
    for (n_earlier, n), places in groups.items():
        problems = [requests[place][0] for place in places]
        # Rows carry the round, so that what an earlier round paid for is not counted again.
        round_plan = replace(
            plan, diversity=n_earlier + n, run_id=f"{run.run_id}/round_{number}", budget_usd=remaining, resample_identical=False
        )
        try:
            with progress(f"feedback {number}", len(problems) * round_plan.diversity, "completions") as bar:
                bought = generate_completions(round_plan, folder, problems, bar.advance, first_look, bar.watch)
        except BudgetSpent as error:
            error.usage = sum_by_key([*usages, error.usage or {}])
            raise
        completions = list(bought)
        for group, place in enumerate(places):
            replies[place] = completions[group * round_plan.diversity + n_earlier : (group + 1) * round_plan.diversity]
        usage = bought.usage()
        earlier_usage = replace(bought, plan=replace(round_plan, diversity=n_earlier)).usage() if n_earlier else {}
        for name in ("served_from_store", "identical_rationales", "used_prompt_tokens", "used_completion_tokens"):
            usage[name] = None if usage[name] is None or earlier_usage.get(name, 0) is None else usage[name] - earlier_usage.get(name, 0)
        usages.append(usage)
        remaining = None if remaining is None else remaining - (usage["usd"] or 0.0)
    first_look.report()
    return replies, sum_by_key(usages) if usages else dict(_NOTHING_PAID)


def remaining_budget(run: Run, number: int) -> float | None:
    """The budget minus what the rounds before ``number`` have spent, in USD; None without a limit."""
    budget = run.plan.budget_usd
    if budget is None:
        return None
    stages = [(earlier, "generate" if earlier == 1 else "feedback") for earlier in range(1, number)]
    spent = (read_json(run.directory.round(earlier).stage(name))["teacher_usage"]["usd"] for earlier, name in stages)
    return float(budget - sum(spent))


def exam_results(run: Run, number: int) -> list[ExamResult]:
    """The results of a round's exam, one per problem."""
    return _read_results(run.directory.round(number).exam)


def _read_results(path: Path) -> list[ExamResult]:
    return [from_row(ExamResult, row) for row in read_jsonl(path)]


def feedback_prompt_of(run: Run) -> TeacherPrompt:
    """The prompt of feedback for the run's teacher."""
    chat = run.teacher is not None and run.teacher.chat
    return feedback_prompt(run.config.method.feedback.max_tokens, run.prompt, chat)
