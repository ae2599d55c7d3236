"""Training: a Lightning run over optimizer steps, with evaluations in between. It resumes after an interruption."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger

from fcot.base.console import say, unwatched
from fcot.base.errors import FcotError
from fcot.base.ranks import World, warned_together
from fcot.base.stopping import WARNING
from fcot.decoding.models import check_same
from fcot.student.activations import checkpoint_activations
from fcot.student.attention import allow_packing
from fcot.student.batching import StepSampler
from fcot.student.checkpoints import (  # fmt: skip
    Checkpoints,
    gather_weights,
    gathered,
    is_sharded,
    optimizer_state,
    restore_optimizer,
    trained_weights,
)
from fcot.student.config import TrainerConfig
from fcot.student.continued import Continued, Moments, set_moments
from fcot.student.data import Layout, ReasoningData, layout_of
from fcot.student.divergence import DivergenceCheck, remedies
from fcot.student.fitting import cpu_has_bf16, fit, quiet
from fcot.student.loading import Student
from fcot.student.loggers import csv_log
from fcot.student.module import LearningRate, StudentModule
from fcot.student.objective import Objective
from fcot.student.own import OwnSamples
from fcot.student.tokenization import Rows

History = list[dict[str, Any]]
_LOG_EVERY = 10  # optimizer steps


@dataclass
class TrainingReport:
    """Counts of a training, over all its restarts.

    Attributes:
        n_steps: Optimizer steps.
        n_samples: Samples processed; a sample counts once per epoch.
        n_tokens: Tokens of those samples, without padding.
        n_padded: Tokens of those samples, with padding.
        train_seconds: Time spent in training, without evaluations.
        first_loss: Loss of the first step; None if it was not measured.
        history: One entry per evaluation: ``step``, ``epoch``, and what the evaluation returned.
    """

    n_steps: int = 0
    n_samples: int = 0
    n_tokens: int = 0
    n_padded: int = 0
    train_seconds: float = 0.0
    first_loss: float | None = None
    history: History = field(default_factory=list)


@dataclass(frozen=True)
class Hooks:
    """The functions that a training calls.

    Attributes:
        evaluate: Called with the history so far after each step that is due for an evaluation. All ranks call it, and each has all
            parameters. Its result is added to the history.
        stop: Called with the history after each evaluation; True ends the training.
        resume: Called once, with the number of steps that earlier processes did.
        advance: Called with the number of steps done since the last call.
        keep_moments: Called after ``evaluate`` with the history so far, the evaluation's result and the moments of the optimizer; not
            for sharded parameters.
    """

    evaluate: Callable[[History], dict[str, Any]]
    stop: Callable[[History], bool] = lambda _: False
    resume: Callable[[int], object] = unwatched
    advance: Callable[[int], object] = unwatched
    keep_moments: Callable[[History, dict[str, Any], Moments], object] | None = None


@dataclass(frozen=True)
class _Steps:
    """The optimizer steps of a training: their samples, their number, and those after which the student is evaluated."""

    sampler: StepSampler
    n: int
    due: Collection[int]


def train(
    student: Student,
    rows: Rows,
    objectives: Sequence[Objective],
    recipe: TrainerConfig,
    hooks: Hooks,
    *,
    seed: int,
    own: OwnSamples | None = None,
    continued: Continued = Continued(),  # noqa: B008 - frozen
    checkpoints: Checkpoints | None = None,
    log_folder: Path | None = None,
    loggers: Sequence[Logger] = (),
    world: World = World(),  # noqa: B008 - frozen
) -> TrainingReport:
    """Fine-tune the student in place; continue from the newest checkpoint if there is one. Every rank calls this function.

    Args:
        student: Changed in place; afterwards it has the parameters of the last step.
        rows: The tokenized samples.
        objectives: The terms of the loss; the first is the main objective.
        recipe: The options of ``trainer``, with the precision resolved (not ``auto``).
        hooks: The functions that it calls.
        seed: Seed of the order of samples and of dropout.
        own: The samples of each step, some of them written by the student itself; None: all are stored.
        continued: How the training continues earlier ones.
        checkpoints: Where checkpoints are written; None writes none.
        log_folder: Folder of the CSV log; None writes none.
        loggers: Loggers that get the same metrics as the CSV log, and those of each evaluation.
        world: The ranks, and the number of this one.

    Raises:
        NotFinite: A loss or a parameter is inf or nan. Neither is evaluated or written to a checkpoint.
        FcotError: The checkpoint does not fit this student or this precision, or the disk is full.
    """
    quiet()
    _, sampler, n_steps = plan(student, rows, recipe, seed)
    rate = continued.learning_rate(recipe, n_steps)
    report, checkpoint = _resume(student, checkpoints, recipe.precision, own)
    _announce(recipe, report.n_steps, n_steps, rate, world)
    hooks.resume(report.n_steps)
    steps = _Steps(sampler, n_steps, _due(sampler, n_steps, recipe.evaluate_every_steps, recipe.evaluate_every_epochs))
    callback = _StepCallback(student, report, steps, hooks, recipe, checkpoints, checkpoint, continued.moments, loggers, world.size, own)
    callback.evaluate_if_due()
    if report.n_steps == n_steps or hooks.stop(report.history):
        return report
    _prepare(student, recipe.packing, recipe.gradient_checkpointing)
    module = _module(student, objectives, recipe, rate, seed, report.n_steps, world)
    data = ReasoningData(
        objectives, rows, sampler, own, first_step=report.n_steps, n_steps=n_steps, micro_batches=recipe.micro_batches, ranks=world.size,
        rank=world.rank, workers=2 if torch.cuda.is_available() else 0,
    )  # fmt: skip
    trainer = pl.Trainer(
        accelerator="auto", **world.placement(recipe.strategy), precision=recipe.precision,  # type: ignore[arg-type]
        max_epochs=own.schedule.n_intervals(report.n_steps) if own else 1, reload_dataloaders_every_n_epochs=1 if own else 0,
        gradient_clip_val=recipe.clip_norm, accumulate_grad_batches=recipe.micro_batches, callbacks=[callback],
        logger=[*([csv_log(log_folder, report.n_steps)] if log_folder and world.rank == 0 else []), *loggers] or False,
        use_distributed_sampler=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    student.model.train()
    try:
        fit(trainer, module, data, recipe.tf32, log_folder)
    finally:
        module.forward_pass.remove()
        callback.on_train_end(trainer, module)
    gather_weights(student.model)
    return report


def _module(
    student: Student, objectives: Sequence[Objective], recipe: TrainerConfig, rate: LearningRate, seed: int, first_step: int, world: World
) -> StudentModule:
    return StudentModule(
        student.model, objectives, rate, weight_decay=recipe.weight_decay, seed=seed, first_step=first_step,
        micro_batches=recipe.micro_batches,
        # With a fused step, the scaler of 16-mixed unscales too late for clipping. Sharded parameters have no fused step on a CPU.
        fused=recipe.precision != "16-mixed" and (world.size == 1 or recipe.strategy != "fsdp"), compile=recipe.compile,
    )  # fmt: skip


def _announce(recipe: TrainerConfig, done: int, n_steps: int, rate: LearningRate, world: World) -> None:
    if world.rank > 0:
        return
    if recipe.warmup_steps >= rate.n_steps:
        say(f"warning: trainer.warmup_steps={recipe.warmup_steps} of {rate.n_steps:,} steps: the learning rate never reaches its peak")
    if recipe.precision == "bf16-mixed" and not torch.cuda.is_available() and not cpu_has_bf16():
        say("warning: this CPU has no bfloat16 instructions and emulates them: trainer.precision=32-true is faster here")
    if done:
        say(f"training continues at step {done:,} of {n_steps:,}")


def _prepare(student: Student, packing: bool, gradient_checkpointing: bool) -> None:
    if packing:
        allow_packing(student.model)
    if gradient_checkpointing:
        checkpoint_activations(student.model, True)


def plan(student: Student, rows: Rows, recipe: TrainerConfig, seed: int) -> tuple[Layout, StepSampler, int]:
    """Plan a training.

    Returns:
        How samples become tensors, which samples each step has, and the number of optimizer steps.
    """
    layout = replace(
        layout_of(student), prompt_weight=recipe.prompt_loss_weight, demonstration_weight=recipe.demonstration_loss_weight,
        count_weighted=recipe.loss_mean == "weighted", packing=recipe.packing,
    )  # fmt: skip
    sampler = StepSampler(layout.lengths(rows.lengths), seed, None if recipe.batch_tokens else recipe.batch_size, recipe.batch_tokens)
    return layout, sampler, sampler.count(recipe.epochs, recipe.max_steps)


def _resume(
    student: Student, checkpoints: Checkpoints | None, precision: str, own: OwnSamples | None
) -> tuple[TrainingReport, dict[str, Any] | None]:
    """Load the newest checkpoint into the student, and the samples that it wrote last.

    Returns:
        The counts of the training so far, and the state of its optimizer and gradient scaler; None without a checkpoint.

    Raises:
        FcotError: The checkpoint comes from a training in another precision, or does not fit the student.
    """
    checkpoint = checkpoints.load() if checkpoints else None
    if checkpoints is None or checkpoint is None:
        return TrainingReport(), None
    first_precision = checkpoint.get("trained_in", precision)  # earlier versions did not write it
    if first_precision != precision:
        raise FcotError(
            f"this training began in {first_precision}, and here trainer.precision is {precision} (auto is bf16-mixed on GPUs that have "
            f"it, else 32-true): continue on a machine like the first one, or remove {checkpoints.folder} to start from the beginning"
        )
    trainable = {name: parameter for name, parameter in student.model.named_parameters() if parameter.requires_grad}
    check_same("the checkpoint to continue from", trainable, checkpoint["weights"])
    student.model.load_state_dict(checkpoint["weights"], strict=False)
    if own is not None:
        own.restore(checkpoint["own"])
    return TrainingReport(**checkpoint["report"]), {"optimizer": checkpoint["optimizer"], "precision": checkpoint["precision"]}


def _due(sampler: StepSampler, n_steps: int, every_steps: int | None, every_epochs: int | None) -> set[int]:
    """The steps after which the student is evaluated."""
    if every_steps is not None:
        return {*range(every_steps, n_steps + 1, every_steps), n_steps}
    if every_epochs is None:
        return {n_steps}
    return {*sampler.epoch_ends(n_steps)[every_epochs - 1 :: every_epochs], n_steps}


class _StepCallback(pl.Callback):
    """The work between two optimizer steps: counts, logs, checkpoints, evaluations, the early stop."""

    def __init__(
        self, student: Student, report: TrainingReport, steps: _Steps, hooks: Hooks, recipe: TrainerConfig,
        checkpoints: Checkpoints | None, checkpoint: dict[str, Any] | None, moments: Moments | None, loggers: Sequence[Logger],
        size: int, own: OwnSamples | None,
    ) -> None:  # fmt: skip
        self._student = student
        self._report = report
        self._steps = steps
        self._hooks = hooks
        self._checkpoints = checkpoints
        # Either is None, or both: a checkpoint of this training has its own moments. None again once the optimizer has the state.
        self._checkpoint_state = checkpoint  # of the optimizer and the gradient scaler
        self._earlier_moments = moments if checkpoint is None else None  # those of the training that this one continues
        self._optimizer: torch.optim.Optimizer | None = None  # None before the first step of this process
        self._micro_batches = recipe.micro_batches
        self._precision = recipe.precision
        self._loggers = loggers
        self._size = size
        self._own = own
        self._remedies = remedies(recipe.clip_norm, recipe.precision)
        self._divergence: DivergenceCheck | None = None  # None before the first step of this process
        self._handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, WARNING)}
        self._interrupted = False  # whether Ctrl-C was pressed during the current step
        for entry in report.history:  # the last lines of a logger may have been lost with the process that wrote them
            self._log_evaluation(entry)
        self._step_sums: dict[str, torch.Tensor] = {}  # the step's loss and what is logged beside it, summed over its micro-batches
        self._since = 0.0  # when training began or continued after an evaluation
        self._logged = (0.0, 0)  # train_seconds and n_tokens at the last log entry

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            # Lightning's handlers communicate with the other ranks, even in the middle of a step: restore the former handlers.
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
        self._defer_ctrl_c(True)
        assert isinstance(pl_module, StudentModule)
        self._divergence = DivergenceCheck(self._student.model, self._size, pl_module.learning_rate.at, self._remedies)
        self._optimizer = trainer.optimizers[0]
        if self._checkpoint_state is not None:
            restore_optimizer(self._student.model, self._optimizer, self._checkpoint_state["optimizer"])
            trainer.precision_plugin.load_state_dict(self._checkpoint_state["precision"])
        elif self._earlier_moments is not None:
            set_moments(self._student.model, self._optimizer, self._earlier_moments)
        self._checkpoint_state = self._earlier_moments = None  # frees their memory
        self._since = time.monotonic()
        self._logged = (self._report.train_seconds, self._report.n_tokens)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        report = self._report
        report.n_samples += batch["n_samples"]
        report.n_tokens += batch["n_tokens"]
        report.n_padded += batch["n_padded"] * trainer.world_size  # an estimate: the ranks' shares are similar
        for name, value in {"train_loss": outputs["loss"].detach(), **outputs["logged"]}.items():
            self._step_sums[name] = self._step_sums.get(name, 0.0) + value
        if (batch_idx + 1) % self._micro_batches:
            return
        report.n_steps += 1
        self._check_loss(trainer)
        self._hooks.advance(1)
        now = time.monotonic()
        report.train_seconds += now - self._since
        self._log(trainer)
        stopping, sharded = warned_together(trainer.world_size) or self._interrupted, is_sharded(self._student.model)
        self._checkpoint(trainer, stopping or (sharded and report.n_steps in self._steps.due))
        if stopping:
            raise KeyboardInterrupt
        self._defer_ctrl_c(False)
        try:
            with gathered(self._student.model):
                evaluated = self.evaluate_if_due()
        except KeyboardInterrupt:  # keep the step, although its evaluation is lost; sharded parameters were written before
            if not sharded:
                self._checkpoint(trainer, True)
            raise
        if evaluated:
            self._checkpoint(trainer, False)
            trainer.should_stop = self._hooks.stop(report.history)
            if trainer.should_stop and report.n_steps < self._steps.n and trainer.is_global_zero:
                say(f"training stops early, at step {report.n_steps:,} of {self._steps.n:,}")
        self._defer_ctrl_c(True)
        self._since = time.monotonic()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._defer_ctrl_c(False)

    def _defer_ctrl_c(self, on: bool) -> None:
        """Make the first Ctrl-C wait for the end of the step, where a checkpoint can be written; a second one stops at once.

        Otherwise a large student would lose minutes of work, because its checkpoints take long and are therefore rare. With several
        ranks Ctrl-C is not deferred.

        Args:
            on: Whether to defer Ctrl-C from now on; False restores Python's own handler.
        """
        if self._size > 1 or threading.current_thread() is not threading.main_thread():
            return
        deferring = self._interrupt
        if on and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, deferring)
        elif not on and signal.getsignal(signal.SIGINT) == deferring:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _interrupt(self, *_: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._interrupted = True
        say("\nstopping after this step, with a checkpoint (press Ctrl-C again to stop at once)")

    def evaluate_if_due(self) -> bool:
        """Evaluate if the current step is due for an evaluation and has none yet; returns whether it was evaluated."""
        step, history = self._report.n_steps, self._report.history
        if step not in self._steps.due or (history and history[-1]["step"] == step):
            return False
        if self._divergence is not None:
            self._divergence.check(step, weights=True)
        former_precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")  # trainer.tf32 is for training only
        try:
            scores = self._hooks.evaluate(history)
            self._keep_moments(scores)
        finally:
            torch.set_float32_matmul_precision(former_precision)
        history.append({"step": step, "epoch": round(self._steps.sampler.epochs_done(step), 3), **scores})
        self._log_evaluation(history[-1])
        return True

    def _keep_moments(self, scores: dict[str, Any]) -> None:
        """Call ``keep_moments``, before the evaluation counts as done: after an interruption both are repeated."""
        if self._hooks.keep_moments is None:
            return
        if self._optimizer is not None:
            moments = optimizer_state(self._student.model, self._optimizer)["state"]
        else:  # the evaluation that an interruption prevented
            assert self._checkpoint_state is not None
            moments = self._checkpoint_state["optimizer"]["state"]
        self._hooks.keep_moments(self._report.history, scores, moments)

    def _log_evaluation(self, entry: dict[str, Any]) -> None:
        """Log an evaluation to all loggers except the CSV log, which has the training's metrics only."""
        values = {name: float(value) for name, value in entry.items() if name != "step" and isinstance(value, int | float)}
        for logger in self._loggers:
            logger.log_metrics(values, entry["step"])

    def _check_loss(self, trainer: pl.Trainer) -> None:
        """Record the step's loss. At steps where reading it costs nothing, end a training whose losses are not finite."""
        report = self._report
        assert self._divergence is not None
        loss = self._step_sums["train_loss"]
        self._divergence.note(loss, report.n_steps)
        on_host = self._size == 1 and loss.device.type == "cpu"
        if on_host or self._log_due or report.n_steps == 1:
            self._divergence.check(report.n_steps, weights=False)
        if report.n_steps == 1:
            report.first_loss = float(trainer.strategy.reduce(loss.clone(), reduce_op="mean"))

    @property
    def _log_due(self) -> bool:
        return self._report.n_steps % _LOG_EVERY == 0 or self._report.n_steps == self._steps.n

    def _log(self, trainer: pl.Trainer) -> None:
        report = self._report
        if self._log_due:
            means = trainer.strategy.reduce(torch.stack(list(self._step_sums.values())), reduce_op="mean").tolist()
            values = dict(zip(self._step_sums, means, strict=True))
            if self._divergence is not None and trainer.is_global_zero:
                self._divergence.warn_if_far_above(values["train_loss"], report.first_loss, report.n_steps)
            seconds, tokens = report.train_seconds - self._logged[0], report.n_tokens - self._logged[1]
            values |= {
                "lr": trainer.optimizers[0].param_groups[0]["lr"], "tokens_per_second": tokens / max(seconds, 1e-9),
                "padding_efficiency": report.n_tokens / report.n_padded,
            }  # fmt: skip
            for logger in trainer.loggers:
                logger.log_metrics(values, report.n_steps)
            self._logged = (report.train_seconds, report.n_tokens)
        self._step_sums.clear()

    def _checkpoint(self, trainer: pl.Trainer, now: bool) -> None:
        """Write a checkpoint if ``now`` is true or if it is time for the next one."""
        if self._checkpoints is None:
            return
        sharded = is_sharded(self._student.model)
        due = self._checkpoints.due or now
        if not (trainer.strategy.broadcast(due) if sharded else due and trainer.is_global_zero):
            return
        if self._divergence is not None and sharded:
            self._divergence.check(self._report.n_steps, weights=True)
        elif self._divergence is not None and not self._divergence.all_finite:  # the next check ends all ranks together
            return
        state = {
            "step": self._report.n_steps, "weights": trained_weights(self._student.model),
            "optimizer": optimizer_state(self._student.model, trainer.optimizers[0]), "precision": trainer.precision_plugin.state_dict(),
            "report": vars(self._report), "trained_in": self._precision, **({"own": self._own.state()} if self._own else {}),
        }  # fmt: skip
        if trainer.is_global_zero:
            self._checkpoints.save(state)
