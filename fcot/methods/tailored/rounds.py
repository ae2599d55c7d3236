"""Tailored learning (paper B): rounds of exam, feedback, curation, training and evaluation, each stage of each round resumable.

Round 1 asks the teacher as Fine-tune-CoT does. A pretrained student sits its first exam, prompted with demonstrations, before
that round is trained, so that its mistakes can be contrasted; one from scratch can answer nothing yet and sits none.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from fcot.base.console import progress, say
from fcot.base.errors import BudgetSpent
from fcot.base.files import read_json, read_jsonl, write_folder, write_json, write_jsonl
from fcot.base.records import Feedback, from_row, to_row
from fcot.config.resolvers import paper_demonstrations
from fcot.decoding.engine import Sampling
from fcot.methods.tailored import exam as exams
from fcot.methods.tailored.config import TailoredConfig
from fcot.methods.tailored.feedback_stage import add, exam_results, feedback_prompt_of
from fcot.methods.tailored.material import material
from fcot.objectives.reflection import Reflection
from fcot.prompts.student import Demonstration, StudentFormat
from fcot.runs.run import Run
from fcot.stages.answering import Draws, draw, text_format
from fcot.stages.rationales import judge_all
from fcot.stages.table import CURATE, CURATE_ROUND, EVALUATE, EXAM, FEEDBACK, GENERATE, TRAIN_ROUND, Context, Stage, Step, Summary
from fcot.stages.training import Course, build_student, kept_rows, load_trained, sample_of, train_course
from fcot.student.loading import Student
from fcot.tasks.splits import folded

_NEXT_QUESTION = "Question:"  # what a prompted student goes on with after its answer


def stages_of_round(run: Run, number: int) -> list[Stage]:
    """The stages of a round, in order."""
    if number > 1:
        return [EXAM, FEEDBACK, CURATE_ROUND, TRAIN_ROUND, EVALUATE]
    first_exam = run.config.method.examines_first(run.config.student.pretrained)
    return [GENERATE, CURATE, *([EXAM] if first_exam else []), TRAIN_ROUND, EVALUATE]


def run_rounds(run: Run, once: Callable[[Step], Summary]) -> tuple[dict[str, Summary], Summary]:
    """Run the rounds until there is a reason to end; the best round's student becomes the run's.

    Args:
        run: Whose method is ``tailored``.
        once: The summary of a step, from its file or by taking it.

    Returns:
        The stages' summaries as a run of one round has them (or, where ``until`` ends it early, the last one alone), and
        what is told of the rounds: ``rounds``, ``best_round``, ``rounds_ended``.
    """
    method: TailoredConfig = run.config.method
    rounds: list[dict[str, Summary]] = []
    told: list[Summary] = []
    unheld: dict[str, Summary] = {}  # the stages of a round that was not held to its end
    spent: Summary = {}  # in a purchase of it that was not ended
    ended = "rounds"
    for number in range(1, method.rounds + 1):
        stages: dict[str, Summary] = {}
        reason = None
        try:
            for stage in stages_of_round(run, number):
                name = stage.name
                stages[name] = once(Step(stage, number))
                if name == run.config.until != "evaluate":
                    return {name: stages[name]}, {}
                if number > 1 and (reason := _why_not(method, name, stages[name])):
                    break
        except BudgetSpent as error:
            if number == 1:
                raise
            say(f"round {number} is not held: {error}")
            spent, reason = error.usage or {}, "budget"
        if reason:
            ended, unheld = reason, stages
            break
        rounds.append(stages)
        told.append(_told(number, stages))
        write_json(run.directory.round(number).metrics, told[-1])
        if _out_of_patience(told, method.patience):
            ended = "patience"
            break
    best = _best(told)
    _leave(run, best, len(rounds) + ("curate" in unheld))
    facts = {
        "rounds": told, "learnt_from": method.feedback.source, "best_round": best, "rounds_ended": ended,
        "exam_of_no_round": unheld.get("exam"),
        # Of all rounds; the teacher's accuracy is of round 1.
        "completions_correct": sum(stages["curate"]["correct"] for stages in (*rounds, unheld) if "curate" in stages),
    }  # fmt: skip
    return _as_one(rounds, unheld, spent, best, method.start == "previous"), facts


def _why_not(method: TailoredConfig, name: str, summary: Summary) -> str | None:
    """Why a later round goes no further after one of its stages."""
    if name == "exam" and summary["failed_problems"] < method.min_mistakes:
        return "few_mistakes"
    return "nothing_kept" if name == "curate" and not summary["kept"] else None


def _out_of_patience(told: Sequence[Summary], patience: int | None) -> bool:
    accuracies = [one["validation_accuracy"] for one in told]
    return patience is not None and len(told) - 1 - accuracies.index(max(accuracies)) >= patience


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
    """What a round's teacher was paid, as :meth:`fcot.llm.generate.Generated.usage` has it."""
    asked = stages["curate"].get("teacher_usage") or stages.get("generate", stages.get("feedback", {}))["teacher_usage"]
    return dict(asked)


def _as_one(
    rounds: Sequence[dict[str, Summary]], unheld: dict[str, Summary], spent: Summary, best: int, from_previous: bool
) -> dict[str, Summary]:
    """The summaries of a run of one round that asked, kept and took as much as these, and answered as the best of them."""
    curated = [stages["curate"] for stages in (*rounds, unheld) if "curate" in stages]
    first, chosen = curated[0], rounds[best - 1]
    counted = ("asked", "kept", "empty", "cut", "unanswered", "characters", "prompt_characters")
    sums = add([{name: one.get(name, 0) for name in counted} for one in curated])  # earlier versions wrote fewer counts
    words = sum((one["rationale_words"] or 0.0) * one["kept"] for one in curated) / sums["kept"]
    seconds = add([{name: summary["seconds"] for name, summary in stages.items()} for stages in (*rounds, unheld)])
    steps = sum(stages["train"]["n_steps"] for stages in rounds[(0 if from_previous else best - 1) : best])
    usages = [*map(_usage, rounds), spent, unheld["feedback"]["teacher_usage"] if "feedback" in unheld else {}]
    found: dict[str, Summary] = {
        "curate": {
            **first, **sums, "refused": add([one["refused"] for one in curated]), "rationale_words": round(words, 2),
            "teacher_usage": add(usages),
        },
        "train": chosen["train"] | {"n_steps": steps},
        "evaluate": chosen["evaluate"],
    }  # fmt: skip
    return {name: found.get(name, {}) | {"seconds": round(total, 3)} for name, total in seconds.items()}


def _leave(run: Run, best: int, n: int) -> None:
    """Make the best round's student and answers, and all rounds' verdicts, the run's."""
    chosen = run.directory.round(best)
    write_folder(run.directory.student, lambda folder: shutil.copytree(chosen.student, folder, copy_function=_link, dirs_exist_ok=True))
    for path in (chosen.predictions, chosen.samples, chosen.errors):
        if path.exists():
            write_jsonl(run.directory.path / path.name, read_jsonl(path))

    def verdicts() -> Iterator[dict[str, Any]]:
        for number in range(1, n + 1):
            for row in read_jsonl(run.directory.round(number).curated):
                yield {"round": number} | row

    write_jsonl(run.directory.curated, verdicts())


def _link(source: str, target: str) -> None:
    """The same file under another name, where the file system can: a student may be large."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


# --- the stages of a round ----------------------------------------------------------------------------------------


def exam(context: Context) -> Summary:
    """The student as it is answers the train problems, several times each."""
    run, number, world = context.run, context.round, context.world
    method: TailoredConfig = run.config.method
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


def curate(context: Context) -> Summary:
    """Filter what a later round has learnt from into reasoning samples."""
    run, number, place = context.run, context.round, context.directory
    rows = (from_row(Feedback, row).completion for row in read_jsonl(place.feedback))
    read = run.prompt.read if run.config.method.feedback.source == "plain" else feedback_prompt_of(run).read
    rules = replace(run.rules, filters=[name for name in run.rules.filters if name != "golden"])  # it names round 1's
    seen = judge_all(run, place.curated, rows, read, rules)
    if not seen.kept:
        say(f"round {number}: none of {seen.asked} completions is kept ({seen.said or 'none was asked for'})")
    told = read_json(place.stage("feedback"))
    return seen.summary() | {name: told[name] for name in ("prompt_characters",) if name in told}


def train(context: Context) -> Summary:
    """Train on the samples of the rounds so far, from the previous round's student on, with self-reflection where there was an exam."""
    run, number = context.run, context.round
    method: TailoredConfig = run.config.method
    kept = {earlier: kept_rows(run.directory.round(earlier)) for earlier in range(1, number + 1)}
    weights = method.round_weights or [1.0] * number
    used = [one for one in ((number,) if not method.accumulate else kept) if weights[one - 1]]
    rows = [row for one in used for row in kept[one]]

    def reflect(student: Student, form: StudentFormat) -> Reflection | None:
        if not method.reflection.weight or not run.directory.round(number).exam.exists():
            return None
        found, others = exam_results(run, number), dict[int, list[str]]()
        for row in chain.from_iterable(kept.values()):
            others.setdefault(row.sample_index, []).append(form.completion(row.answer, row.rationale))
        return material(
            student, form, [(row.sample_index, form.completion(row.answer, row.rationale)) for row in rows], others,
            {one.sample_index: one.mistakes for one in found}, {one.sample_index: one.unfinished for one in found},
            weight=method.reflection.weight,
            margin=method.reflection.margin, representation=method.reflection.representation, max_tokens=method.reflection.max_tokens,
            seed=run.config.seed,
        )  # fmt: skip

    course = Course(
        run.directory.round(number),
        [sample_of(run, row, weights[one - 1]) for one in used for row in kept[one]],
        _demonstrations(run, method.demonstrations),
        run.directory.round(number - 1).student if number > 1 and method.start == "previous" else None,
        reflect,
        f"train {number}",
    )
    return train_course(run, course, context.world)


def _form(run: Run, student: Student, n: int) -> StudentFormat:
    return replace(text_format(run, student), demonstrations=_demonstrations(run, n))


def _demonstrations(run: Run, n: int) -> tuple[Demonstration, ...]:
    """The teacher's first kept rationale of each of the first ``n`` train problems that have one, and whose question is not tested."""
    tested = {folded(run.problems[index].question) for index in run.split.test}
    first = {row.sample_index: row for row in reversed(kept_rows(run.directory.round(1)))} if n else {}
    chosen = [first[index] for index in run.split.train if index in first and folded(run.problems[index].question) not in tested][:n]
    return tuple(Demonstration(run.problems[row.sample_index].question, row.rationale, row.answer) for row in chosen)
