"""The options of ``student`` and ``trainer``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from omegaconf import MISSING

from fcot.base.fields import Why, absent_at, bounded, neutral, resolved
from fcot.teacher.config import folder_faults, price_of, server_faults, server_key_faults

if TYPE_CHECKING:
    from fcot.config.schema import Config
    from fcot.llm.money import Price

_GREEDY = "; student.self_consistency=1 decodes greedily"


class StudentConfig(Protocol):
    """What every student's schema declares.

    Attributes:
        name: The choice in ``conf/student``.
        remote: Whether a server generates its answers, rather than a model that fcot loads.
        is_teacher: Whether the teacher itself is evaluated as the student.
        api_backed: Whether it is fine-tuned and evaluated through an API.
        pretrained: Whether its parameters are loaded from a folder or the hub.
        from_scratch: Whether its parameters are random before training.
        base_model: The model that it is made from: a hub id, a folder's name, or an API's name; None where there is none.
    """

    name: str
    remote: ClassVar[bool]
    is_teacher: ClassVar[bool]
    api_backed: ClassVar[bool]
    pretrained: ClassVar[bool]
    from_scratch: ClassVar[bool]

    @property
    def base_model(self) -> str | None: ...  # noqa: D102


@dataclass
class LoraConfig:
    """Low-rank adapters, trained instead of all parameters; they are merged into the saved student."""

    rank: int | None = bounded(None, at_least=1)  # null trains all parameters
    alpha: float = bounded(32.0, above=0)  # scale: an adapter's output is multiplied by alpha / rank
    dropout: float = bounded(0.0, at_least=0, below=1)  # dropout rate of an adapter's input
    targets: list[str] | None = None  # names of layers, or [all-linear]; null: peft's choice for the family


@dataclass
class PretrainedStudentConfig:
    """A pretrained encoder-decoder or decoder of transformers: T5, Flan-T5, GPT-2, Llama, Qwen, SmolLM and the like."""

    name: str = MISSING
    hub_id: str | None = MISSING  # OWNER/NAME on the hub; may be null if path is set
    revision: str | None = None  # branch, tag or commit of hub_id; null: the main branch
    path: str | None = resolved(None, "the folder's content")  # local folder, used instead of hub_id
    chat_template: bool = False  # format questions with the tokenizer's chat template
    lora: LoraConfig = field(default_factory=LoraConfig)
    max_prompt_tokens: int = bounded(512, at_least=8)  # limit of a prompt; a longer one loses demonstrations, then its beginning
    max_completion_tokens: int = bounded(512, at_least=2)  # limit of a completion in training; a longer one loses its end
    max_new_tokens: int = bounded(1024, at_least=1)  # limit of an answer at evaluation, in tokens; paper A uses 1024
    self_consistency: int = bounded(1, at_least=1)  # answers sampled per problem for a majority vote; 1 decodes greedily
    temperature: float = bounded(0.7, above=0, hint=_GREEDY)  # sampling temperature; needs self_consistency above 1
    top_k: int | None = bounded(None, at_least=1)  # sample from this many likeliest tokens; null: from all
    calculator: bool = absent_at(False)  # whenever it answers, correct wrong numbers after an equals sign (docs: evaluation)

    remote: ClassVar[bool] = False
    is_teacher: ClassVar[bool] = False
    api_backed: ClassVar[bool] = False
    pretrained: ClassVar[bool] = True
    from_scratch: ClassVar[bool] = False

    @property
    def base_model(self) -> str | None:
        """The hub id, or the folder's name; a student of an earlier run has that run's name."""
        if self.path is None:
            return self.hub_id
        folder = Path(self.path).resolve()
        return folder.parent.name if folder.name == "student" else folder.name

    def faults(self) -> Iterator[str]:
        """Messages about invalid options that the bounds of single options do not catch."""
        if self.path is not None:
            yield from folder_faults("student.path", self.path)
        elif not self.hub_id:
            yield f"student={self.name} needs student.hub_id=OWNER/NAME or student.path=FOLDER"

    def conflicts(self, config: Config) -> Iterator[str]:
        """Messages about options that cannot be combined with the rest of the configuration."""
        if self.lora.rank is not None and config.trainer.strategy == "fsdp":
            yield "student.lora cannot be combined with trainer.strategy=fsdp; adapters are small: use trainer.strategy=ddp"


@dataclass
class TinyStudentConfig:
    """A small model trained from scratch; its tokenizer is trained on the training texts, or is that of another student."""

    name: str = MISSING
    architecture: str = MISSING  # encoder_decoder (T5) or decoder (GPT-2)
    width: int = bounded(64, at_least=1)  # hidden size, a multiple of heads
    layers: int = bounded(2, at_least=1)  # for T5, of the encoder and of the decoder each
    heads: int = bounded(4, at_least=1)  # attention heads
    vocab_size: int = bounded(600, at_least=300)  # largest size of the tokenizer's vocabulary
    tokenizer: str | None = resolved(None, "the tokenizer's content")  # folder of a student whose tokenizer is used; null: train one
    max_prompt_tokens: int = bounded(256, at_least=8)
    max_completion_tokens: int = bounded(256, at_least=2)
    max_new_tokens: int = bounded(256, at_least=1)
    self_consistency: int = bounded(1, at_least=1)
    temperature: float = bounded(0.7, above=0, hint=_GREEDY)
    top_k: int | None = bounded(None, at_least=1)
    calculator: bool = absent_at(False)

    remote: ClassVar[bool] = False
    is_teacher: ClassVar[bool] = False
    api_backed: ClassVar[bool] = False
    pretrained: ClassVar[bool] = False
    from_scratch: ClassVar[bool] = True
    base_model: ClassVar[str | None] = None

    def faults(self) -> Iterator[str]:
        """Messages about invalid options that the bounds of single options do not catch."""
        if self.heads >= 1 and self.width % self.heads:
            yield f"student.width={self.width} is not a multiple of student.heads={self.heads}"
        if self.tokenizer is not None and not (Path(self.tokenizer) / "tokenizer.json").is_file():
            yield f"student.tokenizer={self.tokenizer}: no folder with a tokenizer.json"


@dataclass
class ApiStudentConfig:
    """A model fine-tuned through OpenAI's API; the key comes from OPENAI_API_KEY. Trainer settings do not apply to it."""

    name: str = MISSING
    model: str = MISSING  # the base model
    base_url: str | None = neutral(None, Why.SERVER)  # null: OpenAI, or the address in OPENAI_BASE_URL
    api_key_env: str | None = neutral(None, Why.SERVER)  # variable with the key; null: OPENAI_API_KEY, for OpenAI only; none: no key
    # further headers by name; a value names the environment variable with the header's value: {X-Team: TEAM_TOKEN}
    headers: dict[str, str] = neutral({}, Why.SERVER)
    # method=as_trained: folder of the finished student, whose model is then student.model (fcot evaluate sets both)
    path: str | None = resolved(None, "how the student is prompted")
    epochs: int = bounded(4, at_least=1)  # paper A's value for GPT-3; the other hyperparameters are the API's defaults
    max_new_tokens: int = bounded(1024, at_least=1)  # limit of an answer at evaluation, in tokens
    self_consistency: int = bounded(1, at_least=1)  # answers sampled per problem for a majority vote; 1: one greedy answer
    temperature: float = 0.7  # sampling temperature; needs self_consistency above 1
    # reasoning models need max_completion_tokens
    max_tokens_parameter: str = neutral("max_tokens", Why.SPELLING, one_of=("max_tokens", "max_completion_tokens"))
    concurrency: int | None = neutral(None, Why.PACE, at_least=1)  # requests in flight at evaluation; null adapts to the server
    requests_per_minute: float | None = neutral(None, Why.PACE, at_least=1)
    tokens_per_minute: float | None = neutral(None, Why.PACE, at_least=1)
    timeout_s: float = neutral(120.0, Why.PACE, above=0)  # seconds until a request fails
    max_retries: int = neutral(20, Why.PACE, at_least=0)
    poll_s: float = neutral(30.0, Why.PACE, above=0)  # seconds between two checks of the fine-tuning job
    prices: str | None = neutral(None, Why.COST, file=True)  # YAML file with prices; null: conf/prices.yaml

    remote: ClassVar[bool] = True
    is_teacher: ClassVar[bool] = False
    api_backed: ClassVar[bool] = True
    pretrained: ClassVar[bool] = False
    from_scratch: ClassVar[bool] = False

    @property
    def base_model(self) -> str | None:
        """The model's name at the API."""
        return self.model

    def faults(self) -> Iterator[str]:
        """Messages about invalid options that the bounds of single options do not catch."""
        from fcot.student.interface import API_FILE

        yield from server_faults("student", self)
        if self.path is not None and not (Path(self.path) / API_FILE).is_file():
            yield f"student.path={self.path}: no finished API-backed student, because it has no {API_FILE}"

    def conflicts(self, config: Config) -> Iterator[str]:
        """Messages about the server's key and headers, and about a finished student that would be trained."""
        if self.path is not None and config.method.name != "as_trained":
            yield f"student.path names a finished API-backed student, and method={config.method.name} needs none: use method=as_trained"
        if not config.dry_run and config.until in ("train", "evaluate"):
            yield from self.credential_faults()

    def credential_faults(self) -> Iterator[str]:
        """Messages about a missing key, and about headers without a value. A dry run shows them as notes, because it sends nothing."""
        yield from server_key_faults("student", self)

    def price(self, model: str | None = None) -> Price | None:
        """The price of a model's tokens, None if unknown.

        Args:
            model: Name of the model, such as a fine-tuned one; None: the base model.
        """
        return price_of(self, "student.prices", model or self.model)


@dataclass
class TeacherAsStudentConfig:
    """The teacher, evaluated as the student: it answers the test problems, without training."""

    name: str = MISSING
    self_consistency: int = bounded(1, at_least=1)  # completions per problem for a majority vote; 1: one greedy completion

    remote: ClassVar[bool] = True
    is_teacher: ClassVar[bool] = True
    api_backed: ClassVar[bool] = False
    pretrained: ClassVar[bool] = False
    from_scratch: ClassVar[bool] = False
    base_model: ClassVar[str | None] = None

    def conflicts(self, config: Config) -> Iterator[str]:
        """Messages about settings that would train the teacher: it can only be evaluated."""
        from fcot.methods.table import METHODS

        method = config.method.name
        if config.until != "evaluate":
            yield f"until={config.until}: student=teacher can only be evaluated; use until=evaluate"
        if method in METHODS and METHODS[method].trains:
            yield f"method={method} trains, and student=teacher cannot be trained; use method=zero_shot, zero_shot_cot or few_shot_cot"


@dataclass
class TrainerConfig:
    """How the student is trained and which checkpoint is reported."""

    name: str = neutral(MISSING, Why.NAMED)
    lr: float = bounded(MISSING, above=0)  # peak learning rate of AdamW
    weight_decay: float = bounded(0.01, at_least=0)  # weight decay of AdamW
    batch_size: int = bounded(MISSING, at_least=1)  # samples per optimizer step, over all devices
    batch_tokens: int | None = bounded(None, at_least=1)  # most tokens per optimizer step, padding included; used instead of batch_size
    micro_batches: int = bounded(1, at_least=1)  # gradient accumulation: parts of a step that are computed one after the other
    packing: bool = False  # decoders: concatenate samples in one row; no sample attends to another
    # decoders: loss weight of a prompt token, where a completion token has 1; OpenAI's recipe has 0.01
    prompt_loss_weight: float = bounded(0.0, at_least=0)
    # decoders: loss weight of a token of the prompt's demonstrations; paper B's code has 0.1
    demonstration_loss_weight: float = bounded(0.0, at_least=0)
    # weighted: divide the loss by the sum of the token weights; counted: by the number of tokens with a weight above 0 (paper B)
    loss_mean: str = bounded("weighted", one_of=("weighted", "counted"))
    epochs: int | None = bounded(None, at_least=1)  # training ends after epochs or max_steps, whichever comes first
    max_steps: int | None = bounded(None, at_least=1)
    # linear and cosine: the learning rate decays to zero by the last step
    schedule: str = bounded("linear", one_of=("constant", "linear", "cosine"))
    warmup_steps: int = bounded(0, at_least=0)  # optimizer steps over which the learning rate rises linearly to its peak
    clip_norm: float | None = bounded(1.0, above=0, hint=", or null")  # largest norm of the gradients; null: no clipping
    # auto: bf16-mixed on a GPU that supports it, else 32-true
    precision: str = bounded("auto", one_of=("auto", "32-true", "bf16-mixed", "16-mixed"))
    tf32: bool = False  # faster float32 matrix products on a GPU, with inputs rounded to TF32
    compile: bool = False  # torch.compile the forward pass
    gradient_checkpointing: bool = False  # recompute activations in the backward pass instead of storing them
    evaluate_every_steps: int | None = bounded(None, at_least=1)  # used instead of evaluate_every_epochs
    evaluate_every_epochs: int | None = bounded(1, at_least=1)  # null: only at the end
    # the checkpoint that is reported: validation (the best on problems held out from train) or last
    selection: str = bounded("validation", one_of=("validation", "last"))
    best_epoch: bool = False  # at each evaluation also answer the test problems, for accuracy_best_epoch (paper A's figure)
    patience: int | None = bounded(None, at_least=1)  # stop after this many evaluations without a better validation accuracy
    eval_batch_tokens: int = neutral(32768, Why.DEVICES, at_least=1)  # decoding: tokens of a batch, rows times length
    eval_precision: str = bounded("32-true", one_of=("32-true", "bf16-true"))  # precision of decoding
    devices: int = neutral(1, Why.DEVICES, at_least=1)  # processes per machine, one per device
    nodes: int = neutral(1, Why.DEVICES, at_least=1)  # machines
    # with several devices: ddp, or fsdp (parameters sharded over the devices)
    strategy: str = neutral("ddp", Why.DEVICES, one_of=("ddp", "fsdp"))
    # least seconds between two checkpoints; longer if writing them would take more than 5 % of the time
    checkpoint_every_s: float = neutral(10.0, Why.PACE, at_least=0)

    def faults(self) -> Iterator[str]:
        """Messages about invalid options that the bounds of single options do not catch."""
        if self.patience is not None and self.selection != "validation":
            yield "trainer.patience needs validation problems: set trainer.selection=validation, or trainer.patience=null"
        if self.epochs is None and self.max_steps is None:
            yield "trainer.epochs and trainer.max_steps are both null: training would not end; set one of them"


SCHEMAS = {
    ("student", "pretrained"): PretrainedStudentConfig,
    ("student", "tiny"): TinyStudentConfig,
    ("student", "api"): ApiStudentConfig,
    ("student", "teacher"): TeacherAsStudentConfig,
    ("trainer", "trainer"): TrainerConfig,
}
