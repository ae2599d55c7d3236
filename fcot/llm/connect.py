"""The one place where a connection to an OpenAI-compatible server is made from settings: for teachers and API-backed students."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from fcot.llm.openai import OpenAIModel, Server
from fcot.llm.throttle import Throttle


class Settings(Protocol):
    """What a configuration says of a server; the schemas of teachers and of API-backed students have these fields."""

    base_url: str | None
    api_key_env: str | None
    max_tokens_parameter: str
    concurrency: int | None
    requests_per_minute: float | None
    tokens_per_minute: float | None
    timeout_s: float
    max_retries: int


@dataclass
class Defaults:
    """The settings of a server that only its address is known of, as in a student's ``openai.json``."""

    base_url: str | None = None
    api_key_env: str | None = None
    max_tokens_parameter: str = "max_tokens"
    concurrency: int | None = None
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    timeout_s: float = 120.0
    max_retries: int = 20


def server(
    settings: Settings, group: str, model: str, *, model_id: str | None = None, chat: bool = True, temperature: float = 0.0,
    parameters: Mapping[str, Any] | None = None,
) -> Server:  # fmt: skip
    """A server and how requests to it are made.

    Args:
        settings: Of the configuration.
        group: ``teacher`` or ``student``, for messages.
        model: The name sent to the server.
        model_id: The name in the store's keys; None takes ``model``.
        chat: Chat messages rather than texts.
        temperature: Sampling temperature.
        parameters: Further request parameters.
    """
    return Server(
        model=model, model_id=model_id or model, chat=chat, temperature=temperature, parameters=parameters or {},
        max_tokens_parameter=settings.max_tokens_parameter, base_url=settings.base_url, timeout_s=settings.timeout_s, group=group,
        api_key_env=settings.api_key_env,
    )  # fmt: skip


def online(to: Server, settings: Settings, max_choices: int) -> OpenAIModel:
    """A model behind a server, asked online within the limits of ``settings``, for ``max_choices`` choices per request at most."""
    throttle = Throttle(settings.concurrency, settings.requests_per_minute, settings.tokens_per_minute, settings.timeout_s)
    return OpenAIModel(to, throttle, max_choices, settings.max_retries)
