"""The configuration: a typed schema for every group, and the checks that report all faults at once.

Nothing heavy is imported here: ``--help`` and ``--cfg job`` go through this module.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fcot.errors import ConfigFaults
from fcot.prompts.answers import ANSWER_TYPES
from fcot.prompts.student import METHODS
from fcot.tasks.table import TASKS

STAGES = ("generate", "curate", "train", "evaluate")
SPLIT_MODES = ("sample", "published", "template", "file")
SAMPLING_TEMPERATURE = 0.7  # paper A: diverse reasoning
OPENAI_URL = "https://api.openai.com"


# --- dataset ------------------------------------------------------------------------------------------------------


@dataclass
class PublishedDataset:
    """One of paper A's 12 tasks."""

    name: str = MISSING
    path: str | None = None  # the authors' JSON, JSON Lines, CSV or Parquet; null loads from the hub
    limit: int | None = None  # train on the first N train problems; null for all


@dataclass
class ToyDataset:
    """A toy task written here."""

    name: str = MISSING
    n_problems: int = MISSING  # problems in all, before the split
    generator_seed: int = 0
    limit: int | None = None


@dataclass
class CustomDataset:
    """A user's own data."""

    name: str = "custom"
    path: str = MISSING  # a file, or a hub id owner/name or owner/name:config
    answer_type: str = MISSING  # number, choice, yes_no or text
    choices: str = ""  # the letters of answer_type=choice, such as ABCD
    question_column: str = "question"
    answer_column: str = "answer"
    rationale_column: str = "rationale"
    template_column: str = "template_id"
    limit: int | None = None


@dataclass
class SplitMode:
    """How train, validation and test are made."""

    name: str = MISSING
    train_fraction: float = 0.7  # of problems (sample) or templates (template)
    path: str | None = None  # file: {"train": [...], "test": [...]}
    templates: str | None = None  # template: {"template id": [sample indices]}; null takes the task's own
    subset: int | None = None  # few-shot subset of train, in problems: paper A uses 8, 32, 128
    validation_fraction: float = 0.1  # of train; trainer=paper holds out none


# --- teacher ------------------------------------------------------------------------------------------------------


@dataclass
class OracleTeacher:
    """Solves the toy tasks."""

    name: str = "oracle"
    error_rate: float = 0.1  # share of rationales with a wrong step
    temperature: float | None = None


@dataclass
class ReplayTeacher:
    """Completion files in the authors' format."""

    name: str = "replay"
    path: str = MISSING  # a file, or a folder whose files of this task are read


@dataclass
class OpenAITeacher:
    """Any OpenAI-compatible server; the key comes from OPENAI_API_KEY."""

    name: str = "openai"
    model: str = MISSING
    model_id: str | None = None  # name in the store's keys; null takes model
    endpoint: str = "chat"  # chat or completions
    base_url: str | None = None  # null asks OpenAI
    temperature: float | None = None  # null: 0 for a single D = 1 run, else 0.7
    concurrency: int = 16  # requests in flight
    max_choices_per_request: int = 1
    timeout_s: float = 120.0  # one request, in seconds
    max_retries: int = 8


# --- prompt, curation, method --------------------------------------------------------------------------------------


@dataclass
class Prompt:
    """A two-step teacher prompt."""

    name: str = MISSING
    question: str = MISSING
    answer_triggers: dict[str, str] = field(default_factory=dict)  # by answer type
    rationale_tokens: int = 128
    answer_tokens: int = 128
    numbers: str = "task"  # paper, extended, or the task's own reading of numbers


@dataclass
class Curation:
    """Which completions become reasoning samples."""

    name: str = MISSING
    filters: list[str] = field(default_factory=list)
    max_words: int = 300  # the length filter's limit, in words


@dataclass
class Method:
    """What the student learns from."""

    name: str = MISSING


# --- student and trainer --------------------------------------------------------------------------------------------


@dataclass
class PretrainedStudent:
    """T5, Flan-T5 or GPT-2."""

    name: str = MISSING
    hub_id: str = MISSING
    revision: str | None = None  # of the hub id; null takes its main branch
    path: str | None = None  # local folder; takes the hub's place
    max_prompt_tokens: int = 512
    max_completion_tokens: int = 512
    max_new_tokens: int = 1024  # paper A's limit at evaluation


@dataclass
class TinyStudent:
    """A small model from scratch, with a tokenizer trained on the training text."""

    name: str = MISSING
    architecture: str = MISSING  # encoder_decoder (T5) or decoder (GPT-2)
    width: int = 64
    layers: int = 2
    heads: int = 4
    vocab_size: int = 600
    max_prompt_tokens: int = 256
    max_completion_tokens: int = 256
    max_new_tokens: int = 256


@dataclass
class Trainer:
    """How the student is trained and which checkpoint is reported."""

    name: str = MISSING
    lr: float = MISSING
    weight_decay: float = 0.01
    batch_size: int = MISSING  # samples per optimizer step
    epochs: int | None = None  # the first of epochs and max_steps ends the training
    max_steps: int | None = None
    schedule: str = "linear"  # linear or constant
    warmup_steps: int = 0
    clip_norm: float | None = 1.0
    precision: str = "auto"  # auto: bf16-mixed where the GPU has it, else 32-true
    evaluate_every_steps: int | None = None  # null: once an epoch
    selection: str = "validation"  # validation, or last (paper A: no validation, the test set is evaluated each time)
    eval_batch_size: int = 64  # prompts decoded at once; changes no result


@dataclass
class Logger:
    """Training log."""

    name: str = MISSING  # csv or none


@dataclass
class Config:
    """The root."""

    dataset: Any = MISSING
    split_mode: SplitMode = MISSING
    teacher: Any = MISSING
    prompt: Prompt = MISSING
    curation: Curation = MISSING
    method: Method = MISSING
    student: Any = MISSING
    trainer: Trainer = MISSING
    logger: Logger = MISSING
    diversity: int = 4  # completions asked for per problem (D)
    seed: int = 0
    diversity_is_swept: bool = False  # set by sweeps over diversity: D = 1 then samples too, as the first of the 64
    until: str = "evaluate"  # stop after generate, curate, train or evaluate
    output_dir: str = "outputs"


SCHEMAS: dict[tuple[str, str], type] = {
    ("dataset", "published"): PublishedDataset,
    ("dataset", "toy"): ToyDataset,
    ("dataset", "custom"): CustomDataset,
    ("split-mode", "split_mode"): SplitMode,
    ("teacher", "oracle"): OracleTeacher,
    ("teacher", "replay"): ReplayTeacher,
    ("teacher", "openai"): OpenAITeacher,
    ("prompt", "prompt"): Prompt,
    ("curation", "curation"): Curation,
    ("method", "method"): Method,
    ("student", "pretrained"): PretrainedStudent,
    ("student", "tiny"): TinyStudent,
    ("trainer", "trainer"): Trainer,
    ("logger", "logger"): Logger,
}


def register_schemas() -> None:
    """Make the schemas known to Hydra: ``conf/<group>/<choice>.yaml`` names its own in its defaults list."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for (group, name), schema in SCHEMAS.items():
        store.store(group=f"schema/{group}", name=name, node=schema, package=group.replace("-", "_"))


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
    """Every fault that can be told without reading data: choices, ranges, files, impossible combinations."""
    yield from _root_faults(config)
    yield from _dataset_faults(config)
    yield from _split_faults(config)
    yield from _teacher_faults(config)
    yield from _student_faults(config)
    yield from _trainer_faults(config.trainer)


def _one_of(option: str, value: str, known: tuple[str, ...]) -> Iterator[str]:
    if value not in known:
        yield f"{option}={value}: choose from {', '.join(known)}"


def _at_least(option: str, value: float | None, least: float) -> Iterator[str]:
    if value is not None and value < least:
        yield f"{option}={value}: at least {least}"


def _readable_file(option: str, value: str | None) -> Iterator[str]:
    if value is None:
        return
    path = Path(value)
    if not path.exists():
        yield f"{option}={value}: no such file"
    elif not path.is_file():
        yield f"{option}={value}: a folder, not a file"
    elif not os.access(path, os.R_OK):
        yield f"{option}={value}: not readable"


def _root_faults(config: Config) -> Iterator[str]:
    yield from _at_least("diversity", config.diversity, 1)
    if not 0 <= config.seed < 2**32:
        yield f"seed={config.seed}: between 0 and {2**32 - 1}"
    yield from _one_of("until", config.until, STAGES)
    yield from _one_of("method", config.method.name, tuple(METHODS))
    yield from _one_of("prompt.numbers", config.prompt.numbers, ("task", "paper", "extended"))
    yield from _at_least("prompt.rationale_tokens", config.prompt.rationale_tokens, 1)
    yield from _at_least("prompt.answer_tokens", config.prompt.answer_tokens, 1)
    if "{question}" not in config.prompt.question:
        yield "prompt.question: the template must contain {question}"
    for answer_type in ANSWER_TYPES:
        if answer_type not in config.prompt.answer_triggers:
            yield f"prompt.answer_triggers: nothing for answer type {answer_type}"
    for name in config.curation.filters:
        yield from _one_of("curation.filters", name, ("answer", "truncated", "duplicate", "length"))
    yield from _at_least("curation.max_words", config.curation.max_words, 1)
    yield from _one_of("logger", config.logger.name, ("csv", "none"))


def _dataset_faults(config: Config) -> Iterator[str]:
    dataset = config.dataset
    yield from _at_least("dataset.limit", dataset.limit, 1)
    if isinstance(dataset, ToyDataset):
        yield from _at_least("dataset.n_problems", dataset.n_problems, 10)
    elif isinstance(dataset, PublishedDataset):
        yield from _readable_file("dataset.path", dataset.path)
    else:
        yield from _one_of("dataset.answer_type", dataset.answer_type, ANSWER_TYPES)
        if dataset.answer_type == "choice" and not (dataset.choices.isalpha() and dataset.choices.isupper()):
            yield "dataset.answer_type=choice needs its letters in capitals: dataset.choices=ABCD"
        if not _is_hub_id(dataset.path):
            yield from _readable_file("dataset.path", dataset.path)


def _is_hub_id(source: str) -> bool:
    from fcot.tasks.loaders import is_hub_id

    return is_hub_id(source)


def _split_faults(config: Config) -> Iterator[str]:
    split = config.split_mode
    yield from _one_of("split-mode", split.name, SPLIT_MODES)
    for option in ("train_fraction", "validation_fraction"):
        if not 0 < getattr(split, option) < 1:
            yield f"split_mode.{option}={getattr(split, option)}: between 0 and 1"
    yield from _at_least("split_mode.subset", split.subset, 1)
    yield from _readable_file("split_mode.path", split.path)
    yield from _readable_file("split_mode.templates", split.templates)
    if split.name == "file" and split.path is None:
        yield 'split-mode=file needs split_mode.path=FILE with {"train": [...], "test": [...]}'
    if split.name != "file" and split.path is not None:
        yield f"split_mode.path is read by split-mode=file only, not by split-mode={split.name}"
    if split.name != "template" and split.templates is not None:
        yield f"split_mode.templates is read by split-mode=template only, not by split-mode={split.name}"
    if split.name == "published" and (config.dataset.name not in TASKS or not TASKS[config.dataset.name].n_rows):
        yield f"split-mode=published: {config.dataset.name} has no published split; split-mode=sample or template"
    elif split.name == "published" and TASKS[config.dataset.name].split != "published":
        yield f"split-mode=published: upstream publishes no split of {config.dataset.name}; paper A uses split-mode=sample"


def _teacher_faults(config: Config) -> Iterator[str]:
    teacher = config.teacher
    method = METHODS.get(config.method.name)
    if method is not None and not method.asks_teacher:
        if config.until in ("generate", "curate"):
            yield f"until={config.until}: method={config.method.name} asks no teacher"
        if config.until == "train" and not method.trains:
            yield f"until=train: method={config.method.name} trains nothing"
        return
    if isinstance(teacher, OracleTeacher):
        if not 0 <= teacher.error_rate <= 1:
            yield f"teacher.error_rate={teacher.error_rate}: between 0 and 1"
        if not isinstance(config.dataset, ToyDataset):
            yield f"teacher=oracle solves the toy tasks only, not dataset={config.dataset.name}: teacher=replay or teacher=openai"
    elif isinstance(teacher, ReplayTeacher):
        if isinstance(config.dataset, ToyDataset):
            yield f"teacher=replay has nothing for dataset={config.dataset.name}: teacher=oracle"
        if teacher.path and not Path(teacher.path).exists():
            yield f"teacher.path={teacher.path}: no such file or folder"
    else:
        yield from _openai_faults(teacher)
    temperature = getattr(teacher, "temperature", None)
    yield from _at_least("teacher.temperature", temperature, 0)
    if temperature == 0 and config.diversity > 1 and not isinstance(teacher, OracleTeacher):
        yield f"teacher.temperature=0 with diversity={config.diversity}: greedy decoding gives the same rationale every time"


def _openai_faults(teacher: OpenAITeacher) -> Iterator[str]:
    yield from _one_of("teacher.endpoint", teacher.endpoint, ("chat", "completions"))
    yield from _at_least("teacher.concurrency", teacher.concurrency, 1)
    yield from _at_least("teacher.max_choices_per_request", teacher.max_choices_per_request, 1)
    yield from _at_least("teacher.max_retries", teacher.max_retries, 0)
    if teacher.timeout_s <= 0:
        yield f"teacher.timeout_s={teacher.timeout_s}: more than 0 seconds"
    if teacher.base_url is not None and not teacher.base_url.startswith(("http://", "https://")):
        yield f"teacher.base_url={teacher.base_url}: a URL such as http://127.0.0.1:8000/v1"
    if not os.environ.get("OPENAI_API_KEY") and (teacher.base_url or OPENAI_URL).startswith(OPENAI_URL):
        yield "teacher=openai needs the environment variable OPENAI_API_KEY (a server of your own: teacher.base_url=...)"


def _student_faults(config: Config) -> Iterator[str]:
    student = config.student
    for option, least in (("max_prompt_tokens", 8), ("max_completion_tokens", 2), ("max_new_tokens", 1)):
        yield from _at_least(f"student.{option}", getattr(student, option), least)
    if isinstance(student, TinyStudent):
        for option in ("width", "layers", "heads"):
            yield from _at_least(f"student.{option}", getattr(student, option), 1)
        yield from _at_least("student.vocab_size", student.vocab_size, 300)
        if student.heads >= 1 and student.width % student.heads:
            yield f"student.width={student.width} is not a multiple of student.heads={student.heads}"
        return
    if student.path is None:
        return
    folder = Path(student.path)
    if not folder.is_dir():
        yield f"student.path={folder}: no such folder"
    elif not (folder / "config.json").is_file():
        yield f"student.path={folder}: no config.json in it, so not a transformers model"
    elif not any(file.suffix in (".safetensors", ".bin") for file in folder.iterdir()):
        yield f"student.path={folder}: no weights in it (model.safetensors or pytorch_model.bin)"


def _trainer_faults(trainer: Trainer) -> Iterator[str]:
    if trainer.lr <= 0:
        yield f"trainer.lr={trainer.lr}: more than 0"
    if trainer.clip_norm is not None and trainer.clip_norm <= 0:
        yield f"trainer.clip_norm={trainer.clip_norm}: more than 0, or null"
    yield from _at_least("trainer.weight_decay", trainer.weight_decay, 0)
    yield from _at_least("trainer.warmup_steps", trainer.warmup_steps, 0)
    for option in ("batch_size", "epochs", "max_steps", "evaluate_every_steps", "eval_batch_size"):
        yield from _at_least(f"trainer.{option}", getattr(trainer, option), 1)
    if trainer.epochs is None and trainer.max_steps is None:
        yield "trainer.epochs and trainer.max_steps are both null: training would not end"
    yield from _one_of("trainer.schedule", trainer.schedule, ("linear", "constant"))
    yield from _one_of("trainer.selection", trainer.selection, ("validation", "last"))
    yield from _one_of("trainer.precision", trainer.precision, ("auto", "32-true", "bf16-mixed", "16-mixed"))
