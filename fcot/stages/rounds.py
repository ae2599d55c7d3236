"""Tailored learning (paper B): rounds of exam, feedback, curation, training and evaluation, each stage of each round resumable.

Round 1 asks the teacher as Fine-tune-CoT does. A pretrained student sits its first exam, prompted with demonstrations, before
that round is trained, so that its mistakes can be contrasted; one from scratch can answer nothing yet and sits none.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from fcot.artifacts import read_json, read_jsonl, write_folder, write_json, write_jsonl
from fcot.config import PretrainedStudent, TailoredMethod, paper_demonstrations
from fcot.decoding.engine import Sampling
from fcot.errors import BudgetSpent
from fcot.progress import progress, say
from fcot.prompts.student import Demonstration, StudentFormat
from fcot.prompts.teacher import TeacherPrompt
from fcot.ranks import World
from fcot.records import ExamResult, Problem, from_row, to_row
from fcot.records import Feedback as FeedbackRow
from fcot.runs import Run
from fcot.stages.answering import Draws, draw, text_format
from fcot.stages.rationales import curate_stage, judge_all
from fcot.stages.rationales import generate as generate_plain
from fcot.stages.student import Course, build_student, evaluate_course, kept_rows, load_trained, train_course
from fcot.student.loading import Student
from fcot.student.reflection import Reflection
from fcot.student.using import read_usage
from fcot.tailored import exam as exams
from fcot.tailored.feedback import Case, as_question, cases, feedback_prompt
from fcot.tailored.material import material
from fcot.teacher.generate import generate_completions
from fcot.teacher.money import FREE, paid

Summary = dict[str, Any]
_NEXT_QUESTION = "Question:"  # what a prompted student goes on with after its answer


def stages_of(run: Run, number: int) -> list[str]:
    """The stages of a round, in order."""
    if number > 1:
        return ["exam", "feedback", "curate", "train", "evaluate"]
    sits = isinstance(run.config.student, PretrainedStudent) and run.config.method.reflection.weight > 0
    return ["generate", "curate", *(["exam"] if sits else []), "train", "evaluate"]


def hold(run: Run, once: Callable[[str], Summary]) -> tuple[dict[str, Summary], Summary]:
    """Hold rounds until there is a reason to end; then the best round's student is the run's.

    Args:
        run: Whose method is ``tailored``.
        once: The summary of a stage such as ``round_2/exam``, from its file or by running it.

    Returns:
        The stages' summaries as a run of one round has them (or, where ``until`` ends it early, the last one alone), and
        what is told of the rounds: ``rounds``, ``best_round``, ``rounds_ended``.
    """
    method: TailoredMethod = run.config.method
    rounds: list[dict[str, Summary]] = []
    told: list[Summary] = []
    beside: list[Summary] = []  # paid in a round that was not held to its end
    ended = "rounds"
    for number in range(1, method.rounds + 1):
        stages: dict[str, Summary] = {}
        reason = None
        try:
            for name in stages_of(run, number):
                stages[name] = once(f"round_{number}/{name}")
                if name == run.config.until != "evaluate":
                    return {name: stages[name]}, {}
                if number > 1 and (reason := _why_not(method, name, stages[name])):
                    break
        except BudgetSpent as error:
            if number == 1:
                raise
            say(f"round {number} is not held: {error}")
            beside, reason = [error.usage or {}], "budget"
        if reason:
            ended = reason
            beside += [stages["feedback"]["teacher_usage"]] if "feedback" in stages else []
            break
        rounds.append(stages)
        told.append(_told(number, stages))
        write_json(run.directory.round(number).metrics, told[-1])
        if _out_of_patience(told, method.patience):
            ended = "patience"
            break
    best = _best(told)
    _leave(run, best, len(rounds))
    return _as_one(rounds, beside, best, method.start == "previous"), {"rounds": told, "best_round": best, "rounds_ended": ended}


def _why_not(method: TailoredMethod, name: str, summary: Summary) -> str | None:
    """Why a later round goes no further after one of its stages."""
    if name == "exam" and summary["failed_problems"] < method.min_mistakes:
        return "few_mistakes"
    return "nothing_kept" if name == "curate" and not summary["kept"] else None


def _out_of_patience(told: Sequence[Summary], patience: int | None) -> bool:
    return patience is not None and len(told) - _best(told) >= patience


def _best(told: Sequence[Summary]) -> int:
    """The round with the best validation accuracy, the latest of equals; without validation problems the last."""
    return max(told, key=lambda one: (one["validation_accuracy"] or 0.0, one["round"]))["round"]  # type: ignore[no-any-return]


def _told(number: int, stages: dict[str, Summary]) -> Summary:
    """A round's ``metrics.json``: accuracies and rates in 0..1, times in seconds."""
    exam, curated, trained, evaluated = stages.get("exam", {}), stages["curate"], stages["train"], stages["evaluate"]
    usage = _usage(stages)
    return {
        "round": number,
        "pass_rate": exam.get("pass_rate"),
        "failed_problems": exam.get("failed_problems"),
        "mistakes": exam.get("mistakes"),
        "completions_asked": curated["asked"],
        "completions_kept": curated["kept"],
        "refused": curated["refused"],
        "teacher_usage": usage,
        "n_reasoning_samples": trained["n_reasoning_samples"],
        "reflection_share": trained.get("reflection_share"),
        "validation_accuracy": trained["validation_accuracy"],
        "accuracy": evaluated["accuracy"],
        "accuracy_ci95": evaluated["accuracy_ci95"],
        "n_steps": trained["n_steps"],
        "seconds": {name: summary["seconds"] for name, summary in stages.items()},
    }


def _usage(stages: dict[str, Summary]) -> Summary:
    """What a round's teacher was paid, as :meth:`fcot.teacher.generate.Generated.usage` has it."""
    asked = stages["curate"].get("teacher_usage") or stages.get("generate", stages.get("feedback", {}))["teacher_usage"]
    return dict(asked)


def _sum(records: Iterable[Summary]) -> Summary:
    """Records added up by key; None where one of them is unknown."""
    known = list(records)
    keys = dict.fromkeys(key for record in known for key in record)
    columns = {key: [record.get(key, 0) for record in known] for key in keys}
    return {key: None if any(value is None for value in values) else sum(values) for key, values in columns.items()}


def _as_one(rounds: Sequence[dict[str, Summary]], beside: Sequence[Summary], best: int, from_previous: bool) -> dict[str, Summary]:
    """The summaries of a run of one round that asked, kept and took as much as these, and answered as the best of them."""
    curated = [stages["curate"] for stages in rounds]
    first, chosen = curated[0], rounds[best - 1]
    sums = _sum({name: one[name] for name in ("asked", "kept", "characters", "prompt_characters")} for one in curated)
    words = sum((one["rationale_words"] or 0.0) * one["kept"] for one in curated) / sums["kept"]
    seconds = _sum({name: summary["seconds"] for name, summary in stages.items()} for stages in rounds)
    steps = sum(stages["train"]["n_steps"] for stages in rounds[(0 if from_previous else best - 1) : best])
    found: dict[str, Summary] = {
        "curate": {
            **first, **sums, "refused": _sum(one["refused"] for one in curated), "rationale_words": round(words, 2),
            "teacher_usage": _sum([*map(_usage, rounds), *beside]),
        },
        "train": chosen["train"] | {"n_steps": steps},
        "evaluate": chosen["evaluate"],
    }  # fmt: skip
    return {name: found.get(name, {}) | {"seconds": round(spent, 3)} for name, spent in seconds.items()}


def _leave(run: Run, best: int, n: int) -> None:
    """Make the best round's student and answers, and all rounds' verdicts, the run's."""
    chosen = run.directory.round(best)
    write_folder(run.directory.student, lambda folder: shutil.copytree(chosen.student, folder, dirs_exist_ok=True))
    for path in (chosen.predictions, chosen.samples, chosen.errors):
        if path.exists():
            write_jsonl(run.directory.path / path.name, read_jsonl(path))

    def verdicts() -> Iterator[dict[str, Any]]:
        for number in range(1, n + 1):
            for row in read_jsonl(run.directory.round(number).curated):
                yield {"round": number} | row

    write_jsonl(run.directory.curated, verdicts())


# --- the stages of a round ----------------------------------------------------------------------------------------


def generate(run: Run, number: int) -> Summary:  # noqa: ARG001 - as the others are called
    """Plain rationales, as for Fine-tune-CoT."""
    return generate_plain(run)


def exam(run: Run, number: int, world: World) -> Summary:
    """The student as it is answers the train problems, several times each."""
    method: TailoredMethod = run.config.method
    asked, stop = method.exam, None
    if number > 1:
        student = load_trained(run, run.directory.round(number - 1))
        form = _form(run, student, method.demonstrations)
    else:
        student, stop = build_student(run, ()), _NEXT_QUESTION
        form = _form(run, student, method.demonstrations or paper_demonstrations(run.task.name))
    draws = Draws(asked.samples, Sampling(asked.temperature, asked.top_k), (number,), asked.max_new_tokens, stop)
    indices = [index for index in run.split.train if run.problems[index].labelled]
    with progress(f"exam {number}", len(indices) * asked.samples, "answers") as bar:
        drawn, facts = draw(run, student, form, indices, world, draws, bar.advance)
    if world.rank > 0:
        return {}
    results = [exams.examine(answers) for answers in drawn]
    write_jsonl(run.directory.round(number).exam, map(to_row, results))
    return exams.summarise(results) | facts


def feedback(run: Run, number: int) -> Summary:
    """What the round learns: the teacher's feedback on mistakes, or what an ablation puts in its place."""
    method: TailoredMethod = run.config.method
    asked, results = method.feedback, _exam(run, number)
    rows: Iterable[FeedbackRow]
    form = read_usage(run.directory.round(number - 1).student).format
    if asked.source == "self":
        rows = [
            FeedbackRow(one.sample_index, index, (), *form.split(text), "stop")
            for one in results for index, text in enumerate(one.right)
        ]  # fmt: skip
        usage = paid((), FREE) | {"served_from_store": 0, "identical_rationales": 0}
    else:
        chosen = cases(results, run.problems, asked.mistakes, asked.requests, asked.max_requests)
        bought = _feedback_on(run, number, chosen, form) if asked.source == "feedback" else _plain(run, number, chosen)
        rows, usage = bought
    written = sorted(rows, key=lambda row: (row.sample_index, row.completion_index))
    write_jsonl(run.directory.round(number).feedback, map(to_row, written))
    characters = {name: usage.pop(name) for name in ("prompt_characters",) if name in usage}
    return {"asked": len(written), "teacher_usage": usage, **characters}


def _feedback_on(run: Run, number: int, chosen: Sequence[Case], form: StudentFormat) -> tuple[list[FeedbackRow], Summary]:
    """The teacher's replies to what it was shown."""
    asked, plan = run.config.method.feedback, run.plan
    prompt = _feedback_prompt(run)
    plan = replace(plan, prompt=prompt, diversity=1, budget_usd=_left(run, number), resample_identical=False)
    problems = [as_question(case, run.feedback_template, asked.hint, form, prompt, run.task.rule) for case in chosen]
    with progress(f"feedback {number}", len(problems), "completions") as bar:
        bought = generate_completions(plan, run.store_of(prompt.name), problems, bar.advance, watch=bar.watch)
    seen: Counter[int] = Counter()
    rows = []
    for case, one in zip(chosen, bought, strict=True):
        rows.append(FeedbackRow(one.sample_index, seen[one.sample_index], case.mistakes, one.rationale, one.answer_text, one.finish_reason))
        seen[one.sample_index] += 1
    return rows, bought.usage() | {"prompt_characters": sum(len(problem.question) for problem in problems)}


def _plain(run: Run, number: int, chosen: Sequence[Case]) -> tuple[list[FeedbackRow], Summary]:
    """As many further plain rationales of the same problems (the ablation without feedback)."""
    before: Counter[int] = Counter()
    for earlier in range(2, number):
        before.update(row["sample_index"] for row in read_jsonl(run.directory.round(earlier).feedback))
    groups: dict[tuple[int, int], list[int]] = {}
    for index, n in Counter(case.problem.sample_index for case in chosen).items():
        groups.setdefault((run.config.diversity + before[index], n), []).append(index)
    rows: list[FeedbackRow] = []
    usages: list[Summary] = []
    left = _left(run, number)
    for (had, n), indices in groups.items():
        try:
            bought, usage = _further(run, number, run.select(indices), had, n, left)
        except BudgetSpent as error:
            error.usage = _sum([*usages, error.usage or {}])
            raise
        rows += bought
        usages.append(usage)
        left = None if left is None else left - (usage["usd"] or 0.0)
    return rows, _sum(usages) if usages else paid((), FREE)


def _further(run: Run, number: int, problems: Sequence[Problem], had: int, n: int, left: float | None) -> tuple[list[FeedbackRow], Summary]:
    """``n`` more plain completions of problems that have ``had``, and what they cost."""
    # Rows carry the round, so that what an earlier one paid for is not counted again.
    plan = replace(run.plan, diversity=had + n, run_id=f"{run.run_id}/round_{number}", budget_usd=left)
    with progress(f"rationales {number}", len(problems) * plan.diversity, "completions") as bar:
        bought = generate_completions(plan, run.store, problems, bar.advance, watch=bar.watch)
    usage, known = bought.usage(), replace(bought, plan=replace(plan, diversity=had)).usage()
    for name in ("served_from_store", "identical_rationales", "used_prompt_tokens", "used_completion_tokens"):
        usage[name] = None if None in (usage[name], known[name]) else usage[name] - known[name]
    rows = [
        FeedbackRow(one.sample_index, one.completion_index - had, (), one.rationale, one.answer_text, one.finish_reason)
        for one in bought if one.completion_index >= had
    ]  # fmt: skip
    return rows, usage


def _left(run: Run, number: int) -> float | None:
    """What is left of the budget, in USD; None without a limit."""
    budget = run.plan.budget_usd
    if budget is None:
        return None
    stages = [(earlier, "generate" if earlier == 1 else "feedback") for earlier in range(1, number)]
    spent = (read_json(run.directory.round(earlier).stage(name))["teacher_usage"]["usd"] for earlier, name in stages)
    return float(budget - sum(spent))


def curate(run: Run, number: int) -> Summary:
    """The round's completions as reasoning samples, by the same filters."""
    place = run.directory.round(number)
    if number == 1:
        return curate_stage(run, place)
    rows = (from_row(FeedbackRow, row).completion for row in read_jsonl(place.feedback))
    parse = run.prompt.parse if run.config.method.feedback.source == "plain" else _feedback_prompt(run).parse
    rules = replace(run.rules, filters=[name for name in run.rules.filters if name != "golden"])  # it names round 1's
    seen = judge_all(run, place.curated, rows, parse, rules)
    if not seen.kept:
        say(f"round {number}: none of {seen.asked} completions is kept ({seen.said or 'none was asked for'})")
    told = read_json(place.stage("feedback"))
    return seen.summary() | {name: told[name] for name in ("prompt_characters",) if name in told}


def train(run: Run, number: int, world: World) -> Summary:
    """Train on the samples of the rounds so far, from the previous round's student on, with self-reflection where there was an exam."""
    method: TailoredMethod = run.config.method
    kept = {earlier: kept_rows(run.directory.round(earlier)) for earlier in range(1, number + 1)}
    weights = method.round_weights or [1.0] * number
    used = [one for one in ((number,) if not method.accumulate else kept) if weights[one - 1]]
    rows = [row for one in used for row in kept[one]]

    def reflect(student: Student, form: StudentFormat) -> Reflection | None:
        if not method.reflection.weight or not run.directory.round(number).exam.exists():
            return None
        others: dict[int, list[str]] = {}
        for row in chain.from_iterable(kept.values()):
            others.setdefault(row.sample_index, []).append(form.completion(row.answer, row.rationale))
        return material(
            student, form, [(row.sample_index, form.completion(row.answer, row.rationale)) for row in rows], others,
            {one.sample_index: one.mistakes for one in _exam(run, number)}, weight=method.reflection.weight,
            margin=method.reflection.margin, representation=method.reflection.representation, max_tokens=method.reflection.max_tokens,
            seed=run.config.seed,
        )  # fmt: skip

    course = Course(
        run.directory.round(number),
        [(run.problems[row.sample_index].question, row.answer, row.rationale) for row in rows],
        _demonstrations(run, method.demonstrations),
        None if method.round_weights is None else [weights[one - 1] for one in used for _ in kept[one]],
        run.directory.round(number - 1).student if number > 1 and method.start == "previous" else None,
        reflect,
    )
    return train_course(run, course, world)


def evaluate(run: Run, number: int, world: World) -> Summary:
    """The round's student answers the test problems; that chooses nothing."""
    return evaluate_course(run, run.directory.round(number), world)


def _exam(run: Run, number: int) -> list[ExamResult]:
    return [from_row(ExamResult, row) for row in read_jsonl(run.directory.round(number).exam)]


def _feedback_prompt(run: Run) -> TeacherPrompt:
    chat = run.teacher is not None and run.teacher.chat
    return feedback_prompt(run.config.method.feedback.max_tokens, run.prompt, chat)


def _form(run: Run, student: Student, n: int) -> StudentFormat:
    return replace(text_format(run, student), demonstrations=_demonstrations(run, n))


def _demonstrations(run: Run, n: int) -> tuple[Demonstration, ...]:
    """The teacher's first kept rationale of each of the first ``n`` train problems that have one."""
    first = {row.sample_index: row for row in reversed(kept_rows(run.directory.round(1)))} if n else {}
    chosen = [first[index] for index in run.split.train if index in first][:n]
    return tuple(Demonstration(run.problems[row.sample_index].question, row.rationale, row.answer) for row in chosen)
