"""The root schema of the configuration, and the registry of the other schemas, which are in their packages (``fcot/teacher/config.py``...).

A plain field enters a run's identity with its value; functions of :mod:`fcot.base.fields` declare the other fields.

These modules import nothing heavy, because ``--help`` and ``--cfg job`` load them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from fcot.base.fields import Why, absent_at, bounded, neutral
from fcot.base.resources import CONF
from fcot.config.resolvers import RESOLVERS
from fcot.curation import config as curation_options
from fcot.methods import config as methods_options
from fcot.methods.on_policy import config as on_policy_options
from fcot.methods.tailored import config as tailored_options
from fcot.objectives import config as objectives_options
from fcot.prompts import config as prompts_options
from fcot.reporting import config as reporting_options
from fcot.student import config as student_options
from fcot.tasks import config as tasks_options
from fcot.teacher import config as teacher_options

SAMPLING_TEMPERATURE = 0.7  # paper A: diverse reasoning
_PLACE = "changes where files are, not what they contain"


@dataclass
class Config:
    """The root schema. OmegaConf supports no protocols: a field typed ``Any`` names its protocol in a comment."""

    dataset: Any = MISSING  # DatasetConfig
    split_mode: tasks_options.SplitConfig = MISSING
    teacher: Any = MISSING  # TeacherConfig
    prompt: prompts_options.PromptConfig = MISSING
    curation: curation_options.CurationConfig = MISSING
    method: Any = MISSING  # MethodOptions
    student: Any = MISSING  # StudentConfig
    trainer: student_options.TrainerConfig = MISSING
    objective: Any = MISSING  # ObjectiveConfig
    logger: Any = neutral(MISSING, "logging changes no prediction")  # LoggerOptions
    diversity: int = bounded(4, at_least=1)  # completions per problem, D
    seed: int = bounded(0, at_least=0, at_most=2**32 - 1)
    redraw_rationales: bool = absent_at(False)  # each seed trains on different rationales: the D slots of the store from seed x D on
    # stop after generate, curate, train or evaluate
    until: str = neutral("evaluate", "the run continues where it stopped", one_of=("generate", "curate", "train", "evaluate"))
    # request one completion for each of this many problems, show them and stop
    preview: int | None = neutral(None, "makes no run", at_least=1)
    arm: str | None = neutral(None, Why.NAMED)  # the name that an experiment gives to one of the settings that it compares
    dry_run: bool = neutral(False, "makes no run")  # show what the run would request and cost, and stop
    output_dir: str = neutral("outputs", _PLACE)  # runs, sweeps and the completion store; default: FCOT_OUTPUT_DIR where it is set
    store_dir: str | None = neutral(None, _PLACE)  # the completion store; null: FCOT_STORE where it is set, else store in output_dir


# Each of these modules lists its schemas with their choices.
_PACKAGES = (
    tasks_options, teacher_options, prompts_options, curation_options, methods_options, tailored_options, on_policy_options,
    student_options, objectives_options, reporting_options,
)  # fmt: skip
SCHEMAS: dict[tuple[str, str], type] = {key: schema for package in _PACKAGES for key, schema in package.SCHEMAS.items()}


@cache
def choices_of_options(group: str) -> dict[str, list[str]]:
    """The options of all choices of a group, such as ``split-mode``, with the choices that have each; none for the root, ``""``."""
    found: dict[str, list[str]] = {}
    files = (CONF / group).glob("**/*.yaml") if group else ()
    for choice in sorted(str(path.relative_to(CONF / group).with_suffix("")) for path in files):
        schema = _schema_of(group, choice)
        for option in fields(schema) if schema is not None else ():
            found.setdefault(option.name, []).append(choice)
    return found


def _schema_of(group: str, choice: str) -> type | None:
    """The schema of a choice: the one that its defaults list names, or that of the choice on which it builds."""
    settings = OmegaConf.load(CONF / group / f"{choice}.yaml")
    for entry in settings.defaults if "defaults" in settings else ():
        if isinstance(entry, Mapping) and (schema := entry.get(f"/schema/{group}")) is not None:
            return SCHEMAS.get((group, schema))
        if isinstance(entry, str) and (CONF / group / f"{entry}.yaml").is_file():
            return _schema_of(group, entry)
    return None


def of_other_choices(group: str, option: str) -> str:
    """A sentence that names the choices of a group that have an option; empty if none has it."""
    choices = choices_of_options(group).get(option)
    if not choices:
        return ""
    names = f"{', '.join(choices[:-1])} and {choices[-1]} have" if len(choices) > 1 else f"{choices[0]} has"
    return f"{group}={names} it"


def register_schemas() -> None:
    """Register the schemas with Hydra, and the resolvers (:mod:`fcot.config.resolvers`) with OmegaConf.

    ``conf/<group>/<choice>.yaml`` names its schema in its defaults list. ``${conf:NAME}`` is the path of a file in ``conf/``.
    """
    for name, resolver in RESOLVERS.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)
    OmegaConf.register_new_resolver("conf", lambda name: str(CONF / name), replace=True)
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for (group, choice), schema in SCHEMAS.items():
        store.store(group=f"schema/{group}", name=choice, node=schema, package=group.replace("-", "_"))
