"""Models behind any OpenAI-compatible server, used online: retries, choices per request, limits."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fcot.base.console import say
from fcot.base.errors import BudgetSpent, FcotError
from fcot.llm.failures import Failure, failure_of, not_json
from fcot.llm.replies import to_reply
from fcot.llm.requests import NO_ACCOUNT, Account, Reply, Request, Usage
from fcot.llm.server import Server
from fcot.llm.throttle import Throttle

_LONGEST_WAIT_S = 60.0  # between tries, if the server does not say how long to wait
LONGEST_RETRY_AFTER_S = 600.0  # the longest wait that a server may ask for; beyond it the run stops with a message
TRIES_TO_CONNECT = 4  # tries as long as none has reached the server: a wrong URL is reported within seconds
_MODELS_S = 10.0  # longest wait for the names of the server's models
_TRIES_WITH_SEVERAL = 3  # tries of a request for several choices that fails with 500, before it is sent for one choice
ONE_BY_ONE = "the server rejects several choices per request (parameter n): fcot requests them one by one"


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
        self._model_names: list[str] | None = None
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
                if failure.unknown_model:
                    self._throttle.halt()
                    raise FcotError(str(self._server.stop_message(failure, await self._models()))) from error
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
                message = f"the server returned {n_returned} of {n} requested choices: fcot requests the rest again"
                self._say_once(message, "fewer choices")  # with whatever numbers
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
        try:
            answer = json.loads(data)
        except ValueError as error:
            raise not_json(data) from error
        return to_reply(answer, request, self._server.logprobs)

    async def _models(self) -> list[str]:
        """Names of the models that the server has; empty if it does not list them."""
        if self._model_names is None:
            self._model_names = []  # other requests that fail at the same time do not wait for them
            with contextlib.suppress(Exception):
                async with asyncio.timeout(_MODELS_S):
                    self._model_names = [model.id async for model in self._client.models.list()]
        return self._model_names

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
        if failure.html and failure.status == 200 and not self._throttle.proven:
            self._throttle.halt()
            raise FcotError(server.not_the_api(failure)) from error
        self._retries[failure.name] += 1
        if failure.timed_out:
            self._say_once(f"note: {server.describe(failure)}. The request counts at its maximum cost and is sent again")
        reached = self._throttle.proven or (failure.connected and not failure.timed_out)
        max_retries = self._max_retries if reached else min(self._max_retries, TRIES_TO_CONNECT - 1)
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

    def _say_once(self, message: str, about: str | None = None) -> None:
        """Say a message, unless this or another message with the same ``about`` was said."""
        if (about or message) not in self._said:
            self._said.add(about or message)
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
