"""Logs a run to W&B, or its training to another Lightning logger."""

from __future__ import annotations

import contextlib
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import yaml

from fcot.base.files import read_json, read_jsonl, write_json
from fcot.base.run_folder import RunDirectory
from fcot.llm.store.folder import readable
from fcot.reporting.config import WandbLoggerConfig
from fcot.runs.run import Run

if TYPE_CHECKING:
    from pytorch_lightning.loggers import Logger

    from fcot.reporting.wandb_run import Label, WandbRun

Summary = dict[str, Any]
_PREDICTIONS, _KEPT, _REJECTED = 300, 150, 50  # most rows in the sample tables; rejected ones per reason
_PREDICTION = ("sample_index", "question", "answer", "completion", "prediction", "correct", "complete")
_RATIONALE = ("sample_index", "completion_index", "answer", "rationale", "prediction", "correct", "kept", "reason")
_NOT_SUMMARIZED = ("history", "rounds", "versions")  # keys of metrics.json that are not part of the W&B summary


@dataclass(frozen=True)
class Tracker:
    """Logs a run to the logger of its configuration. Only the first rank has one.

    Attributes:
        run: The run.
        wandb_run: The run's counterpart at W&B; None if the run is not logged there.
    """

    run: Run
    wandb_run: WandbRun | None = None

    def loggers(self, directory: RunDirectory) -> list[Logger]:
        """The loggers of a training, besides its CSV log.

        Args:
            directory: Directory of the training's files: the run's, or a round's.
        """
        from fcot.student.loggers import FunctionLogger, lightning_logger

        logger, wandb_run = self.run.config.logger, self.wandb_run
        if logger.by_lightning:
            return [lightning_logger(logger.target, logger.options, directory.logs)]
        if wandb_run is None:
            return []
        prefix = "train" if directory == self.run.directory else f"{directory.path.name}/train"

        def log(values: Mapping[str, float], step: int) -> None:
            names = {name: "loss" if name == "train_loss" else name for name in values}
            wandb_run.log({f"{prefix}/{names[name]}": value for name, value in values.items()}, (f"{prefix}/step", step))

        return [FunctionLogger(log)]

    def log_stage(self, name: str, summary: Summary) -> Summary:
        """Log the numbers of a finished stage's summary; returns the summary.

        Args:
            name: Name of the step, such as ``curate`` or ``round_2/curate``.
            summary: The stage's summary.
        """
        if self.wandb_run is not None:
            self.wandb_run.log(dict(_numbers(name, summary)))
        return summary

    def log_results(self, metrics: Summary | None) -> None:
        """Log a finished run: its metrics, tables of samples, and files as artifacts.

        Args:
            metrics: Content of ``metrics.json``; None for a run that ends before its evaluation.
        """
        run, wandb_run = self.run, self.wandb_run
        if wandb_run is None:
            return
        for round_metrics in (metrics or {}).get("rounds", ()):
            wandb_run.log(dict(_numbers("rounds", round_metrics)), ("rounds/round", round_metrics["round"]))
        if metrics is not None:
            wandb_run.summarize({name: value for name, value in metrics.items() if name not in _NOT_SUMMARIZED})
        directory, facts = run.directory, {"run_id": run.run_id, "task": run.task.name}
        if directory.predictions.exists():
            _log_predictions(run, wandb_run)
        if directory.curated.exists():
            _log_rationales(run, wandb_run)
            tailored = [run.config.method.name] if run.config.method.name == "tailored" else []
            parts = ["curated", run.task.name, str(run.teacher_name), run.prompt.name, run.config.curation.name, *tailored]
            name = "-".join([*(readable(part) for part in parts), f"D{run.config.diversity}"]).replace("=", "_")
            wandb_run.artifact(name, "dataset", directory.curated, used=True, metadata=facts)
        if run.config.logger.log_student and directory.student.exists():
            results = {name: (metrics or {}).get(name) for name in ("method", "student", "teacher", "diversity", "accuracy", "seed")}
            wandb_run.artifact(f"student-{run.run_id}".replace("=", "_"), "model", directory.student, used=False, metadata=facts | results)


@contextlib.contextmanager
def tracked(run: Run, config_text: str, sweep: str | None) -> Iterator[Tracker]:
    """Open a tracker of the run.

    The end of the context also ends the run at W&B. A Lightning logger is created once in advance, so that a wrong option fails before
    the run starts. A purchase alone (``until=generate``) is not logged: in a sweep, one purchase serves many runs.

    Args:
        run: The run.
        config_text: The run's configuration as YAML.
        sweep: Name of the sweep that the run is a job of; None: no sweep.

    Raises:
        FcotError: A Lightning logger cannot be created.
    """
    logger = run.config.logger
    if logger.by_lightning:
        Tracker(run).loggers(run.directory)
    if not logger.at_wandb or run.config.until == "generate":
        yield Tracker(run)
        return
    from fcot.reporting.wandb_run import WandbRun
    from fcot.reporting.wandb_server import wandb_folder

    with wandb_folder(run.outputs / "cache" / "wandb"):
        label = _label(run, logger, config_text, sweep)
        wandb_run = WandbRun(label, run.directory.logs, logger.mode, logger.wait_s)
        error: BaseException | None = None
        try:
            _write_label(run, label, wandb_run)
            yield Tracker(run, wandb_run)
        except BaseException as raised:
            error = raised
            raise
        finally:
            wandb_run.finish(error)


def _label(run: Run, logger: WandbLoggerConfig, config_text: str, sweep: str | None) -> Label:
    """The run's id, name, group and tags at W&B. A continued run keeps its W&B id and its group."""
    from fcot.reporting.wandb_run import Label

    saved = read_json(run.directory.wandb) if run.directory.wandb.exists() else {}
    # The run's hash alone would not do: the same run in another output folder is another W&B run, and W&B rejects ids of deleted runs.
    wandb_id = saved.get("id") or run.run_id[-10:] + secrets.token_hex(4)
    tags = [run.config.method.name, run.task.name, run.config.student.name, *([run.teacher_name] if run.teacher_name else [])]
    if title := getattr(run.config.method, "title", None):  # of a preset
        tags.append(title)
    if run.uses_rationales:
        tags.append(f"D{run.config.diversity}")
    config = yaml.safe_load(config_text) or {}
    group = saved.get("group") or sweep
    about = {"run_id": run.run_id, "setting": run.setting, "sweep": group}
    return Label(
        wandb_id, run.run_id, logger.project, logger.entity, group, [tag[:64] for tag in (*tags, *logger.tags)],
        config | about,
    )  # fmt: skip


def _write_label(run: Run, label: Label, wandb_run: WandbRun) -> None:
    """Write the id and address of the W&B run to a file, for later processes and for the report."""
    address = {"entity": wandb_run.entity, "group": label.group, "url": wandb_run.url}
    write_json(run.directory.wandb, {"id": label.id, "project": label.project, **address})


def _log_rationales(run: Run, wandb_run: WandbRun) -> None:
    """Log a table of kept rationales, and of some rejected ones for each reason."""
    rows, counts = [], Counter[str]()
    for row in read_jsonl(run.directory.curated):
        verdict = "kept" if row["kept"] else str(row["reason"])
        counts[verdict] += 1
        if counts[verdict] <= (_KEPT if row["kept"] else _REJECTED):
            question = run.problems[row["sample_index"]].question
            rows.append([row.get("round", 1), question, *(row[name] for name in _RATIONALE)])
    wandb_run.table("samples/rationales", ("round", "question", *_RATIONALE), rows)


def _log_predictions(run: Run, wandb_run: WandbRun) -> None:
    """Log a table of test answers, with marks on the wrong ones."""
    directory = run.directory
    marks = {row["sample_index"]: ", ".join(row["marks"]) for row in read_jsonl(directory.errors)} if directory.errors.exists() else {}
    rows = [
        [*(row[name] for name in _PREDICTION), marks.get(row["sample_index"], "")]
        for row in islice(read_jsonl(directory.predictions), _PREDICTIONS)
    ]
    wandb_run.table("samples/test", (*_PREDICTION, "marks"), rows)


def _numbers(name: str, values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a nested summary, named by their path, such as ``curate/kept``."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(f"{name}/{key}", value)
        elif isinstance(value, int | float):
            yield f"{name}/{key}", value
