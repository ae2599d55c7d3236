"""Training: a Lightning run over a fixed number of optimizer steps, with evaluations in between."""

from __future__ import annotations

import logging
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.plugins.environments import LightningEnvironment
from pytorch_lightning.loggers import CSVLogger

from fcot.artifacts import disk_error
from fcot.student.data import ReasoningData, steps_per_epoch
from fcot.student.loading import Student
from fcot.student.module import StudentModule
from fcot.student.tokenization import Row


def count_steps(n_samples: int, batch_size: int, epochs: int | None, max_steps: int | None) -> int:
    """Optimizer steps of a training: so many epochs or so many steps, whichever comes first."""
    by_epochs = epochs * steps_per_epoch(n_samples, batch_size) if epochs is not None else None
    return min(limit for limit in (by_epochs, max_steps) if limit is not None)


@dataclass
class TrainingReport:
    """What a training did.

    Attributes:
        n_steps: Optimizer steps.
        n_samples: Samples seen, repetitions included.
        train_seconds: Time in training, evaluations left out.
        history: One entry per evaluation: ``step``, ``epoch``, and what the evaluation returned.
    """

    n_steps: int
    n_samples: int = 0
    train_seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


class _Between(pl.Callback):
    """Runs the evaluation after the steps that are due, counts samples, moves the progress bar."""

    def __init__(
        self, report: TrainingReport, every: int, per_epoch: int, evaluate: Callable[[], dict[str, Any]], advance: Callable[[int], None]
    ) -> None:
        self._report = report
        self._every = every
        self._per_epoch = per_epoch
        self._evaluate = evaluate
        self._advance = advance
        self._evaluating_s = 0.0
        self._start = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        report, step = self._report, trainer.global_step
        report.n_samples += len(batch["input_ids"])
        self._advance(1)
        if step % self._every == 0 or step == report.n_steps:
            began = time.monotonic()
            report.history.append({"step": step, "epoch": round(step / self._per_epoch, 3), **self._evaluate()})
            self._evaluating_s += time.monotonic() - began
        report.train_seconds = time.monotonic() - self._start - self._evaluating_s


def train(
    student: Student,
    rows: Sequence[Row],
    *,
    seed: int,
    lr: float,
    weight_decay: float,
    batch_size: int,
    n_steps: int,
    schedule: str,
    warmup_steps: int,
    clip_norm: float | None,
    precision: str,
    evaluate_every: int | None,
    evaluate: Callable[[], dict[str, Any]],
    advance: Callable[[int], None],
    log_folder: Path | None,
) -> TrainingReport:
    """Fine-tune the student in place.

    Args:
        student: Is changed.
        rows: Tokenised samples.
        seed: Order of samples and dropout.
        lr: Peak learning rate.
        weight_decay: AdamW's.
        schedule: ``constant`` or ``linear``.
        warmup_steps: Optimizer steps of warm-up.
        batch_size: Samples per optimizer step.
        n_steps: Optimizer steps.
        clip_norm: Gradient norm limit, None for none.
        precision: Lightning's name (``32-true``, ``bf16-mixed``).
        evaluate_every: Optimizer steps between evaluations; None for once an epoch. The last step always evaluates.
        evaluate: Called after those steps; its result joins the history.
        advance: Called with 1 after each step.
        log_folder: Where the CSV log goes, None for no log.
    """
    _quiet()
    pl.seed_everything(seed, verbose=False)
    report = TrainingReport(n_steps)
    per_epoch = steps_per_epoch(len(rows), batch_size)
    module = StudentModule(student, lr=lr, weight_decay=weight_decay, schedule=schedule, warmup_steps=warmup_steps, n_steps=n_steps)
    data = ReasoningData(
        rows, architecture=student.architecture, pad_id=student.tokenizer.pad_token_id, batch_size=batch_size, seed=seed,
        n_steps=n_steps,
    )  # fmt: skip
    trainer = pl.Trainer(
        accelerator="auto", devices=1, precision=precision, max_epochs=1, gradient_clip_val=clip_norm,  # type: ignore[arg-type]
        logger=CSVLogger(log_folder.parent, name=log_folder.name, version="") if log_folder else False,
        callbacks=[_Between(report, evaluate_every or per_epoch, per_epoch, evaluate, advance)],
        plugins=[LightningEnvironment()], use_distributed_sampler=False, log_every_n_steps=min(10, n_steps),
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    student.model.train()
    try:
        trainer.fit(module, datamodule=data)
    except SystemExit as error:  # Lightning's answer to Ctrl-C; it also ignores further ones from then on
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise KeyboardInterrupt from error
    except OSError as error:
        raise disk_error(error, log_folder or Path("the training log")) from error
    return report


def _quiet() -> None:
    """Silence Lightning's advice on matters that are decided here (workers, devices, optional packages)."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*GPU available but not used.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*Experiment logs directory.*")
