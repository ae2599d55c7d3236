"""Everything that is wrong with a configuration, found before any data is read or money spent, and told in one message."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fcot.config import PRICES, Config
from fcot.curation.filters import CONCISE, FILTERS
from fcot.draws import redraw_faults
from fcot.errors import ConfigFaults
from fcot.prompts.answers import ANSWER_TYPES
from fcot.prompts.student import METHODS
from fcot.prompts.thinking import MODES
from fcot.reporting.config import LightningLoggerConfig, LoggerConfig, WandbLoggerConfig
from fcot.stages.table import UNTIL
from fcot.student.config import ApiStudentConfig, TeacherAsStudentConfig, TinyStudentConfig, TrainerConfig
from fcot.tailored.config import TailoredConfig
from fcot.tasks.config import PublishedDatasetConfig, ToyDatasetConfig
from fcot.tasks.table import TASKS
from fcot.teacher.config import HFTeacherConfig, OpenAITeacherConfig, OracleTeacherConfig, ReplayTeacherConfig  # fmt: skip
from fcot.teacher.money import Price, read_price
from fcot.teacher.openai import key_fault
from fcot.teacher.requests import OWN_PARAMETERS

SPLIT_MODES = ("sample", "published", "template", "file")


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
    """Every fault that can be told without reading data: choices, ranges, files, impossible combinations."""
    yield from _root_faults(config)
    yield from _dataset_faults(config)
    yield from _split_faults(config)
    yield from _teacher_faults(config)
    yield from _student_faults(config)
    yield from _trainer_faults(config.trainer)
    yield from _together_faults(config)


def _one_of(option: str, value: str, known: tuple[str, ...]) -> Iterator[str]:
    if value not in known:
        yield f"{option}={value}: choose from {', '.join(known)}"


def _at_least(option: str, value: float | None, least: float) -> Iterator[str]:
    if value is not None and value < least:
        yield f"{option}={value}: at least {least}"


def _readable_file(option: str, value: str | None) -> Iterator[str]:
    if value is None or (os.access(value, os.R_OK) and Path(value).is_file()):
        return
    fault = "a folder, not a file" if Path(value).is_dir() else "not readable" if Path(value).exists() else "no such file"
    yield f"{option}={value}: {fault}"


def _root_faults(config: Config) -> Iterator[str]:
    yield from redraw_faults(config)
    yield from _at_least("diversity", config.diversity, 1)
    if not 0 <= config.seed < 2**32:
        yield f"seed={config.seed}: between 0 and {2**32 - 1}"
    yield from _one_of("until", config.until, UNTIL)
    yield from _one_of("method", config.method.name, tuple(METHODS))
    yield from _one_of("prompt.numbers", config.prompt.numbers, ("task", "paper", "extended"))
    yield from _one_of("prompt.thinking", config.prompt.thinking, MODES)
    yield from _at_least("preview", config.preview, 1)
    if isinstance(config.method, TailoredConfig):
        yield from _tailored_faults(config, config.method)
    else:
        yield from _at_least("method.prompt_tokens", config.method.prompt_tokens, 1)
    yield from _prompt_faults(config)
    yield from _curation_faults(config)
    yield from _logger_faults(config.logger)


def _logger_faults(logger: LoggerConfig | LightningLoggerConfig | WandbLoggerConfig) -> Iterator[str]:
    if isinstance(logger, LoggerConfig):
        yield from _one_of("logger", logger.name, ("csv", "none"))
    elif isinstance(logger, WandbLoggerConfig):
        yield from _one_of("logger.mode", logger.mode, ("auto", "online", "offline"))
        yield from _at_least("logger.wait_s", logger.wait_s, 1)
        if logger.mode == "online" and not os.environ.get("WANDB_API_KEY"):
            yield "logger.mode=online: no key in WANDB_API_KEY; logger.mode=auto logs offline without one"
    elif "." not in logger.target:
        yield f"logger.target={logger.target}: the full name of a class, such as pytorch_lightning.loggers.TensorBoardLogger"


def _tailored_faults(config: Config, method: TailoredConfig) -> Iterator[str]:
    exam, feedback, reflection = method.exam, method.feedback, method.reflection
    for option, value, least in (
        ("rounds", method.rounds, 1), ("patience", method.patience, 1), ("min_mistakes", method.min_mistakes, 1),
        ("demonstrations", method.demonstrations, 0), ("exam.samples", exam.samples, 1), ("exam.top_k", exam.top_k, 1),
        ("exam.max_new_tokens", exam.max_new_tokens, 1), ("feedback.mistakes", feedback.mistakes, 1),
        ("feedback.requests", feedback.requests, 1), ("feedback.max_requests", feedback.max_requests, 1),
        ("feedback.max_tokens", feedback.max_tokens, 1), ("reflection.weight", reflection.weight, 0),
        ("reflection.margin", reflection.margin, 0), ("reflection.max_tokens", reflection.max_tokens, 2),
    ):  # fmt: skip
        yield from _at_least(f"method.{option}", value, least)
    if exam.temperature <= 0:
        yield f"method.exam.temperature={exam.temperature}: more than 0; an exam's answers are drawn"
    yield from _one_of("method.start", method.start, ("previous", "pretrained"))
    yield from _one_of("method.feedback.source", feedback.source, ("feedback", "plain", "self"))
    yield from _one_of("method.reflection.representation", reflection.representation, ("last", "rationale", "mean"))
    yield from _readable_file("method.feedback.path", feedback.path)
    option, template = "method.feedback.template", feedback.template
    if feedback.path is not None and os.access(feedback.path, os.R_OK) and Path(feedback.path).is_file():
        option, template = f"method.feedback.path={feedback.path}", Path(feedback.path).read_text(encoding="utf-8-sig", errors="replace")
    for part in ("{question}", "{mistakes}"):
        if template is not None and part not in template:
            yield f"{option}: the template must contain {part}"
    if template is not None and feedback.hint and "{hint}" not in template:
        yield f"{option}: the template has no {{hint}}: the teacher would not be told the answer; method.feedback.hint=false"
    if config.curation.labels == "vote_all" and method.rounds > 1:
        yield "curation.labels=vote_all: an exam needs gold answers, and a reply on a mistake has nobody to vote with; labels=vote or gold"
    if feedback.template is None and feedback.path is None:
        yield "method.feedback: either method.feedback.template or method.feedback.path=FILE"
    weights = method.round_weights
    if weights is not None and (len(weights) != method.rounds or min(weights) < 0):
        yield f"method.round_weights={weights}: one weight for each of method.rounds={method.rounds}, none below 0"
    elif weights is not None and not (weights[0] if method.accumulate else min(weights)):
        needed = "round 1 needs a weight above 0" if method.accumulate else "each round needs a weight above 0"
        yield f"method.round_weights={weights}: a round would have nothing to train on; {needed}"
    if method.patience is not None and config.trainer.selection != "validation":
        yield "method.patience needs validation problems: trainer.selection=validation"
    if isinstance(config.student, ApiStudentConfig):
        yield f"method=tailored trains local students, round after round; student={config.student.name} is trained at an API"
    if isinstance(config.teacher, ReplayTeacherConfig) and feedback.source != "self" and method.rounds > 1:
        yield "teacher=replay answers no feedback: method.feedback.source=self, or a teacher that can be asked"
    if config.until == "train":
        yield "until=train: method=tailored evaluates the student of each round; until=curate or evaluate"


def _curation_faults(config: Config) -> Iterator[str]:
    curation = config.curation
    for name in curation.filters:
        yield from _one_of("curation.filters", name, (*FILTERS, CONCISE))
    yield from _one_of("curation.labels", curation.labels, ("gold", "vote", "vote_all"))
    for option in ("max_words", "max_repeats", "max_samples"):
        yield from _at_least(f"curation.{option}", getattr(curation, option), 1)
    yield from _readable_file("curation.golden", curation.golden)
    if ("golden" in curation.filters or curation.match_golden) and curation.golden is None:
        yield f"curation={curation.name} needs curation.golden=FILE"
    if curation.match_golden and curation.max_samples is not None:
        yield "curation.match_golden and curation.max_samples: one of the two says how many samples are kept"
    if curation.labels != "gold" and config.diversity < 3 and config.method.name in ("fine_tune_cot", "tailored"):
        yield f"curation.labels={curation.labels} with diversity={config.diversity}: a majority needs three voters, diversity=3 or more"


def _prompt_faults(config: Config) -> Iterator[str]:
    prompt = config.prompt
    yield from _at_least("prompt.rationale_tokens", prompt.rationale_tokens, 1)
    yield from _at_least("prompt.answer_tokens", prompt.answer_tokens, 1)
    yield from _at_least("prompt.n_exemplars", prompt.n_exemplars, 1)
    yield from _readable_file("prompt.path", prompt.path)
    if (prompt.template is None) == (prompt.path is None):
        yield "prompt: either prompt.template or prompt.path=FILE"
    if prompt.template is not None and "{question}" not in prompt.template:
        yield "prompt.template: the template must contain {question}"
    if "{exemplars}" in (prompt.template or "") and prompt.exemplars is None:
        yield (
            f"prompt={prompt.name} needs prompt.exemplars=FILE, prompt.exemplars=outputs/runs/<run> to take that run's rationales, or "
            "prompt.exemplars=train to take the task's human ones"
        )
    if not all(prompt.stop):
        yield "prompt.stop: an empty string would end every answer at once"
    if prompt.exemplars not in (None, "train") and not Path(prompt.exemplars).exists():
        yield f"prompt.exemplars={prompt.exemplars}: no such file or folder"
    for answer_type in ANSWER_TYPES:
        if answer_type not in prompt.answer_triggers:
            yield f"prompt.answer_triggers: nothing for answer type {answer_type}"
    prompted = config.method.name in METHODS and METHODS[config.method.name].prompted
    if (
        prompted
        and prompt.chat_only
        and getattr(config.student, "chat_template", not isinstance(config.student, TinyStudentConfig)) is False
    ):
        yield f"prompt={prompt.name} is for chats: with method={config.method.name} student={config.student.name} add prompt=zero_shot_cot"
    if prompt.chat_only and getattr(config.teacher, "endpoint", "chat") != "chat":
        yield f"prompt={prompt.name} is for chat endpoints; with teacher.endpoint=completions add prompt=zero_shot_cot"


def _dataset_faults(config: Config) -> Iterator[str]:
    dataset = config.dataset
    yield from _at_least("dataset.limit", dataset.limit, 1)
    if isinstance(dataset, ToyDatasetConfig):
        yield from _at_least("dataset.n_problems", dataset.n_problems, 10)
    elif isinstance(dataset, PublishedDatasetConfig):
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
    if method is not None and not method.asks_teacher and not isinstance(config.student, TeacherAsStudentConfig):
        if config.until in ("generate", "curate"):
            yield f"until={config.until}: method={config.method.name} asks no teacher"
        if config.until == "train" and not method.trains:
            yield f"until=train: method={config.method.name} trains nothing"
        return
    if isinstance(teacher, OracleTeacherConfig):
        if not 0 <= teacher.error_rate <= 1:
            yield f"teacher.error_rate={teacher.error_rate}: between 0 and 1"
        if not isinstance(config.dataset, ToyDatasetConfig):
            yield f"teacher=oracle solves the toy tasks only, not dataset={config.dataset.name}: teacher=replay or teacher=openai"
    elif isinstance(teacher, ReplayTeacherConfig):
        if isinstance(config.student, TeacherAsStudentConfig) and config.method.name in ("zero_shot", "few_shot_cot"):
            yield "teacher=replay holds rationales of Zero-shot-CoT: method=zero_shot_cot"
        if isinstance(config.dataset, ToyDatasetConfig):
            yield f"teacher=replay has nothing for dataset={config.dataset.name}: teacher=oracle"
        if teacher.path and not Path(teacher.path).exists():
            yield f"teacher.path={teacher.path}: no such file or folder"
    elif isinstance(teacher, HFTeacherConfig):
        yield from _hf_faults(teacher)
    elif isinstance(teacher, OpenAITeacherConfig):
        yield from _openai_faults(teacher, config.dry_run)
    else:  # of another package
        yield from getattr(teacher, "faults", tuple)()
    temperature = getattr(teacher, "temperature", None)
    yield from _at_least("teacher.temperature", temperature, 0)
    itself = isinstance(config.student, TeacherAsStudentConfig)
    option, n = ("student.self_consistency", config.student.self_consistency) if itself else ("diversity", config.diversity)
    if temperature == 0 and n > 1 and not isinstance(teacher, OracleTeacherConfig):
        yield f"teacher.temperature=0 with {option}={n}: greedy decoding gives the same rationale every time"


def _openai_faults(teacher: OpenAITeacherConfig, dry_run: bool) -> Iterator[str]:
    yield from _server_faults("teacher", teacher, asked=not dry_run)
    yield from _one_of("teacher.endpoint", teacher.endpoint, ("chat", "completions"))
    yield from _at_least("teacher.max_choices_per_request", teacher.max_choices_per_request, 1)
    if teacher.budget_usd is not None and teacher.budget_usd <= 0:
        yield f"teacher.budget_usd={teacher.budget_usd}: more than 0"
    for name, value in teacher.parameters.items():
        if name in OWN_PARAMETERS:
            yield f"teacher.parameters: {name} is fcot's own to set"
        elif name in ("seed", "max_tokens", "max_completion_tokens") and value is not None:
            yield f"teacher.parameters: {name} is fcot's own to set; null leaves it out; prompt.rationale_tokens limits"
    if teacher.budget_usd is not None and teacher.model:
        if price_of(teacher) is None:
            yield f"teacher.budget_usd needs a price, and {teacher.prices or PRICES} has none for {_priced(teacher)}: teacher.prices=FILE"
        if teacher.parameters.get(teacher.max_tokens_parameter, 0) is None:
            yield f"teacher.budget_usd needs a limit on answers: {teacher.max_tokens_parameter} cannot be left out"


def _server_faults(group: str, server: OpenAITeacherConfig | ApiStudentConfig, asked: bool) -> Iterator[str]:
    """What can be wrong about a server and how it is asked."""
    yield from _one_of(f"{group}.max_tokens_parameter", server.max_tokens_parameter, ("max_tokens", "max_completion_tokens"))
    for option in ("concurrency", "requests_per_minute", "tokens_per_minute"):
        yield from _at_least(f"{group}.{option}", getattr(server, option), 1)
    yield from _at_least(f"{group}.max_retries", server.max_retries, 0)
    for option in ("timeout_s", "poll_s"):
        if (value := getattr(server, option)) <= 0:
            yield f"{group}.{option}={value}: more than 0"
    if server.base_url is not None and not server.base_url.startswith(("http://", "https://")):
        yield f"{group}.base_url={server.base_url}: a URL such as http://127.0.0.1:8000/v1"
    if asked and (fault := key_fault(f"{group}.", server.base_url, server.api_key_env)) is not None:
        yield fault if fault.startswith(f"{group}.") else f"{group}={server.name} {fault}"
    yield from _readable_file(f"{group}.prices", server.prices)


def _priced(teacher: OpenAITeacherConfig) -> str:
    """What needs a price."""
    tier = teacher.parameters.get("service_tier")
    return teacher.model + (f" with service_tier={tier} (tiers: {{{tier}: SHARE}})" if tier else "")


def price_of(server: OpenAITeacherConfig | ApiStudentConfig, model: str | None = None) -> Price | None:
    """The price of a server's model, or of another of its models; None where nobody knows it."""
    path = Path(server.prices) if server.prices else PRICES
    option = "student.prices" if isinstance(server, ApiStudentConfig) else "teacher.prices"
    tier = getattr(server, "parameters", {}).get("service_tier")
    return read_price(path, model or server.model, option, tier) if path.is_file() else None


def _hf_faults(teacher: HFTeacherConfig) -> Iterator[str]:
    yield from _one_of("teacher.endpoint", teacher.endpoint, ("chat", "completions"))
    yield from _one_of("teacher.dtype", teacher.dtype, ("auto", "float32", "bfloat16", "float16"))
    yield from _at_least("teacher.batch_size", teacher.batch_size, 1)
    yield from _at_least("teacher.max_choices_per_request", teacher.max_choices_per_request, 1)
    if teacher.path is None and teacher.model is None:
        yield "teacher=hf needs teacher.path=FOLDER or teacher.model=HUB_ID"
    if teacher.path is not None:
        yield from _model_folder("teacher.path", teacher.path)


def _model_folder(option: str, value: str) -> Iterator[str]:
    folder = Path(value)
    if not folder.is_dir():
        yield f"{option}={folder}: no such folder"
    elif not (folder / "config.json").is_file():
        yield f"{option}={folder}: no config.json in it, so not a transformers model"
    elif not any(file.suffix in (".safetensors", ".bin") for file in folder.iterdir()):
        yield f"{option}={folder}: no weights in it (model.safetensors or pytorch_model.bin)"


def _student_faults(config: Config) -> Iterator[str]:
    student = config.student
    if isinstance(student, TeacherAsStudentConfig):
        yield from _at_least("student.self_consistency", student.self_consistency, 1)
        if config.until != "evaluate":
            yield f"until={config.until}: student=teacher is evaluated, and nothing else"
        if config.method.name in METHODS and METHODS[config.method.name].trains:
            yield f"student=teacher is not trained: method=zero_shot, zero_shot_cot or few_shot_cot, not method={config.method.name}"
        return
    if isinstance(student, ApiStudentConfig):
        yield from _at_least("student.epochs", student.epochs, 1)
        yield from _at_least("student.max_new_tokens", student.max_new_tokens, 1)
        yield from _at_least("student.self_consistency", student.self_consistency, 1)
        yield from _server_faults("student", student, asked=not config.dry_run and config.until in ("train", "evaluate"))
        return
    for option, least in (
        ("max_prompt_tokens", 8), ("max_completion_tokens", 2), ("max_new_tokens", 1), ("self_consistency", 1), ("top_k", 1),
    ):  # fmt: skip
        yield from _at_least(f"student.{option}", getattr(student, option), least)
    if student.temperature <= 0:
        yield f"student.temperature={student.temperature}: more than 0; student.self_consistency=1 decodes greedily"
    if isinstance(student, TinyStudentConfig):
        for option in ("width", "layers", "heads"):
            yield from _at_least(f"student.{option}", getattr(student, option), 1)
        yield from _at_least("student.vocab_size", student.vocab_size, 300)
        if student.heads >= 1 and student.width % student.heads:
            yield f"student.width={student.width} is not a multiple of student.heads={student.heads}"
        return
    if student.path is not None:
        yield from _model_folder("student.path", student.path)
    elif not student.hub_id:
        yield f"student={student.name} needs student.hub_id=OWNER/NAME or student.path=FOLDER"
    yield from _at_least("student.lora.rank", student.lora.rank, 1)
    if student.lora.alpha <= 0:
        yield f"student.lora.alpha={student.lora.alpha}: more than 0"
    if not 0 <= student.lora.dropout < 1:
        yield f"student.lora.dropout={student.lora.dropout}: from 0 to below 1"


def _together_faults(config: Config) -> Iterator[str]:
    """What student and trainer cannot do together."""
    lora = getattr(config.student, "lora", None)
    if lora is not None and lora.rank is not None and config.trainer.strategy == "fsdp":
        yield "student.lora with trainer.strategy=fsdp: adapters are small; trainer.strategy=ddp"


def _trainer_faults(trainer: TrainerConfig) -> Iterator[str]:
    if trainer.lr <= 0:
        yield f"trainer.lr={trainer.lr}: more than 0"
    if trainer.clip_norm is not None and trainer.clip_norm <= 0:
        yield f"trainer.clip_norm={trainer.clip_norm}: more than 0, or null"
    yield from _at_least("trainer.weight_decay", trainer.weight_decay, 0)
    yield from _at_least("trainer.warmup_steps", trainer.warmup_steps, 0)
    for option in (
        "batch_size", "batch_tokens", "micro_batches", "epochs", "max_steps", "evaluate_every_steps", "evaluate_every_epochs",
        "patience", "eval_batch_tokens", "devices", "nodes",
    ):  # fmt: skip
        yield from _at_least(f"trainer.{option}", getattr(trainer, option), 1)
    yield from _at_least("trainer.prompt_loss_weight", trainer.prompt_loss_weight, 0)
    yield from _at_least("trainer.demonstration_loss_weight", trainer.demonstration_loss_weight, 0)
    yield from _one_of("trainer.loss_mean", trainer.loss_mean, ("weighted", "counted"))
    yield from _at_least("trainer.checkpoint_every_s", trainer.checkpoint_every_s, 0)
    if trainer.patience is not None and trainer.selection != "validation":
        yield "trainer.patience needs validation problems: trainer.selection=validation"
    if trainer.epochs is None and trainer.max_steps is None:
        yield "trainer.epochs and trainer.max_steps are both null: training would not end"
    yield from _one_of("trainer.schedule", trainer.schedule, ("constant", "linear", "cosine"))
    yield from _one_of("trainer.strategy", trainer.strategy, ("ddp", "fsdp"))
    yield from _one_of("trainer.eval_precision", trainer.eval_precision, ("32-true", "bf16-true"))
    yield from _one_of("trainer.selection", trainer.selection, ("validation", "last"))
    yield from _one_of("trainer.precision", trainer.precision, ("auto", "32-true", "bf16-mixed", "16-mixed"))
