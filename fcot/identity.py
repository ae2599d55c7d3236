"""What names a run: everything that changes a prediction, contents instead of paths, nothing about devices, logging or money."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcot.artifacts import fingerprint, folder_fingerprint
from fcot.config import ASKED, ApiStudent, Config, PretrainedStudent, TailoredMethod, TeacherItself
from fcot.curation.filters import Rules
from fcot.prompts.student import METHODS
from fcot.records import to_row

if TYPE_CHECKING:
    from fcot.runs import Run

# Bump a stage's version when its code changes what a run computes: runs of the old code are then other runs.
STAGE_VERSIONS = {"generate": 2, "curate": 2, "train": 2, "evaluate": 2}
ROUND_VERSIONS = {"exam": 1, "feedback": 1}  # of what rounds have beside these
# Of the trainer: where and how fast, not what. Decoding's precision counts for every method.
_CHANGES_NO_WEIGHTS = ("name", "eval_batch_tokens", "eval_precision", "devices", "nodes", "strategy", "checkpoint_every_s")


def identity(run: Run) -> dict[str, Any]:
    """Everything that changes a prediction: contents instead of paths, nothing about devices, logging or money."""
    config = run.config
    found: dict[str, Any] = {
        "versions": STAGE_VERSIONS,
        "method": config.method.name,
        "seed": config.seed,
        "rule": asdict(run.task.rule),
        "problems": [[problem.sample_index, problem.question, problem.answer] for problem in run.problems.values()],
        "split": asdict(run.split),
        "student": _student_identity(config),
    }
    if not isinstance(config.student, ASKED):
        found["eval_precision"] = config.trainer.eval_precision
    if run.trains and not isinstance(config.student, ASKED):
        # Precision as asked: what "auto" comes to on this machine is in the metrics, so that a plan made elsewhere holds.
        trainer = asdict(config.trainer)
        found["trainer"] = {key: value for key, value in trainer.items() if key not in _CHANGES_NO_WEIGHTS}
    prompted = METHODS[config.method.name].prompted
    if run.asks_teacher or run.is_teacher or prompted:
        found["prompt"] = asdict(replace(run.prompt, name=""))
    if prompted:
        found["prompt_tokens"] = config.method.prompt_tokens
    if isinstance(config.method, TailoredMethod):
        found["tailored"] = asdict(config.method)
        found["tailored"]["feedback"] |= {"path": None, "template": run.feedback_template}
        found["tailored"]["versions"] = ROUND_VERSIONS
    if run.replayed is not None:
        found["teacher"] = fingerprint([to_row(completion) for completion in run.replayed])
    elif run.teacher is not None:
        found["teacher"] = dict(run.teacher.identity)
    if run.asks_teacher:
        if getattr(config.teacher, "resample_identical", False):
            found["resample_identical"] = True
        if config.curation.labels != "gold":
            found["labels"] = config.curation.labels
        if config.curation.max_samples is not None:
            found["max_samples"] = config.curation.max_samples
        if config.curation.match_golden:
            found["match_golden"] = _filter_identity(run.rules, "golden")
        found |= {
            "diversity": config.diversity,
            "filters": [_filter_identity(run.rules, name) for name in run.rules.filters],
        }
    return found


def _filter_identity(rules: Rules, name: str) -> Any:
    settings = {"length": rules.max_words, "repetition": rules.max_repeats}
    if name == "golden":
        assert rules.golden is not None
        return [name, sorted((index, None if chosen is None else sorted(chosen)) for index, chosen in rules.golden.items())]
    return [name, settings[name]] if name in settings else name


def _student_identity(config: Config) -> dict[str, Any]:
    student = config.student
    if isinstance(student, TeacherItself):
        return asdict(student)
    if isinstance(student, ApiStudent):
        trained = {"epochs": student.epochs} if METHODS[config.method.name].trains else {}
        votes = {"self_consistency": student.self_consistency, "temperature": student.temperature} if student.self_consistency > 1 else {}
        return {"model": student.model, "max_new_tokens": student.max_new_tokens, **trained, **votes}
    identity = asdict(student)
    if not METHODS[config.method.name].trains or getattr(student, "lora", None) is None or student.lora.rank is None:
        identity.pop("lora", None)
    if student.self_consistency == 1:  # greedy: what sampling would read changes nothing
        identity |= {"temperature": None, "top_k": None}
    if isinstance(student, PretrainedStudent) and student.path is not None:
        identity = identity | {"path": None, "hub_id": None, "content": folder_fingerprint(Path(student.path))}
    return identity
