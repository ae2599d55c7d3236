"""The options of ``student`` and ``trainer``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol

from omegaconf import MISSING

from fcot.base.fields import Why, bounded, neutral, resolved
from fcot.teacher.config import folder_faults, price_of, server_key_faults, url_faults

if TYPE_CHECKING:
    from fcot.config.schema import Config
    from fcot.llm.money import Price

_GREEDY = "; student.self_consistency=1 decodes greedily"


class StudentConfig(Protocol):
    """What the options of any student say beside its own.

    Attributes:
        remote: Whether a server answers for it, instead of weights that are loaded here.
        is_teacher: Whether the teacher itself is evaluated as the student.
        api_backed: Whether it is fine-tuned and evaluated through an API.
        pretrained: Whether its weights are loaded from a folder or the hub.
        from_scratch: Whether its weights are random before training.
    """

    name: str
    remote: ClassVar[bool]
    is_teacher: ClassVar[bool]
    api_backed: ClassVar[bool]
    pretrained: ClassVar[bool]
    from_scratch: ClassVar[bool]


@dataclass
class LoraConfig:
    """Low-rank adapters, trained instead of all weights; the saved student has them merged."""

    rank: int | None = bounded(None, at_least=1)  # null trains all weights
    alpha: float = bounded(32.0, above=0)
    dropout: float = bounded(0.0, at_least=0, below=1)
    targets: list[str] | None = None  # names of layers, or [all-linear]; null takes peft's choice for the family


@dataclass
class PretrainedStudentConfig:
    """An encoder-decoder or a decoder of transformers: T5, Flan-T5, GPT-2, Llama, Qwen, SmolLM and the like."""

    name: str = MISSING
    hub_id: str | None = MISSING  # null where path says it
    revision: str | None = None  # of the hub id; null takes its main branch
    path: str | None = resolved(None, "the folder's content")  # local folder; takes the hub's place
    chat_template: bool = False  # put questions into the tokenizer's chat template
    lora: LoraConfig = field(default_factory=LoraConfig)
    max_prompt_tokens: int = bounded(512, at_least=8)
    max_completion_tokens: int = bounded(512, at_least=2)
    max_new_tokens: int = bounded(1024, at_least=1)  # paper A's limit at evaluation
    self_consistency: int = bounded(1, at_least=1)  # answers sampled per problem for a majority vote; 1 decodes greedily
    temperature: float = bounded(0.7, above=0, hint=_GREEDY)  # of those samples
    top_k: int | None = bounded(None, at_least=1)  # likeliest tokens they are drawn from; null for all

    remote: ClassVar[bool] = False
    is_teacher: ClassVar[bool] = False
    api_backed: ClassVar[bool] = False
    pretrained: ClassVar[bool] = True
    from_scratch: ClassVar[bool] = False

    def faults(self) -> Iterator[str]:
        """What is wrong beside the bounds of single options."""
        if self.path is not None:
            yield from folder_faults("student.path", self.path)
        elif not self.hub_id:
            yield f"student={self.name} needs student.hub_id=OWNER/NAME or student.path=FOLDER"

    def conflicts(self, config: Config) -> Iterator[str]:
        """What its options cannot be combined with."""
        if self.lora.rank is not None and config.trainer.strategy == "fsdp":
            yield "student.lora with trainer.strategy=fsdp: adapters are small; trainer.strategy=ddp"


@dataclass
class TinyStudentConfig:
    """A small model from scratch, with a tokenizer trained on the training text."""

    name: str = MISSING
    architecture: str = MISSING  # encoder_decoder (T5) or decoder (GPT-2)
    width: int = bounded(64, at_least=1)
    layers: int = bounded(2, at_least=1)
    heads: int = bounded(4, at_least=1)
    vocab_size: int = bounded(600, at_least=300)
    max_prompt_tokens: int = bounded(256, at_least=8)
    max_completion_tokens: int = bounded(256, at_least=2)
    max_new_tokens: int = bounded(256, at_least=1)
    self_consistency: int = bounded(1, at_least=1)
    temperature: float = bounded(0.7, above=0, hint=_GREEDY)
    top_k: int | None = bounded(None, at_least=1)

    remote: ClassVar[bool] = False
    is_teacher: ClassVar[bool] = False
    api_backed: ClassVar[bool] = False
    pretrained: ClassVar[bool] = False
    from_scratch: ClassVar[bool] = True

    def faults(self) -> Iterator[str]:
        """What is wrong beside the bounds of single options."""
        if self.heads >= 1 and self.width % self.heads:
            yield f"student.width={self.width} is not a multiple of student.heads={self.heads}"


@dataclass
class ApiStudentConfig:
    """A model fine-tuned through OpenAI's API; the key comes from OPENAI_API_KEY. Trainer settings do not apply to it."""

    name: str = MISSING
    model: str = MISSING  # the base model
    base_url: str | None = neutral(None, Why.SERVER)  # null: OpenAI, or the address in OPENAI_BASE_URL
    api_key_env: str | None = neutral(None, Why.SERVER)  # variable with the key; null: OPENAI_API_KEY, for OpenAI only; none: no key
    epochs: int = bounded(4, at_least=1)  # paper A's for GPT-3; the other hyperparameters are the API's own
    max_new_tokens: int = bounded(1024, at_least=1)  # limit of an answer at evaluation, in tokens
    self_consistency: int = bounded(1, at_least=1)  # answers sampled per problem for a majority vote; 1 asks for a greedy one
    temperature: float = 0.7  # of those samples
    # reasoning models want max_completion_tokens
    max_tokens_parameter: str = neutral("max_tokens", Why.SPELLING, one_of=("max_tokens", "max_completion_tokens"))
    concurrency: int | None = neutral(None, Why.PACE, at_least=1)  # requests in flight at evaluation; null finds out what the server takes
    requests_per_minute: float | None = neutral(None, Why.PACE, at_least=1)
    tokens_per_minute: float | None = neutral(None, Why.PACE, at_least=1)
    timeout_s: float = neutral(120.0, Why.PACE, above=0)  # one request, in seconds
    max_retries: int = neutral(20, Why.PACE, at_least=0)
    poll_s: float = neutral(30.0, Why.PACE, above=0)  # between two looks at the fine-tuning job, in seconds
    prices: str | None = neutral(None, Why.COST, file=True)  # YAML file; null takes conf/prices.yaml

    remote: ClassVar[bool] = True
    is_teacher: ClassVar[bool] = False
    api_backed: ClassVar[bool] = True
    pretrained: ClassVar[bool] = False
    from_scratch: ClassVar[bool] = False

    def faults(self) -> Iterator[str]:
        """What is wrong beside the bounds of single options."""
        yield from url_faults("student", self.base_url)

    def conflicts(self, config: Config) -> Iterator[str]:
        """The key that it lacks."""
        if not config.dry_run and config.until in ("train", "evaluate"):
            yield from server_key_faults("student", self)

    def price(self, model: str | None = None) -> Price | None:
        """The price of the base model's tokens, or of another model's such as a fine-tuned one; None where nobody knows it."""
        return price_of(self, "student.prices", model or self.model)


@dataclass
class TeacherAsStudentConfig:
    """The teacher in the student's place: it answers the test problems, untrained."""

    name: str = MISSING
    self_consistency: int = bounded(1, at_least=1)  # completions per problem for a majority vote; 1 asks for a greedy one

    remote: ClassVar[bool] = True
    is_teacher: ClassVar[bool] = True
    api_backed: ClassVar[bool] = False
    pretrained: ClassVar[bool] = False
    from_scratch: ClassVar[bool] = False

    def conflicts(self, config: Config) -> Iterator[str]:
        """A teacher is evaluated, never trained."""
        from fcot.methods.table import METHODS

        method = config.method.name
        if config.until != "evaluate":
            yield f"until={config.until}: student=teacher is evaluated, and nothing else"
        if method in METHODS and METHODS[method].trains:
            yield f"student=teacher is not trained: method=zero_shot, zero_shot_cot or few_shot_cot, not method={method}"


@dataclass
class TrainerConfig:
    """How the student is trained and which checkpoint is reported."""

    name: str = neutral(MISSING, Why.NAMED)
    lr: float = bounded(MISSING, above=0)
    weight_decay: float = bounded(0.01, at_least=0)
    batch_size: int = bounded(MISSING, at_least=1)  # samples per optimizer step, over all devices
    batch_tokens: int | None = bounded(None, at_least=1)  # tokens per optimizer step, padding included; takes the place of batch_size
    micro_batches: int = bounded(1, at_least=1)  # gradient accumulation: parts of a step computed one after the other
    packing: bool = False  # decoders: samples one behind the other in a row, none of which sees another
    # decoders: of a prompt token beside a completion token's 1; OpenAI's recipe has 0.01
    prompt_loss_weight: float = bounded(0.0, at_least=0)
    # decoders: of a token of the prompt's demonstrations; paper B's code has 0.1
    demonstration_loss_weight: float = bounded(0.0, at_least=0)
    # over the tokens by their weights; counted: over all that have any (paper B)
    loss_mean: str = bounded("weighted", one_of=("weighted", "counted"))
    epochs: int | None = bounded(None, at_least=1)  # the first of epochs and max_steps ends the training
    max_steps: int | None = bounded(None, at_least=1)
    schedule: str = bounded("linear", one_of=("constant", "linear", "cosine"))
    warmup_steps: int = bounded(0, at_least=0)
    clip_norm: float | None = bounded(1.0, above=0, hint=", or null")
    # auto: bf16-mixed where the GPU has it, else 32-true
    precision: str = bounded("auto", one_of=("auto", "32-true", "bf16-mixed", "16-mixed"))
    tf32: bool = False  # let a GPU round the factors of float32 products
    compile: bool = False  # torch.compile the forward pass
    gradient_checkpointing: bool = False  # compute activations twice instead of keeping them
    evaluate_every_steps: int | None = bounded(None, at_least=1)  # takes the place of evaluate_every_epochs
    evaluate_every_epochs: int | None = bounded(1, at_least=1)  # null: at the end only
    # the checkpoint that is reported: validation (problems held out from train) or last
    selection: str = bounded("validation", one_of=("validation", "last"))
    best_epoch: bool = False  # evaluate the test set each time as well: accuracy_best_epoch (paper A's figure)
    patience: int | None = bounded(None, at_least=1)  # stop after so many evaluations without a better validation accuracy
    eval_batch_tokens: int = neutral(32768, Why.DEVICES, at_least=1)  # decoding: rows times length up to which prompts enter the model
    eval_precision: str = bounded("32-true", one_of=("32-true", "bf16-true"))  # of decoding
    devices: int = neutral(1, Why.DEVICES, at_least=1)  # processes on each machine, one a device
    nodes: int = neutral(1, Why.DEVICES, at_least=1)  # machines
    strategy: str = neutral("ddp", Why.DEVICES, one_of=("ddp", "fsdp"))  # of several devices: ddp, or fsdp (weights spread over them)
    # seconds between two checkpoints at least; more where writing takes over 5 %
    checkpoint_every_s: float = neutral(10.0, Why.PACE, at_least=0)

    def faults(self) -> Iterator[str]:
        """What is wrong beside the bounds of single options."""
        if self.patience is not None and self.selection != "validation":
            yield "trainer.patience needs validation problems: trainer.selection=validation"
        if self.epochs is None and self.max_steps is None:
            yield "trainer.epochs and trainer.max_steps are both null: training would not end"


SCHEMAS = {
    ("student", "pretrained"): PretrainedStudentConfig,
    ("student", "tiny"): TinyStudentConfig,
    ("student", "api"): ApiStudentConfig,
    ("student", "teacher"): TeacherAsStudentConfig,
    ("trainer", "trainer"): TrainerConfig,
}
