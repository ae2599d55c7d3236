"""The configuration: a typed schema for every group.

A field counts in a run's identity with its value, unless :mod:`fcot.fields` says otherwise where it stands.

Nothing heavy is imported here: ``--help`` and ``--cfg job`` go through this module.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from fcot.fields import To, Why, absent_at, neutral, resolved
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
    path: str | None = resolved(None, To.PROBLEMS)  # the authors' JSON, JSON Lines, CSV or Parquet; null loads from the hub
    limit: int | None = resolved(None, To.SPLIT)  # train on the first N train problems; null for all


@dataclass
class ToyDataset:
    """A toy task written here."""

    name: str = MISSING
    n_problems: int = resolved(MISSING, To.PROBLEMS)  # problems in all, before the split
    generator_seed: int = resolved(0, To.PROBLEMS)
    limit: int | None = resolved(None, To.SPLIT)


@dataclass
class CustomDataset:
    """A user's own data."""

    name: str = "custom"
    path: str = resolved(MISSING, To.PROBLEMS)  # a file, or a hub id owner/name or owner/name:config
    answer_type: str = resolved(MISSING, To.RULE)  # number, choice, yes_no or text
    choices: str = resolved("", To.RULE)  # the letters of answer_type=choice, such as ABCD
    question_column: str = resolved("question", To.PROBLEMS)
    answer_column: str = resolved("answer", To.PROBLEMS)
    rationale_column: str = resolved("rationale", To.EXEMPLARS)
    template_column: str = resolved("template_id", To.SPLIT)
    limit: int | None = resolved(None, To.SPLIT)


@dataclass
class SplitMode:
    """How train, validation and test are made."""

    name: str = resolved(MISSING, To.SPLIT)
    train_fraction: float = resolved(0.7, To.SPLIT)  # of problems (sample) or templates (template)
    path: str | None = resolved(None, To.SPLIT)  # file: {"train": [...], "test": [...]}
    templates: str | None = resolved(None, To.SPLIT)  # template: {"template id": [sample indices]}; null: the task's own, else by wording
    subset: int | None = resolved(None, To.SPLIT)  # few-shot subset of train, in problems: paper A uses 8, 32, 128
    validation_fraction: float = resolved(0.1, To.SPLIT)  # of train; trainer=paper holds out none


# --- teacher ------------------------------------------------------------------------------------------------------


@dataclass
class OracleTeacher:
    """Solves the toy tasks."""

    name: str = neutral("oracle", Why.NAMED)
    error_rate: float = resolved(0.1, To.KEY)  # share of rationales with a wrong step
    temperature: float | None = resolved(None, To.KEY)


@dataclass
class ReplayTeacher:
    """Completion files in the authors' format."""

    name: str = neutral("replay", Why.NAMED)
    path: str = resolved(MISSING, "the completions that were read")  # a file, or a folder whose files of this task are read
    temperature: float | None = neutral(None, "the completions are what they are")  # for experiments that set it


@dataclass
class OpenAITeacher:
    """Any OpenAI-compatible server; keys come from environment variables only."""

    name: str = neutral("openai", Why.NAMED)
    batch: bool = neutral(False, "the same requests by another way")  # through the Batch API
    model: str = resolved(MISSING, To.KEY)
    model_id: str | None = resolved(None, To.KEY)  # name in the store's keys; null takes model
    endpoint: str = resolved("chat", "whether prompts are chat messages")  # chat or completions
    base_url: str | None = neutral(None, Why.SERVER)  # null: OpenAI, or the address in OPENAI_BASE_URL
    api_key_env: str | None = neutral(None, Why.SERVER)  # variable with the key; null: OPENAI_API_KEY, for OpenAI only; none: no key
    temperature: float | None = resolved(None, To.KEY)  # null: 0 where diversity=1, else 0.7
    parameters: dict[str, Any] = resolved({}, To.KEY)  # further request parameters; null leaves one out
    max_tokens_parameter: str = neutral("max_tokens", Why.SPELLING)  # reasoning models want max_completion_tokens
    max_choices_per_request: int = neutral(8, Why.PACE)  # samples of one prompt in one request, so that the prompt is paid once
    resample_identical: bool = False  # buy up to D more rationales in the place of identical ones
    concurrency: int | None = neutral(None, Why.PACE)  # requests in flight; null finds out what the server takes
    requests_per_minute: float | None = neutral(None, Why.PACE)
    tokens_per_minute: float | None = neutral(None, Why.PACE)
    timeout_s: float = neutral(120.0, Why.PACE)  # one request, in seconds
    max_retries: int = neutral(20, Why.PACE)
    poll_s: float = neutral(30.0, Why.PACE)  # between two looks at a batch, in seconds
    budget_usd: float | None = neutral(None, "a run that its budget ended continues with a larger one")  # hard stop of one run, in USD
    prices: str | None = neutral(None, Why.COST)  # YAML file; null takes conf/prices.yaml


@dataclass
class HFTeacher:
    """A local transformers model, causal or encoder-decoder."""

    name: str = neutral("hf", Why.NAMED)
    model: str | None = resolved(None, To.KEY)  # hub id
    revision: str | None = resolved(None, To.KEY)  # of the hub id; null takes its main branch
    path: str | None = resolved(None, To.KEY)  # local folder; takes the hub's place
    model_id: str | None = resolved(None, To.KEY)  # name in the store's keys; null: hub id and revision, or the folder's content
    endpoint: str = resolved("completions", "whether prompts are chat messages")  # or chat: through the tokenizer's chat template
    temperature: float | None = resolved(None, To.KEY)
    batch_size: int = neutral(16, Why.PACE)  # rows decoded at once; changes no result in float32
    dtype: str = resolved("auto", "the teacher's key; auto is left to the machine")  # auto: bfloat16 where the GPU has it, else float32
    max_choices_per_request: int = neutral(8, Why.PACE)
    resample_identical: bool = False


# --- prompt, curation, method --------------------------------------------------------------------------------------


@dataclass
class Prompt:
    """A teacher prompt."""

    name: str = neutral(MISSING, "names a folder of the store; the text counts")
    template: str | None = resolved(MISSING, To.PROMPT)  # text with {question}; may hold {exemplars} and {trigger}
    path: str | None = resolved(None, To.PROMPT)  # file with the template
    answer_triggers: dict[str, str] = resolved({}, "the trigger of the task's answer type")  # by answer type: what stands before the answer
    two_steps: bool = resolved(MISSING, To.PROMPT)  # a second request asks for the answer
    chat_only: bool = neutral(False, "only refuses endpoints that the text does not suit")
    rationale_tokens: int = resolved(128, To.PROMPT)  # limit of the first request
    answer_tokens: int = resolved(128, To.PROMPT)  # limit of the second
    stop: list[str] = resolved([], To.PROMPT)
    exemplars: str | None = resolved(None, To.EXEMPLARS)  # the authors' file, JSON Lines, a run's folder, or train: human rationales
    n_exemplars: int | None = resolved(None, To.EXEMPLARS)  # null: all of a file, 8 of a run
    numbers: str = resolved("task", To.RULE)  # how answers are read: as paper A does, whole (extended), or as the task has it
    thinking: str = absent_at("strip")  # the rationale is what the model said, its thought and that (keep), or its thought (only)


@dataclass
class Curation:
    """Which completions become reasoning samples."""

    name: str = neutral(MISSING, Why.NAMED)
    filters: list[str] = field(default_factory=list)  # answer, truncated, duplicate, length, repetition, arithmetic, golden, concise
    labels: str = "gold"  # vote: where there is none, the majority of a problem's completions; vote_all: everywhere
    max_words: int = 300  # the length filter's limit, in words
    max_repeats: int = 2  # the repetition filter's: how often a sentence may stand in a rationale
    golden: str | None = resolved(None, "its ids")  # file: [sample index, ...] or {"sample index": [completion index, ...]}
    max_samples: int | None = None  # undersample what is kept to so many, at random
    match_golden: bool = False  # undersample to as many as the golden ids name


@dataclass
class Method:
    """How the student is made, and asked."""

    name: str = MISSING
    prompt_tokens: int | None = resolved(None, "the limit")  # few-shot: above so many tokens exemplars are left out; null: the student's


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
    template: str | None = resolved(MISSING, "the text")  # text with {question} and {mistakes}; may hold {hint} and {trigger}
    path: str | None = resolved(None, "the text")  # file with the template; takes its place


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
    demonstrations: int = resolved(0, "how many are shown, in the first exam as well")  # worked train problems before each question
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
    path: str | None = resolved(None, "the folder's content")  # local folder; takes the hub's place
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
    base_url: str | None = neutral(None, Why.SERVER)  # null: OpenAI, or the address in OPENAI_BASE_URL
    api_key_env: str | None = neutral(None, Why.SERVER)  # variable with the key; null: OPENAI_API_KEY, for OpenAI only; none: no key
    epochs: int = 4  # paper A's for GPT-3; the other hyperparameters are the API's own
    max_new_tokens: int = 1024  # limit of an answer at evaluation, in tokens
    self_consistency: int = 1  # answers sampled per problem for a majority vote; 1 asks for a greedy one
    temperature: float = 0.7  # of those samples
    max_tokens_parameter: str = neutral("max_tokens", Why.SPELLING)  # reasoning models want max_completion_tokens
    concurrency: int | None = neutral(None, Why.PACE)  # requests in flight at evaluation; null finds out what the server takes
    requests_per_minute: float | None = neutral(None, Why.PACE)
    tokens_per_minute: float | None = neutral(None, Why.PACE)
    timeout_s: float = neutral(120.0, Why.PACE)  # one request, in seconds
    max_retries: int = neutral(20, Why.PACE)
    poll_s: float = neutral(30.0, Why.PACE)  # between two looks at the fine-tuning job, in seconds
    prices: str | None = neutral(None, Why.COST)  # YAML file; null takes conf/prices.yaml


@dataclass
class TeacherItself:
    """The teacher in the student's place: it answers the test problems, untrained."""

    name: str = MISSING
    self_consistency: int = 1  # completions a problem for a majority vote; 1 asks for a greedy one


@dataclass
class Trainer:
    """How the student is trained and which checkpoint is reported."""

    name: str = neutral(MISSING, Why.NAMED)
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
    eval_batch_tokens: int = neutral(32768, Why.DEVICES)  # decoding: rows times length up to which prompts enter the model
    eval_precision: str = "32-true"  # of decoding: 32-true, or bf16-true
    devices: int = neutral(1, Why.DEVICES)  # processes on each machine, one a device
    nodes: int = neutral(1, Why.DEVICES)  # machines
    strategy: str = neutral("ddp", Why.DEVICES)  # of several devices: ddp, or fsdp (weights spread over them)
    checkpoint_every_s: float = neutral(10.0, Why.PACE)  # seconds between two checkpoints at least; more where writing takes over 5 %


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
    logger: Any = neutral(MISSING, "logging changes no prediction")
    diversity: int = 4  # completions asked for per problem (D)
    seed: int = 0
    redraw_rationales: bool = absent_at(False)  # each seed trains on other rationales: slots seed x D and following
    until: str = neutral("evaluate", "a run goes on where it stopped")  # stop after generate, curate, train or evaluate
    preview: int | None = neutral(None, "makes no run")  # ask for one completion of so many problems, show them and stop
    dry_run: bool = neutral(False, "makes no run")  # show what the run would ask for and cost, and stop
    output_dir: str = neutral("outputs", "where files are, not what is in them")


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
