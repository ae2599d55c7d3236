"""The options of ``teacher``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from fcot.fields import To, Why, neutral, resolved


@dataclass
class OracleTeacherConfig:
    """Solves the toy tasks."""

    name: str = neutral("oracle", Why.NAMED)
    error_rate: float = resolved(0.1, To.KEY)  # share of rationales with a wrong step
    temperature: float | None = resolved(None, To.KEY)


@dataclass
class ReplayTeacherConfig:
    """Completion files in the authors' format."""

    name: str = neutral("replay", Why.NAMED)
    path: str = resolved(MISSING, "the completions that were read")  # a file, or a folder whose files of this task are read
    temperature: float | None = neutral(None, "the completions are what they are")  # for experiments that set it


@dataclass
class OpenAITeacherConfig:
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
class HFTeacherConfig:
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
