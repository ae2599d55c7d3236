"""From decoded texts to scored predictions and their summary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fcot.base.files import write_jsonl
from fcot.base.records import Completion, Prediction, Problem, to_row
from fcot.base.run_folder import RunDirectory
from fcot.evaluation.errors import count, mark
from fcot.evaluation.statistics import wilson_interval
from fcot.prompts.answers import AnswerRule, most_frequent
from fcot.prompts.student import StudentFormat
from fcot.prompts.teacher import TeacherPrompt

Form = StudentFormat | TeacherPrompt  # of what was asked and how it is read


def score(problem: Problem, text: str, complete: bool, n_tokens: int, text_format: StudentFormat, rule: AnswerRule) -> Prediction:
    """Parse one completion with the format's parser and compare it with the gold answer."""
    prediction = text_format.parse(text, rule)
    return Prediction(
        problem.sample_index, problem.question, problem.answer, text, prediction, rule.same(prediction, problem.answer),
        complete, n_tokens,
    )  # fmt: skip


def score_completion(problem: Problem, completion: Completion, n_tokens: int, prompt: TeacherPrompt, rule: AnswerRule) -> Prediction:
    """The same for what answers a teacher's prompt; where nobody says why it ended, it ended by itself."""
    prediction = prompt.parse(completion, rule)
    return Prediction(
        problem.sample_index, problem.question, problem.answer, prompt.text(completion, rule), prediction,
        rule.same(prediction, problem.answer), completion.finish_reason in ("stop", None), n_tokens,
    )  # fmt: skip


def majority(samples: Sequence[Prediction]) -> Prediction:
    """Self-consistency (Wang et al. 2023): of several answers to one problem the first that gives the most frequent prediction.

    Answers without a prediction have no vote; of equals the one drawn first wins.
    """
    return samples[most_frequent([sample.prediction for sample in samples])]


def accuracy(predictions: Sequence[Prediction]) -> float | None:
    """Share of correct predictions (0..1), None without any."""
    return sum(prediction.correct for prediction in predictions) / len(predictions) if predictions else None


def report(drawn: Sequence[Sequence[Prediction]], form: Form, rule: AnswerRule, place: RunDirectory) -> dict[str, Any]:
    """Write what was answered, one row a problem, and what is wrong with the wrong ones; return the summary.

    Args:
        drawn: The answers to each problem.
        form: Theirs.
        rule: The task's.
        place: Where its files go: the answer of each problem, by :func:`majority`; all answers, where there are several a problem.
    """
    voted = [majority(answers) for answers in drawn]
    write_jsonl(place.predictions, map(to_row, voted))
    summary = summarise(voted, form, rule)
    separator = form.answer_prefix if isinstance(form, StudentFormat) else form.trigger(rule)
    marked = [mark(one, rule, separator) for one in voted if not one.correct]
    write_jsonl(place.errors, map(to_row, marked))
    summary["errors"] = count(marked)
    written = sum(answer.n_tokens for answers in drawn for answer in answers)
    summary["answer_tokens"] = written / len(drawn) if written else None  # of all draws; nobody counts an oracle's or a file's
    if any(len(answers) > 1 for answers in drawn):
        write_jsonl(place.samples, ({"draw": number} | to_row(answer) for answers in drawn for number, answer in enumerate(answers)))
        summary["accuracy_single_sample"] = accuracy([answer for answers in drawn for answer in answers])
    return summary


def summarise(predictions: Sequence[Prediction], form: Form, rule: AnswerRule) -> dict[str, Any]:
    """Accuracy with its interval, and what the completions look like; all rates in 0..1.

    ``answer_in_completion``: the gold answer is among all candidates of the text. ``well_formed``: the text ends with
    the format's answer prefix and an answer. ``complete``: it ended by itself.
    """
    n = len(predictions)
    right = sum(prediction.correct for prediction in predictions)
    contained = sum(prediction.correct or rule.contains(prediction.completion, prediction.answer) for prediction in predictions)
    formed = sum(form.well_formed(prediction.completion, rule) for prediction in predictions)
    ended = sum(prediction.complete for prediction in predictions)
    return {
        "n_test": n,
        "accuracy": right / n if n else None,
        "accuracy_ci95": list(wilson_interval(right, n)),
        "answer_in_completion": contained / n if n else None,
        "well_formed": formed / n if n else None,
        "complete": ended / n if n else None,
    }
