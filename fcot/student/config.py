"""The options of ``student`` and ``trainer``."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from fcot.fields import Why, neutral, resolved


@dataclass
class LoraConfig:
    """Low-rank adapters in the place of all weights; the saved student has them merged."""

    rank: int | None = None  # null trains all weights
    alpha: float = 32.0
    dropout: float = 0.0
    targets: list[str] | None = None  # names of layers; null takes peft's choice for the family


@dataclass
class PretrainedStudentConfig:
    """An encoder-decoder or a decoder of transformers: T5, Flan-T5, GPT-2, Llama, Qwen, SmolLM and the like."""

    name: str = MISSING
    hub_id: str | None = MISSING  # null where path says it
    revision: str | None = None  # of the hub id; null takes its main branch
    path: str | None = resolved(None, "the folder's content")  # local folder; takes the hub's place
    chat_template: bool = False  # put questions into the tokenizer's chat template
    lora: LoraConfig = field(default_factory=LoraConfig)
    max_prompt_tokens: int = 512
    max_completion_tokens: int = 512
    max_new_tokens: int = 1024  # paper A's limit at evaluation
    self_consistency: int = 1  # answers sampled per problem for a majority vote; 1 decodes greedily
    temperature: float = 0.7  # of those samples
    top_k: int | None = None  # likeliest tokens they are drawn from; null for all


@dataclass
class TinyStudentConfig:
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
class ApiStudentConfig:
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
class TeacherAsStudentConfig:
    """The teacher in the student's place: it answers the test problems, untrained."""

    name: str = MISSING
    self_consistency: int = 1  # completions a problem for a majority vote; 1 asks for a greedy one


@dataclass
class TrainerConfig:
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
