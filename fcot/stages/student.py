"""The student's stages: train, evaluate. Every rank runs them; the first one writes."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from transformers.utils import logging as transformers_logging

from fcot.artifacts import fingerprint, read_jsonl, write_folder
from fcot.config import PretrainedStudent, TinyStudent
from fcot.evaluation import scoring
from fcot.progress import progress, say
from fcot.prompts.student import METHODS
from fcot.ranks import World
from fcot.records import CuratedCompletion, from_row
from fcot.runs import Run
from fcot.stages.answering import draw, predict, prompt_student, text_format
from fcot.student.checkpoints import Checkpoints, is_sharded, trained_weights
from fcot.student.loading import Lora, Student, add_lora, build_tiny, load_student, save_student, tokenizer_identity
from fcot.student.tokenization import Tokenized, tokenize, tokenize_once
from fcot.student.training import History, Recipe, plan, train
from fcot.student.using import Usage, write_usage

Summary = dict[str, Any]

transformers_logging.disable_progress_bar()  # one bar at a time: ours
transformers_logging.set_verbosity_error()


def train_student(run: Run, world: World) -> Summary:
    """Train, evaluating in between; the chosen checkpoint becomes ``student/``.

    With validation problems the best validation accuracy chooses, the latest of equals. Without, the last step's
    weights are kept. ``trainer.best_epoch`` evaluates the test set beside it, which chooses nothing (paper A's figure).
    """
    config = run.config.trainer
    student = build_student(run)
    rows = training_rows(run, student)
    recipe = Recipe(**{one.name: getattr(config, one.name) for one in fields(Recipe)} | {"precision": run.precision})

    def evaluate(history: History) -> Summary:
        entry: Summary = {}
        if run.split.validation:
            accuracy = scoring.accuracy(predict(run, student, run.split.validation, world)) or 0.0
            entry["validation_accuracy"] = accuracy
            bar.watch(f"validation accuracy {accuracy:.1%}")
        if config.best_epoch:
            entry["test_accuracy"] = scoring.accuracy(predict(run, student, run.split.test, world))
        if run.split.validation and accuracy >= max((before["validation_accuracy"] for before in history), default=0.0):
            save(run, student, world)  # last: it may spread the weights over the ranks again
        return entry

    with progress("train", plan(student, rows, recipe, run.config.seed)[2], "steps") as bar:
        report = train(
            student, rows, recipe, seed=run.config.seed, evaluate=evaluate, stop=lambda history: out_of_patience(history, config.patience),
            checkpoints=Checkpoints(run.directory.checkpoints, config.checkpoint_every_s), advance=bar.advance,
            log_folder=run.directory.logs if run.config.logger.name == "csv" else None, world=world,
        )  # fmt: skip
    if not run.split.validation:
        save(run, student, world)
    best = max((entry["validation_accuracy"] for entry in report.history), default=None) if run.split.validation else None
    return {
        "n_reasoning_samples": len(rows) if run.asks_teacher else 0,
        "n_steps": report.n_steps,
        "samples_per_second": round(report.n_samples / max(report.train_seconds, 1e-9), 2),
        "padding_efficiency": round(report.n_tokens / max(1, report.n_padded), 4),
        "checkpoint": "validation" if run.split.validation else "last",
        "validation_accuracy": best,
        "best_test_accuracy": max((entry["test_accuracy"] for entry in report.history), default=None) if config.best_epoch else None,
        "cut_prompts": rows.cut_prompts,
        "cut_completions": rows.cut_completions,
        "unknown_token_share": rows.unknown_share,
        "history": report.history,
    }


def out_of_patience(history: History, patience: int | None) -> bool:
    """Whether the last ``patience`` evaluations have brought no better validation accuracy."""
    accuracies = [entry["validation_accuracy"] for entry in history if "validation_accuracy" in entry] if patience is not None else []
    return bool(accuracies) and len(accuracies) - 1 - accuracies.index(max(accuracies)) >= patience  # type: ignore[operator]


def evaluate_student(run: Run, world: World) -> Summary:
    """Answers to every test problem, scored by the parser of the run's format: greedy, or a majority vote over samples."""
    student = load_student(str(run.directory.student), chat=_asks_in_chat(run)) if run.trains else build_student(run)
    draws = run.config.student.self_consistency
    prompted = METHODS[run.config.method.name].prompted
    answer, form = (prompt_student, run.prompt) if prompted else (draw, text_format(run, student))
    with progress("evaluate", len(run.split.test) * draws, "answers") as bar:
        drawn, facts = answer(run, student, run.split.test, world, draws, bar.advance)
    if world.rank > 0:
        return {}
    size = {"n_parameters": student.model.num_parameters()}  # type: ignore[operator]
    return scoring.report(drawn, form, run.task.rule, run.directory.predictions, run.directory.samples) | facts | size


def build_student(run: Run) -> Student:
    """The student before training: from a folder, from the hub, or from scratch with the run's seed."""
    config = run.config.student
    pl.seed_everything(run.config.seed, verbose=False)  # also for the adapters
    if isinstance(config, PretrainedStudent):
        student = load_student(config.path or str(config.hub_id), config.revision, chat=config.chat_template)
        lora = lora_of(config) if run.trains else None
        return student if lora is None else add_lora(student, lora)
    texts = [text for question, answer, rationale in training_texts(run) for text in (question, f"{rationale or ''} {answer}")]
    return build_tiny(
        config.architecture, texts, width=config.width, layers=config.layers, heads=config.heads,
        vocab_size=config.vocab_size, max_length=config.max_prompt_tokens + max(config.max_completion_tokens, config.max_new_tokens),
    )  # fmt: skip


def lora_of(config: PretrainedStudent) -> Lora | None:
    """The adapters that a configuration asks for."""
    asked = config.lora
    return None if asked.rank is None else Lora(asked.rank, asked.alpha, asked.dropout, asked.targets)


def _asks_in_chat(run: Run) -> bool:
    return not isinstance(run.config.student, TinyStudent) and bool(run.config.student.chat_template)


def training_texts(run: Run) -> list[tuple[str, str, str | None]]:
    """(question, gold answer, rationale or None) of every training sample."""
    if not run.asks_teacher:
        return [(problem.question, problem.answer, None) for problem in run.select(run.split.train)]
    curated = (from_row(CuratedCompletion, row) for row in read_jsonl(run.directory.curated))
    return [(run.problems[row.sample_index].question, row.answer, row.rationale) for row in curated if row.kept]


def training_rows(run: Run, student: Student) -> Tokenized:
    """The training samples as token ids, from the sweep's cache; says what was cut or cannot be represented."""
    form, limits = text_format(run, student), run.config.student
    samples = [(question, form.completion(answer, rationale)) for question, answer, rationale in training_texts(run)]
    name = fingerprint(
        [1, samples, vars(form), limits.max_prompt_tokens, limits.max_completion_tokens, tokenizer_identity(student), student.chat]
    )
    rows = tokenize_once(
        run.token_cache / f"{name[:16]}.arrow",
        lambda: tokenize(student, form, samples, max_prompt=limits.max_prompt_tokens, max_completion=limits.max_completion_tokens),
    )
    if rows.cut_prompts:
        say(f"warning: {rows.cut_prompts} questions lost their beginning at student.max_prompt_tokens={limits.max_prompt_tokens}")
    if rows.cut_completions:
        say(
            f"warning: {rows.cut_completions} of {len(samples)} completions were cut at "
            f"student.max_completion_tokens={limits.max_completion_tokens}: they end without an answer"
        )
    if rows.unknown_share:
        say(f"warning: the tokenizer cannot represent {rows.unknown_share:.2%} of the training tokens")
    return rows


def save(run: Run, student: Student, world: World) -> None:
    """Make the student's present weights the run's ``student/`` folder, in transformers' format, with how it is used.

    All ranks take part in gathering the weights; the first one writes.
    """
    weights = trained_weights(student.model) if is_sharded(student.model) else None
    if world.rank > 0:
        return
    limits = run.config.student
    usage = Usage(
        run.task.name, run.config.method.name, text_format(run, student), run.task.rule, student.chat, limits.max_prompt_tokens,
        limits.max_new_tokens,
    )  # fmt: skip

    def fill(folder: Path) -> None:
        save_student(student, folder, limits.max_new_tokens, weights)
        write_usage(folder, usage)

    write_folder(run.directory.student, fill)
