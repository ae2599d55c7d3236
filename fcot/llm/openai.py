"""Models behind any OpenAI-compatible server, through the official async client. The client's own retries are off."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fcot.base.console import say
from fcot.base.errors import BudgetSpent, FcotError
from fcot.llm.failures import Failure, failure_of
from fcot.llm.logprobs import TopLogprobs
from fcot.llm.replies import to_reply
from fcot.llm.requests import NO_ACCOUNT, OWN_PARAMETERS, Account, Choice, Reply, Request, Usage
from fcot.llm.throttle import Throttle

OPENAI_URL = "https://api.openai.com"
OPENAI_KEY = "OPENAI_API_KEY"  # the environment variable with OpenAI's own key
NO_KEY = "none"  # the value of api_key_env that sends no key
_LONGEST_WAIT_S = 60.0  # between tries, if the server does not say how long to wait
LONGEST_RETRY_AFTER_S = 600.0  # the longest wait that a server may ask for; beyond it the run stops with a message
TRIES_TO_CONNECT = 4  # tries as long as none has reached the server: a wrong URL is reported within seconds
_TRIES_WITH_SEVERAL = 3  # tries of a request for several choices that fails with 500, before it is sent for one choice
ONE_BY_ONE = "the server rejects several choices per request (parameter n): fcot requests them one by one"


def server_url(base_url: str | None) -> str | None:
    """The address of a server: ``base_url``, else the one in ``OPENAI_BASE_URL``; None for OpenAI's own."""
    return base_url or os.environ.get("OPENAI_BASE_URL") or None


def key_variable(base_url: str | None, api_key_env: str | None) -> str | None:
    """The environment variable with the key that is sent to a server; None if no key is sent.

    A key is only sent to the server it belongs to. ``OPENAI_API_KEY`` is sent to OpenAI's own address and to the one in
    ``OPENAI_BASE_URL``. Any other server gets the key in the variable that ``api_key_env`` names.

    Args:
        base_url: The configured address; None for the default.
        api_key_env: The configured variable; ``none`` sends no key, None is the default described above.
    """
    if api_key_env is not None:
        return None if api_key_env == NO_KEY else api_key_env
    own = base_url is None or base_url.startswith(OPENAI_URL) or base_url == os.environ.get("OPENAI_BASE_URL")
    return OPENAI_KEY if own else None


def key_fault(prefix: str, base_url: str | None, api_key_env: str | None) -> str | None:
    """What is wrong with the key for a server, and the override that corrects it; None if nothing is wrong.

    Args:
        prefix: Prefix of the options in the message, such as ``teacher.``.
        base_url: The configured address; None for the default.
        api_key_env: The configured variable; ``none`` sends no key, None is the default of :func:`key_variable`.
    """
    variable, url = key_variable(base_url, api_key_env), server_url(base_url)
    if variable is not None and not os.environ.get(variable, "").strip():
        if api_key_env is not None:
            return f"{prefix}api_key_env={api_key_env}: there is no such environment variable, or it is empty"
        openai_itself = url is None or url.startswith(OPENAI_URL)
        fault = f"needs the environment variable {variable} (for a server of your own, set {prefix}base_url=...)"
        return fault if openai_itself else None
    if variable is None and api_key_env is None and os.environ.get(OPENAI_KEY):
        return (
            f"{prefix}base_url={base_url} is not the server that {OPENAI_KEY} belongs to, and that variable is set: "
            f"{prefix}api_key_env={OPENAI_KEY} sends this key to the server, {prefix}api_key_env={NO_KEY} sends no key, "
            f"{prefix}api_key_env=NAME sends the key in another variable"
        )
    return None


class Server:
    """A server's address, key and request parameters, shared by the online and the batch back end.

    Args:
        model: The name sent to the server.
        model_id: The name in the store's keys; the same weights behind two names share completions.
        chat: Whether ``/chat/completions`` is used instead of ``/completions``.
        temperature: Sampling temperature.
        parameters: Further request parameters. A value of None leaves out a parameter that would be sent (``temperature``, ``seed``).
        max_tokens_parameter: The parameter that limits answers of this model: ``max_tokens`` or ``max_completion_tokens``.
        base_url: The server's address; None for the one in ``OPENAI_BASE_URL``, else OpenAI's own.
        timeout_s: Limit on one request, in seconds.
        group: The config group that messages name: ``teacher``, or ``student`` for API-backed students.
        api_key_env: The environment variable with the server's key; see :func:`key_variable`.
        logprobs: Requests and reads distributions; None: none are requested.
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
        api_key_env: str | None = None,
        logprobs: TopLogprobs | None = None,
    ) -> None:
        self.logprobs = logprobs
        self.group = group
        self.model = model
        self.chat = chat
        self.path = "/chat/completions" if chat else "/completions"
        self.base_url = server_url(base_url)
        self.timeout_s = timeout_s
        self._key_variable = key_variable(base_url, api_key_env)
        self._parameters = {"temperature": temperature, **parameters}
        self._max_tokens_parameter = max_tokens_parameter
        # Leaving out a limit changes the answers. The parameters user, service_tier, metadata and store do not.
        changing = {
            name: value for name, value in parameters.items()
            if name not in ("temperature", "seed", "user", "service_tier", "metadata", "store") and (value is not None or "max_" in name)
        }  # fmt: skip
        self.identity: Mapping[str, Any] = {
            "model": model_id, "temperature": self._parameters["temperature"], **({"parameters": changing} if changing else {}),
        }  # fmt: skip

    @property
    def _key(self) -> str:
        """The key from the environment; empty if none is sent. It is stripped, because keys from files often end in a newline."""
        return os.environ.get(self._key_variable, "").strip() if self._key_variable else ""

    def client(self, **http: Any) -> Any:
        """A new client; each event loop needs its own."""
        import openai

        return openai.AsyncOpenAI(
            api_key=self._key or "unused", base_url=self.base_url, max_retries=0, timeout=self.timeout_s,
            http_client=openai.DefaultAioHttpClient(timeout=self.timeout_s, **http),
        )  # fmt: skip

    def body(self, request: Request, n: int, seed: int) -> dict[str, Any]:
        """The JSON body of a request."""
        body = {
            "model": self.model, ("messages" if self.chat else "prompt"): request.prompt, "n": n, "seed": seed,
            self._max_tokens_parameter: request.max_tokens, **({"stop": list(request.stop)} if request.stop else {}),
            **self._parameters, **(self.logprobs.parameters(request, self.chat) if self.logprobs else {}),
        }  # fmt: skip
        return {name: value for name, value in body.items() if value is not None}

    @property
    def sent(self) -> list[str]:
        """Names of the parameters that requests may have. Those that servers reject most often come first."""
        return [*self._parameters, "seed", "n", self._max_tokens_parameter, "stop", "messages", "prompt", "model"]

    # --- failures ---

    def masked(self, text: str) -> str:
        """A text with the key replaced by ``***``: some servers repeat the key in errors."""
        return text.replace(self._key, "***") if self._key else text

    def describe(self, failure: Failure) -> str:
        """One line about a failure. It contains neither the key nor the request."""
        return f"{failure.kind}: {self.masked(failure.text).rstrip('.')}"

    def refusal(self, failure: Failure) -> Choice | None:
        """The unusable answer to a prompt that is itself at fault; None for other failures."""
        reason = failure.prompt_fault()
        return None if reason is None else Choice("", None, refused=reason)

    def names_n(self, failure: Failure) -> bool:
        """Whether the server rejects the parameter ``n``: several choices in one request."""
        return failure.parameter(self.sent) == "n"

    def stop_message(self, failure: Failure) -> str | None:
        """Why further requests would fail too; None if the reason may be temporary."""
        status, reason = failure.status, self.describe(failure)
        if failure.retriable or status == 200:
            return None
        if status is None:
            return f"{reason} while sending to {self.group}.model={self.model}"
        if status in (401, 403):
            if self._key:
                return f"the server rejects the key in ${self._key_variable}: {reason}"
            remedy = f"Set the environment variable {self._key_variable}"
            if not self._key_variable:
                remedy = f"Put it into an environment variable NAME and set {self.group}.api_key_env=NAME"
            return f"the server requires a key: {reason}. {remedy}"
        if status == 404:
            where = f"{self.group}.base_url={self.base_url}: does it end in /v1?" if self.base_url else "OpenAI"
            endpoint = f"teacher.endpoint={'chat' if self.chat else 'completions'}" if self.group == "teacher" else failure.path
            new_model = ". A model just trained may need some minutes: the same command continues" if self.model.startswith("ft:") else ""
            return f"no model {self.group}.model={self.model} or no endpoint {endpoint} at {where} ({reason}){new_model}"
        if failure.out_of_quota:
            return f"the account's quota is used up: {reason}. Raise it; the same command then continues"
        return f"the server rejects the request: {reason}{self.remedy(failure)}"

    def remedy(self, failure: Failure) -> str:
        """The override that leaves out or renames the parameter that an error names; empty if there is none."""
        name = failure.parameter(self.sent)
        if name == "stop":
            return ". prompt.stop=[] leaves it out"
        if name == self._max_tokens_parameter:
            other_name = "max_completion_tokens" if name == "max_tokens" else "max_tokens"
            return f". {self.group}.max_tokens_parameter={other_name} renames it"
        if self.group == "student":
            return f" (student.model={self.model})"
        if name is None or name in OWN_PARAMETERS:
            return ""
        return f'. "teacher.parameters={{{name}:null}}" leaves it out (or give another value instead of null)'

    def no_answer(self, failure: Failure, tries: int) -> str:
        """The message about a request that reached no server in any of its ``tries``."""
        where = f"{self.group}.base_url={self.base_url or 'OpenAI'}"
        return f"no server answers at {where} ({self.masked(failure.text)}): is it running? {tries} tries failed"


class OpenAIModel:
    """A model behind ``/chat/completions`` or ``/completions``, used online.

    Args:
        server: The server of the model.
        throttle: Limits concurrency and rates.
        max_choices: The most choices in one request.
        max_retries: The most further tries of a request that failed for a temporary reason.
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
        self._said: set[str] = set()
        self._several_work = False  # a request for several choices was answered

    @property
    def concurrency(self) -> int:
        """How many calls may be outstanding: the requests that may be in flight, and some that wait for their turn."""
        return self._throttle.outstanding

    async def generate(self, request: Request, n: int, seed: int, account: Account = NO_ACCOUNT) -> Reply:
        """Send one request, and retry it while the reason of its failure may be temporary.

        Raises:
            FcotError: The server rejects it (key, model, parameters, quota), every retry failed, or the budget is spent.
        """
        n_failures, n_requested = 0, n
        while True:
            n = min(n, self.max_choices)
            ticket = await self._throttle.enter(request.most_prompt_tokens() // 4 + n * request.max_tokens)
            began = time.monotonic()
            try:
                account.sending()
                reply = await self._send(request, n, seed)
                self._throttle.succeeded(time.monotonic() - began)
                self._learn_choices(n, n_requested, len(reply.choices))
                return reply
            except BudgetSpent:
                raise
            except Exception as error:
                failure = failure_of(error)
                if failure.maybe_charged:
                    account.maybe_charged()
                else:
                    account.not_charged()
                if (refused := self._server.refusal(failure)) is not None:
                    self._throttle.succeeded(time.monotonic() - began)
                    return Reply([refused], Usage(0, 0))
                if n > 1 and self._may_reject_several(failure, n_failures + 1):
                    n = 1
                    continue
                wait_s = self._retry_wait_s(failure, error, n_failures, ticket)
                n_failures += 1
            finally:
                self._throttle.leave()
            await self._throttle.pause(wait_s)

    def _may_reject_several(self, failure: Failure, n_failures: int) -> bool:
        """Whether a request may have failed because it was for several choices. A retry with one choice then shows whether it did."""
        if self._server.names_n(failure):
            return True
        repeated = failure.status == 500 and n_failures >= _TRIES_WITH_SEVERAL
        return not self._several_work and failure.parameter(self._server.sent) is None and (failure.may_reject_several or repeated)

    def _learn_choices(self, n: int, n_requested: int, n_returned: int) -> None:
        """Learn from an answer whether the server supports several choices in one request.

        Args:
            n: Choices in the request that was answered.
            n_requested: Choices that the caller requested. ``n`` is smaller if the request was repeated for one choice.
            n_returned: Choices in the answer.
        """
        if n > 1:
            self._several_work = True
            if n_returned < n:
                self._say_once(f"the server returned {n_returned} of {n} requested choices: fcot requests the rest again")
        elif n_requested > 1 and self.max_choices > 1:
            self.max_choices = 1
            self._say_once(ONE_BY_ONE)

    async def _send(self, request: Request, n: int, seed: int) -> Reply:
        if self._client is None:
            self._client = self._server.client(event_hooks={"response": [self._observe]})
        body = self._server.body(request, n, seed)
        # `.create` is not used, because building its response models takes two thirds of the processor time of a request.
        async with asyncio.timeout(self._server.timeout_s):  # the client's own timeout ends a silence, but not an answer that trickles in
            data = await self._client.post(self._server.path, cast_to=bytes, body=body)
        return to_reply(json.loads(data), request, self._server.logprobs)

    async def _observe(self, response: Any) -> None:
        self._throttle.observe(response.headers)

    def _retry_wait_s(self, failure: Failure, error: Exception, attempt: int, ticket: int) -> float:
        """Seconds to wait before another try.

        Args:
            failure: Why the last try failed.
            error: The exception that ``failure`` describes.
            attempt: Number of the failed try, from 0.
            ticket: The failed try's ticket of :meth:`Throttle.enter`.

        Raises:
            FcotError: Another try would fail too, or no retry remains.
        """
        server = self._server
        if (message := server.stop_message(failure)) is not None:
            self._throttle.halt()
            raise FcotError(message) from error
        self._retries[failure.name] += 1
        connects = failure.connected or self._throttle.proven
        max_retries = self._max_retries if connects else min(self._max_retries, TRIES_TO_CONNECT - 1)
        if attempt >= max_retries:
            if not failure.connected:
                raise FcotError(server.no_answer(failure, attempt + 1)) from error
            where = f" at {server.group}.base_url={server.base_url}" if server.base_url else ""
            raise FcotError(
                f"{server.group}.model={server.model}{where}: {attempt + 1} tries of one request failed, the last with "
                f"{server.describe(failure)}. What was bought is in the store; the same command continues"
            ) from error
        wait_s = failure.retry_after_s
        if wait_s is not None and wait_s > LONGEST_RETRY_AFTER_S:
            raise FcotError(
                f"the server asks to wait {wait_s:,.0f} s: {server.describe(failure)}. What was bought is in the store; "
                "the same command continues"
            )
        if failure.pushes_back:
            self._throttle.pushed_back(ticket, wait_s)
        return (wait_s or 0.0) + back_off_s(attempt)

    def _say_once(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            say(message)

    def status(self) -> str:
        """Such as ``47 of 50 in flight, retried: 3 x 429``."""
        retried = ", ".join(f"{count} x {kind}" for kind, count in self._retries.most_common())
        return f"{self._throttle.in_flight} of {self._throttle.limit} in flight" + (f", retried: {retried}" if retried else "")

    def halt(self) -> None:
        """Send no further requests."""
        self._throttle.halt()

    async def close(self) -> None:
        """Close the connections; a later request opens new ones (each event loop needs its own)."""
        self._throttle.reset()
        if self._client is not None:
            client, self._client = self._client, None
            await client.close()


def back_off_s(attempt: int) -> float:
    """Seconds to wait after the failed try ``attempt`` (from 0): exponential, with full jitter."""
    return random.uniform(0.1, min(_LONGEST_WAIT_S, 0.5 * 2.0**attempt))
