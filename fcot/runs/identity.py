"""What names a run: everything that changes a prediction, contents instead of paths, nothing about devices, logging or money.

One function for each component of the configuration. It takes the fields that count (:func:`fcot.base.fields.counted`: those are all, unless
a field says otherwise where it stands), leaves out those that this run does not read, and adds what resolved fields are resolved to.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcot.base.fields import counted
from fcot.base.files import fingerprint, folder_fingerprint
from fcot.base.records import Completion, to_row
from fcot.config.resolvers import paper_demonstrations
from fcot.curation.filters import FILTERS, settings_of
from fcot.methods.tailored.config import TailoredConfig
from fcot.prompts.student import METHODS
from fcot.stages.table import stages_of
from fcot.student.config import ApiStudentConfig, PretrainedStudentConfig

if TYPE_CHECKING:
    from fcot.runs.run import Run

_COMPONENTS = ("dataset", "split_mode", "teacher", "prompt", "curation", "method", "student", "trainer")


def identity(run: Run) -> dict[str, Any]:
    """Everything that changes a prediction, as JSON values."""
    config = run.config
    parts = {
        "versions": {stage.key or stage.name: stage.version for stage in stages_of(run)},
        "root": counted(config, without=(*_COMPONENTS, "diversity", "seed")),
        "seed": config.seed if uses_seed(run) else None,
        "diversity": config.diversity if run.asks_teacher else None,
        "data": _data(run),
        "method": _method(run),
        "teacher": _teacher(run),
        "prompt": _prompt(run),
        "curation": _curation(run) if run.asks_teacher else {},
        "student": _student(run),
        "trainer": _trainer(run),
    }
    return {name: part for name, part in parts.items() if part not in ({}, None)}  # so that a new component renames no run


def uses_seed(run: Run) -> bool:
    """Whether the result depends on ``seed``: training does, so do sampled answers and a student from scratch.

    The teacher's completions, their curation and the split do not: completions are drawn by slot, the rest by fixed seeds.
    """
    student = run.config.student
    if run.trains:
        return True
    return not student.remote and (student.from_scratch or student.self_consistency > 1)


def _data(run: Run) -> dict[str, Any]:
    """Problems and split: train too where nothing is trained, because its overlap with the test problems is reported."""
    config = run.config
    return {
        **counted(config.dataset),
        **counted(config.split_mode),
        "rule": asdict(run.task.rule),
        "problems": fingerprint([[problem.sample_index, problem.question, problem.answer] for problem in run.problems.values()]),
        "split": asdict(run.split),
    }


def _method(run: Run) -> dict[str, Any]:
    method, student = run.config.method, run.config.student
    if isinstance(method, TailoredConfig):
        return _tailored(run, method)
    if METHODS[method.name].prompted and not student.remote:
        return counted(method) | {"prompt_tokens": method.prompt_tokens or student.max_prompt_tokens}
    return counted(method)


def _tailored(run: Run, method: TailoredConfig) -> dict[str, Any]:
    reflects, several = method.reflection.weight > 0, method.rounds > 1
    first_exam = reflects and isinstance(run.config.student, PretrainedStudentConfig)
    unread = set() if several else {"patience", "min_mistakes", "start", "accumulate", "feedback"}
    if not (several or first_exam):
        unread |= {"exam"}
    part = counted(method, without=unread) | {"demonstrations": method.demonstrations}
    if first_exam:
        part["first_demonstrations"] = method.demonstrations or paper_demonstrations(run.task.name)
    if not reflects:
        part["reflection"] = counted(method.reflection, without=("margin", "representation", "max_tokens"))
    if several:
        part["feedback"] = _feedback(run, method)
    return part


def _feedback(run: Run, method: TailoredConfig) -> dict[str, Any]:
    feedback = method.feedback
    if feedback.source == "self":
        return counted(feedback, without=("mistakes", "requests", "max_requests", "hint", "max_tokens"))
    if feedback.source == "plain":
        return counted(feedback, without=("hint", "max_tokens"))
    return counted(feedback) | {"template": run.feedback_template}


def _teacher(run: Run) -> dict[str, Any]:
    if run.replayed is not None:
        return counted(run.config.teacher) | {"completions": fingerprint([_row(completion) for completion in run.replayed])}
    if run.teacher is None:
        return {}
    unread = () if run.asks_teacher else ("resample_identical",)
    return counted(run.config.teacher, without=unread) | {"key": dict(run.teacher.identity), "chat": run.teacher.chat}


def _row(completion: Completion) -> dict[str, Any]:
    """A completion as JSON values; without a thought as before there were any."""
    row = to_row(completion)
    return row if completion.thought else {name: value for name, value in row.items() if name != "thought"}


def _prompt(run: Run) -> dict[str, Any]:
    """The prompt as it is worded for this task."""
    config, prompt = run.config, run.prompt
    if not (run.asks_teacher or METHODS[config.method.name].prompted):
        return {"rationale_tokens": prompt.rationale_tokens} if run.is_teacher else {}
    worded = asdict(prompt) | {
        "answer_triggers": prompt.trigger(run.task.rule),
        "exemplars": [[exemplar.question, exemplar.text] for exemplar in prompt.exemplars],
    }
    unread = {"name"} if prompt.two_steps else {"name", "answer_tokens"}
    return counted(config.prompt) | {key: value for key, value in worded.items() if key not in unread}


def _curation(run: Run) -> dict[str, Any]:
    """Each filter with the settings it reads, in the order that gives the reasons; and what is settled beside the filters."""
    curation = run.config.curation
    golden = sorted([index, None if slots is None else sorted(slots)] for index, slots in run.rules.golden.items())
    settings = {name: settings_of(name) for name in (*FILTERS, *curation.filters)}
    of_filters = {setting for names in settings.values() for setting in names} - {"labels", "max_samples", "match_golden"}
    part = counted(curation, without={"filters", *of_filters})
    part["filters"] = [
        [name, counted(curation, only=settings[name]) | ({"golden": golden} if "golden" in settings[name] else {})]
        for name in curation.filters
    ]  # fmt: skip
    return part | ({"golden": golden} if curation.match_golden else {})


def _student(run: Run) -> dict[str, Any]:
    config = run.config
    student, prompted = config.student, METHODS[config.method.name].prompted
    # An untrained student's max_new_tokens counts even where its answers do not depend on it: the metrics compare it with the paper's.
    unread = set() if getattr(student, "self_consistency", 1) > 1 else {"temperature", "top_k"}
    if student.remote:
        if isinstance(student, ApiStudentConfig):
            unread |= set() if run.trains else {"epochs"}
        return counted(student, without=unread)
    part: dict[str, Any] = {"decoding": counted(config.trainer, only=("eval_precision",))}
    if isinstance(student, PretrainedStudentConfig):
        unread |= set() if run.trains else {"lora", "max_completion_tokens"}
        unread |= {"lora"} if student.lora.rank is None else set()
        unread |= {"max_prompt_tokens"} if prompted else set()
        if student.path is not None:
            unread |= {"hub_id", "revision"}
            part["content"] = folder_fingerprint(Path(student.path), run.outputs)
    return part | counted(student, without=unread)


def _trainer(run: Run) -> dict[str, Any]:
    """Precision as asked: what "auto" comes to on this machine is in the metrics, so that a plan made elsewhere holds."""
    if not run.trains or run.config.student.remote:
        return {}
    return counted(run.config.trainer, without=("eval_precision",))
