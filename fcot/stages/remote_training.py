"""Training of an API-backed student, by a fine-tuning job."""

from __future__ import annotations

import math
import sys
from pathlib import Path

from fcot.base.console import progress
from fcot.base.files import write_folder, write_json
from fcot.runs.run import Run
from fcot.stages.remote_evaluation import fine_tuned, server_of, text_format
from fcot.stages.table import Context, Summary
from fcot.student.finetune_api import FineTuned, fine_tune
from fcot.student.interface import API_FILE, StudentInterface, write_interface


def train(context: Context) -> Summary:
    """Fine-tune the base model on all training samples; ``student/openai.json`` names the resulting model."""
    from fcot.stages.training import training_samples  # imported late: it imports torch, which would delay a dry run

    run = context.run
    config, form = run.config.student, text_format(run)
    samples = [(form.prompt(sample.question), form.completion(sample.answer, sample.rationale)) for sample in training_samples(run)]
    with progress("fine-tune", 1, "job") as bar:

        def watch(status: str) -> None:
            bar.watch(status)
            bar.advance(0)

        tuned = fine_tune(
            server_of(config, config.model), samples, run.directory.fine_tuning, run.store_dir / "fine_tuning.lock",
            run_id=run.run_id, epochs=config.epochs, seed=run.config.seed, poll_s=config.poll_s, max_tries=config.max_retries + 1,
            watch=watch,
        )  # fmt: skip
    _save(run, tuned)
    steps = math.ceil(len(samples) / tuned.batch_size) * config.epochs if tuned.batch_size else None
    return {
        "n_reasoning_samples": len(samples) if run.uses_rationales else 0,
        "n_steps": steps,
        "samples_per_second": None,
        "checkpoint": "last",
        "validation_accuracy": None,
        "best_test_accuracy": None,
        "history": [],
        "student_usage": {"trained_tokens": tuned.trained_tokens, "training_usd": _training_usd(run, tuned)},
    }


def _training_usd(run: Run, tuned: FineTuned) -> float | None:
    """Dollars that this run paid for the training: 0 if another run started the job, None if the price is unknown."""
    if tuned.paid_by != run.run_id:
        return 0.0
    price = run.config.student.price(fine_tuned(run.config.student.model))
    usd = None if price is None or tuned.trained_tokens is None else price.training_usd(tuned.trained_tokens)
    return None if usd is None else round(usd, 6)


def _save(run: Run, tuned: FineTuned) -> None:
    config = run.config.student
    student = {
        "model": tuned.model, "base_model": config.model, "job": tuned.job, "file": tuned.file,
        "trained_tokens": tuned.trained_tokens, "epochs": config.epochs, "base_url": config.base_url,
        "api_key_env": config.api_key_env,
        "max_tokens_parameter": config.max_tokens_parameter,
        **({"headers": dict(config.headers)} if config.headers else {}),
    }  # fmt: skip

    def fill(folder: Path) -> None:
        write_json(folder / API_FILE, student)
        write_interface(
            folder,
            StudentInterface(
                run.task.name, run.config.method.name, text_format(run), run.task.rule, True, sys.maxsize, config.max_new_tokens
            ),
        )

    write_folder(run.directory.student, fill)
