"""Connections to OpenAI-compatible servers, for teachers and API-backed students."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from fcot.llm.logprobs import LogprobReader
from fcot.llm.openai import OpenAIModel
from fcot.llm.server import Server
from fcot.llm.throttle import Throttle


class Settings(Protocol):
    """A configuration's settings for a server. The schemas of teachers and of API-backed students have these fields."""

    base_url: str | None
    api_key_env: str | None
    max_tokens_parameter: str
    concurrency: int | None
    requests_per_minute: float | None
    tokens_per_minute: float | None
    timeout_s: float
    max_retries: int
    headers: dict[str, str]


@dataclass
class Defaults:
    """The settings for a server of which only the address is known, as in a student's ``openai.json``. The rest are defaults."""

    base_url: str | None = None
    api_key_env: str | None = None
    max_tokens_parameter: str = "max_tokens"
    concurrency: int | None = None
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    timeout_s: float = 120.0
    max_retries: int = 20
    headers: dict[str, str] = field(default_factory=dict)


def server(
    settings: Settings, group: str, model: str, *, model_id: str | None = None, chat: bool = True, temperature: float = 0.0,
    parameters: Mapping[str, Any] | None = None, logprobs: LogprobReader | None = None,
) -> Server:  # fmt: skip
    """The server of a configuration.

    Args:
        settings: The configuration's settings.
        group: ``teacher`` or ``student``, for messages.
        model: The name sent to the server.
        model_id: The model's name in the store's keys; None takes ``model``.
        chat: Whether prompts are chat messages instead of texts.
        temperature: Sampling temperature.
        parameters: Further request parameters.
        logprobs: Requests and reads distributions; None: none are requested.
    """
    return Server(
        model=model, model_id=model_id or model, chat=chat, temperature=temperature, parameters=parameters or {},
        max_tokens_parameter=settings.max_tokens_parameter, base_url=settings.base_url, timeout_s=settings.timeout_s, group=group,
        api_key_env=settings.api_key_env, headers=settings.headers, logprobs=logprobs,
    )  # fmt: skip


def online(to: Server, settings: Settings, max_choices: int) -> OpenAIModel:
    """A model behind a server, used online.

    Args:
        to: The server.
        settings: The limits on concurrency, rates, time and retries.
        max_choices: The most choices per request.
    """
    throttle = Throttle(settings.concurrency, settings.requests_per_minute, settings.tokens_per_minute, settings.timeout_s)
    return OpenAIModel(to, throttle, max_choices, settings.max_retries)
