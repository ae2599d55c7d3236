"""The configuration: a typed schema for every group.

Nothing heavy is imported here: ``--help`` and ``--cfg job`` go through this module.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from fcot.resolvers import RESOLVERS

SAMPLING_TEMPERATURE = 0.7  # paper A: diverse reasoning
# Beside the package in a wheel, beside it in the repository.
CONF = next(folder for folder in (Path(__file__).parent / "conf", Path(__file__).parent.parent / "conf") if folder.is_dir())
PRICES = CONF / "prices.yaml"


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
    templates: str | None = None  # template: {"template id": [sample indices]}; null takes the task's own, else groups by wording
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
    """Any OpenAI-compatible server; keys come from environment variables only."""

    name: str = "openai"
    batch: bool = False  # through the Batch API
    model: str = MISSING
    model_id: str | None = None  # name in the store's keys; null takes model
    endpoint: str = "chat"  # chat or completions
    base_url: str | None = None  # null: OpenAI, or the address in OPENAI_BASE_URL
    api_key_env: str | None = None  # environment variable with the server's key; null: OPENAI_API_KEY, for OpenAI only; none sends none
    temperature: float | None = None  # null: 0 for a single D = 1 run, else 0.7
    parameters: dict[str, Any] = field(default_factory=dict)  # further request parameters; null leaves one out
    max_tokens_parameter: str = "max_tokens"  # reasoning models want max_completion_tokens
    max_choices_per_request: int = 8  # samples of one prompt asked for together, so that the prompt is paid once
    resample_identical: bool = False  # buy up to D more rationales in the place of identical ones
    concurrency: int | None = None  # requests in flight; null finds out what the server takes
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    timeout_s: float = 120.0  # one request, in seconds
    max_retries: int = 20
    poll_s: float = 30.0  # between two looks at a batch, in seconds
    budget_usd: float | None = None  # hard stop of one run, in USD
    prices: str | None = None  # YAML file; null takes conf/prices.yaml


@dataclass
class HFTeacher:
    """A local transformers model, causal or encoder-decoder."""

    name: str = "hf"
    model: str | None = None  # hub id
    revision: str | None = None  # of the hub id; null takes its main branch
    path: str | None = None  # local folder; takes the hub's place
    model_id: str | None = None  # name in the store's keys; null takes hub id and revision, or the folder's content hash
    endpoint: str = "completions"  # or chat: through the tokenizer's chat template
    temperature: float | None = None
    batch_size: int = 16  # rows decoded at once; changes no result in float32
    dtype: str = "auto"  # auto: bfloat16 where the GPU has it, else float32
    max_choices_per_request: int = 8
    resample_identical: bool = False


# --- prompt, curation, method --------------------------------------------------------------------------------------


@dataclass
class Prompt:
    """A teacher prompt."""

    name: str = MISSING
    template: str | None = MISSING  # text with {question}; may hold {exemplars} and {trigger}
    path: str | None = None  # file with the template
    answer_triggers: dict[str, str] = field(default_factory=dict)  # by answer type: what stands before the answer
    two_steps: bool = MISSING  # a second request asks for the answer
    chat_only: bool = False
    rationale_tokens: int = 128  # limit of the first request
    answer_tokens: int = 128  # limit of the second
    stop: list[str] = field(default_factory=list)
    exemplars: str | None = None  # the authors' file, JSON Lines, a run's folder, or train: the task's human rationales
    n_exemplars: int | None = None  # null: all of a file, 8 of a run
    numbers: str = "task"  # paper, extended, or the task's own reading of numbers


@dataclass
class Curation:
    """Which completions become reasoning samples."""

    name: str = MISSING
    filters: list[str] = field(default_factory=list)  # answer, truncated, duplicate, length, repetition, arithmetic, golden, concise
    labels: str = "gold"  # vote: where there is none, the majority of a problem's completions; vote_all: everywhere
    max_words: int = 300  # the length filter's limit, in words
    max_repeats: int = 2  # the repetition filter's: how often a sentence may stand in a rationale
    golden: str | None = None  # the golden filter's file: [sample index, ...] or {"sample index": [completion index, ...]}
    max_samples: int | None = None  # undersample what is kept to so many, at random
    match_golden: bool = False  # undersample to as many as the golden ids name


@dataclass
class Method:
    """How the student is made, and asked."""

    name: str = MISSING
    prompt_tokens: int | None = None  # few-shot: limit on a prompt, above which whole exemplars are dropped; null takes the student's


@dataclass
class Exam:
    """How a round's student answers the train problems."""

    samples: int = 4  # answers drawn per problem
    temperature: float = 1.0
    top_k: int | None = 50  # likeliest tokens they are drawn from; null for all
    max_new_tokens: int | None = None  # limit of an answer; null takes the student's


@dataclass
class Feedback:
    """What a round learns beside what the rounds before it learnt."""

    source: str = "feedback"  # plain: as many more plain rationales of the same problems; self: the exam's own right answers
    mistakes: int = 1  # shown in one request
    requests: int = 1  # per problem, each about other mistakes
    max_requests: int | None = None  # per round, problems that fail most first; null for no limit
    hint: bool = True  # tell the teacher the right answer
    max_tokens: int = 512  # limit of a reply
    template: str | None = MISSING  # text with {question} and {mistakes}; may hold {hint} and {trigger}
    path: str | None = None  # file with the template; takes its place


@dataclass
class Reflection:
    """Self-reflection: a triplet loss of a rationale, another one and a mistake on the same problem."""

    weight: float = 0.5  # paper B's lambda; 0 leaves it out
    margin: float = 1.0
    representation: str = "last"  # state of a completion's last token; rationale: of its rationale's last; mean: of all
    max_tokens: int = 192  # of a completion that are looked at


@dataclass
class TailoredMethod:
    """Paper B's rounds of exam, feedback and self-reflection."""

    name: str = "tailored"
    rounds: int = 3  # at most
    patience: int | None = None  # end after so many rounds without a better validation accuracy
    min_mistakes: int = 1  # end where the student fails fewer train problems
    start: str = "previous"  # a round begins with the previous round's student; pretrained: with the untrained one
    accumulate: bool = True  # train on the samples of all rounds so far; false: on the round's own
    round_weights: list[float] | None = None  # of each round's samples in the loss; null for 1
    demonstrations: int = 0  # worked train problems before each question
    exam: Exam = field(default_factory=Exam)
    feedback: Feedback = field(default_factory=Feedback)
    reflection: Reflection = field(default_factory=Reflection)


# --- student and trainer --------------------------------------------------------------------------------------------


@dataclass
class Lora:
    """Low-rank adapters in the place of all weights; the saved student has them merged."""

    rank: int | None = None  # null trains all weights
    alpha: float = 32.0
    dropout: float = 0.0
    targets: list[str] | None = None  # names of layers; null takes peft's choice for the family


@dataclass
class PretrainedStudent:
    """An encoder-decoder or a decoder of transformers: T5, Flan-T5, GPT-2, Llama, Qwen, SmolLM and the like."""

    name: str = MISSING
    hub_id: str | None = MISSING  # null where path says it
    revision: str | None = None  # of the hub id; null takes its main branch
    path: str | None = None  # local folder; takes the hub's place
    chat_template: bool = False  # put questions into the tokenizer's chat template
    lora: Lora = field(default_factory=Lora)
    max_prompt_tokens: int = 512
    max_completion_tokens: int = 512
    max_new_tokens: int = 1024  # paper A's limit at evaluation
    self_consistency: int = 1  # answers sampled per problem for a majority vote; 1 decodes greedily
    temperature: float = 0.7  # of those samples
    top_k: int | None = None  # likeliest tokens they are drawn from; null for all


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
    self_consistency: int = 1
    temperature: float = 0.7
    top_k: int | None = None


@dataclass
class ApiStudent:
    """A model fine-tuned through OpenAI's API; the key comes from OPENAI_API_KEY. Trainer settings do not apply to it."""

    name: str = MISSING
    model: str = MISSING  # the base model
    base_url: str | None = None  # null: OpenAI, or the address in OPENAI_BASE_URL
    api_key_env: str | None = None  # environment variable with the server's key; null: OPENAI_API_KEY, for OpenAI only; none sends none
    epochs: int = 4  # paper A's for GPT-3; the other hyperparameters are the API's own
    max_new_tokens: int = 1024  # limit of an answer at evaluation, in tokens
    self_consistency: int = 1  # answers sampled per problem for a majority vote; 1 asks for a greedy one
    temperature: float = 0.7  # of those samples
    max_tokens_parameter: str = "max_tokens"  # reasoning models want max_completion_tokens
    concurrency: int | None = None  # requests in flight at evaluation; null finds out what the server takes
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    timeout_s: float = 120.0  # one request, in seconds
    max_retries: int = 20
    poll_s: float = 30.0  # between two looks at the fine-tuning job, in seconds
    prices: str | None = None  # YAML file; null takes conf/prices.yaml


@dataclass
class TeacherItself:
    """The teacher in the student's place: it answers the test problems, untrained."""

    name: str = MISSING
    self_consistency: int = 1  # completions a problem for a majority vote; 1 asks for a greedy one


@dataclass
class Trainer:
    """How the student is trained and which checkpoint is reported."""

    name: str = MISSING
    lr: float = MISSING
    weight_decay: float = 0.01
    batch_size: int = MISSING  # samples per optimizer step, over all devices
    batch_tokens: int | None = None  # tokens per optimizer step, padding included; takes the place of batch_size
    micro_batches: int = 1  # gradient accumulation: parts of a step computed one after the other
    packing: bool = False  # decoders: samples one behind the other in a row, none of which sees another
    prompt_loss_weight: float = 0.0  # decoders: of a prompt token beside a completion token's 1; OpenAI's recipe has 0.01
    demonstration_loss_weight: float = 0.0  # decoders: of a token of the prompt's demonstrations; paper B's code has 0.1
    loss_mean: str = "weighted"  # over the tokens by their weights; counted: over all that have any (paper B)
    epochs: int | None = None  # the first of epochs and max_steps ends the training
    max_steps: int | None = None
    schedule: str = "linear"  # constant, linear or cosine
    warmup_steps: int = 0
    clip_norm: float | None = 1.0
    precision: str = "auto"  # auto: bf16-mixed where the GPU has it, else 32-true
    tf32: bool = False  # let a GPU round the factors of float32 products
    compile: bool = False  # torch.compile the forward pass
    gradient_checkpointing: bool = False  # compute activations twice instead of keeping them
    evaluate_every_steps: int | None = None  # takes the place of evaluate_every_epochs
    evaluate_every_epochs: int | None = 1  # null: at the end only
    selection: str = "validation"  # the checkpoint that is reported: validation (problems held out from train) or last
    best_epoch: bool = False  # evaluate the test set each time as well: accuracy_best_epoch (paper A's figure)
    patience: int | None = None  # stop after so many evaluations without a better validation accuracy
    eval_batch_tokens: int = 32768  # decoding: rows times length up to which prompts enter the model; changes no result
    eval_precision: str = "32-true"  # of decoding: 32-true, or bf16-true
    devices: int = 1  # processes on each machine, one a device
    nodes: int = 1  # machines
    strategy: str = "ddp"  # of several devices: ddp, or fsdp (weights spread over them)
    checkpoint_every_s: float = 10.0  # least time between two checkpoints, in seconds; more where writing takes over 5 % of it


@dataclass
class Logger:
    """Training log."""

    name: str = MISSING  # csv or none


@dataclass
class LightningLogger:
    """Any logger of Lightning, beside the CSV log."""

    name: str = MISSING
    target: str = MISSING  # its class, such as pytorch_lightning.loggers.MLFlowLogger
    options: dict[str, Any] = field(default_factory=dict)  # its arguments; save_dir is the run's logs unless set here


@dataclass
class WandbLogger:
    """Weights & Biases, beside the CSV log. The key comes from WANDB_API_KEY, a server of your own from WANDB_BASE_URL."""

    name: str = "wandb"
    project: str = "fcot"
    entity: str | None = None  # user or team; null takes the key's own
    mode: str = "auto"  # online where there is a key and the server answers, else offline; online: no run without a key; offline
    tags: list[str] = field(default_factory=list)  # beside method, task, student, teacher and D
    log_student: bool = True  # upload the trained student
    wait_s: int = 120  # for uploads at the end of a run; what is missing then can be synced


@dataclass
class Config:
    """The root."""

    dataset: Any = MISSING
    split_mode: SplitMode = MISSING
    teacher: Any = MISSING
    prompt: Prompt = MISSING
    curation: Curation = MISSING
    method: Any = MISSING
    student: Any = MISSING
    trainer: Trainer = MISSING
    logger: Any = MISSING
    diversity: int = 4  # completions asked for per problem (D)
    seed: int = 0
    diversity_is_swept: bool | None = None  # D = 1 then samples too, as the first of the 64; null: true in sweeps over diversity
    until: str = "evaluate"  # stop after generate, curate, train or evaluate
    preview: int | None = None  # ask for one completion of so many problems, show them and stop
    dry_run: bool = False  # show what the run would ask for and cost, and stop
    output_dir: str = "outputs"


ASKED = (ApiStudent, TeacherItself)  # students that are asked over a network or as teachers are, not loaded

SCHEMAS: dict[tuple[str, str], type] = {
    ("dataset", "published"): PublishedDataset,
    ("dataset", "toy"): ToyDataset,
    ("dataset", "custom"): CustomDataset,
    ("split-mode", "split_mode"): SplitMode,
    ("teacher", "oracle"): OracleTeacher,
    ("teacher", "replay"): ReplayTeacher,
    ("teacher", "openai"): OpenAITeacher,
    ("teacher", "hf"): HFTeacher,
    ("prompt", "prompt"): Prompt,
    ("curation", "curation"): Curation,
    ("method", "method"): Method,
    ("method", "tailored"): TailoredMethod,
    ("student", "pretrained"): PretrainedStudent,
    ("student", "tiny"): TinyStudent,
    ("student", "api"): ApiStudent,
    ("student", "teacher"): TeacherItself,
    ("trainer", "trainer"): Trainer,
    ("logger", "logger"): Logger,
    ("logger", "lightning"): LightningLogger,
    ("logger", "wandb"): WandbLogger,
}


def register_schemas() -> None:
    """Make the schemas known to Hydra: ``conf/<group>/<choice>.yaml`` names its own in its defaults list.

    And to its values :mod:`fcot.resolvers`; ``${conf:experiment/toy/golden.json}`` is a file beside the configuration.
    """
    for name, resolver in RESOLVERS.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)
    OmegaConf.register_new_resolver("conf", lambda name: str(CONF / name), replace=True)
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for (group, choice), schema in SCHEMAS.items():
        store.store(group=f"schema/{group}", name=choice, node=schema, package=group.replace("-", "_"))
