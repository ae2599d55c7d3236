"""Scores completions against gold answers, and summarizes the predictions of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fcot.base.files import write_jsonl
from fcot.base.records import Completion, Prediction, Problem, to_row
from fcot.base.run_folder import RunDirectory
from fcot.evaluation.at_k import at_k
from fcot.evaluation.at_k import summarize as summarize_at_k
from fcot.evaluation.errors import count, mark
from fcot.evaluation.statistics import wilson_interval
from fcot.prompts.answers import AnswerRule, most_frequent
from fcot.prompts.student import StudentFormat
from fcot.prompts.teacher import TeacherPrompt

Form = StudentFormat | TeacherPrompt  # the format of a prompt, with the parser of its completions


def score(problem: Problem, text: str, complete: bool, n_tokens: int, form: StudentFormat, rule: AnswerRule) -> Prediction:
    """Parse a student's completion with the format's parser, and compare it with the gold answer."""
    prediction = form.parse(text, rule)
    return Prediction(
        problem.sample_index, problem.question, problem.answer, text, prediction, rule.same(prediction, problem.answer),
        complete, n_tokens, problem.id,
    )  # fmt: skip


def score_completion(problem: Problem, completion: Completion, n_tokens: int, prompt: TeacherPrompt, rule: AnswerRule) -> Prediction:
    """Parse a completion of a teacher's prompt, and compare it with the gold answer.

    A completion without a finish reason counts as complete.
    """
    prediction = prompt.parse(completion, rule)
    return Prediction(
        problem.sample_index, problem.question, problem.answer, prompt.text(completion, rule), prediction,
        rule.same(prediction, problem.answer), completion.finish_reason in ("stop", None), n_tokens, problem.id,
    )  # fmt: skip


def majority(samples: Sequence[Prediction]) -> Prediction:
    """Self-consistency (Wang et al. 2023): the first sample of a problem whose prediction is the most frequent one.

    Samples without a prediction have no vote. Where predictions are equally frequent, the one that was sampled first wins.
    """
    return samples[most_frequent([sample.prediction for sample in samples])]


def accuracy(predictions: Sequence[Prediction]) -> float | None:
    """Share of correct predictions (0..1); None without predictions."""
    return sum(prediction.correct for prediction in predictions) / len(predictions) if predictions else None


def report(answers: Sequence[Sequence[Prediction]], form: Form, rule: AnswerRule, directory: RunDirectory) -> dict[str, Any]:
    """Write the predictions and the error marks of a run, and return their summary.

    Args:
        answers: The sampled answers to each problem, one or several.
        form: The format that produced the answers.
        rule: The task's answer rule.
        directory: The folder of the run or round. ``predictions.jsonl`` gets one row per problem, chosen by :func:`majority`;
            ``errors.jsonl`` one row per wrong prediction; ``samples.jsonl`` all answers, if problems have several.
    """
    voted = [majority(samples) for samples in answers]
    write_jsonl(directory.predictions, map(to_row, voted))
    summary = summarize(voted, form, rule)
    separator = form.answer_prefix if isinstance(form, StudentFormat) else form.trigger(rule)
    marked = [mark(prediction, rule, separator) for prediction in voted if not prediction.correct]
    write_jsonl(directory.errors, map(to_row, marked))
    summary["errors"] = count(marked)
    n_tokens = sum(sample.n_tokens for samples in answers for sample in samples)
    summary["answer_tokens"] = n_tokens / len(answers) if n_tokens else None  # over all samples; an oracle or a file counts no tokens
    if any(len(samples) > 1 for samples in answers):
        write_jsonl(directory.samples, ({"draw": draw} | to_row(sample) for samples in answers for draw, sample in enumerate(samples)))
        summary["accuracy_single_sample"] = accuracy([sample for samples in answers for sample in samples])
        summary["at_k"] = summarize_at_k([at_k([(sample.prediction, sample.correct) for sample in samples]) for samples in answers])
    return summary


def summarize(predictions: Sequence[Prediction], form: Form, rule: AnswerRule) -> dict[str, Any]:
    """Accuracy with its 95 % interval, and shares of completions: all in 0..1; None without predictions.

    ``answer_in_completion`` is the share of completions that name the gold answer anywhere, ``well_formed`` of those that end with the
    format's answer prefix and an answer, ``complete`` of those that ended by themselves and not at the length limit.
    """
    n = len(predictions)
    right = sum(prediction.correct for prediction in predictions)
    containing = sum(prediction.correct or rule.contains(prediction.completion, prediction.answer) for prediction in predictions)
    well_formed = sum(form.well_formed(prediction.completion, rule) for prediction in predictions)
    complete = sum(prediction.complete for prediction in predictions)
    return {
        "n_test": n,
        "accuracy": right / n if n else None,
        "accuracy_ci95": list(wilson_interval(right, n)),
        "answer_in_completion": containing / n if n else None,
        "well_formed": well_formed / n if n else None,
        "complete": complete / n if n else None,
    }
