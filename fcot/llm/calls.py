"""Calls to a server's files, batches and fine-tuning jobs, with one client and retries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from fcot.base.errors import FcotError
from fcot.base.stopping import asyncio_sleep
from fcot.llm.failures import failure_of
from fcot.llm.openai import LONGEST_RETRY_AFTER_S, TRIES_TO_CONNECT, back_off_s
from fcot.llm.server import Server


class Calls:
    """``await calls(send)`` awaits ``send(client)``, and repeats it as long as it fails for a temporary reason.

    The client's own retries are not used. A ``send`` that creates something must first check whether an earlier try has created it,
    because the answer to that try may be lost.

    Args:
        server: The server that is called.
        what: The interface's name, such as ``the Batch API``, for the message after the last try.
        max_tries: The most tries of one call. As long as no call has reached the server, at most :data:`TRIES_TO_CONNECT`, so that a
            wrong URL is reported within seconds.

    Attributes:
        retries: Failed tries by status or kind of error.
    """

    def __init__(self, server: Server, what: str, max_tries: int) -> None:
        self.retries: Counter[str] = Counter()
        self._server = server
        self._what = what
        self._max_tries = max_tries
        self._reached = False
        self._client: Any = None

    async def __call__(self, send: Callable[[Any], Awaitable[Any]]) -> Any:
        """Call until one try succeeds.

        Raises:
            FcotError: The server rejects the call, or every try failed.
        """
        self._client = self._client or self._server.client()
        attempt = 0
        while True:
            try:
                answer = await send(self._client)
                self._reached = True
                return answer
            except Exception as error:
                failure = failure_of(error)
                attempt += 1
                self._reached |= failure.connected
                if (message := self._server.stop_message(failure)) is not None:
                    raise FcotError(message) from error
                if not self._reached and attempt >= min(self._max_tries, TRIES_TO_CONNECT):
                    raise FcotError(self._server.no_answer(failure, attempt)) from error
                wait = failure.retry_after_s or 0.0
                if attempt >= self._max_tries or wait > LONGEST_RETRY_AFTER_S:
                    wait_text = f" and asks to wait {wait:,.0f} s" if wait else ""
                    raise FcotError(
                        f"{self._what} fails{wait_text}: {self._server.describe(failure)}. The same command continues"
                    ) from error
                self.retries[failure.name] += 1
                await asyncio_sleep(wait + back_off_s(attempt - 1))

    async def close(self) -> None:
        """Close the connections; a later call opens new ones (each event loop needs its own)."""
        if self._client is not None:
            client, self._client = self._client, None
            await client.close()
