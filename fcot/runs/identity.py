"""The identity of a run: everything that changes a prediction. Files count by content; devices, logging and money do not count.

Each component of the configuration has a function that returns its part of the identity: in this module, or for methods and objectives in
their schemas. The function takes the fields that count (:func:`fcot.base.fields.counted`), leaves out those that this run does not read,
and adds the values of resolved fields.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcot.base.fields import counted
from fcot.base.files import file_fingerprint, fingerprint, folder_fingerprint
from fcot.base.plugins import source_fingerprint
from fcot.base.records import Completion, to_row
from fcot.curation.filters import CONCISE, FILTERS, filter_named, settings_of
from fcot.stages.table import FINE_TUNE, TRAIN_ON_POLICY

if TYPE_CHECKING:
    from fcot.runs.run import Run

_COMPONENTS = ("dataset", "split_mode", "teacher", "prompt", "curation", "method", "student", "trainer", "objective")


def identity(run: Run) -> dict[str, Any]:
    """Everything that changes a prediction, as JSON values."""
    config = run.config
    parts = {
        "versions": {stage.key or stage.name: stage.version for stage in run.stages},
        "root": counted(config, without=(*_COMPONENTS, "diversity", "seed")),
        "seed": config.seed if uses_seed(run) else None,
        "diversity": config.diversity if run.uses_rationales else None,
        "data": _data(run),
        "method": config.method.identity(run),
        "teacher": _teacher(run),
        "prompt": _prompt(run),
        "curation": _curation(run) if run.uses_rationales else {},
        "student": _student(run),
        "trainer": _trainer(run),
        "objective": config.objective.identity(run) if run.trains and not config.student.remote else {},
    }
    return {name: part for name, part in parts.items() if part not in ({}, None)}  # so that a component added later renames no run


def uses_seed(run: Run) -> bool:
    """Whether the result depends on ``seed``. Training, sampled answers and students from scratch depend on it.

    The teacher's completions, curation and the split do not: completions have slots in the store, and the rest uses fixed seeds.
    """
    student = run.config.student
    if run.trains:
        return True
    return not student.remote and (student.from_scratch or student.self_consistency > 1)


def _data(run: Run) -> dict[str, Any]:
    """Problems and split. Train problems count even if nothing is trained, because their overlap with the test problems is reported."""
    config = run.config
    return {
        **counted(config.dataset),
        **counted(config.split_mode),
        "rule": asdict(run.task.rule),
        "problems": fingerprint([[problem.sample_index, problem.question, problem.answer] for problem in run.problems.values()]),
        "split": asdict(run.split),
    }


def _teacher(run: Run) -> dict[str, Any]:
    if run.replayed is not None:
        return counted(run.config.teacher) | {"completions": fingerprint([_row(completion) for completion in run.replayed])}
    if run.teacher is None:
        return {}
    unread = () if run.uses_rationales else ("resample_identical",)
    return counted(run.config.teacher, without=unread) | {"key": dict(run.teacher.identity), "chat": run.teacher.chat}


def _row(completion: Completion) -> dict[str, Any]:
    """A completion as JSON values. An empty thought is left out, so that runs from before thoughts existed keep their names."""
    row = to_row(completion)
    return row if completion.thought else {name: value for name, value in row.items() if name != "thought"}


def _prompt(run: Run) -> dict[str, Any]:
    """The prompt with this task's answer trigger and exemplars."""
    config, prompt = run.config, run.prompt
    if not (run.uses_rationales or run.method.prompted):
        return {"rationale_tokens": prompt.rationale_tokens} | counted(config.prompt, only=("system",)) if run.is_teacher else {}
    texts = asdict(prompt) | {
        "answer_triggers": prompt.trigger(run.task.rule),
        "exemplars": [[exemplar.question, exemplar.text] for exemplar in prompt.exemplars],
    }
    unread = {"name", "system"} if prompt.two_steps else {"name", "system", "answer_tokens"}  # system counts as an option
    return counted(config.prompt) | {key: value for key, value in texts.items() if key not in unread}


def _curation(run: Run) -> dict[str, Any]:
    """The filters in order, each with the settings that it reads, and the options that belong to no filter."""
    curation = run.config.curation
    golden = sorted([index, None if slots is None else sorted(slots)] for index, slots in run.rules.golden.items())
    settings = {name for filter_name in (*FILTERS, *curation.filters) for name in settings_of(filter_name)}
    of_filters = settings - {"labels", "max_samples", "match_golden", "max_per_problem", "choose_by", "judge", "judge_tokens"}
    chooses, judges = curation.max_per_problem is not None, curation.judge != "none"
    unread = [*(() if chooses else ("choose_by",)), *(() if judges else ("judge_tokens",))]
    part = counted(curation, without={"filters", "settings", *of_filters, *unread})
    part["filters"] = [[name, _filter(run, name, golden)] for name in curation.filters]
    if judges:
        part["judge_request"] = run.judge_request
    if curation.match_golden:
        part["golden"] = golden
    return part


def _filter(run: Run, name: str, golden: list[Any]) -> dict[str, Any]:
    """A filter's settings. A user's own filter also counts with the content of its file."""
    curation, settings = run.config.curation, settings_of(name)
    part = counted(curation, only=tuple(settings)) | ({"golden": golden} if "golden" in settings else {})
    options = {option.name for option in fields(curation)}
    part |= {setting: value for setting, value in curation.filter_settings(name).items() if setting not in options}
    return part if name in FILTERS or name == CONCISE else part | {"source": source_fingerprint(filter_named(name))}


def _student(run: Run) -> dict[str, Any]:
    config = run.config
    student, prompted = config.student, run.method.prompted
    # An untrained student's max_new_tokens counts even if no answer reaches it, because as_published in the metrics depends on it.
    unread = set() if getattr(student, "self_consistency", 1) > 1 else {"temperature", "top_k"}
    if student.remote:
        if student.api_backed and not run.trains:
            unread |= {"epochs"}
        interface = {} if run.origin is None else {"interface": asdict(run.origin)}
        return counted(student, without=unread) | interface
    part: dict[str, Any] = {"decoding": counted(config.trainer, only=("eval_precision",))}
    if student.pretrained:
        unread |= set() if run.trains else {"lora", "max_completion_tokens"}
        unread |= {"lora"} if student.lora.rank is None else set()
        unread |= {"max_prompt_tokens"} if prompted else set()
        if student.path is not None:
            unread |= {"hub_id", "revision"}
            part["content"] = folder_fingerprint(Path(student.path), run.outputs)
    elif student.tokenizer is not None:
        unread |= {"vocab_size"}
        part["tokenizer"] = file_fingerprint(Path(student.tokenizer) / "tokenizer.json")
    return part | counted(student, without=unread)


def _trainer(run: Run) -> dict[str, Any]:
    """The trainer's options. Precision ``auto`` counts as ``auto``, so that a sweep planned on another machine finds its runs."""
    if not run.trains or run.config.student.remote:
        return {}
    unread = ("epochs", "max_steps") if TRAIN_ON_POLICY in run.stages and FINE_TUNE not in run.stages else ()
    return counted(run.config.trainer, without=("eval_precision", *unread))
