"""Checks a configuration before any data is read or money is spent, and reports all faults in one message.

Bounds of single options are declared with their fields (:mod:`fcot.base.fields`). A schema's ``faults()`` checks its own options, and its
``conflicts(config)`` checks them against other groups. This module has the checks that belong to no single schema.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fcot.base.errors import ConfigFaults
from fcot.base.fields import Bounds, bound_faults, bounds_of
from fcot.config.sampling import redraw_faults
from fcot.config.schema import Config, of_other_choices
from fcot.methods.table import METHODS, method_of
from fcot.tasks.table import TASKS


def to_config(composed: DictConfig) -> Config:
    """Check a composed configuration and convert it into plain dataclasses.

    Raises:
        ConfigFaults: The configuration has faults; the message lists all of them.
    """
    unknown = list(_unknown_options(composed))
    missing = [key for key in sorted(OmegaConf.missing_keys(composed)) if not key.startswith("hydra")]
    if faults := [f"{key} is not set: {_allowed(composed, key) or f'{key}=...'}" for key in missing]:
        raise ConfigFaults([*unknown, *faults, *_other_faults(composed, missing)])
    config: Config = OmegaConf.to_object(composed)  # type: ignore[assignment]
    if faults := [*unknown, *faults_of(config)]:
        raise ConfigFaults(faults)
    return config


def _unknown_options(composed: DictConfig) -> Iterator[str]:
    """A message for each option that the group's choice does not have.

    Hydra rejects such options itself, except those of open mappings such as ``teacher.headers``, which are always added.
    """
    for name, options in ((str(key), value) for key, value in composed.items()):
        schema = OmegaConf.get_type(options) if isinstance(options, DictConfig) else None
        if schema is None or not is_dataclass(schema):
            continue
        known, group = {option.name for option in fields(schema)}, name.replace("_", "-")
        for option in map(str, options):
            if option not in known:
                others = of_other_choices(group, option)
                yield f"{name}.{option}: {group}={options.name} has no such option" + (f"; {others}" if others else "")


def _allowed(composed: DictConfig, key: str) -> str | None:
    """What a missing option may be, in words; None if its schema does not list values."""
    group, _, name = key.rpartition(".")
    schema = OmegaConf.get_type(composed, group) if group else OmegaConf.get_type(composed)
    options = fields(schema) if schema is not None and is_dataclass(schema) else ()
    bounds = next((bounds_of(option) for option in options if option.name == name), None)
    return bounds.fault(None) if bounds is not None and bounds.one_of else None


def unchecked(composed: DictConfig) -> Config:
    """Convert a composed configuration into plain dataclasses without checks. Missing texts become empty; missing numbers stay missing."""
    filled = composed.copy()
    for key in OmegaConf.missing_keys(composed):
        with contextlib.suppress(OmegaConfBaseException):  # a number stays missing
            OmegaConf.update(filled, key, "")
    config: Config = OmegaConf.to_object(filled)  # type: ignore[assignment]
    return config


def _other_faults(composed: DictConfig, missing: list[str]) -> list[str]:
    """The faults of a configuration apart from its missing values, which are replaced by empty strings for the checks."""
    filled = composed.copy()
    try:
        for key in missing:
            OmegaConf.update(filled, key, "")
    except OmegaConfBaseException:  # a number is missing: nothing else can be checked until it is set
        return []
    config: Config = OmegaConf.to_object(filled)  # type: ignore[assignment]
    return [fault for fault in faults_of(config) if not any(fault.startswith(f"{key}=") for key in missing)]


def faults_of(config: Config) -> Iterator[str]:
    """Every fault that can be found without reading data: values out of bounds, missing files, impossible combinations."""
    yield from bound_faults(config, "")
    for group, options in _groups_read(config):
        yield from bound_faults(options, group)
        yield from getattr(options, "faults", tuple)()
    yield from redraw_faults(config)
    yield from _method_faults(config)
    yield from _prompt_faults(config)
    yield from _curation_faults(config)
    yield from _split_faults(config)
    for _, options in _groups_read(config):
        if (conflicts := getattr(options, "conflicts", None)) is not None:
            yield from conflicts(config)


def _groups_read(config: Config) -> Iterator[tuple[str, Any]]:
    """The names and options of the groups that this run reads. A run without a teacher does not read ``teacher``."""
    for group in ("logger", "method", "prompt", "curation", "dataset", "split_mode", "teacher", "student", "trainer", "objective"):
        if group != "teacher" or _needs_teacher(config):
            yield group, getattr(config, group)


def _needs_teacher(config: Config) -> bool:
    if config.method.name not in METHODS or getattr(config.objective, "needs_teacher", False):
        return True
    return method_of(config).uses_rationales or config.student.is_teacher


def _method_faults(config: Config) -> Iterator[str]:
    """An unknown method, or an ``until`` that names a stage the method does not have."""
    name = config.method.name
    if fault := Bounds(one_of=tuple(METHODS)).fault(name):
        yield f"method={name}: {fault}"
    elif not _needs_teacher(config):
        if config.until in ("generate", "curate"):
            yield f"until={config.until}: method={name} uses no teacher; use until=evaluate"
        if config.until == "train" and not METHODS[name].trains:
            yield f"until=train: method={name} does not train; use until=evaluate"


def _curation_faults(config: Config) -> Iterator[str]:
    labels = config.curation.labels
    if labels != "gold" and config.diversity < 3 and config.method.name in METHODS and method_of(config).uses_rationales:
        yield f"curation.labels={labels} with diversity={config.diversity}: a majority needs three voters, diversity=3 or more"


def _prompt_faults(config: Config) -> Iterator[str]:
    """A chat prompt for a student or a teacher that has no chat format."""
    prompt, student = config.prompt, config.student
    prompted = config.method.name in METHODS and METHODS[config.method.name].prompted
    in_chat = getattr(student, "chat_template", not student.from_scratch)
    if prompted and prompt.chat_only and not in_chat:
        yield (
            f"prompt={prompt.name} needs a chat model, and student={student.name} gets this prompt with method={config.method.name}: "
            "add prompt=zero_shot_cot"
        )
    remedy = "put the text into the prompt itself: prompt=custom prompt.path=FILE"
    completes_text = _needs_teacher(config) and getattr(config.teacher, "endpoint", "chat") != "chat"
    if prompt.system and completes_text:
        yield f"prompt.system: teacher.endpoint=completions has no system turn, teacher.endpoint=chat has one; or {remedy}"
    elif prompt.system and prompted and not config.student.is_teacher and not in_chat:
        yield f"prompt.system: student={student.name} gets this prompt with method={config.method.name} and has no system turn; {remedy}"
    if prompt.chat_only and getattr(config.teacher, "endpoint", "chat") != "chat":
        yield f"prompt={prompt.name} needs a chat endpoint; with teacher.endpoint=completions add prompt=zero_shot_cot"


def _split_faults(config: Config) -> Iterator[str]:
    if config.split_mode.name != "published":
        return
    task = TASKS.get(config.dataset.name)
    if task is None or not task.n_rows:
        yield f"split-mode=published: {config.dataset.name} has no published split; use split-mode=sample or split-mode=template"
    elif task.split != "published":
        yield f"split-mode=published: no split of {config.dataset.name} was published; use split-mode=sample, as paper A does"
