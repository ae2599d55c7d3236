"""What a run tells of itself beside its files: to W&B, or to a logger of Lightning."""

from __future__ import annotations

import contextlib
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping
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
_PREDICTIONS, _KEPT, _REFUSED = 300, 150, 50  # rows of the sample tables; refused ones for each reason
_PREDICTION = ("sample_index", "question", "answer", "completion", "prediction", "correct", "complete")
_RATIONALE = ("sample_index", "completion_index", "answer", "rationale", "prediction", "correct", "kept", "reason")
_LONG = ("history", "rounds", "versions")  # of metrics.json: told elsewhere
_told: WandbRun | None = None  # this process's; only the first rank has one


@contextlib.contextmanager
def tracked(run: Run, config_text: str, sweep: str | None) -> Iterator[None]:
    """Within, the run is told of at W&B where ``logger=wandb``; of other loggers it is made sure that they can be made.

    A purchase alone (``until=generate``) is not told of: in a sweep it is one for many runs.

    Args:
        run: Which.
        config_text: Its configuration as YAML.
        sweep: Name of the sweep it is a job of.

    Raises:
        FcotError: A logger of Lightning cannot be made.
    """
    global _told
    logger = run.config.logger
    if logger.by_lightning:
        loggers(run, run.directory)
    if not logger.at_wandb or run.config.until == "generate":
        yield
        return
    from fcot.reporting.wandb_run import WandbRun
    from fcot.reporting.wandb_server import wandb_folder

    with wandb_folder(run.outputs / "cache" / "wandb"):
        label = _label(run, logger, config_text, sweep)
        told = WandbRun(label, run.directory.logs, logger.mode, logger.wait_s)
        error: BaseException | None = None
        try:
            _remember(run, label, told)
            _told = told
            yield
        except BaseException as raised:
            error = raised
            raise
        finally:
            _told = None
            told.finish(error)


def _label(run: Run, logger: WandbLoggerConfig, config_text: str, sweep: str | None) -> Label:
    """How the run is found at W&B: continued, it is the same W&B run, in the group that it began in."""
    from fcot.reporting.wandb_run import Label

    before = read_json(run.directory.wandb) if run.directory.wandb.exists() else {}
    # Not of the run's hash alone: another output folder holds another run, and W&B takes no id again that was deleted there.
    same = before.get("id") or run.run_id[-10:] + secrets.token_hex(4)
    tags = [run.config.method.name, run.task.name, run.config.student.name, *([run.teacher_name] if run.teacher_name else [])]
    if run.uses_rationales:
        tags.append(f"D{run.config.diversity}")
    config = yaml.safe_load(config_text) or {}
    about = {"run_id": run.run_id, "setting": run.setting, "sweep": before.get("group") or sweep}
    return Label(
        same, run.run_id, logger.project, logger.entity, before.get("group") or sweep, [tag[:64] for tag in (*tags, *logger.tags)],
        config | about,
    )  # fmt: skip


def _remember(run: Run, label: Label, told: WandbRun) -> None:
    """Keep what finds it again: for a later process, and for the report."""
    write_json(
        run.directory.wandb, {"id": label.id, "project": label.project, "entity": told.entity, "group": label.group, "url": told.url}
    )


def loggers(run: Run, place: RunDirectory) -> list[Logger]:
    """What a training that leaves its files at ``place`` is told to, beside the CSV log; for the first rank."""
    from fcot.student.loggers import FunctionLogger, lightning_logger

    logger, told = run.config.logger, _told
    if logger.by_lightning:
        return [lightning_logger(logger.target, logger.options, place.logs)]
    if told is None:
        return []
    prefix = "train" if place == run.directory else f"{place.path.name}/train"
    names = {"train_loss": "loss"}
    return [
        FunctionLogger(
            lambda values, step: told.log({f"{prefix}/{names.get(n, n)}": v for n, v in values.items()}, (f"{prefix}/step", step))
        )
    ]


def log_stage(name: str, summary: Summary) -> Summary:
    """Tell of a finished stage such as ``curate`` or ``round_2/curate``, whose summary is returned."""
    if _told is not None:
        _told.log(dict(_numbers(name, summary)))
    return summary


def _numbers(name: str, values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(f"{name}/{key}", value)
        elif isinstance(value, int | float):
            yield f"{name}/{key}", value


def log_results(run: Run, metrics: Summary | None) -> None:
    """Tell of what a run has left.

    Args:
        run: Which.
        metrics: Of ``metrics.json``; None for a run that was to stop before its evaluation.
    """
    if _told is None:
        return
    for held in (metrics or {}).get("rounds", ()):
        _told.log(dict(_numbers("rounds", held)), ("rounds/round", held["round"]))
    if metrics is not None:
        _told.summarise({name: value for name, value in metrics.items() if name not in _LONG})
    place, facts = run.directory, {"run_id": run.run_id, "task": run.task.name}
    if place.predictions.exists():
        _tell_predictions(run, _told)
    if place.curated.exists():
        _tell_rationales(run, _told)
        tailored = [run.config.method.name] if run.config.method.name == "tailored" else []
        parts = ["curated", run.task.name, str(run.teacher_name), run.prompt.name, run.config.curation.name, *tailored]
        name = "-".join([*(readable(part) for part in parts), f"D{run.config.diversity}"]).replace("=", "_")
        _told.artifact(name, "dataset", place.curated, used=True, metadata=facts)
    if run.config.logger.log_student and place.student.exists():
        more = {name: (metrics or {}).get(name) for name in ("method", "student", "teacher", "diversity", "accuracy", "seed")}
        _told.artifact(f"student-{run.run_id}".replace("=", "_"), "model", place.student, used=False, metadata=facts | more)


def _tell_rationales(run: Run, told: WandbRun) -> None:
    """A table of rationales, kept and refused for each reason."""
    rows, seen = [], Counter[str]()
    for row in read_jsonl(run.directory.curated):
        kind = "kept" if row["kept"] else str(row["reason"])
        seen[kind] += 1
        if seen[kind] <= (_KEPT if row["kept"] else _REFUSED):
            question = run.problems[row["sample_index"]].question
            rows.append([row.get("round", 1), question, *(row[name] for name in _RATIONALE)])
    told.table("samples/rationales", ("round", "question", *_RATIONALE), rows)


def _tell_predictions(run: Run, told: WandbRun) -> None:
    """A table of test answers, with marks on the wrong ones."""
    place = run.directory
    marks = {row["sample_index"]: ", ".join(row["marks"]) for row in read_jsonl(place.errors)} if place.errors.exists() else {}
    rows = [
        [*(row[name] for name in _PREDICTION), marks.get(row["sample_index"], "")]
        for row in islice(read_jsonl(place.predictions), _PREDICTIONS)
    ]
    told.table("samples/test", (*_PREDICTION, "marks"), rows)
