"""What to look at after a run whose student answered no test problem correctly, from the run's own figures."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fcot.estimate.toy import alternatives, is_toy
from fcot.runs.run import Run

_MANY = 0.1  # share of answers or samples from which a fault is named
_FEW_SAMPLES = 100
_MOSTLY = 0.5  # share of the steps from which the warm-up is named
_HARDLY_FELL = 0.7  # share of the first loss that the last one still has


def advice_without_right_answers(run: Run, metrics: Mapping[str, Any]) -> str | None:
    """Advice for a run in which no test answer is right; None if one is, or without test problems.

    Args:
        run: The finished run.
        metrics: Its ``metrics.json``.
    """
    n = metrics["n_test"]
    if metrics["accuracy"] != 0 or not n:
        return None
    causes = [*_of_student(run), *_of_answers(run, metrics), *(_of_training(run, metrics) if run.trains else ())]
    last = f"all answers, with what is wrong with them: {run.directory.predictions}"
    return "\n  ".join([f"0 of {n:,} test answers are right. What to look at:", *causes, last])


def _of_student(run: Run) -> Iterator[str]:
    if is_toy(run):
        yield f"student={run.config.student.name} is a toy, trained from scratch. {alternatives(run)}"
    elif not (run.trains or run.is_teacher or run.method.own_format):
        yield f"method={run.config.method.name} does not train the student; method=fine_tune_cot does"


def _of_answers(run: Run, metrics: Mapping[str, Any]) -> Iterator[str]:
    """Cut answers, unreadable answers, and right answers that stand where they are not read."""
    n, errors = metrics["n_test"], metrics["errors"]
    cut, loops, unreadable = (errors.get(mark, 0) for mark in ("truncated", "loops", "no_answer"))
    prompted = run.method.prompted or run.is_teacher
    option, limit = (
        ("prompt.rationale_tokens", run.config.prompt.rationale_tokens) if prompted
        else ("student.max_new_tokens", run.config.student.max_new_tokens)
    )  # fmt: skip
    if cut >= _MANY * n:
        remedy = f"{option}={2 * limit} gives them more room, if they make sense up to there"
        if loops >= 0.5 * cut:
            remedy = "most of these repeat themselves, which a larger limit does not change: train longer, or choose a larger student"
        yield f"{cut:,} of {n:,} answers were cut at {option}={limit}: {remedy}"
    if unreadable >= _MANY * n:
        why = "the prompt elicits none" if prompted else "the student has not learned the format: train longer"
        yield f"{unreadable:,} of {n:,} answers have no readable answer of the type {run.task.rule.answer_type} ({why})"
    if inside := round(n * (metrics["answer_in_completion"] or 0.0)):
        yield f"{inside:,} of {n:,} answers contain the right answer, but do not state it at their end"


def _of_training(run: Run, metrics: Mapping[str, Any]) -> Iterator[str]:
    """Cut training samples, too few of them, and a loss that hardly fell."""
    student, trainer = run.config.student, run.config.trainer
    n = metrics["n_reasoning_samples"] or metrics["n_train_problems"]
    for name, option, lost in (
        ("cut_completions", "max_completion_tokens", "end, and with it their answer,"), ("cut_prompts", "max_prompt_tokens", "beginning"),
    ):  # fmt: skip
        if n and metrics[name] >= _MANY * n:
            limit = getattr(student, option, "")
            yield f"{metrics[name]:,} of {n:,} training samples lost their {lost} at student.{option}={limit}: raise it"
    if n < _FEW_SAMPLES:
        yield f"it was trained on {n:,} samples: a larger diversity or more train problems give more"
    steps = metrics["n_steps"] or 0
    if not student.api_backed and steps and trainer.warmup_steps >= _MOSTLY * steps:
        yield (
            f"the learning rate rises over trainer.warmup_steps={trainer.warmup_steps}, and the training had {steps:,} steps: try "
            f"trainer.warmup_steps={steps // 10}, or more steps"
        )
    losses = _losses(run.directory.logs / "metrics.csv")
    if len(losses) > 1 and losses[-1] > _HARDLY_FELL * losses[0]:
        yield (
            f"the training loss went from {losses[0]:.2f} to {losses[-1]:.2f} in {metrics['n_steps']:,} steps with "
            f"trainer.lr={trainer.lr:g}: try trainer.lr={3 * trainer.lr:.2g} and trainer.lr={trainer.lr / 3:.2g}, or more steps"
        )


def _losses(log: Path) -> list[float]:
    """The training losses of a log; empty without a log."""
    losses: list[float] = []
    with contextlib.suppress(OSError, csv.Error, UnicodeDecodeError), log.open(newline="") as file:
        for row in csv.DictReader(file):
            with contextlib.suppress(TypeError, ValueError, KeyError):  # rows of evaluations have no loss
                losses.append(float(row["train_loss"]))
    return losses
