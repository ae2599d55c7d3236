"""Tailored learning (paper B): rounds of exam, feedback, curation, training and evaluation. Each stage of each round can be resumed.

Round 1 sends the same requests to the teacher as Fine-tune-CoT. A pretrained student takes its first exam before round 1 is trained,
prompted with demonstrations, so that self-reflection has mistakes to contrast with. A student from scratch cannot answer yet, so its
round 1 has no exam.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fcot.base.console import say
from fcot.base.errors import BudgetSpent
from fcot.base.files import read_jsonl, write_folder, write_json, write_jsonl
from fcot.evaluation.patience import out_of_patience
from fcot.llm.money import sum_by_key
from fcot.methods.tailored.config import TailoredConfig
from fcot.runs.run import Run
from fcot.stages.table import EXAM, FIRST_ROUND, LATER_ROUND, Stage, Step, Summary


def stages_of_round(run: Run, number: int) -> list[Stage]:
    """The stages of a round, in order, without those that the run's options make unnecessary."""
    method = run.config.method
    if number > 1:
        return [stage for stage in LATER_ROUND if stage.name not in method.unneeded]
    has_exam = method.examines_first(run.config.student.pretrained)
    return [stage for stage in FIRST_ROUND if has_exam or stage is not EXAM]


def run_rounds(run: Run, run_step: Callable[[Step], Summary]) -> tuple[dict[str, Summary], Summary]:
    """Run the rounds until a stopping rule applies, and make the best round's student the run's student.

    Args:
        run: A run of ``method=tailored``.
        run_step: Returns the summary of a step. It runs the step, or reads the summary's file where the step is finished.

    Returns:
        First, the summaries by stage name, in the form that a run of one round has. If ``until`` ends the run early, they hold only
        the stage that ``until`` names. Second, the facts about the rounds for ``metrics.json``: ``rounds``, ``best_round``,
        ``rounds_ended`` and others; empty if ``until`` ends the run early.

    Raises:
        BudgetSpent: The budget is not enough for round 1.
    """
    method: TailoredConfig = run.config.method
    rounds: list[dict[str, Summary]] = []
    metrics: list[Summary] = []
    aborted: dict[str, Summary] = {}  # summaries of the stages that an aborted round finished
    spent: Summary = {}  # usage of a purchase that the budget interrupted in the aborted round
    ended = "rounds"  # why there are no further rounds
    for number in range(1, method.rounds + 1):
        summaries: dict[str, Summary] = {}
        reason = None
        try:
            for stage in stages_of_round(run, number):
                name = stage.name
                summaries[name] = run_step(Step(stage, number))
                if name == run.config.until and name != "evaluate":
                    return {name: summaries[name]}, {}
                if number > 1 and (reason := _stop_reason(method, name, summaries[name])):
                    break
        except BudgetSpent as error:
            if number == 1:
                raise
            say(f"round {number} is aborted: {error}")
            spent, reason = error.usage or {}, "budget"
        if reason:
            ended, aborted = reason, summaries
            break
        rounds.append(summaries)
        metrics.append(_round_metrics(number, summaries))
        write_json(run.directory.round(number).metrics, metrics[-1])
        run.directory.round(number - 1).moments.unlink(missing_ok=True)
        if out_of_patience(metrics, method.patience):
            ended = "patience"
            break
    if ended != "budget":  # a larger budget continues the rounds
        run.directory.round(len(rounds)).moments.unlink(missing_ok=True)
    best = _best_round(metrics)
    _publish_best(run, best, len(rounds) + ("curate" in aborted))
    facts = {
        "rounds": metrics, "learnt_from": method.feedback.source, "best_round": best, "rounds_ended": ended,
        "exam_of_no_round": aborted.get("exam"),
        # Summed over all rounds, while the teacher's accuracy is that of round 1.
        "completions_correct": sum(summaries["curate"]["correct"] for summaries in (*rounds, aborted) if "curate" in summaries),
    }  # fmt: skip
    return _merge_rounds(rounds, aborted, spent, best, method.start == "previous"), facts


def _stop_reason(method: TailoredConfig, stage: str, summary: Summary) -> str | None:
    """Why a round after the first is aborted after one of its stages; None where it continues."""
    if stage == "exam" and summary["failed_problems"] < method.min_mistakes:
        return "few_mistakes"
    return "nothing_kept" if stage == "curate" and not summary["kept"] else None


def _best_round(metrics: Sequence[Summary]) -> int:
    """The number of the round with the best validation accuracy: the latest among equals; the last round without validation problems."""
    return max(metrics, key=lambda row: (row["validation_accuracy"] or 0.0, row["round"]))["round"]  # type: ignore[no-any-return]


def _round_metrics(number: int, summaries: dict[str, Summary]) -> Summary:
    """A round's ``metrics.json``: accuracies and rates in 0..1, times in seconds."""
    exam, curated, trained, evaluated = summaries.get("exam", {}), summaries["curate"], summaries["train"], summaries["evaluate"]
    return {
        "round": number,
        **({"left_out": exam["left_out"]} if "left_out" in exam else {}),
        "pass_rate": exam.get("pass_rate"),
        "failed_problems": exam.get("failed_problems"),
        "mistakes": exam.get("mistakes"),
        "completions_asked": curated["asked"],
        "completions_kept": curated["kept"],
        **({"own_kept": curated["own_kept"]} if "own_kept" in curated else {}),
        "refused": curated["refused"],
        "teacher_usage": _usage(summaries),
        "n_reasoning_samples": trained["n_reasoning_samples"],
        "reflection_share": trained.get("reflection_share"),
        "validation_accuracy": trained["validation_accuracy"],
        "accuracy": evaluated["accuracy"],
        "accuracy_ci95": evaluated["accuracy_ci95"],
        "n_steps": trained["n_steps"],
        "seconds": {name: summary["seconds"] for name, summary in summaries.items()},
    }


def _usage(summaries: dict[str, Summary]) -> Summary:
    """The usage of a round's teacher, in the form of :meth:`fcot.llm.generate.Generated.usage`."""
    usage = summaries["curate"].get("teacher_usage") or summaries.get("generate", summaries.get("feedback", {}))["teacher_usage"]
    return dict(usage)


def _merge_rounds(
    rounds: Sequence[dict[str, Summary]], aborted: dict[str, Summary], spent: Summary, best: int, from_previous: bool
) -> dict[str, Summary]:
    """The rounds' summaries merged into those of one round, for ``metrics.json``.

    Counts, usage and seconds are summed over the rounds. Training and evaluation are those of the best round.

    Args:
        rounds: Summaries by stage name, for each finished round.
        aborted: Summaries by stage name, for the round that was aborted; empty where no round was.
        spent: Usage of the purchase that the budget interrupted; empty where none was.
        best: Number of the best round, from 1.
        from_previous: Whether each round starts from the previous round's student, so that optimizer steps add up.
    """
    curated = [summaries["curate"] for summaries in (*rounds, aborted) if "curate" in summaries]
    first, chosen = curated[0], rounds[best - 1]
    counts = ("asked", "kept", "empty", "cut", "unanswered", "characters", "prompt_characters")
    sums = sum_by_key([{name: summary.get(name, 0) for name in counts} for summary in curated])  # earlier versions wrote fewer counts
    words = sum((summary["rationale_words"] or 0.0) * summary["kept"] for summary in curated) / sums["kept"]
    seconds = sum_by_key([{name: summary["seconds"] for name, summary in summaries.items()} for summaries in (*rounds, aborted)])
    steps = sum(summaries["train"]["n_steps"] for summaries in rounds[(0 if from_previous else best - 1) : best])
    usages = [*map(_usage, rounds), spent, aborted["feedback"]["teacher_usage"] if "feedback" in aborted else {}]
    merged: dict[str, Summary] = {
        "curate": {
            **first, **sums, "refused": sum_by_key([summary["refused"] for summary in curated]), "rationale_words": round(words, 2),
            "teacher_usage": sum_by_key(usages),
        },
        "train": chosen["train"] | {"n_steps": steps},
        "evaluate": chosen["evaluate"],
    }  # fmt: skip
    return {name: merged.get(name, {}) | {"seconds": round(total, 3)} for name, total in seconds.items()}


def _publish_best(run: Run, best: int, n_curated: int) -> None:
    """Copy the best round's student and predictions into the run's folder, and the verdicts of all rounds into one file.

    Args:
        run: The run.
        best: Number of the best round, from 1.
        n_curated: Number of rounds with a ``curated.jsonl``, an aborted one included.
    """
    chosen = run.directory.round(best)
    write_folder(run.directory.student, lambda folder: shutil.copytree(chosen.student, folder, copy_function=_link, dirs_exist_ok=True))
    for path in (chosen.predictions, chosen.samples, chosen.errors):
        if path.exists():
            write_jsonl(run.directory.path / path.name, read_jsonl(path))

    def verdicts() -> Iterator[dict[str, Any]]:
        for number in range(1, n_curated + 1):
            for row in read_jsonl(run.directory.round(number).curated):
                yield {"round": number} | row

    write_jsonl(run.directory.curated, verdicts())


def _link(source: str, target: str) -> None:
    """Hard-link a file, because a student may be large; copy it where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
