"""Any OpenAI-compatible server, through the official async client. Retries are ours; the client's own are off."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any

from fcot.errors import BudgetSpent, FcotError
from fcot.progress import say
from fcot.teacher.requests import NO_ACCOUNT, OWN_PARAMETERS, Account, Choice, Reply, Request, Usage
from fcot.teacher.throttle import Throttle

KEY_VARIABLE = "OPENAI_API_KEY"
_RETRY_STATUS = {408, 409, 425, 429}
_PUSH_BACK_STATUS = {429, 503, 529}
_TOO_LONG = ("maximum context length", "context length is only", "available context size", "exceed_context_size")  # vLLM, llama.cpp
_LONGEST_WAIT_S = 60.0  # between tries, where the server does not say
_LONGEST_RETRY_AFTER_S = 600.0  # where it does; beyond that a person should know
TRIES_TO_CONNECT = 4  # until anything has succeeded: a wrong URL is told within seconds


class Server:
    """Where and how a server is asked: shared by the online and the batch back end.

    Args:
        model: The name sent to the server.
        model_id: The name in the store's keys; the same weights behind two names share completions.
        chat: ``/chat/completions`` rather than ``/completions``.
        temperature: Sampling temperature.
        parameters: Further request parameters; None drops one that would be sent (``temperature``, ``seed``).
        max_tokens_parameter: Its name for this model: ``max_tokens``, or ``max_completion_tokens``.
        base_url: Server, None for OpenAI's own. The key comes from ``OPENAI_API_KEY``; a server of one's own needs none.
        timeout_s: Limit on one request, in seconds.
        group: The config group that messages name: ``teacher``, or ``student`` for API students.
    """

    def __init__(
        self,
        *,
        model: str,
        model_id: str,
        chat: bool,
        temperature: float,
        parameters: Mapping[str, Any],
        max_tokens_parameter: str,
        base_url: str | None,
        timeout_s: float,
        group: str = "teacher",
    ) -> None:
        self.group = group
        self.model = model
        self.chat = chat
        self.path = "/chat/completions" if chat else "/completions"
        self.base_url = base_url
        self.timeout_s = timeout_s
        self._parameters = {"temperature": temperature, **parameters}
        self._max_tokens_parameter = max_tokens_parameter
        # A limit that is left out changes the answers; who asks, and on which terms, does not.
        more = {
            name: value for name, value in parameters.items()
            if name not in ("temperature", "seed", "user", "service_tier", "metadata", "store") and (value is not None or "max_" in name)
        }  # fmt: skip
        self.identity: Mapping[str, Any] = {
            "model": model_id, "temperature": self._parameters["temperature"], **({"parameters": more} if more else {}),
        }  # fmt: skip

    def client(self, **http: Any) -> Any:
        """A new client; each event loop needs its own."""
        import openai

        return openai.AsyncOpenAI(
            api_key=_key() or "unused", base_url=self.base_url, max_retries=0, timeout=self.timeout_s,
            http_client=openai.DefaultAioHttpClient(timeout=self.timeout_s, **http),
        )  # fmt: skip

    def body(self, request: Request, n: int, seed: int) -> dict[str, Any]:
        """The JSON that is sent."""
        body = {
            "model": self.model, ("messages" if self.chat else "prompt"): request.prompt, "n": n, "seed": seed,
            self._max_tokens_parameter: request.max_tokens, **({"stop": list(request.stop)} if request.stop else {}),
            **self._parameters,
        }  # fmt: skip
        return {name: value for name, value in body.items() if value is not None}

    def refusal(self, error: Exception) -> Choice | None:
        """The skipped answer that an error stands for, None for other errors: the prompt is at fault, not the server."""
        if getattr(error, "status_code", None) not in (400, 413, 422):
            return None
        code, message = str(getattr(error, "code", None) or ""), str(error).lower()
        if code == "content_filter" or "content management policy" in message:
            return Choice("", None, refused="prompt_filtered")
        if code in ("context_length_exceeded", "string_above_max_length") or any(words in message for words in _TOO_LONG):
            return Choice("", None, refused="too_long")
        return None

    def stop_message(self, error: Exception) -> str | None:
        """Why more requests are pointless, or None where the reason may pass."""
        import openai

        if not isinstance(error, openai.APIStatusError):
            passing = (openai.APIConnectionError, TimeoutError, json.JSONDecodeError, UnicodeDecodeError, Malformed)
            return None if isinstance(error, passing) else f"{describe(error)} while asking {self.group}.model={self.model}"
        status, reason = error.status_code, describe(error)
        if status in (401, 403):
            sent = f"the server refuses the key in ${KEY_VARIABLE}" if _key() else "the server wants a key"
            return f"{sent}: {reason}" + ("" if _key() else f". Set the environment variable {KEY_VARIABLE}")
        if status == 404:
            where = f"{self.group}.base_url={self.base_url}: does it end in /v1?" if self.base_url else "OpenAI"
            own = f"teacher.endpoint={'chat' if self.chat else 'completions'}" if self.group == "teacher" else error.request.url.path
            young = ". A model just trained may need some minutes: the same command goes on" if self.model.startswith("ft:") else ""
            return f"no model {self.group}.model={self.model} or no endpoint {own} at {where} ({reason}){young}"
        if error.code == "insufficient_quota":
            return f"the account's quota is used up: {reason}. The same command continues once there is more"
        if status >= 500 or status in _RETRY_STATUS:
            return None
        return f"the server refuses the request: {reason}{self.remedy(error)}"

    def remedy(self, error: Any) -> str:
        """The override that drops or renames the parameter a 400 complains about."""
        name = refused_parameter(error)
        if name == "stop":
            return ". prompt.stop=[] leaves it out"
        if name == self._max_tokens_parameter:
            other = "max_completion_tokens" if name == "max_tokens" else "max_tokens"
            return f". {self.group}.max_tokens_parameter={other} renames it"
        if self.group == "student":
            return f" (student.model={self.model})"
        if name is None or name in OWN_PARAMETERS or "." in name:
            return ""
        return f'. "teacher.parameters={{{name}:null}}" leaves it out (or give another value in the place of null)'

    def no_answer(self, error: Exception, tries: int) -> str:
        """The message for tries none of which got to a server."""
        where = f"{self.group}.base_url={self.base_url or 'OpenAI'}"
        return f"no server answers at {where} ({_root(error)}): is it running? {tries} tries"


def refused_parameter(error: Any) -> str | None:
    """The request parameter a refusal names, where it does."""
    param = getattr(error, "param", None)
    return str(param) if param and getattr(error, "status_code", None) in (400, 422) else None


class OpenAITeacher:
    """A model behind ``/chat/completions`` or ``/completions``, asked online.

    Args:
        server: Which.
        throttle: Concurrency and rates.
        max_choices: Choices asked for in one request.
        max_retries: Further tries of a request that failed for a passing reason.
    """

    def __init__(self, server: Server, throttle: Throttle, max_choices: int, max_retries: int) -> None:
        self.identity = server.identity
        self.older_identities: Sequence[Mapping[str, Any]] = ()
        self.chat = server.chat
        self.max_choices = max_choices
        self._retries: Counter[str] = Counter()
        self._server = server
        self._throttle = throttle
        self._max_retries = max_retries
        self._client: Any = None
        self._told: set[str] = set()

    @property
    def concurrency(self) -> int:
        """What the server is found to take, and some that wait."""
        return self._throttle.outstanding

    async def generate(self, request: Request, n: int, seed: int, account: Account = NO_ACCOUNT) -> Reply:
        """One request, retried while the reason may pass.

        Raises:
            FcotError: The server refuses (key, model, parameters, quota), every retry failed, or the budget is spent.
        """
        failures = 0
        while True:
            n = min(n, self.max_choices)
            ticket = await self._throttle.enter(request.most_prompt_tokens() // 4 + n * request.max_tokens)
            try:
                account.sending()
                began = time.monotonic()
                reply = await self._send(request, n, seed)
                self._throttle.succeeded(time.monotonic() - began)
                if len(reply.choices) < n:
                    self._tell_once(f"the server returned {len(reply.choices)} of the {n} choices asked for: the rest is asked for again")
                return reply
            except BudgetSpent:
                raise
            except Exception as error:
                if _may_be_charged(error):
                    account.maybe_charged()
                else:
                    account.not_charged()
                if (refused := self._server.refusal(error)) is not None:
                    self._throttle.succeeded()
                    return Reply([refused], Usage(0, 0))
                if n > 1 and refused_parameter(error) == "n":
                    self.max_choices = 1
                    self._tell_once("the server refuses several choices in one request (n): they are asked for one by one")
                    continue
                wait = self._passing(error, failures, ticket)
                failures += 1
            finally:
                self._throttle.leave()
            await self._throttle.pause(wait)

    async def _send(self, request: Request, n: int, seed: int) -> Reply:
        if self._client is None:
            self._client = self._server.client(event_hooks={"response": [self._observe]})
        body = self._server.body(request, n, seed)
        # Not through `.create`: building its models takes two thirds of the processor time of a request.
        async with asyncio.timeout(self._server.timeout_s):  # the client's own ends a silence, not an answer that trickles
            data = await self._client.post(self._server.path, cast_to=bytes, body=body)
        return to_reply(json.loads(data))

    async def _observe(self, response: Any) -> None:
        self._throttle.observe(response.headers)

    def _passing(self, error: Exception, attempt: int, ticket: int) -> float:
        """Seconds to wait before another try, or the end of all tries."""
        if (stop := self._server.stop_message(error)) is not None:
            self._throttle.halt()
            raise FcotError(stop) from error
        kind = str(getattr(error, "status_code", None) or type(error).__name__.removeprefix("API"))
        self._retries[kind] += 1
        tries = min(self._max_retries, TRIES_TO_CONNECT - 1) if not_reached(error) and not self._throttle.proven else self._max_retries
        if attempt >= tries:
            if not_reached(error):
                raise FcotError(self._server.no_answer(error, attempt + 1)) from error
            group = self._server.group
            where = f" at {group}.base_url={self._server.base_url}" if self._server.base_url else ""
            raise FcotError(
                f"{group}.model={self._server.model}{where}: {attempt + 1} tries of one request failed, the last with "
                f"{describe(error)}. What was bought is in the store; the same command continues"
            ) from error
        asked = _retry_after(error)
        if asked is not None and asked > _LONGEST_RETRY_AFTER_S:
            raise FcotError(
                f"the server asks to wait {asked:,.0f} s: {describe(error)}. What was bought is in the store; the same command continues"
            )
        if getattr(error, "status_code", None) in _PUSH_BACK_STATUS or "Timeout" in kind:
            self._throttle.pushed_back(ticket, asked)
        return (asked or 0.0) + back_off_s(attempt)

    def _tell_once(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            say(message)

    def status(self) -> str:
        """Such as ``47 of 50 in flight, retried: 3 x 429``."""
        tried_again = ", ".join(f"{count} x {kind}" for kind, count in self._retries.most_common())
        return f"{self._throttle.in_flight} of {self._throttle.limit} in flight" + (f", retried: {tried_again}" if tried_again else "")

    def halt(self) -> None:
        """Send nothing more."""
        self._throttle.halt()

    async def close(self) -> None:
        """Close the connections; a later request opens new ones (each event loop needs its own)."""
        self._throttle.reset()
        if self._client is not None:
            client, self._client = self._client, None
            await client.close()


class Malformed(Exception):
    """An answer with status 200 that is not a completion."""


def _key() -> str:
    """The key from the environment; files it is read from often end in a newline."""
    return os.environ.get(KEY_VARIABLE, "").strip()


def to_reply(answer: Any) -> Reply:
    """A completion object as the API returns it, chat or plain.

    Raises:
        Malformed: It is none.
    """
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not choices or not isinstance(choices, list):
        raise Malformed("an answer without choices")
    usage = answer.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"), cached)
    return Reply([_to_choice(choice) for choice in choices], Usage(*(count if type(count) is int else None for count in counts)))


def _to_choice(choice: Any) -> Choice:
    if not isinstance(choice, dict):
        raise Malformed("a choice that is none")
    holder = choice["message"] if isinstance(choice.get("message"), dict) else choice
    text = holder["content"] if "content" in holder else holder.get("text", 0)
    if not isinstance(text, str | None):
        raise Malformed("a choice without text")
    text = (text or "").encode("utf-8", "replace").decode()  # half a surrogate pair cannot be stored
    reason = choice.get("finish_reason")
    if choice.get("error") or not isinstance(reason, str | None) or reason == "error":
        raise Malformed("a choice that broke off")
    if reason == "content_filter":
        return Choice(text, reason, refused="content_filter")
    if text.strip():
        return Choice(text, reason)
    return Choice(text, reason, refused="empty_at_limit" if reason == "length" else "empty")


def back_off_s(attempt: int) -> float:
    """Seconds before try ``attempt + 2``: exponential, with full jitter."""
    return random.uniform(0.1, min(_LONGEST_WAIT_S, 0.5 * 2.0**attempt))


def _retry_after(error: Exception) -> float | None:
    """Seconds the server asks to wait, None where it does not say."""
    response = getattr(error, "response", None)
    if response is None:
        return None
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        with contextlib.suppress(KeyError, ValueError):
            return max(0.0, float(response.headers[name]) / unit)
    with contextlib.suppress(KeyError, ValueError):
        return max(0.0, parsedate_to_datetime(response.headers["retry-after"]).timestamp() - time.time())
    return None


def not_reached(error: Exception) -> bool:
    """Whether a try never got to the server."""
    return type(error.__cause__).__name__ in ("ConnectError", "ConnectTimeout", "PoolTimeout")


def _root(error: BaseException) -> str:
    """What the first cause says."""
    while error.__cause__ is not None:
        error = error.__cause__
    return masked(" ".join(str(error).split()))


def _may_be_charged(error: Exception) -> bool:
    """Whether a try broke off after the server may have done its work."""
    return not hasattr(error, "status_code") and not not_reached(error)


def masked(text: str) -> str:
    """A text without the key, which some servers repeat."""
    return text.replace(key, "***") if (key := _key()) else text


def describe(error: Exception) -> str:
    """One line about an error; never the request, which holds the key, nor the key itself."""
    message = " ".join(str(getattr(error, "message", None) or error).split()).rstrip(".")
    if error.__cause__ is not None:
        message += f" ({' '.join(str(error.__cause__).split())})"
    return f"{type(error).__name__}: {masked(message)[:300].rstrip('.')}"
