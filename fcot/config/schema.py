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
from fcot.curation.config import CurationConfig
from fcot.methods.config import MethodConfig
from fcot.methods.tailored.config import TailoredConfig
from fcot.prompts.config import PromptConfig
from fcot.reporting.config import LightningLoggerConfig, LoggerConfig, WandbLoggerConfig
from fcot.student.config import ApiStudentConfig, PretrainedStudentConfig, TeacherAsStudentConfig, TinyStudentConfig, TrainerConfig
from fcot.tasks.config import CustomDatasetConfig, PublishedDatasetConfig, SplitConfig, ToyDatasetConfig
from fcot.teacher.config import FunctionTeacherConfig, HFTeacherConfig, OpenAITeacherConfig, OracleTeacherConfig, ReplayTeacherConfig

SAMPLING_TEMPERATURE = 0.7  # paper A: diverse reasoning


@dataclass
class Config:
    """The root."""

    dataset: Any = MISSING
    split_mode: SplitConfig = MISSING
    teacher: Any = MISSING
    prompt: PromptConfig = MISSING
    curation: CurationConfig = MISSING
    method: Any = MISSING
    student: Any = MISSING
    trainer: TrainerConfig = MISSING
    logger: Any = neutral(MISSING, "logging changes no prediction")
    diversity: int = bounded(4, at_least=1)  # completions per problem, D
    seed: int = bounded(0, at_least=0, at_most=2**32 - 1)
    redraw_rationales: bool = absent_at(False)  # each seed trains on other rationales: slots seed x D and following
    # stop after generate, curate, train or evaluate
    until: str = neutral("evaluate", "a run goes on where it stopped", one_of=("generate", "curate", "train", "evaluate"))
    preview: int | None = neutral(None, "makes no run", at_least=1)  # ask for one completion of so many problems, show them and stop
    dry_run: bool = neutral(False, "makes no run")  # show what the run would ask for and cost, and stop
    output_dir: str = neutral("outputs", "where files are, not what is in them")


SCHEMAS: dict[tuple[str, str], type] = {
    ("dataset", "published"): PublishedDatasetConfig,
    ("dataset", "toy"): ToyDatasetConfig,
    ("dataset", "custom"): CustomDatasetConfig,
    ("split-mode", "split_mode"): SplitConfig,
    ("teacher", "oracle"): OracleTeacherConfig,
    ("teacher", "replay"): ReplayTeacherConfig,
    ("teacher", "openai"): OpenAITeacherConfig,
    ("teacher", "hf"): HFTeacherConfig,
    ("teacher", "function"): FunctionTeacherConfig,
    ("prompt", "prompt"): PromptConfig,
    ("curation", "curation"): CurationConfig,
    ("method", "method"): MethodConfig,
    ("method", "tailored"): TailoredConfig,
    ("student", "pretrained"): PretrainedStudentConfig,
    ("student", "tiny"): TinyStudentConfig,
    ("student", "api"): ApiStudentConfig,
    ("student", "teacher"): TeacherAsStudentConfig,
    ("trainer", "trainer"): TrainerConfig,
    ("logger", "logger"): LoggerConfig,
    ("logger", "lightning"): LightningLoggerConfig,
    ("logger", "wandb"): WandbLoggerConfig,
}


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
