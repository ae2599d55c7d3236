"""The root of the configuration, and the registry of the schemas, each of which stands in its package (``fcot/teacher/config.py``...).

A field counts in a run's identity with its value, unless :mod:`fcot.base.fields` says otherwise where it stands.

Nothing heavy is imported here or there: ``--help`` and ``--cfg job`` go through these modules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from fcot.base.fields import absent_at, bounded, neutral
from fcot.base.resources import CONF
from fcot.config.resolvers import RESOLVERS
from fcot.curation import config as curation_options
from fcot.methods import config as methods_options
from fcot.methods.tailored import config as tailored_options
from fcot.objectives import config as objectives_options
from fcot.prompts import config as prompts_options
from fcot.reporting import config as reporting_options
from fcot.student import config as student_options
from fcot.tasks import config as tasks_options
from fcot.teacher import config as teacher_options

SAMPLING_TEMPERATURE = 0.7  # paper A: diverse reasoning


@dataclass
class Config:
    """The root. OmegaConf knows no protocols: where choices have schemas of their own, the comment names what they have in common."""

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
    redraw_rationales: bool = absent_at(False)  # each seed trains on other rationales: slots seed x D and following
    # stop after generate, curate, train or evaluate
    until: str = neutral("evaluate", "a run goes on where it stopped", one_of=("generate", "curate", "train", "evaluate"))
    preview: int | None = neutral(None, "makes no run", at_least=1)  # ask for one completion of so many problems, show them and stop
    dry_run: bool = neutral(False, "makes no run")  # show what the run would ask for and cost, and stop
    output_dir: str = neutral("outputs", "where files are, not what is in them")


# Each package names its choices beside their schemas.
_PACKAGES = (
    tasks_options, teacher_options, prompts_options, curation_options, methods_options, tailored_options, student_options,
    objectives_options, reporting_options,
)  # fmt: skip
SCHEMAS: dict[tuple[str, str], type] = {place: schema for package in _PACKAGES for place, schema in package.SCHEMAS.items()}


def register_schemas() -> None:
    """Make the schemas known to Hydra: ``conf/<group>/<choice>.yaml`` names its own in its defaults list.

    And to its values :mod:`fcot.config.resolvers`; ``${conf:experiment/toy/golden.json}`` is a file beside the configuration.
    """
    for name, resolver in RESOLVERS.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)
    OmegaConf.register_new_resolver("conf", lambda name: str(CONF / name), replace=True)
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for (group, choice), schema in SCHEMAS.items():
        store.store(group=f"schema/{group}", name=choice, node=schema, package=group.replace("-", "_"))
