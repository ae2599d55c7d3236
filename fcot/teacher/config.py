"""The options of ``teacher``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from omegaconf import MISSING

from fcot.base.fields import To, Why, neutral, resolved
from fcot.base.resources import PRICES

if TYPE_CHECKING:  # not imported at run time, so that --help and --cfg job stay fast
    from fcot.config.schema import Config
    from fcot.llm.money import Price
    from fcot.llm.requests import Teacher

ENDPOINTS = ("chat", "completions")


class TeacherConfig(Protocol):
    """The interface of every teacher's options, including teachers of other packages.

    A schema may also have ``faults()``, which returns messages about invalid options, and ``conflicts(config)``, which returns messages
    about options that contradict other groups of the configuration.

    Attributes:
        name: The name that selects the teacher: ``teacher=NAME``.
        generates: Whether the teacher writes new completions; a replayed file does not.
        priced: Whether its tokens cost money. If so, it has the options ``budget_usd`` and ``prices``.
        local: Whether its model is loaded on this machine.
        terms: Text for the student's model card: the terms that apply to the rationales. ``{teacher}`` stands for the teacher's name.
    """

    name: str
    generates: ClassVar[bool]
    priced: ClassVar[bool]
    local: ClassVar[bool]
    terms: ClassVar[str]

    def price(self) -> Price | None:
        """The price of the teacher's tokens; None if it is unknown."""

    def build(self, config: Any, temperature: float) -> Teacher:
        """Make the teacher of a run.

        Args:
            config: The configuration of the run (:class:`fcot.config.schema.Config`).
            temperature: The sampling temperature, resolved; 0 is greedy decoding.
        """


class _Priced(Protocol):
    prices: str | None


class ServerConfig(Protocol):
    """The options of a server with a key and headers."""

    name: str
    base_url: str | None
    api_key_env: str | None
    headers: dict[str, str]


def price_of(server: _Priced, option: str, model: str, parameters: Mapping[str, Any] | None = None) -> Price | None:
    """The price of a server's model; None if it is unknown.

    Args:
        server: Options with ``prices``: a file, or None for ``conf/prices.yaml``.
        option: The option that names the file, for messages.
        model: The model's name at the server.
        parameters: Request parameters, of which ``service_tier`` changes the price; None without any.
    """
    from fcot.llm.money import read_price

    path = Path(server.prices) if server.prices else PRICES
    return read_price(path, model, option, (parameters or {}).get("service_tier")) if path.is_file() else None


def free_price(_: object) -> Price | None:
    """The price of a teacher whose tokens cost nothing."""
    from fcot.llm.money import FREE

    return FREE


def server_faults(group: str, server: ServerConfig) -> Iterator[str]:
    """Messages about an invalid server address, and about invalid headers.

    Args:
        group: The config group that messages name: ``teacher`` or ``student``.
        server: The server's options.
    """
    from fcot.llm.server import header_faults

    if server.base_url is not None and not server.base_url.startswith(("http://", "https://")):
        yield f"{group}.base_url={server.base_url}: not a URL such as http://127.0.0.1:8000/v1"
    yield from header_faults(f"{group}.headers", server.headers)


def server_key_faults(group: str, server: ServerConfig) -> Iterator[str]:
    """Messages about a missing or ambiguous key for a server, and about headers without a value.

    Args:
        group: The config group that messages name: ``teacher`` or ``student``.
        server: The server's options.
    """
    from fcot.llm.server import key_fault, unset_header_faults

    if (fault := key_fault(f"{group}.", server.base_url, server.api_key_env)) is not None:
        yield fault if fault.startswith(f"{group}.") else f"{group}={server.name} {fault}"
    yield from unset_header_faults(f"{group}.headers", server.headers)


class _Sampled(Protocol):
    temperature: float | None


def greedy_conflicts(teacher: _Sampled, config: Config) -> Iterator[str]:
    """Messages about greedy decoding of several completions per problem."""
    is_teacher = config.student.is_teacher
    option, n = ("student.self_consistency", config.student.self_consistency) if is_teacher else ("diversity", config.diversity)
    if teacher.temperature == 0 and n > 1:
        yield f"teacher.temperature=0 with {option}={n}: greedy decoding gives the same rationale every time; leave the temperature out"


def folder_faults(option: str, value: str) -> Iterator[str]:
    """Messages about a folder that is not a transformers model."""
    folder = Path(value)
    if not folder.is_dir():
        yield f"{option}={folder}: no such folder"
    elif not (folder / "config.json").is_file():
        yield f"{option}={folder}: not a transformers model, because it has no config.json"
    elif not any(file.suffix in (".safetensors", ".bin") for file in folder.iterdir()):
        yield f"{option}={folder}: has no parameters (model.safetensors or pytorch_model.bin)"


@dataclass
class OracleTeacherConfig:
    """The oracle, which solves the toy tasks."""

    name: str = neutral("oracle", Why.NAMED)
    error_rate: float = resolved(0.1, To.KEY, at_least=0, at_most=1)  # share of rationales with a wrong step
    temperature: float | None = resolved(None, To.KEY, at_least=0)

    generates: ClassVar[bool] = True
    priced: ClassVar[bool] = False
    local: ClassVar[bool] = False
    terms: ClassVar[str] = "The training rationales were written by a program that is part of fcot; no terms apply to them."

    def conflicts(self, config: Config) -> Iterator[str]:
        """Messages about tasks other than the toy tasks."""
        if not config.dataset.toy:
            yield f"teacher=oracle solves the toy tasks only, not dataset={config.dataset.name}: use teacher=openai, hf or replay"

    price = free_price

    def build(self, config: Any, temperature: float) -> Teacher:
        """The teacher of a run with this configuration (:class:`fcot.config.schema.Config`)."""
        from fcot.teacher.oracle import Oracle

        return Oracle(config.dataset.name, self.error_rate, temperature)


@dataclass
class ReplayTeacherConfig:
    """Completion files in the authors' format."""

    name: str = neutral("replay", Why.NAMED)
    path: str = resolved(MISSING, "the completions that were read")  # a file, or a folder whose files of this task are read
    temperature: float | None = neutral(None, "the completions exist already", at_least=0)  # not used; experiments may set it

    def faults(self) -> Iterator[str]:
        """Messages about invalid options that their bounds do not exclude."""
        if self.path and not Path(self.path).exists():
            yield f"teacher.path={self.path}: no such file or folder"

    generates: ClassVar[bool] = False
    priced: ClassVar[bool] = False
    local: ClassVar[bool] = False
    terms: ClassVar[str] = (
        "The training rationales were read from a file of completions of {teacher}. Whoever provides that model may restrict what "
        "its output is used for, such as training other models: read their terms before you publish or sell this student."
    )

    def conflicts(self, config: Config) -> Iterator[str]:
        """Messages about methods and tasks for which there are no files, and about greedy decoding."""
        if config.student.is_teacher and config.method.name in ("zero_shot", "few_shot_cot"):
            yield "teacher=replay holds rationales of Zero-shot-CoT: use method=zero_shot_cot"
        if config.dataset.toy:
            yield f"teacher=replay has nothing for dataset={config.dataset.name}: use teacher=oracle"
        yield from greedy_conflicts(self, config)

    price = free_price


@dataclass
class OpenAITeacherConfig:
    """Any OpenAI-compatible server; keys come from environment variables only."""

    name: str = neutral("openai", Why.NAMED)
    batch: bool = neutral(False, "the same requests, sent another way")  # use the Batch API
    model: str = resolved(MISSING, To.KEY)
    model_id: str | None = resolved(None, To.KEY)  # name in the store's keys; null takes model
    endpoint: str = resolved("chat", "whether prompts are chat messages", one_of=ENDPOINTS)
    base_url: str | None = neutral(None, Why.SERVER)  # null: OpenAI, or the address in OPENAI_BASE_URL
    api_key_env: str | None = neutral(None, Why.SERVER)  # variable with the key; null: OPENAI_API_KEY, for OpenAI only; none: no key
    # further headers by name; a value names the environment variable with the header's value: {X-Team: TEAM_TOKEN}
    headers: dict[str, str] = neutral({}, Why.SERVER)
    temperature: float | None = resolved(None, To.KEY, at_least=0)  # null: 0 where diversity=1, else 0.7
    parameters: dict[str, Any] = resolved({}, To.KEY)  # further request parameters by name; the value null leaves a parameter out
    # the name of the parameter that limits answers; reasoning models need max_completion_tokens
    max_tokens_parameter: str = neutral("max_tokens", Why.SPELLING, one_of=("max_tokens", "max_completion_tokens"))
    max_choices_per_request: int = neutral(
        8, Why.PACE, at_least=1
    )  # completions of one prompt in one request, so that the prompt is paid once
    resample_identical: bool = False  # buy up to D more rationales instead of repeated ones
    # store the teacher's k likeliest tokens at each token of a rationale, at most 20 at OpenAI; for objective.teacher=stored or server
    top_logprobs: int | None = neutral(None, Why.STORED, at_least=1)
    tokenizer: str | None = neutral(None, Why.STORED)  # folder or hub id of the teacher's tokenizer; top_logprobs needs it
    # whether stored rationales without distributions are scored, by a server with vLLM's prompt_logprobs
    score_stored: bool = neutral(False, Why.STORED)
    concurrency: int | None = neutral(None, Why.PACE, at_least=1)  # most requests in flight; null finds out how many the server accepts
    requests_per_minute: float | None = neutral(None, Why.PACE, at_least=1)
    tokens_per_minute: float | None = neutral(None, Why.PACE, at_least=1)
    timeout_s: float = neutral(120.0, Why.PACE, above=0)  # of one request, in seconds
    max_retries: int = neutral(20, Why.PACE, at_least=0)
    poll_s: float = neutral(30.0, Why.PACE, above=0)  # between two checks of a batch, in seconds
    # hard stop of one run, in USD
    budget_usd: float | None = neutral(None, "a run that its budget ended continues with a larger one", above=0)
    prices: str | None = neutral(None, Why.COST, file=True)  # YAML file; null takes conf/prices.yaml

    @property
    def tokenizer_source(self) -> str:
        """Folder or hub id of its tokenizer."""
        return str(self.tokenizer)

    def faults(self) -> Iterator[str]:
        """Messages about invalid options that their bounds do not exclude."""
        from fcot.llm.requests import OWN_PARAMETERS

        yield from server_faults("teacher", self)
        for name, value in self.parameters.items():
            if name in OWN_PARAMETERS:
                yield f"teacher.parameters: fcot sets {name} itself; leave it out here"
            elif name in ("seed", "max_tokens", "max_completion_tokens") and value is not None:
                yield f"teacher.parameters: fcot sets {name} itself; null leaves it out, prompt.rationale_tokens limits answers"
        if self.top_logprobs is not None and self.tokenizer is None:
            yield "teacher.top_logprobs needs the teacher's tokenizer, a folder or hub id: teacher.tokenizer=OWNER/NAME"
        if self.score_stored and (self.top_logprobs is None or self.batch):
            yield "teacher.score_stored needs teacher.top_logprobs=K, and a server online (teacher=openai) that has vLLM's prompt_logprobs"
        if self.budget_usd is not None and self.model and self.parameters.get(self.max_tokens_parameter, 0) is None:
            yield f"teacher.budget_usd needs a limit on answers: {self.max_tokens_parameter} cannot be left out"

    generates: ClassVar[bool] = True
    priced: ClassVar[bool] = True
    local: ClassVar[bool] = False
    terms: ClassVar[str] = (
        "The training rationales were written by {teacher} behind an API. Its provider's terms apply to them; OpenAI's, for one, "
        "do not allow output to be used to develop models that compete with OpenAI's. Read them before you publish or sell this student."
    )

    def conflicts(self, config: Config) -> Iterator[str]:
        """Messages about a missing key or price, and about greedy decoding."""
        from fcot.llm.money import no_price_in

        if not config.dry_run:
            yield from self.credential_faults()
        if self.budget_usd is not None and self.model and self.price() is None:
            tier = self.parameters.get("service_tier")
            none = no_price_in(Path(self.prices or PRICES), self.model)
            none += f" with service_tier={tier} (tiers: {{{tier}: SHARE}})" if tier else ""
            yield f"teacher.budget_usd needs a price, and {none}: set teacher.prices=FILE"
        yield from greedy_conflicts(self, config)

    def credential_faults(self) -> Iterator[str]:
        """Messages about a missing key, and about headers without a value. A dry run shows them as notes, because it sends nothing."""
        yield from server_key_faults("teacher", self)

    def price(self) -> Price | None:
        """The price of its tokens; None if it is unknown."""
        return price_of(self, "teacher.prices", self.model, self.parameters)

    def build(self, config: Any, temperature: float) -> Teacher:
        """The teacher of a run with this configuration (:class:`fcot.config.schema.Config`)."""
        from fcot.llm import connect
        from fcot.llm.logprobs import LogprobReader

        server = connect.server(
            self, "teacher", self.model, model_id=self.model_id, chat=self.endpoint == "chat", temperature=temperature,
            parameters=self.parameters,
            logprobs=LogprobReader(self.top_logprobs, str(self.tokenizer)) if self.top_logprobs else None,
        )  # fmt: skip
        online = connect.online(server, self, self.max_choices_per_request)
        if not self.batch:
            return online
        from fcot.llm.batch import BatchModel

        return BatchModel(server, online, self.poll_s)


@dataclass
class HFTeacherConfig:
    """A local transformers model, causal or encoder-decoder."""

    name: str = neutral("hf", Why.NAMED)
    model: str | None = resolved(None, To.KEY)  # hub id
    revision: str | None = resolved(None, To.KEY)  # of the hub id; null takes its main branch
    path: str | None = resolved(None, To.KEY)  # local folder, used instead of the hub
    model_id: str | None = resolved(None, To.KEY)  # name in the store's keys; null: hub id and revision, or the folder's content
    # chat: through the tokenizer's chat template
    endpoint: str = resolved("completions", "whether prompts are chat messages", one_of=ENDPOINTS)
    temperature: float | None = resolved(None, To.KEY, at_least=0)
    batch_size: int = neutral(16, Why.PACE, at_least=1)  # rows decoded at once; changes no result in float32
    # auto: bfloat16 if the GPU supports it, else float32
    dtype: str = resolved("auto", "the teacher's key; auto is left to the machine", one_of=("auto", "float32", "bfloat16", "float16"))
    max_choices_per_request: int = neutral(8, Why.PACE, at_least=1)
    resample_identical: bool = False
    # store the teacher's k likeliest tokens at each token of a rationale, for objective.teacher=stored
    top_logprobs: int | None = neutral(None, Why.STORED, at_least=1)

    score_stored: ClassVar[bool] = True  # rationales without distributions are always scored: it costs no money

    @property
    def tokenizer_source(self) -> str:
        """Folder or hub id of its tokenizer."""
        return self.path or str(self.model)

    def faults(self) -> Iterator[str]:
        """Messages about invalid options that their bounds do not exclude."""
        if self.path is None and self.model is None:
            yield "teacher=hf needs teacher.path=FOLDER or teacher.model=HUB_ID"
        if self.path is not None:
            yield from folder_faults("teacher.path", self.path)

    generates: ClassVar[bool] = True
    priced: ClassVar[bool] = False
    local: ClassVar[bool] = True
    terms: ClassVar[str] = (
        "The training rationales were written by {teacher}. Its license may bind what was trained on its output (some ask for "
        "attribution, some restrict commercial use)."
    )

    conflicts = greedy_conflicts

    price = free_price

    def build(self, config: Any, temperature: float) -> Teacher:
        """The teacher of a run with this configuration (:class:`fcot.config.schema.Config`)."""
        from fcot.llm.hf import HFModel, default_id

        source, revision = self.path or str(self.model), None if self.path else self.revision
        model_id = self.model_id or default_id(source, revision, Path(config.output_dir))
        return HFModel(
            source, revision, model_id, self.endpoint == "chat", temperature, self.batch_size, self.max_choices_per_request, self.dtype
        )


@dataclass
class FunctionTeacherConfig:
    """A Python function of your own (:class:`fcot.teacher.function.FunctionTeacher`)."""

    name: str = neutral("function", Why.NAMED)
    function: str = neutral(MISSING, "teacher.model_id names what it does")  # module.function, in the working folder or installed
    model_id: str = resolved(MISSING, To.KEY)  # name in the store's keys; another name generates all completions again
    endpoint: str = resolved("chat", "whether prompts are chat messages", one_of=ENDPOINTS)
    temperature: float | None = resolved(None, To.KEY, at_least=0)
    parameters: dict[str, Any] = resolved({}, To.KEY)  # further arguments of the function
    concurrency: int = neutral(1, Why.PACE, at_least=1)  # calls at the same time
    max_choices_per_request: int = neutral(1, Why.PACE, at_least=1)  # the most completions of one call
    resample_identical: bool = False

    generates: ClassVar[bool] = True
    priced: ClassVar[bool] = False
    local: ClassVar[bool] = False
    terms: ClassVar[str] = (
        "The training rationales were written by {teacher}, a program of the person who trained this student. If a model is behind it, the "
        "terms or the license of that model apply to them: read them before you publish or sell this student."
    )

    def faults(self) -> Iterator[str]:
        """Messages about invalid options that their bounds do not exclude."""
        if "." not in self.function.strip("."):
            yield f"teacher.function={self.function}: write module.function, such as my_teacher.answer"

    conflicts = greedy_conflicts

    price = free_price

    def build(self, config: Any, temperature: float) -> Teacher:
        """The teacher of a run with this configuration (:class:`fcot.config.schema.Config`)."""
        from fcot.base.plugins import load_function
        from fcot.teacher.function import FunctionTeacher

        function = load_function("teacher.function", self.function)
        return FunctionTeacher(
            function, self.model_id, self.endpoint == "chat", temperature, self.parameters, self.concurrency, self.max_choices_per_request
        )


SCHEMAS = {
    ("teacher", "oracle"): OracleTeacherConfig,
    ("teacher", "replay"): ReplayTeacherConfig,
    ("teacher", "openai"): OpenAITeacherConfig,
    ("teacher", "hf"): HFTeacherConfig,
    ("teacher", "function"): FunctionTeacherConfig,
}


def terms_of(name: str) -> str:
    """The terms that apply to the rationales of ``teacher=NAME``, with the placeholder ``{teacher}``.

    Args:
        name: The teacher's name; that of a teacher of another package gives the terms of an API.
    """
    schema = {"openai_batch": OpenAITeacherConfig}.get(name) or SCHEMAS.get(("teacher", name), OpenAITeacherConfig)
    return str(schema.terms)  # type: ignore[attr-defined]
