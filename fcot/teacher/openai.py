"""Any OpenAI-compatible server, through the official async client. Retries are ours; the client's own are off."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Mapping
from typing import Any

from fcot.errors import FcotError
from fcot.teacher.requests import Choice, Reply, Request, Usage

KEY_VARIABLE = "OPENAI_API_KEY"
_RETRY_STATUS = {408, 409, 425, 429}
_LONGEST_WAIT_S = 60.0


class OpenAITeacher:
    """A model behind ``/chat/completions`` or ``/completions``.

    Args:
        model: The name sent to the server.
        model_id: The name in the store's keys; the same weights behind two names share completions.
        endpoint: ``chat`` or ``completions``.
        temperature: Sampling temperature.
        base_url: Server, None for OpenAI's own. The key comes from ``OPENAI_API_KEY``; a server of one's own needs none.
        concurrency: Requests in flight.
        max_choices: Choices asked for in one request.
        timeout_s: Limit on one request, in seconds.
        max_retries: Further tries of a request that failed for a passing reason.
    """

    def __init__(
        self,
        *,
        model: str,
        model_id: str,
        endpoint: str,
        temperature: float,
        base_url: str | None,
        concurrency: int,
        max_choices: int,
        timeout_s: float,
        max_retries: int,
    ) -> None:
        self.identity: Mapping[str, Any] = {"model": model_id, "temperature": temperature}
        self.concurrency = concurrency
        self.max_choices = max_choices
        self._model = model
        self._endpoint = endpoint
        self._temperature = temperature
        self._base_url = base_url
        self._timeout_s = timeout_s
        self._max_retries = max_retries
        self._client: Any = None

    async def generate(self, request: Request, n: int, first_slot: int) -> Reply:
        """One request, retried while the reason may pass.

        Raises:
            FcotError: The server refuses (key, model, parameters, quota), or every retry failed.
        """
        for attempt in range(self._max_retries + 1):
            try:
                return _to_reply(await self._send(request, n, first_slot))
            except Exception as error:
                if (stop := self._stop_message(error)) is not None:
                    raise FcotError(stop) from error
                if attempt == self._max_retries:
                    where = f" at teacher.base_url={self._base_url}" if self._base_url else ""
                    raise FcotError(
                        f"teacher.model={self._model}{where}: {attempt + 1} tries of one request failed, the last with {_describe(error)}. "
                        "What was bought is in the store; the same command continues"
                    ) from error
                await asyncio.sleep(_wait(error, attempt))
        raise AssertionError("unreachable")

    async def _send(self, request: Request, n: int, first_slot: int) -> Any:
        import openai

        if self._client is None:
            self._client = openai.AsyncOpenAI(api_key=_key() or "unused", base_url=self._base_url, max_retries=0, timeout=self._timeout_s)
        shared = {
            "model": self._model, "temperature": self._temperature, "max_tokens": request.max_tokens, "n": n, "seed": first_slot,
        }  # fmt: skip
        if self._endpoint == "chat":
            return await self._client.chat.completions.create(messages=request.prompt, **shared)
        return await self._client.completions.create(prompt=request.prompt, **shared)

    def _stop_message(self, error: Exception) -> str | None:
        """Why more requests are pointless, or None where the reason may pass."""
        import openai

        if isinstance(error, openai.APIStatusError):
            status, reason = error.status_code, _describe(error)
            if status in (401, 403):
                sent = f"the server refuses the key in ${KEY_VARIABLE}" if os.environ.get(KEY_VARIABLE) else "the server wants a key"
                return f"{sent}: {reason}" + ("" if os.environ.get(KEY_VARIABLE) else f". Set the environment variable {KEY_VARIABLE}")
            if status == 404:
                where = f"teacher.base_url={self._base_url}: does it end in /v1?" if self._base_url else "OpenAI"
                return f"no model teacher.model={self._model} or no endpoint teacher.endpoint={self._endpoint} at {where} ({reason})"
            if getattr(error, "code", None) == "insufficient_quota":
                return f"the account's quota is used up: {reason}. The same command continues once there is more"
            if status < 500 and status not in _RETRY_STATUS:
                return f"the server refuses the request: {reason}"
            return None
        passing = (
            openai.APIConnectionError, openai.APIResponseValidationError, json.JSONDecodeError, UnicodeDecodeError, _Malformed,
        )  # fmt: skip
        return None if isinstance(error, passing) else f"{_describe(error)} while asking teacher.model={self._model}"

    async def close(self) -> None:
        """Close the connections; a later request opens new ones (each event loop needs its own)."""
        if self._client is not None:
            client, self._client = self._client, None
            await client.close()


class _Malformed(Exception):
    """An answer with status 200 that is not a completion."""


def _key() -> str:
    """The key from the environment; files it is read from often end in a newline."""
    return os.environ.get(KEY_VARIABLE, "").strip()


def _to_reply(answer: Any) -> Reply:
    choices = getattr(answer, "choices", None)
    if not choices or not isinstance(choices, list):
        raise _Malformed("an answer without choices")
    usage = getattr(answer, "usage", None)
    tokens = [getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
    return Reply([_to_choice(choice) for choice in choices], Usage(*(count if isinstance(count, int) else None for count in tokens)))


def _to_choice(choice: Any) -> Choice:
    holder = getattr(choice, "message", None) or choice
    text = getattr(holder, "content", getattr(holder, "text", 0))
    if not isinstance(text, str | None):
        raise _Malformed("a choice without text")
    text = (text or "").encode("utf-8", "replace").decode()  # half a surrogate pair cannot be stored
    if choice.finish_reason == "content_filter":
        return Choice(text, choice.finish_reason, refused="content_filter")
    return Choice(text, choice.finish_reason, refused=None if text.strip() else "empty")


def _wait(error: Exception, attempt: int) -> float:
    """Seconds before the next try: what the server asks for, else exponential with full jitter."""
    response = getattr(error, "response", None)
    asked = response.headers.get("retry-after") if response is not None else ""
    try:
        return min(_LONGEST_WAIT_S, float(asked or "")) + random.random() * 0.1
    except (TypeError, ValueError):
        return random.uniform(0.1, min(_LONGEST_WAIT_S, 0.5 * 2.0**attempt))


def _describe(error: Exception) -> str:
    """One line about an error; never the request, which holds the key, nor the key itself, which some servers repeat."""
    message = " ".join(str(getattr(error, "message", None) or error).split())
    if key := _key():
        message = message.replace(key, "***")
    return f"{type(error).__name__}: {message[:300].rstrip('.')}"
