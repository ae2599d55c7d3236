"""The student's stages: train, evaluate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from transformers.utils import logging as transformers_logging

from fcot.artifacts import read_jsonl, write_folder, write_jsonl
from fcot.config import TinyStudent
from fcot.evaluation import scoring
from fcot.progress import progress, say, unwatched
from fcot.prompts.student import METHODS, StudentFormat
from fcot.records import CuratedCompletion, Prediction, from_row, to_row
from fcot.runs import Run
from fcot.student.decoding import decode
from fcot.student.loading import Student, build_tiny, load_student
from fcot.student.tokenization import Tokenized, tokenize
from fcot.student.training import count_steps, train

Summary = dict[str, Any]

transformers_logging.disable_progress_bar()  # one bar at a time: ours
transformers_logging.set_verbosity_error()


def train_student(run: Run) -> Summary:
    """Train, evaluating in between; the chosen checkpoint becomes ``student/``.

    With validation problems the best validation accuracy chooses, the latest of equals. Without, the last step's
    weights are kept; under ``trainer.selection=last`` the test set is evaluated each time beside it (paper A).
    """
    config = run.config.trainer
    student = build_student(run)
    samples = tokenize_samples(run, student)
    n_steps = count_steps(len(samples.rows), config.batch_size, config.epochs, config.max_steps)
    selecting = bool(run.split.validation)
    best = -1.0

    def evaluate() -> Summary:
        nonlocal best
        if selecting:
            accuracy = scoring.accuracy(predict(run, student, run.split.validation)) or 0.0
            if accuracy >= best:
                best = accuracy
                save(run, student)
            return {"validation_accuracy": accuracy}
        if config.selection == "last":
            return {"test_accuracy": scoring.accuracy(predict(run, student, run.split.test))}
        return {}

    with progress("train", n_steps, "steps") as bar:
        report = train(
            student, samples.rows, seed=run.config.seed, lr=config.lr, weight_decay=config.weight_decay,
            batch_size=config.batch_size, n_steps=n_steps, schedule=config.schedule, warmup_steps=config.warmup_steps,
            clip_norm=config.clip_norm, precision=run.precision, evaluate_every=config.evaluate_every_steps,
            evaluate=evaluate, advance=bar.advance,
            log_folder=run.directory.logs if run.config.logger.name == "csv" else None,
        )  # fmt: skip
    if not selecting:
        save(run, student)
    tests = [entry["test_accuracy"] for entry in report.history if "test_accuracy" in entry]
    return {
        "n_reasoning_samples": len(samples.rows) if run.asks_teacher else 0,
        "n_steps": report.n_steps,
        "samples_per_second": round(report.n_samples / max(report.train_seconds, 1e-9), 2),
        "checkpoint": "validation" if selecting else "last",
        "validation_accuracy": best if selecting else None,
        "best_test_accuracy": max(tests) if tests else None,
        "cut_prompts": samples.cut_prompts,
        "cut_completions": samples.cut_completions,
        "unknown_token_share": samples.unknown_share,
        "history": report.history,
    }


def evaluate_student(run: Run) -> Summary:
    """Greedy answers to every test problem, scored by the parser of the run's format."""
    student = load_student(str(run.directory.student)) if run.trains else build_student(run)
    with progress("evaluate", len(run.split.test), "problems") as bar:
        predictions = predict(run, student, run.split.test, bar.advance)
    write_jsonl(run.directory.predictions, (to_row(prediction) for prediction in predictions))
    return scoring.summarise(predictions, text_format(run, student), run.task.rule)


def build_student(run: Run) -> Student:
    """The student before training: from a folder, from the hub, or from scratch with the run's seed."""
    config = run.config.student
    if not isinstance(config, TinyStudent):
        return load_student(config.path or config.hub_id, config.revision)
    pl.seed_everything(run.config.seed, verbose=False)
    texts = [text for question, answer, rationale in training_texts(run) for text in (question, f"{rationale or ''} {answer}")]
    return build_tiny(
        config.architecture, texts, width=config.width, layers=config.layers, heads=config.heads,  # type: ignore[arg-type]
        vocab_size=config.vocab_size, max_length=config.max_prompt_tokens + max(config.max_completion_tokens, config.max_new_tokens),
    )  # fmt: skip


def training_texts(run: Run) -> list[tuple[str, str, str | None]]:
    """(question, gold answer, rationale or None) of every training sample."""
    if not run.asks_teacher:
        return [(problem.question, problem.answer, None) for problem in run.select(run.split.train)]
    curated = (from_row(CuratedCompletion, row) for row in read_jsonl(run.directory.curated))
    return [(run.problems[row.sample_index].question, row.answer, row.rationale) for row in curated if row.kept]


def text_format(run: Run, student: Student) -> StudentFormat:
    """The format of the run's method for this student."""
    return METHODS[run.config.method.name].formats[student.architecture]


def tokenize_samples(run: Run, student: Student) -> Tokenized:
    """The training samples as token ids; says what was cut or cannot be represented."""
    form, limits = text_format(run, student), run.config.student
    samples = [(question, form.completion(answer, rationale)) for question, answer, rationale in training_texts(run)]
    tokenized = tokenize(
        student.tokenizer, form, student.architecture, samples,
        max_prompt=limits.max_prompt_tokens, max_completion=limits.max_completion_tokens,
    )  # fmt: skip
    if tokenized.cut_prompts:
        say(f"warning: {tokenized.cut_prompts} questions lost their beginning at student.max_prompt_tokens={limits.max_prompt_tokens}")
    if tokenized.cut_completions:
        say(
            f"warning: {tokenized.cut_completions} of {len(samples)} completions were cut at "
            f"student.max_completion_tokens={limits.max_completion_tokens}: they end without an answer"
        )
    if tokenized.unknown_share:
        say(f"warning: the tokenizer cannot represent {tokenized.unknown_share:.2%} of the training tokens")
    return tokenized


def predict(run: Run, student: Student, indices: Sequence[int], advance: Callable[[int], object] = unwatched) -> list[Prediction]:
    """Greedy answers of a student to problems, scored, in the order of ``indices``."""
    form, limits, problems = text_format(run, student), run.config.student, run.select(list(indices))
    tokenized = tokenize(
        student.tokenizer, form, student.architecture, [(problem.question, None) for problem in problems],
        max_prompt=limits.max_prompt_tokens, max_completion=limits.max_completion_tokens,
    )  # fmt: skip
    if tokenized.cut_prompts:
        say(f"warning: {tokenized.cut_prompts} questions to answer lost their beginning at student.max_prompt_tokens")
    if torch.cuda.is_available():
        student.model.to("cuda")  # type: ignore[arg-type]
    decoded = decode(
        student, tokenized.rows, max_new_tokens=limits.max_new_tokens, batch_size=run.config.trainer.eval_batch_size, advance=advance
    )
    return [
        scoring.score(problem, answer.text, answer.complete, answer.n_tokens, form, run.task.rule)
        for problem, answer in zip(problems, decoded, strict=True)
    ]


def save(run: Run, student: Student) -> None:
    """Make the student's present weights the run's ``student/`` folder, in transformers' format."""

    def fill(folder: Path) -> None:
        student.model.save_pretrained(folder)
        student.tokenizer.save_pretrained(folder)

    write_folder(run.directory.student, fill)
