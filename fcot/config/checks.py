"""Everything that is wrong with a configuration, found before any data is read or money spent, in one message.

The bounds of single options stand at their fields (:mod:`fcot.base.fields`), what a group's options cannot be together in the group's schema
(``faults``). Here is what several groups cannot be together.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fcot.base.errors import ConfigFaults
from fcot.base.fields import Bounds, bound_faults
from fcot.base.resources import PRICES
from fcot.config.sampling import redraw_faults
from fcot.config.schema import Config
from fcot.llm.openai import key_fault
from fcot.methods.tailored.config import TailoredConfig
from fcot.prompts.student import METHODS
from fcot.student.config import ApiStudentConfig
from fcot.tasks.config import ToyDatasetConfig
from fcot.tasks.table import TASKS
from fcot.teacher.config import OpenAITeacherConfig, OracleTeacherConfig


def to_config(composed: DictConfig) -> Config:
    """The composed configuration as plain dataclasses, after every check.

    Raises:
        ConfigFaults: Everything that is wrong with it, in one message.
    """
    missing = [key for key in sorted(OmegaConf.missing_keys(composed)) if not key.startswith("hydra")]
    if faults := [f"{key} is not set: {key}=..." for key in missing]:
        raise ConfigFaults(faults + _faults_beside(composed, missing))
    config: Config = OmegaConf.to_object(composed)  # type: ignore[assignment]
    if faults := list(faults_of(config)):
        raise ConfigFaults(faults)
    return config


def unchecked(composed: DictConfig) -> Config:
    """The same without a check, and with something in the place of what is not set: for those who read a part of it only."""
    filled = composed.copy()
    for key in OmegaConf.missing_keys(composed):
        with contextlib.suppress(OmegaConfBaseException):  # a number
            OmegaConf.update(filled, key, "")
    config: Config = OmegaConf.to_object(filled)  # type: ignore[assignment]
    return config


def _faults_beside(composed: DictConfig, missing: list[str]) -> list[str]:
    """The other faults of a configuration with missing values: those are filled in, and what is said of them is dropped."""
    filled = composed.copy()
    try:
        for key in missing:
            OmegaConf.update(filled, key, "")
    except OmegaConfBaseException:  # a missing number: the rest has to wait for it
        return []
    config: Config = OmegaConf.to_object(filled)  # type: ignore[assignment]
    return [fault for fault in faults_of(config) if not any(fault.startswith(f"{key}=") for key in missing)]


def faults_of(config: Config) -> Iterator[str]:
    """Every fault that can be found without reading data: values, files, impossible combinations."""
    yield from bound_faults(config, "")
    for group, options in _groups_read(config):
        yield from bound_faults(options, group)
        yield from getattr(options, "faults", tuple)()
    yield from redraw_faults(config)
    yield from _method_faults(config)
    yield from _prompt_faults(config)
    yield from _curation_faults(config)
    yield from _split_faults(config)
    yield from _teacher_faults(config)
    yield from _student_faults(config)


def _groups_read(config: Config) -> Iterator[tuple[str, Any]]:
    """The groups of options that this run reads, by name: without a teacher none of the teacher's."""
    for group in ("logger", "method", "prompt", "curation", "dataset", "split_mode", "teacher", "student", "trainer"):
        if group != "teacher" or _asks_teacher(config):
            yield group, getattr(config, group)


def _asks_teacher(config: Config) -> bool:
    method = METHODS.get(config.method.name)
    return method is None or method.asks_teacher or config.student.is_teacher


def _method_faults(config: Config) -> Iterator[str]:
    """What the method cannot be combined with."""
    method = config.method
    if fault := Bounds(one_of=tuple(METHODS)).fault(method.name):
        yield f"method={method.name}: {fault}"
    if not isinstance(method, TailoredConfig):
        return
    if config.curation.labels == "vote_all" and method.rounds > 1:
        yield "curation.labels=vote_all: an exam needs gold answers, and a reply on a mistake has nobody to vote with; labels=vote or gold"
    if method.patience is not None and config.trainer.selection != "validation":
        yield "method.patience needs validation problems: trainer.selection=validation"
    if isinstance(config.student, ApiStudentConfig):
        yield f"method=tailored trains local students, round after round; student={config.student.name} is trained at an API"
    if not config.teacher.generates and method.feedback.source != "self" and method.rounds > 1:
        yield "teacher=replay answers no feedback: method.feedback.source=self, or a teacher that can be asked"
    if config.until == "train":
        yield "until=train: method=tailored evaluates the student of each round; until=curate or evaluate"


def _curation_faults(config: Config) -> Iterator[str]:
    labels = config.curation.labels
    if labels != "gold" and config.diversity < 3 and config.method.name in ("fine_tune_cot", "tailored"):
        yield f"curation.labels={labels} with diversity={config.diversity}: a majority needs three voters, diversity=3 or more"


def _prompt_faults(config: Config) -> Iterator[str]:
    """Where a prompt for chats cannot be used."""
    prompt, student = config.prompt, config.student
    prompted = config.method.name in METHODS and METHODS[config.method.name].prompted
    in_chat = getattr(student, "chat_template", not student.from_scratch)
    if prompted and prompt.chat_only and not in_chat:
        yield f"prompt={prompt.name} is for chats: with method={config.method.name} student={student.name} add prompt=zero_shot_cot"
    if prompt.chat_only and getattr(config.teacher, "endpoint", "chat") != "chat":
        yield f"prompt={prompt.name} is for chat endpoints; with teacher.endpoint=completions add prompt=zero_shot_cot"


def _split_faults(config: Config) -> Iterator[str]:
    if config.split_mode.name != "published":
        return
    task = TASKS.get(config.dataset.name)
    if task is None or not task.n_rows:
        yield f"split-mode=published: {config.dataset.name} has no published split; split-mode=sample or template"
    elif task.split != "published":
        yield f"split-mode=published: upstream publishes no split of {config.dataset.name}; paper A uses split-mode=sample"


def _teacher_faults(config: Config) -> Iterator[str]:
    """What the teacher cannot do for this run, and which key or price it lacks."""
    teacher, method = config.teacher, METHODS.get(config.method.name)
    toy, itself = isinstance(config.dataset, ToyDatasetConfig), config.student.is_teacher
    if not _asks_teacher(config):
        assert method is not None
        if config.until in ("generate", "curate"):
            yield f"until={config.until}: method={config.method.name} asks no teacher"
        if config.until == "train" and not method.trains:
            yield f"until=train: method={config.method.name} trains nothing"
        return
    if isinstance(teacher, OracleTeacherConfig) and not toy:
        yield f"teacher=oracle solves the toy tasks only, not dataset={config.dataset.name}: teacher=replay or teacher=openai"
    if not teacher.generates:
        if itself and config.method.name in ("zero_shot", "few_shot_cot"):
            yield "teacher=replay holds rationales of Zero-shot-CoT: method=zero_shot_cot"
        if toy:
            yield f"teacher=replay has nothing for dataset={config.dataset.name}: teacher=oracle"
    if isinstance(teacher, OpenAITeacherConfig):
        if not config.dry_run:
            yield from _key_faults("teacher", teacher)
        if teacher.budget_usd is not None and teacher.model and teacher.price() is None:
            yield f"teacher.budget_usd needs a price, and {teacher.prices or PRICES} has none for {_priced(teacher)}: teacher.prices=FILE"
    option, n = ("student.self_consistency", config.student.self_consistency) if itself else ("diversity", config.diversity)
    if getattr(teacher, "temperature", None) == 0 and n > 1 and not isinstance(teacher, OracleTeacherConfig):
        yield f"teacher.temperature=0 with {option}={n}: greedy decoding gives the same rationale every time"


def _key_faults(group: str, server: OpenAITeacherConfig | ApiStudentConfig) -> Iterator[str]:
    """What is wrong about the key for a server."""
    if (fault := key_fault(f"{group}.", server.base_url, server.api_key_env)) is not None:
        yield fault if fault.startswith(f"{group}.") else f"{group}={server.name} {fault}"


def _priced(teacher: OpenAITeacherConfig) -> str:
    """What needs a price."""
    tier = teacher.parameters.get("service_tier")
    return teacher.model + (f" with service_tier={tier} (tiers: {{{tier}: SHARE}})" if tier else "")


def _student_faults(config: Config) -> Iterator[str]:
    """What the student cannot do for this run, and which key it lacks."""
    student = config.student
    if student.is_teacher:
        if config.until != "evaluate":
            yield f"until={config.until}: student=teacher is evaluated, and nothing else"
        if config.method.name in METHODS and METHODS[config.method.name].trains:
            yield f"student=teacher is not trained: method=zero_shot, zero_shot_cot or few_shot_cot, not method={config.method.name}"
    if isinstance(student, ApiStudentConfig) and not config.dry_run and config.until in ("train", "evaluate"):
        yield from _key_faults("student", student)
    lora = getattr(student, "lora", None)
    if lora is not None and lora.rank is not None and config.trainer.strategy == "fsdp":
        yield "student.lora with trainer.strategy=fsdp: adapters are small; trainer.strategy=ddp"
