"""Calls to a server's files, batches and fine-tuning jobs, with one client and retries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from fcot.base.errors import FcotError
from fcot.base.stopping import asyncio_sleep
from fcot.llm.failures import failure_of
from fcot.llm.openai import LONGEST_RETRY_AFTER_S, TRIES_TO_CONNECT, Server, back_off_s


class Calls:
    """``await calls(send)`` calls ``send(client)``, and again as long as it fails for a temporary reason.

    The client's own retries are not used. If the answer to a call that creates something was lost, the next try has to check first
    whether it was created.

    Args:
        server: The server that is called.
        what: The interface's name, for the message after the last try.
        max_tries: Tries of one call. Fewer as long as no call has reached the server, so that a wrong URL is reported within seconds.

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
                if (stop := self._server.stop_message(failure)) is not None:
                    raise FcotError(stop) from error
                if not self._reached and attempt >= min(self._max_tries, TRIES_TO_CONNECT):
                    raise FcotError(self._server.no_answer(failure, attempt)) from error
                wait = failure.retry_after_s or 0.0
                if attempt >= self._max_tries or wait > LONGEST_RETRY_AFTER_S:
                    asks = f" and asks to wait {wait:,.0f} s" if wait else ""
                    raise FcotError(f"{self._what} fails{asks}: {self._server.describe(failure)}. The same command continues") from error
                self.retries[failure.name] += 1
                await asyncio_sleep(wait + back_off_s(attempt - 1))

    async def close(self) -> None:
        """Close the connections; a later call opens new ones (each event loop needs its own)."""
        if self._client is not None:
            client, self._client = self._client, None
            await client.close()
