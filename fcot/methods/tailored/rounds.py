"""Tailored learning (paper B): rounds of exam, feedback, curation, training and evaluation, each stage of each round resumable.

Round 1 asks the teacher as Fine-tune-CoT does. A pretrained student sits its first exam, prompted with demonstrations, before
that round is trained, so that its mistakes can be contrasted; one from scratch can answer nothing yet and sits none.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fcot.base.console import say
from fcot.base.errors import BudgetSpent
from fcot.base.files import read_jsonl, write_folder, write_json, write_jsonl
from fcot.methods.tailored.config import TailoredConfig
from fcot.methods.tailored.feedback import add
from fcot.runs.run import Run
from fcot.stages.table import CURATE, CURATE_ROUND, EVALUATE, EXAM, FEEDBACK, GENERATE, TRAIN_ROUND, Stage, Step, Summary


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
